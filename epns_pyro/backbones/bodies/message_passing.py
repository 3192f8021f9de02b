"""Plain message passing from node features to node features, without built-in geometry.

Inside `FrameAveraged` it reads coordinates in a frame and is equivariant; alone it is the published PNS-GNN, which is not.
"""

from __future__ import annotations

from typing import ClassVar, Literal, cast

import pydantic
import torch
from torch import Tensor, nn

from epns_pyro.backbones.bodies.base import BACKBONES, Backbone, BackboneConfig, Features, Signature, perceptron, safe_norm
from epns_pyro.backbones.bodies.graphs import Graph, GraphConfig


class MessageLayer(nn.Module):
    """n_i <- n_i + phi_n(n_i, sum_j phi_e(n_i, n_j, e_ij)).

    The first linear map of phi_e is split over its arguments, so that the node parts are computed once per node and not once per edge.
    """

    def __init__(self, width: int, edge_channels: int) -> None:
        super().__init__()
        self.receiver = nn.Linear(width, width)
        self.sender = nn.Linear(width, width, bias=False)
        self.edge = nn.Linear(edge_channels, width, bias=False)
        self.message = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.update = perceptron(2 * width, width, width)

    def forward(self, nodes: Tensor, edges: Tensor, graph: Graph) -> Tensor:
        joint = graph.receivers(self.receiver(nodes)) + graph.senders(self.sender(nodes)) + self.edge(edges)
        return nodes + self.update(torch.cat([nodes, graph.collect(self.message(joint))], -1))


class MessagePassing(Backbone):
    """Message passing on raw coordinates: permutation equivariant, but NOT equivariant under rotations (PNS-GNN).

    Edge features: the distance, the norms of relative vectors, and the coordinates of the relative position and vectors.
    """

    equivariant: ClassVar[bool] = False

    def __init__(self, signature: Signature, config: MessagePassingConfig) -> None:
        super().__init__(signature)
        self.graph = config.graph
        s = signature
        node_channels = s.in_scalars + s.space * (1 + s.in_vectors)
        self.edge_channels = 2 + s.space + s.in_vectors * (1 + s.space) + s.pairs
        self.embed = nn.Linear(node_channels, config.width)
        self.layers = nn.ModuleList(MessageLayer(config.width, self.edge_channels) for _ in range(config.layers))
        self.read_out = perceptron(config.width, config.width, s.out_scalars + s.out_vectors * s.space)

    def largest(self, bodies: int) -> int:
        return self.graph.edges(bodies, self.signature.space) * max(self.embed.out_features, self.edge_channels)

    @property
    def last_layers(self) -> tuple[nn.Linear, ...]:
        return (cast(nn.Linear, self.read_out[-1]),)

    def evaluate(self, positions: Tensor, features: Features) -> Features:
        graph = self.graph.connect(positions, features.mask)
        nodes = self.embed(torch.cat([features.scalars, positions, features.vectors.flatten(-2)], -1))
        edges = edge_features(positions, features.vectors, graph)
        if features.pairs is not None:
            edges = torch.cat([edges, graph.pairs(features.pairs)], -1)
        for layer in self.layers:
            nodes = layer(nodes, edges, graph)
        scalars, vectors = self.read_out(nodes).split([self.signature.out_scalars, self.signature.out_vectors * self.signature.space], -1)
        return Features(scalars, vectors.unflatten(-1, (self.signature.out_vectors, self.signature.space)))


def edge_features(positions: Tensor, vectors: Tensor, graph: Graph) -> Tensor:
    """Return edge features (*edge, channel): distance, log distance, norms of relative vectors, relative coordinates."""
    relative = graph.senders(positions) - graph.receivers(positions)
    relative_vectors = graph.senders(vectors) - graph.receivers(vectors)
    distance = safe_norm(relative)[..., None]
    return torch.cat(
        [distance, (distance + 0.01).log(), safe_norm(relative_vectors), relative, relative_vectors.flatten(-2)],
        -1,
    )


@BACKBONES.register("message-passing")
class MessagePassingConfig(BackboneConfig):
    """PNS-GNN: message passing on raw coordinates, for ablation."""

    name: Literal["message-passing"] = "message-passing"
    width: int = pydantic.Field(default=64, gt=0, description="channels of hidden layers")
    layers: int = pydantic.Field(default=3, gt=0, description="rounds of messages")
    graph: GraphConfig = GraphConfig()

    def build(self, signature: Signature) -> MessagePassing:
        return MessagePassing(signature, self)
