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
from collections.abc import Callable, Iterable, Mapping

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

    A leaf is coupled to all combs of the same legs at once: one outer product and one matrix product with a table. Combs with a common
    stem share it.
    """

    _index: Tensor

    def __init__(self, legs: Legs, most: int, after: tuple[str, ...]) -> None:
        super().__init__(legs, most, after)
        self._irreps = dict(legs)
        self._combs = _by_legs((d for found in self.after.values() for d in found), self._irreps)
        self._tables = nn.ModuleDict()
        for names in self._combs:
            for leaf in self._leaves(names):
                self._tables[_key(names, leaf)] = Exact(self._table(names, leaf))
        starts, start = dict[tuple[str, ...], int](), 0
        for names in self._combs:
            starts[names] = start
            start += self._width(names)
        index = [torch.arange(size(out)) + starts[d.legs] + self._columns(d).start for out, found in self.after.items() for d in found]
        self.register_buffer("_index", torch.cat(index), persistent=False)

    def forward(self, tensors: Mapping[str, Tensor], weights: Tensor) -> dict[str, Tensor]:
        values = dict[tuple[str, ...], Tensor]()
        for names in self._combs:
            last = tensors[names[-1]]
            if len(names) == 1:
                values[names] = last
                continue
            stems, made = values[names[:-1]], []
            for leaf in self._leaves(names):
                outer = stems[..., :, None] * last[..., None, place(self._irreps[names[-1]], leaf)]
                made.append(outer.flatten(-2) @ self._tables[_key(names, leaf)]())
            values[names] = torch.cat(made, -1)
        chosen = torch.cat(list(values.values()), -1).index_select(-1, self._index)
        parts = chosen.split([len(found) * size(out) for out, found in self.after.items()], -1)
        return {
            out: (weight[..., None, :] @ part.unflatten(-1, (len(found), size(out))))[..., 0, :] / math.sqrt(max(1, len(found)))
            for (out, found), part, weight in zip(self.after.items(), parts, self.split(weights), strict=True)
        }

    def _leaves(self, names: tuple[str, ...]) -> list[str]:
        """Last leaves of the combs with these legs, of more than one."""
        return list(dict.fromkeys(d.leaves[-1] for d in self._combs[names])) if len(names) > 1 else []

    def _width(self, names: tuple[str, ...]) -> int:
        """Number of components of all combs with these legs."""
        return sum(size(d.out) for d in self._combs[names])

    def _columns(self, diagram: Diagram) -> slice:
        """Return where a comb is among those with the same legs."""
        combs = self._combs[diagram.legs]
        start = sum(size(before.out) for before in combs[: combs.index(diagram)])
        return slice(start, start + size(diagram.out))

    def _table(self, names: tuple[str, ...], leaf: str) -> Tensor:
        """Coefficients from (component of a stem, component of the last leaf) to the components of its combs, as a matrix."""
        combs = [d for d in self._combs[names] if d.leaves[-1] == leaf]
        table = torch.zeros(self._width(names[:-1]), size(leaf), sum(size(d.out) for d in combs), dtype=torch.float64)
        column = 0
        for comb in combs:
            table[self._columns(comb.stem), :, column : column + size(comb.out)] = vertex(comb.stem.out, leaf, comb.out)
            column += size(comb.out)
        return table.flatten(0, 1)


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
    """Return diagrams and all their stems by legs, short ones first; of one leg all its irreps, of more in order of the last leaf."""
    combs = dict.fromkeys(Diagram((name,), (irrep,), (irrep,)) for name, some in irreps.items() for irrep in some)
    for diagram in found:
        while diagram not in combs:
            combs[diagram] = None
            diagram = diagram.stem
    ordered = sorted(combs, key=lambda d: (len(d.legs), irreps[d.legs[-1]].index(d.leaves[-1])))
    return {legs: [d for d in ordered if d.legs == legs] for legs in dict.fromkeys(d.legs for d in ordered)}


def _key(names: tuple[str, ...], leaf: str) -> str:
    return "_".join((*names, leaf))
