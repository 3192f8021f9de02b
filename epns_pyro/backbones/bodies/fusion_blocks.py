"""Fusion blocks: weighted sums of fusion diagrams of a body's legs, after Li et al. (arXiv:2211.07482).

    out^L_c = sum_d w_cd B^L_d(leg_c, leg'_c, ...) / sqrt(number of diagrams to L)

Every channel c is fused by itself, with weights of its own that may differ from body to body. Legs are sums over neighbours, so a diagram
with k leaves holds what depends on k neighbours at once, and costs no more for it. Two forms with the same diagrams, weights and results:
`SphericalBlock` for every degree, `CartesianBlock` for scalars and vectors alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from epns_pyro.backbones.bodies.fusion_diagrams import Diagram, Legs, diagrams, place, slices, vertex
from epns_pyro.backbones.bodies.tensor_product import size

Invariant = tuple[int, frozenset[str] | None]  # power of the scalar, and the legs of a dot product
Term = tuple[Invariant, str | None]  # an invariant, times a vector where the root is one

NOTHING = Diagram((), (), ())  # the stem of a lone leaf: a 1
WIDE = math.sqrt(3 / 5)  # of the symmetric traceless part of two vectors, coupled to a third


class FusionBlock(nn.Module, ABC):
    """What both forms share: the diagrams, in the order of their weights."""

    def __init__(self, legs: Legs, most: int, after: tuple[str, ...]) -> None:
        super().__init__()
        self.legs = legs
        self.after = {out: [d for d in diagrams(legs, most, after) if d.out == out] for out in after}

    @property
    def weights(self) -> int:
        """Number of weights per channel: one per diagram."""
        return sum(map(len, self.after.values()))

    def split(self, weights: Tensor) -> list[Tensor]:
        """Take weights (..., channel, diagram) apart by root."""
        return list(weights.split([len(found) for found in self.after.values()], -1))

    @abstractmethod
    def forward(self, tensors: Mapping[str, Tensor], weights: Tensor) -> dict[str, Tensor]:
        """Fuse the legs of every body.

        Parameters
        ----------
        tensors : dict of Tensor, (*batch, body, channel, component)
            Legs by name, with the components of all their irreps.
        weights : Tensor, (*batch, body, channel, diagram)

        Returns
        -------
        dict of Tensor, (*batch, body, channel, component)
            By irrep of the root.
        """


class Exact(nn.Module):
    """A constant that stays in double precision when its module is cast, and is read in the precision of the module."""

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self._exact = value  # not a buffer
        self.register_buffer("value", value.to(torch.get_default_dtype()), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Exact:
        super()._apply(fn, recurse)
        self.value = self._exact.to(self.value)
        return self

    def forward(self) -> Tensor:
        return self.value


class SphericalBlock(FusionBlock):
    """Diagrams by Clebsch-Gordan coefficients of e3nn, for irreps of any degree, in 3 dimensions.

    Combs without their last leaf are computed once each. Those that go on to the same leaf and root in the same irrep are summed with
    their weights, and the leaf is coupled to the sum.
    """

    def __init__(self, legs: Legs, most: int, after: tuple[str, ...]) -> None:
        super().__init__(legs, most, after)
        found = [d for some in self.after.values() for d in some]
        self._irreps = dict(legs)
        self._stems = _by_legs((d.stem for d in found if len(d.legs) > 1), self._irreps)
        self._products = nn.ModuleDict({_key(*names): Exact(self._product(names)) for names in self._stems if len(names) > 1})
        every = [NOTHING, *(d for combs in self._stems.values() for d in combs)]
        where = dict(zip(every, slices(d.out for d in every), strict=True))
        ends = {(name, leaf): [(n, d) for n, d in enumerate(found) if _end(d) == (name, leaf)] for name, irreps in legs for leaf in irreps}
        self._ends = [end for end, combs in ends.items() if combs]
        self._last = nn.ModuleDict({_key(*end): _Last(self.after, where, ends[end]) for end in self._ends})

    def forward(self, tensors: Mapping[str, Tensor], weights: Tensor) -> dict[str, Tensor]:
        values: dict[tuple[str, ...], Tensor] = {}
        for names in self._stems:
            last = tensors[names[-1]]
            if len(names) > 1:
                last = (values[names[:-1]][..., :, None] * last[..., None, :]).flatten(-2) @ self._products[_key(*names)]()
            values[names] = last
        parts = list(values.values())
        stems = torch.cat([torch.ones_like(parts[0][..., :1]), *parts], -1)
        leaves = [tensors[name][..., place(self._irreps[name], leaf)] for name, leaf in self._ends]
        made = [self._last[_key(*end)](stems, leaf, weights) for end, leaf in zip(self._ends, leaves, strict=True)]
        return dict(zip(self.after, reduce(torch.add, made).split([size(out) for out in self.after], -1), strict=True))

    def _product(self, names: tuple[str, ...]) -> Tensor:
        """Coefficients from (component of a stem, component of the last leg) to the components of combs, as a matrix."""
        stems, irreps, combs = self._stems[names[:-1]], self._irreps[names[-1]], self._stems[names]
        rows, columns = dict(zip(stems, slices(d.out for d in stems), strict=True)), slices(d.out for d in combs)
        shape = [sum(map(size, some)) for some in ([d.out for d in stems], irreps, [d.out for d in combs])]
        table = torch.zeros(shape, dtype=torch.float64)
        for d, column in zip(combs, columns, strict=True):
            table[rows[d.stem], place(irreps, d.leaves[-1]), column] = vertex(d.stem.out, d.leaves[-1], d.out)
        return table.flatten(0, 1)


class _Last(nn.Module):
    """Couple one leaf to weighted sums of the stems that go on to it.

    Parameters
    ----------
    after : dict of list
        All diagrams of the block, by root.
    where : dict of slice
        Where the components of a stem are.
    combs : list of (int, Diagram)
        The diagrams that end in the leaf, with the numbers of their weights.
    """

    _places: Tensor
    _numbers: Tensor

    def __init__(
        self, after: Mapping[str, Sequence[Diagram]], where: Mapping[Diagram, slice], combs: Sequence[tuple[int, Diagram]]
    ) -> None:
        super().__init__()
        leaf = combs[0][1].leaves[-1]
        sums = list(dict.fromkeys((d.stem.out, d.out) for _, d in combs))  # what is summed: the irrep of stems, and the root they go to
        rows, columns = slices(stem for stem, _ in sums), dict(zip(after, slices(after), strict=True))
        width = rows[-1].stop
        places = [torch.arange(where[d.stem].start, where[d.stem].stop) for _, d in combs]
        self.register_buffer("_places", torch.cat(places), persistent=False)
        numbers = torch.tensor([number for number, _ in combs])
        self.register_buffer("_numbers", numbers.repeat_interleave(torch.tensor(list(map(len, places)))), persistent=False)
        shares = [torch.eye(width, dtype=torch.float64)[rows[sums.index((d.stem.out, d.out))]] / len(after[d.out]) ** 0.5 for _, d in combs]
        self.sum = Exact(torch.cat(shares))
        table = torch.zeros(width, size(leaf), sum(map(size, after)), dtype=torch.float64)
        for row, (stem, out) in zip(rows, sums, strict=True):
            table[row, :, columns[out]] = vertex(stem, leaf, out)
        self.couple = Exact(table.flatten(0, 1))

    def forward(self, stems: Tensor, leaf: Tensor, weights: Tensor) -> Tensor:
        """Components of all roots, (*batch, body, channel, component), from those of stems and of a leaf."""
        weighted = stems.index_select(-1, self._places) * weights.index_select(-1, self._numbers)
        return ((weighted @ self.sum())[..., :, None] * leaf[..., None, :]).flatten(-2) @ self.couple()


class CartesianBlock(FusionBlock):
    """The diagrams of one scalar leaf and of vectors, up to three leaves, in dot and cross products; in any number of dimensions.

    A vector made of three is a sum of (dot product) times (vector), for (a x b) x c = b (a . c) - a (b . c). So the weights of all
    diagrams that hold the same product are summed first.
    """

    _pairs: Tensor

    def __init__(self, legs: Legs, most: int, after: tuple[str, ...]) -> None:
        super().__init__(legs, most, after)
        self._vectors = [name for name, irreps in legs if "1o" in irreps]
        self._scalar = next(name for name, irreps in legs if "0e" in irreps)
        self._most, legs_count = most, len(self._vectors)
        pairs = torch.triu_indices(legs_count, legs_count)
        self.register_buffer("_pairs", pairs, persistent=False)
        dots = [frozenset((self._vectors[a], self._vectors[b])) for a, b in pairs.mT.tolist()]
        # powers of the scalar, then those times a dot product; for a root that is a vector each of these times every vector
        invariants: list[Invariant] = [(k, None) for k in range(most + 1)] + [(k, dot) for k in range(most - 1) for dot in dots]
        terms: dict[str, list[Term]] = {"0e": [(i, None) for i in invariants], "1o": [(i, v) for i in invariants for v in self._vectors]}
        self._tables = nn.ModuleDict()
        for out, found in self.after.items():
            rows = [[self._terms(d).get(term, 0.0) for term in terms[out]] for d in found]
            table = torch.tensor(rows, dtype=torch.float64).reshape(len(found), len(terms[out]))
            self._tables[out] = Exact(table / math.sqrt(max(1, len(found))))

    def forward(self, tensors: Mapping[str, Tensor], weights: Tensor) -> dict[str, Tensor]:
        irreps, (first, second) = dict(self.legs), self._pairs
        vectors = torch.stack([tensors[name][..., int("0e" in irreps[name]) :] for name in self._vectors], -2)  # (..., leg, space)
        powers = torch.cat([tensors[self._scalar][..., :1] ** k for k in range(self._most + 1)], -1)
        dots = (vectors @ vectors.mT)[..., first, second]
        products = powers[..., : self._most - 1, None] * dots[..., None, :]
        invariants = torch.cat([powers, products.flatten(-2)], -1)
        fused = {}
        for (out, table), weight in zip(self._tables.items(), self.split(weights), strict=True):
            summed = weight @ table()
            if out == "0e":
                fused[out] = (summed * invariants).sum(-1, keepdim=True)
            else:
                shares = invariants[..., None, :] @ summed.unflatten(-1, (invariants.shape[-1], len(self._vectors)))
                fused[out] = (shares @ vectors)[..., 0, :]
        return fused

    def _terms(self, diagram: Diagram) -> dict[Term, float]:
        """Write a diagram as a sum of factors times invariants, or times invariants and vectors."""
        vectors = [leg for leg, leaf in zip(diagram.legs, diagram.leaves, strict=True) if leaf == "1o"]
        power = len(diagram.legs) - len(vectors)
        if not vectors:
            return {((power, None), None): 1.0}
        if len(vectors) == 1:
            return {((power, None), vectors[0]): 1.0}
        if len(vectors) == 2:
            return {((power, frozenset(vectors)), None): 1 / math.sqrt(3)}
        a, b, c = vectors
        ways: dict[str, list[tuple[str, str, str, float]]] = {  # (x . y) z, and its factor
            "0e": [(a, b, c, 1 / math.sqrt(3))],
            "1e": [(a, c, b, 0.5), (b, c, a, -0.5)],
            "2e": [(a, c, b, 0.5 * WIDE), (b, c, a, 0.5 * WIDE), (a, b, c, -WIDE / 3)],
        }
        terms = defaultdict[Term, float](float)
        for x, y, z, factor in ways[diagram.edges[1]]:
            terms[((0, frozenset((x, y))), z)] += factor
        return terms


def _by_legs(found: Iterable[Diagram], irreps: Mapping[str, tuple[str, ...]]) -> dict[tuple[str, ...], list[Diagram]]:
    """Return diagrams and all their stems by legs, short ones first; of one leg all its irreps."""
    combs = dict.fromkeys(Diagram((name,), (irrep,), (irrep,)) for name, some in irreps.items() for irrep in some)
    for diagram in found:
        while diagram not in combs:
            combs[diagram] = None
            diagram = diagram.stem
    names = sorted(dict.fromkeys(d.legs for d in combs), key=len)
    return {legs: [d for d in combs if d.legs == legs] for legs in names}


def _end(diagram: Diagram) -> tuple[str, str]:
    """Name and irrep of the last leaf."""
    return diagram.legs[-1], diagram.leaves[-1]


def _key(*parts: str) -> str:
    return "_".join(parts)
