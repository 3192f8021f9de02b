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

import torch
from torch import Tensor, nn

from epns_pyro.backbones.bodies.fusion_diagrams import Diagram, Legs, diagrams, place, vertex
from epns_pyro.backbones.bodies.tensor_product import size

Invariant = tuple[int, frozenset[str] | None]  # power of the scalar, and the legs of a dot product
Term = tuple[Invariant, str | None]  # an invariant, times a vector where the root is one

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
        ends = dict.fromkeys((name, leaf) for name, irreps in legs for leaf in irreps)
        self._ends = [end for end in ends if any(_end(d) == end for d in found)]
        self._last = nn.ModuleDict({_key(*end): _Last(self, [(n, d) for n, d in enumerate(found) if _end(d) == end]) for end in self._ends})

    def forward(self, tensors: Mapping[str, Tensor], weights: Tensor) -> dict[str, Tensor]:
        values = dict[tuple[str, ...], Tensor]()
        for names in self._stems:
            last = tensors[names[-1]]
            if len(names) > 1:
                last = (values[names[:-1]][..., :, None] * last[..., None, :]).flatten(-2) @ self._products[_key(*names)]()
            values[names] = last
        parts = list(values.values())
        stems = torch.cat([torch.ones_like(parts[0][..., :1]), *parts], -1)
        total: Tensor | float = 0.0
        for name, leaf in self._ends:
            total = total + self._last[_key(name, leaf)](stems, tensors[name][..., place(self._irreps[name], leaf)], weights)
        return dict(zip(self.after, torch.as_tensor(total).split([size(out) for out in self.after], -1), strict=True))

    def columns(self, stem: Diagram) -> range:
        """Return where the components of a stem are among those of all stems; first is a 1, the stem of a lone leaf."""
        if not stem.legs:
            return range(1)
        before = [d for combs in self._stems.values() for d in combs]
        start = 1 + sum(size(d.out) for d in before[: before.index(stem)])
        return range(start, start + size(stem.out))

    def _product(self, names: tuple[str, ...]) -> Tensor:
        """Coefficients from (component of a stem, component of the last leg) to the components of combs, as a matrix."""
        stems, irreps, combs = self._stems[names[:-1]], self._irreps[names[-1]], self._stems[names]
        table = torch.zeros(sum(size(d.out) for d in stems), sum(map(size, irreps)), sum(size(d.out) for d in combs), dtype=torch.float64)
        column = 0
        for comb in combs:
            row = sum(size(d.out) for d in stems[: stems.index(comb.stem)])
            columns = slice(column, column + size(comb.out))
            table[row : row + size(comb.stem.out), place(irreps, comb.leaves[-1]), columns] = vertex(
                comb.stem.out, comb.leaves[-1], comb.out
            )
            column += size(comb.out)
        return table.flatten(0, 1)


class _Last(nn.Module):
    """Couple one leaf to weighted sums of the stems that go on to it."""

    _places: Tensor
    _numbers: Tensor

    def __init__(self, block: SphericalBlock, combs: Sequence[tuple[int, Diagram]]) -> None:
        super().__init__()
        leaf = combs[0][1].leaves[-1]
        roots = list(block.after)
        sums = list(dict.fromkeys((d.stem.out, d.out) for _, d in combs))  # what is summed: irrep of the stems, and the root
        starts = [sum(size(stem) for stem, _ in sums[:k]) for k in range(len(sums))]
        width = sum(size(stem) for stem, _ in sums)
        places, numbers, rows = list[int](), list[int](), list[Tensor]()
        for number, d in combs:
            columns = block.columns(d.stem)
            places += columns
            numbers += [number] * len(columns)
            start = starts[sums.index((d.stem.out, d.out))]
            rows.append(torch.eye(width, dtype=torch.float64)[start : start + len(columns)] / math.sqrt(len(block.after[d.out])))
        self.register_buffer("_places", torch.tensor(places), persistent=False)
        self.register_buffer("_numbers", torch.tensor(numbers), persistent=False)
        self.sum = Exact(torch.cat(rows))
        table = torch.zeros(width, size(leaf), sum(map(size, roots)), dtype=torch.float64)
        for start, (stem, out) in zip(starts, sums, strict=True):
            column = sum(map(size, roots[: roots.index(out)]))
            table[start : start + size(stem), :, column : column + size(out)] = vertex(stem, leaf, out)
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
