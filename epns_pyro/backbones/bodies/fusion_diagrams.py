"""Fusion diagrams: the ways to couple up to k tensors into one, as trees of Clebsch-Gordan coefficients.

A diagram is a comb: its first two leaves are coupled to an inner edge, that and the next leaf to another, and so on to the root. For given
leaves the combs with all allowed inner edges are a basis of all equivariant multilinear maps, so another tree would give nothing new. The
parity of an inner edge is the product of its leaves': two vectors make a pseudovector too, which a basis needs (a x b) x c.

A leg is a named direct sum of irreps, such as the harmonics of a neighbourhood. Diagrams with equal legs are used on equal tensors, where
some vanish or say the same as others: `diagrams` returns a linearly independent set. Irreps are named as in e3nn.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from epns_pyro.backbones.bodies.tensor_product import degree, size

Legs = tuple[tuple[str, tuple[str, ...]], ...]  # name and irreps of every leg

INDEPENDENT = 1e-6  # what is left of a tensor, of norm about one, beside those before it


@dataclass(frozen=True)
class Diagram:
    """A comb.

    Parameters
    ----------
    legs : tuple of str
        Names of the legs that its leaves are taken from.
    leaves : tuple of str
        Irreps of the leaves.
    edges : tuple of str
        Irreps along the comb: the first leaf, the inner edges, the root.
    """

    legs: tuple[str, ...]
    leaves: tuple[str, ...]
    edges: tuple[str, ...]

    @property
    def out(self) -> str:
        """Irrep of the root; of no leaves that of a number."""
        return self.edges[-1] if self.edges else "0e"

    @property
    def stem(self) -> Diagram:
        """The comb without its last leaf."""
        return Diagram(self.legs[:-1], self.leaves[:-1], self.edges[:-1])


def couplings(first: str, second: str) -> list[str]:
    """Irreps in the product of two irreps."""
    parity = "e" if first[-1] == second[-1] else "o"
    return [f"{l}{parity}" for l in range(abs(degree(first) - degree(second)), degree(first) + degree(second) + 1)]  # noqa: E741


@functools.cache
def vertex(first: str, second: str, out: str) -> Tensor:
    """Clebsch-Gordan coefficients (component, component, component); for Normal factors every component of the product has variance one."""
    from e3nn.o3 import wigner_3j  # imported here: it takes a second, and most runs do not need it

    return math.sqrt(size(out)) * wigner_3j(degree(first), degree(second), degree(out), dtype=torch.float64)


def slices(irreps: Iterable[str]) -> list[slice]:
    """Return where the components of each of some irreps are, where they follow one another."""
    ends = list(itertools.accumulate(size(irrep) for irrep in irreps))
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def place(irreps: tuple[str, ...], irrep: str) -> slice:
    """Return where the components of an irrep are among those of a leg."""
    return slices(irreps)[irreps.index(irrep)]


def dense(diagram: Diagram, legs: Legs) -> Tensor:
    """Return a diagram as one tensor: (component of its first leg, ..., of its last, component of the root)."""
    irreps = dict(legs)
    tensor = torch.eye(size(diagram.leaves[0]), dtype=torch.float64)
    for before, leaf, after in zip(diagram.edges, diagram.leaves[1:], diagram.edges[1:], strict=False):
        tensor = torch.tensordot(tensor, vertex(before, leaf, after), dims=1)
    shape = [sum(map(size, irreps[leg])) for leg in diagram.legs]
    whole = tensor.new_zeros(*shape, size(diagram.out))
    whole[tuple(place(irreps[leg], leaf) for leg, leaf in zip(diagram.legs, diagram.leaves, strict=True))] = tensor
    return whole


def symmetric(tensor: Tensor, legs: tuple[str, ...]) -> Tensor:
    """Average a dense diagram over the exchanges of equal legs."""
    orders = [
        order for order in itertools.permutations(range(len(legs))) if all(legs[i] == leg for i, leg in zip(order, legs, strict=True))
    ]
    return torch.stack([tensor.permute(*order, len(legs)) for order in orders]).mean(0)


@functools.cache
def diagrams(legs: Legs, most: int, after: tuple[str, ...]) -> tuple[Diagram, ...]:
    """Return linearly independent diagrams with up to `most` leaves and a root in `after`, few leaves first.

    Legs of a diagram come in the given order, each up to `most` times.
    """
    level = [Diagram((leg,), (irrep,), (irrep,)) for leg, irreps in legs for irrep in irreps]
    found = list(level)
    for _ in range(most - 1):
        level = _independent(_grown(level, legs), legs)
        found += level
    return tuple(diagram for diagram in found if diagram.out in after)


def _grown(stems: Iterable[Diagram], legs: Legs) -> Iterable[Diagram]:
    """Couple one more leaf to every diagram, of its last leg or one after it."""
    names = [name for name, _ in legs]
    for stem in stems:
        for leg, irreps in legs[names.index(stem.legs[-1]) :]:
            for leaf in irreps:
                for out in couplings(stem.out, leaf):
                    yield Diagram((*stem.legs, leg), (*stem.leaves, leaf), (*stem.edges, out))


def _independent(candidates: Iterable[Diagram], legs: Legs) -> list[Diagram]:
    """Keep the diagrams that are no linear combination of earlier ones with the same legs and root."""
    kept, spans = [], dict[tuple[tuple[str, ...], str], list[Tensor]]()
    for diagram in candidates:
        rest = symmetric(dense(diagram, legs), diagram.legs).flatten()
        span = spans.setdefault((diagram.legs, diagram.out), [])
        for _ in range(2):  # the second time for what rounding leaves
            for known in span:
                rest = rest - (known @ rest) * known
        if (norm := rest.norm()) > INDEPENDENT:
            kept.append(diagram)
            span.append(rest / norm)
    return kept
