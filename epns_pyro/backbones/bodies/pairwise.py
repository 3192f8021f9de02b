"""Sums over pairs of bodies: every term depends on one body or on one pair.

An equivariant network with one round of messages, cheap enough to be evaluated many times per frame. Forces in one recording span
orders of magnitude, so the radial term of a pair is an expansion in powers of the distance with learned coefficients.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import pydantic
import torch
from torch import Tensor, nn

from epns_pyro.backbones.bodies.base import BACKBONES, Backbone, BackboneConfig, Features, Signature, perceptron
from epns_pyro.backbones.bodies.edges import DISTANCE_CHANNELS, Edges, bounded, gram
from epns_pyro.backbones.bodies.graphs import GraphConfig

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
        self.graph, s = config.graph, signature
        # per pair: scalars; then, for every output vector, weights of the powers of the distance and of the differences of input vectors
        self.sizes = [s.out_scalars, s.out_vectors * POWERS, s.out_vectors * s.in_vectors]
        self.pair = perceptron(
            DISTANCE_CHANNELS + s.pairs + 2 * s.in_scalars, config.width, config.width, sum(self.sizes), small_output=True
        )
        # per body: scalars, and weights of its own vectors
        seen, made = s.in_scalars + s.in_vectors * (s.in_vectors + 1) // 2, s.out_scalars + s.out_vectors * s.in_vectors
        self.alone = perceptron(seen, config.width, made, small_output=True) if seen and made else None

    @property
    def last_layers(self) -> tuple[nn.Linear, ...]:
        return (self.pair[-1], *(() if self.alone is None else (self.alone[-1],)))

    def evaluate(self, positions: Tensor, features: Features) -> Features:
        s, graph = self.signature, self.graph.connect(positions, features.mask, self.signature.geometry)
        edges, arrows = Edges.between(positions, graph, self.signature.geometry, features.pairs), bounded(features.vectors)
        ours, theirs = graph.receivers(features.scalars), graph.senders(features.scalars)
        ends = torch.cat([edges.distance, ours.expand(*edges.distance.shape[:-1], -1), theirs], -1)
        scalars, along, across = (self.pair(ends) * edges.envelope).split(self.sizes, -1)
        near = UNIT / (edges.length[..., None] + NEAR)
        powers = torch.cat([near**p for p in range(POWERS)], -1)
        pull = (along.unflatten(-1, (-1, POWERS)) * powers).sum(-1, keepdim=True)
        vectors = pull * edges.direction[..., None, :]
        if s.in_vectors:
            vectors = vectors + across.unflatten(-1, (-1, s.in_vectors)) @ (graph.senders(arrows) - graph.receivers(arrows))
        scalars, vectors = graph.collect(scalars), graph.collect(vectors)
        if self.alone is not None:
            change, gates = self.alone(torch.cat([features.scalars, gram(arrows)], -1)).tensor_split([s.out_scalars], -1)
            scalars = scalars + change
            if s.in_vectors:
                vectors = vectors + gates.unflatten(-1, (-1, s.in_vectors)) @ arrows
        return Features(scalars, vectors)


@BACKBONES.register("pairwise")
class PairwiseConfig(BackboneConfig):
    """Sums over pairs of bodies."""

    name: Literal["pairwise"] = "pairwise"
    width: int = pydantic.Field(default=32, gt=0, description="channels of hidden layers")
    graph: GraphConfig = GraphConfig()

    def build(self, signature: Signature) -> PairwiseNetwork:
        return PairwiseNetwork(signature, self)
