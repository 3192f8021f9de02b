"""Edge features of pairs of bodies: a direction, and smooth functions of the distance that are bounded at every distance."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from epns_pyro.backbones.bodies.graphs import Graph, index_table
from epns_pyro.geometry import Space

DISTANCE_CHANNELS = 4
NOWHERE = 1e-12  # squared: keeps the gradient of a distance finite where two bodies are in one place
POINT = 1e-3  # below this distance a direction is shortened towards zero
SCALES = (0.1, 1.0, 10.0)  # of the distance features: d / (d + scale)
NEAR, FAR = 0.03, 3.0  # log (d + NEAR) / (d + FAR)
REACH = 3.0  # longer vectors are hard to distinguish; in units of their scale


class Edges(NamedTuple):
    """The edges of a graph on bodies.

    Parameters
    ----------
    direction : Tensor, (*edge, space)
        From the receiver to the sender: a unit vector, shorter for distances close to zero.
    length : Tensor, (*edge, 1)
        The distance, in units of the scale of positions.
    distance : Tensor, (*edge, DISTANCE_CHANNELS + attributes of pairs)
        Bounded functions of the distance d that resolve short, medium and long scales, d / (d + SCALES) and log (d + NEAR) / (d + FAR);
        then the attributes of the pair.
    envelope : Tensor, (*edge, 1)
        Weight of a message: it falls to zero for bodies farther apart than any in training.
    """

    direction: Tensor
    length: Tensor
    distance: Tensor
    envelope: Tensor

    @classmethod
    def between(cls, positions: Tensor, graph: Graph, space: Space | None = None, pairs: Tensor | None = None) -> Edges:
        """Measure the edges between bodies at positions (*batch, body, space), in units of their scale; `pairs` as in `Features`."""
        relative = displacements(positions, graph, space)
        length = (relative.square().sum(-1, keepdim=True) + NOWHERE).sqrt()
        inverse = (length + _constants((POINT, 1.0, *SCALES, FAR), length)).reciprocal()
        shortening, envelope, scaled = inverse.split([1, 1, DISTANCE_CHANNELS], -1)
        shares, near = ((length + _constants((0.0, 0.0, 0.0, NEAR), length)) * scaled).split([len(SCALES), 1], -1)
        seen = torch.cat([shares, near.log(), *(() if pairs is None else (graph.pairs(pairs),))], -1)
        return cls(relative * shortening, length, seen, envelope)

    def expand(self, graph: Graph, batch: torch.Size) -> Edges:
        """Return the edges of `graph.expand(batch)`, where these are those of `graph`."""
        return Edges(*(graph.expand_edges(part, batch) for part in self))


@dataclass(frozen=True)
class Around:
    """Who is around each body: a graph and its edges."""

    graph: Graph
    edges: Edges

    def expand(self, batch: torch.Size) -> Around | None:
        """Return the same for positions that are expanded to (*batch, body, space); None if more than dimensions in front are new."""
        if batch == self.graph.batch:
            return self
        if batch[len(batch) - len(self.graph.batch) :] != self.graph.batch:
            return None
        return Around(self.graph.expand(batch), self.edges.expand(self.graph, batch))


def displacements(positions: Tensor, graph: Graph, space: Space | None = None) -> Tensor:
    """Return the displacement from the receiver to the sender of every edge between bodies at positions: (*edge, space)."""
    ours, theirs = graph.receivers(positions), graph.senders(positions)
    if space is None:
        return theirs - ours
    return space.along(lambda sides: graph.receivers(sides.expand_as(positions))).displacement(ours, theirs)


def bounded(vectors: Tensor) -> Tensor:
    """Shorten vectors (..., space), in units of their scale, to lengths below REACH: v / sqrt(1 + |v|^2 / REACH^2).

    A vector longer than any in training then looks like the longest of them, so that the network does not extrapolate without bound.
    """
    return vectors * (1 + vectors.square().sum(-1, keepdim=True) / REACH**2).rsqrt()


def gram(vectors: Tensor) -> Tensor:
    """Return all inner products of a body's vectors (*batch, body, vector, space): (*batch, body, pair)."""
    count = vectors.shape[-2]
    if count < 2:  # nothing to choose
        return vectors.square().sum(-1)
    return (vectors @ vectors.mT).flatten(-2).index_select(-1, _upper(count, vectors.device))


def _constants(values: tuple[float, ...], like: Tensor) -> Tensor:
    """Return numbers as a tensor of the type and on the device of another; a tracer makes its own, see `index_table`."""
    made = _new_constants if torch.compiler.is_compiling() else _kept_constants
    return made(values, like.dtype, like.device)


def _new_constants(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)


_kept_constants = functools.cache(torch.inference_mode(False)(_new_constants))


@index_table
def _upper(count: int, device: torch.device) -> Tensor:
    """Return where the upper triangle of a matrix (count, count) is among its entries, row by row."""
    return torch.tensor([i * count + j for i in range(count) for j in range(i, count)], device=device)
