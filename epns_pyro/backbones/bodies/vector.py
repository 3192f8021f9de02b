"""Equivariant message passing with vector features, after PaiNN (Schütt et al., ICML 2021).

Every body has scalars s and vectors V; functions of invariants weight the direction to the other body and its vectors in a message, so
the network is O(d)-equivariant by construction, for every input, at an eighth of the arithmetic of frame averaging.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import pydantic
import torch
from torch import Tensor, nn

from epns_pyro.backbones.bodies.base import BACKBONES, Backbone, BackboneConfig, Features, Signature, perceptron
from epns_pyro.backbones.bodies.edges import DISTANCE_CHANNELS, Around, Edges, bounded, gram
from epns_pyro.backbones.bodies.graphs import Graph, GraphConfig


def vector_norm(vectors: Tensor) -> Tensor:
    """Divide a body's vectors (..., space, channel) by their common root mean square where that is above one."""
    return vectors * (1 + vectors.square().sum((-2, -1), keepdim=True) / vectors.shape[-1]).rsqrt()


class VectorLayer(nn.Module):
    """One round of messages and an update of scalars (width) and vectors (vectors).

    Messages and updates read normalised features; without this, products of vectors and gates grow cubically from layer to layer.
    Vectors are laid out as (..., space, channel): linear maps of channels are plain matrix products, and sums over space are contiguous.
    """

    def __init__(self, width: int, vectors: int, pairs: int = 0) -> None:
        super().__init__()
        self.sizes = [width, vectors, vectors]
        self.norm = nn.LayerNorm(width)
        self.receiver = nn.Linear(width, width)
        self.sender = nn.Linear(width, width, bias=False)
        self.edge = nn.Linear(DISTANCE_CHANNELS + pairs + 3 * vectors, width, bias=False)
        self.message = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.read = nn.Linear(width, sum(self.sizes), bias=False)
        self.left = nn.Linear(vectors, vectors, bias=False)
        self.right = nn.Linear(vectors, vectors, bias=False)
        self.update = perceptron(width + 2 * vectors, width, width + vectors)

    def forward(self, scalars: Tensor, vectors: Tensor, edges: Edges, graph: Graph) -> tuple[Tensor, Tensor]:
        seen, arrows = self.norm(scalars), vector_norm(vectors)
        ours, theirs, along = graph.receivers(arrows), graph.senders(arrows), edges.direction[..., None]
        products = [(ours * along).sum(-2), (theirs * along).sum(-2), (ours * theirs).sum(-2)]
        edge = self.edge(torch.cat([edges.distance, *products], -1))
        joint = graph.receivers(self.receiver(seen)) + graph.senders(self.sender(seen)) + edge
        signal, towards, copy = self._messages(self.message(joint) * edges.envelope, graph)
        scalars = scalars + signal
        vectors = vectors + graph.collect(towards[..., None, :] * along + copy[..., None, :] * theirs)

        seen, arrows = self.norm(scalars), vector_norm(vectors)
        left, right = self.left(arrows), self.right(arrows)
        lengths = (right.square().sum(-2) + 1e-12).sqrt()
        change, gate = self.update(torch.cat([seen, (left * right).sum(-2), lengths], -1)).split(self.sizes[:2], -1)
        return scalars + change, vectors + gate[..., None, :] * left

    def _messages(self, hidden: Tensor, graph: Graph) -> tuple[Tensor, Tensor, Tensor]:
        """Apply the output layers of a message: to the sum for scalars (the same result with fewer rows), to every edge for gates."""
        scalars, *gates = self.sizes
        signal = nn.functional.linear(graph.collect(hidden), self.read.weight[:scalars])
        towards, copy = nn.functional.linear(hidden, self.read.weight[scalars:]).split(gates, -1)
        return signal, towards, copy


class VectorNetwork(Backbone):
    """Pass messages for `layers` rounds, from scalars and vectors to scalars and vectors.

    Only displacements between bodies are read, never positions from the centroid: the interaction of two bodies does not depend on
    where the others are.
    """

    equivariant: ClassVar[bool] = True
    periodic: ClassVar[bool] = True

    def __init__(self, signature: Signature, config: VectorConfig) -> None:
        super().__init__(signature)
        self.graph = config.graph
        s, seen = signature, signature.in_vectors
        self.embed_scalars = perceptron(s.in_scalars + seen * (seen + 1) // 2, config.width, config.width)
        self.vectors = config.vectors
        if seen:
            self.embed_vectors = nn.Linear(seen, config.vectors, bias=False)
        self.layers = nn.ModuleList(VectorLayer(config.width, config.vectors, s.pairs) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.out_scalars = perceptron(config.width, config.width, s.out_scalars)
        if s.out_vectors:
            self.out_gates = perceptron(config.width, config.width, config.vectors)
            self.out_vectors = nn.Linear(config.vectors, s.out_vectors, bias=False)

    def largest(self, bodies: int) -> int:
        return self.graph.edges(bodies, self.signature.space) * max(self.norm.normalized_shape[0], self.signature.space * self.vectors)

    @property
    def last_layers(self) -> tuple[nn.Linear, ...]:
        return (self.out_scalars[-1], *((self.out_vectors,) if self.signature.out_vectors else ()))

    def look(self, positions: Tensor, features: Features) -> Around:
        space = self.signature.space_of(features)
        graph = self.graph.connect(positions, features.mask, space)
        return Around(graph, Edges.between(positions, graph, space, features.pairs))

    def evaluate(self, positions: Tensor, features: Features) -> Features:
        around = features.around or self.look(positions, features)
        seen = bounded(features.vectors)
        scalars = self.embed_scalars(torch.cat([features.scalars, gram(seen)], -1))
        # (*batch, body, space, channel) from here on; without input vectors the first messages build them from directions
        vectors = self.embed_vectors(seen.mT) if self.signature.in_vectors else positions.new_zeros(*positions.shape, self.vectors)
        for layer in self.layers:
            scalars, vectors = layer(scalars, vectors, around.edges, around.graph)
        scalars = self.norm(scalars)
        if not self.signature.out_vectors:
            return Features(self.out_scalars(scalars), seen[..., :0, :])
        gated = self.out_gates(scalars)[..., None, :] * vector_norm(vectors)
        return Features(self.out_scalars(scalars), self.out_vectors(gated).mT)


@BACKBONES.register("vector")
class VectorConfig(BackboneConfig):
    """Equivariant message passing with vector features."""

    name: Literal["vector"] = "vector"
    width: int = pydantic.Field(default=64, gt=0, description="scalar channels per body")
    vectors: int = pydantic.Field(default=16, gt=0, description="vector channels per body")
    layers: int = pydantic.Field(default=3, gt=0, description="rounds of messages")
    graph: GraphConfig = GraphConfig()

    def build(self, signature: Signature) -> VectorNetwork:
        return VectorNetwork(signature, self)
