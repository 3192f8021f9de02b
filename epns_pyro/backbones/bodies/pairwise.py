"""Sums over pairs of bodies: every term depends on one body or on one pair.

An equivariant network with one round of messages, cheap enough to be evaluated many times per frame. Forces in one recording span
orders of magnitude, so the radial term of a pair is an expansion in powers of the distance with learned coefficients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import pydantic
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from epns_pyro.backbones.bodies.base import BACKBONES, Backbone, BackboneConfig, Features, Signature, after_first, perceptron, split_first
from epns_pyro.backbones.bodies.edges import DISTANCE_CHANNELS, Edges, bounded, gram
from epns_pyro.backbones.bodies.graphs import Graph, GraphConfig

POWERS = 4  # of UNIT / (distance + NEAR), starting at power 0
NEAR = 0.1  # in units of the scale of positions
# In units of the scale of positions. At distance zero the powers reach (0.3 / 0.1)^3 = 27; a larger unit would make the output of an
# untrained network huge there.
UNIT = 0.3


class PairwiseNetwork(Backbone):
    """out_i = alone(i) + sum_j pair(i, j); vectors of a pair point along its axis or along differences of the two bodies' vectors."""

    equivariant: ClassVar[bool] = True
    periodic: ClassVar[bool] = True

    def __init__(self, signature: Signature, config: PairwiseConfig) -> None:
        super().__init__(signature)
        self.graph, self.width, s = config.graph, config.width, signature
        # per pair: scalars; then, for every output vector, weights of the powers of the distance and of the differences of input vectors
        self.sizes = [s.out_scalars, s.out_vectors * POWERS, s.out_vectors * s.in_vectors]
        self.pair = perceptron(
            DISTANCE_CHANNELS + s.pairs + 2 * s.in_scalars, config.width, config.width, sum(self.sizes), small_output=True
        )
        # per body: scalars, and weights of its own vectors
        seen, made = s.in_scalars + s.in_vectors * (s.in_vectors + 1) // 2, s.out_scalars + s.out_vectors * s.in_vectors
        self.alone = perceptron(seen, config.width, made, small_output=True) if seen and made else None

    def largest(self, bodies: int) -> int:
        return self.graph.edges(bodies, self.signature.space) * max(self.width, sum(self.sizes))

    @property
    def last_layers(self) -> tuple[nn.Linear, ...]:
        return (self.pair[-1], *(() if self.alone is None else (self.alone[-1],)))

    def evaluate(self, positions: Tensor, features: Features) -> Features:
        return self.at(features)(positions, features.vectors)

    def at(self, features: Features) -> Callable[[Tensor, Tensor], Features]:
        """Return the network as a function of positions and vectors: of first layers, only the part that reads these is left."""
        s, scalars, space = self.signature, features.scalars, self.signature.space_of(features)
        sizes = DISTANCE_CHANNELS, s.pairs, s.in_scalars, s.in_scalars
        (by_distance, by_pair, by_receiver, by_sender), bias = split_first(self.pair, *sizes)
        ours, theirs = linear(scalars, by_receiver, bias), linear(scalars, by_sender)

        def ends(graph: Graph) -> Tensor:
            known = graph.receivers(ours) + graph.senders(theirs)
            return known if features.pairs is None else known + linear(graph.pairs(features.pairs), by_pair)

        standing = None if self.graph.moves else self.graph.complete(scalars, features.mask)
        known = None if standing is None else ends(standing)
        alone = None if self.alone is None else self._own(self.alone, scalars)

        def evaluate(positions: Tensor, vectors: Tensor) -> Features:
            graph = standing or self.graph.connect(positions, features.mask, space)
            edges, arrows = Edges.between(positions, graph, space), bounded(vectors)
            hidden = _plus(ends(graph) if known is None else known, edges.distance, by_distance)
            out = self._sums(after_first(self.pair, hidden), edges, arrows, graph)
            return out if alone is None else alone(out, arrows)

        return evaluate

    def _sums(self, weights: Tensor, edges: Edges, arrows: Tensor, graph: Graph) -> Features:
        """Sum over the pairs of every body, given what the last layer says of each: weights (*edge, sum of `sizes`)."""
        s = self.signature
        scalars, along, across = (weights * edges.envelope).split(self.sizes, -1)
        near = UNIT * (edges.length + NEAR).reciprocal()
        pull, *lower = reversed(along.unflatten(-1, (-1, POWERS)).unbind(-1))
        for factor in lower:  # Horner's rule
            pull = torch.addcmul(factor, near, pull)
        vectors = pull[..., None] * edges.direction[..., None, :]
        if s.in_vectors:
            vectors = vectors + across.unflatten(-1, (-1, s.in_vectors)) @ (graph.senders(arrows) - graph.receivers(arrows))
        return Features(graph.collect(scalars) if s.out_scalars else arrows.new_zeros(*arrows.shape[:-2], 0), graph.collect(vectors))

    def _own(self, network: nn.Sequential, scalars: Tensor) -> Callable[[Features, Tensor], Features]:
        """Return what adds to sums over pairs what a body does by itself, given its vectors."""
        s = self.signature
        (by_scalars, by_products), bias = split_first(network, s.in_scalars, s.in_vectors * (s.in_vectors + 1) // 2)
        known = linear(scalars, by_scalars, bias)

        def add(out: Features, arrows: Tensor) -> Features:
            hidden = _plus(known, gram(arrows), by_products) if s.in_vectors else known
            change, gates = after_first(network, hidden).tensor_split([s.out_scalars], -1)
            vectors = out.vectors + gates.unflatten(-1, (-1, s.in_vectors)) @ arrows if s.in_vectors else out.vectors
            return Features(out.scalars + change if s.out_scalars else out.scalars, vectors)

        return add


def _plus(known: Tensor, values: Tensor, weight: Tensor) -> Tensor:
    """Return known + linear(values, weight) in one operation, (*batch, channel)."""
    return torch.addmm(known.reshape(-1, known.shape[-1]), values.reshape(-1, values.shape[-1]), weight.mT).view(known.shape)


@BACKBONES.register("pairwise")
class PairwiseConfig(BackboneConfig):
    """Sums over pairs of bodies."""

    name: Literal["pairwise"] = "pairwise"
    width: int = pydantic.Field(default=32, gt=0, description="channels of hidden layers")
    graph: GraphConfig = GraphConfig()

    def build(self, signature: Signature) -> PairwiseNetwork:
        return PairwiseNetwork(signature, self)
