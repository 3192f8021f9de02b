"""Interaction graphs over the bodies of a batch: which bodies exchange messages.

A graph gathers features at both ends of its edges and sums messages at the receivers, so that layers do not depend on its storage.
`DenseGraph` (complete graphs of few bodies: no index arithmetic at run time) and `SparseGraph` (torch-geometric) agree up to rounding.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import pydantic
import torch
from torch import Tensor

from epns_pyro.backbones.bodies.neighbours import find_edges
from epns_pyro.config import Config
from epns_pyro.geometry import Space

DENSE_BODIES = 32  # with more bodies, a dense array of all pairs takes more memory than an edge list


class Graph(ABC):
    """Edges from senders j to receivers i. Edge tensors are (*edge, channel); the layout of `edge` is private to the graph.

    `batch` are the dimensions in front of those of the bodies.
    """

    batch: torch.Size

    @abstractmethod
    def receivers(self, nodes: Tensor) -> Tensor:
        """Return the node features (*batch, body, ...) at the receiving end of every edge: (*edge, ...)."""

    @abstractmethod
    def senders(self, nodes: Tensor) -> Tensor:
        """Return the node features (*batch, body, ...) at the sending end of every edge: (*edge, ...)."""

    @abstractmethod
    def pairs(self, values: Tensor) -> Tensor:
        """Return the attributes of pairs (*batch, body, body, ...), row receiver and column sender, of every edge: (*edge, ...)."""

    @abstractmethod
    def collect(self, messages: Tensor) -> Tensor:
        """Sum messages (*edge, ...) at their receivers: (*batch, body, ...)."""

    @abstractmethod
    def expand(self, batch: torch.Size) -> Graph:
        """Return the graph of positions that are expanded by new dimensions in front."""

    @abstractmethod
    def expand_edges(self, values: Tensor, batch: torch.Size) -> Tensor:
        """Return the values (*edge, ...) of edges of this graph at those of `expand(batch)`."""


class DenseGraph(Graph):
    """The complete graph without self-loops; edges are laid out as (*batch, receiver, other body).

    Senders where `mask` (*batch, body) is False send nothing.
    """

    def __init__(self, nodes: Tensor, mask: Tensor | None = None) -> None:
        self._others = others(nodes.shape[-2], nodes.device)
        self.batch = nodes.shape[:-2]
        self._batch = len(self.batch)
        self._mask, self._nodes = mask, nodes
        self._silent = None if mask is None else ~self.senders(mask)

    def receivers(self, nodes: Tensor) -> Tensor:
        return nodes.unsqueeze(self._batch + 1)

    def senders(self, nodes: Tensor) -> Tensor:
        bodies = nodes.shape[self._batch]
        return nodes.index_select(self._batch, self._others).unflatten(self._batch, (bodies, bodies - 1))

    def pairs(self, values: Tensor) -> Tensor:
        bodies = values.shape[self._batch]
        rows = torch.arange(bodies, device=values.device).repeat_interleave(max(bodies - 1, 0))
        chosen = values.flatten(self._batch, self._batch + 1).index_select(self._batch, rows * bodies + self._others)
        return chosen.unflatten(self._batch, (bodies, bodies - 1))

    def collect(self, messages: Tensor) -> Tensor:
        if self._silent is not None:
            silent = self._silent.view(*self._silent.shape, *[1] * (messages.dim() - self._silent.dim()))
            messages = messages.masked_fill(silent, 0.0)
        return messages.sum(self._batch + 1)

    def expand(self, batch: torch.Size) -> DenseGraph:
        mask = None if self._mask is None else self._mask.expand(*batch, -1)
        return DenseGraph(self._nodes.expand(*batch, *self._nodes.shape[-2:]), mask)

    def expand_edges(self, values: Tensor, batch: torch.Size) -> Tensor:
        return values.expand(*batch, *values.shape[self._batch :])


def index_table(make: Callable[[int, torch.device], Tensor]) -> Callable[[int, torch.device], Tensor]:
    """Keep a table of integers per (size, device): it is made once. A tracer makes its own, which is no tensor for others to use."""
    kept = functools.cache(torch.inference_mode(False)(make))

    @functools.wraps(make)
    def table(size: int, device: torch.device) -> Tensor:
        return make(size, device) if torch.compiler.is_compiling() else kept(size, device)

    return table


@index_table
def others(bodies: int, device: torch.device) -> Tensor:
    """Return the numbers of all other bodies, for one body after the other: (bodies * (bodies - 1),)."""
    return torch.tensor([j for i in range(bodies) for j in range(bodies) if j != i], dtype=torch.long, device=device)


class SparseGraph(Graph):
    """Any graph, as an edge list over the flattened bodies of the batch; edges are laid out as (edge,)."""

    def __init__(self, edge_index: Tensor, shape: torch.Size) -> None:
        self._sender, self._receiver = edge_index
        self._shape, self.batch = shape, shape[:-1]  # (*batch, body)

    def _flat(self, nodes: Tensor) -> Tensor:
        return nodes.reshape(self._shape.numel(), *nodes.shape[len(self._shape) :])  # -1 is ambiguous for features without channels

    def receivers(self, nodes: Tensor) -> Tensor:
        return self._flat(nodes).index_select(0, self._receiver)

    def senders(self, nodes: Tensor) -> Tensor:
        return self._flat(nodes).index_select(0, self._sender)

    def pairs(self, values: Tensor) -> Tensor:
        bodies = self._shape[-1]
        flat = values.reshape(self._shape.numel() * bodies, *values.shape[len(self._shape) + 1 :])
        return flat.index_select(0, self._receiver * bodies + self._sender % bodies)

    def collect(self, messages: Tensor) -> Tensor:
        from torch_geometric.utils import scatter  # imported here: it takes seconds, and complete graphs do not need it

        summed = scatter(messages, self._receiver, dim=0, dim_size=self._shape.numel(), reduce="sum")
        return summed.reshape(*self._shape, *messages.shape[1:])

    def expand(self, batch: torch.Size) -> SparseGraph:
        first = self._shape.numel() * torch.arange(self._copies(batch), device=self._sender.device)
        ends = (end + first[:, None] for end in (self._sender, self._receiver))
        return SparseGraph(torch.stack([end.reshape(-1) for end in ends]), torch.Size([*batch, self._shape[-1]]))

    def expand_edges(self, values: Tensor, batch: torch.Size) -> Tensor:
        return values.repeat(self._copies(batch), *[1] * (values.dim() - 1))

    def _copies(self, batch: torch.Size) -> int:
        return batch[: len(batch) - len(self.batch)].numel()


class GraphConfig(Config):
    """The interaction graph: `complete`, all pairs nearer than `radius`, or the `neighbours` nearest bodies of each."""

    kind: Literal["complete", "radius", "nearest"] = "complete"
    radius: float | None = pydantic.Field(
        default=None, gt=0, description="with kind radius: length of the longest edge, in standard deviations of the positions"
    )
    neighbours: int | None = pydantic.Field(default=None, gt=0, description="with kind nearest: neighbours of each body")
    dense: bool | None = pydantic.Field(default=None, description="force (true) or forbid (false) the dense path of a complete graph")

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> GraphConfig:
        for kind, key in (("radius", "radius"), ("nearest", "neighbours")):
            if (self.kind == kind) != (getattr(self, key) is not None):
                raise ValueError(
                    f"graph kind {kind!r} and the setting {key!r} go together; found kind {self.kind!r}, {key} {getattr(self, key)}"
                )
        if self.dense and self.kind != "complete":
            raise ValueError(f"only a complete graph has a dense path, found kind {self.kind!r}")
        return self

    def edges(self, bodies: int, space: int) -> int:
        """Return how many edges so many bodies have; with a radius, about how many where they fill a box of `space` dimensions evenly."""
        others = max(1, bodies - 1)
        if self.radius is not None:  # positions spread evenly with a standard deviation of 1 are in a box with sides of sqrt(12)
            ball = math.pi ** (space / 2) / math.gamma(space / 2 + 1) * self.radius**space
            return max(bodies, math.ceil(bodies * others * min(1.0, ball / 12 ** (space / 2))))
        return bodies * (others if self.neighbours is None else min(self.neighbours, others))

    @property
    def moves(self) -> bool:
        """Whether edges come and go as bodies move."""
        return self.kind != "complete"

    def complete(self, nodes: Tensor, mask: Tensor | None = None) -> Graph:
        """Build the complete graph of bodies with any features (*batch, body, channel)."""
        shape, bodies = nodes.shape[:-1], nodes.shape[-2]
        if bodies <= DENSE_BODIES if self.dense is None else self.dense:
            return DenseGraph(nodes, mask)
        first = bodies * torch.arange(shape[:-1].numel(), device=nodes.device)[:, None]  # body of every state
        ends = torch.arange(bodies, device=nodes.device).repeat_interleave(max(bodies - 1, 0)), others(bodies, nodes.device)
        receiver, sender = ((first + end).reshape(-1) for end in ends)
        if mask is not None:
            there = mask.reshape(-1)[sender] & mask.reshape(-1)[receiver]
            receiver, sender = receiver[there], sender[there]
        return SparseGraph(torch.stack([sender, receiver]), shape)

    def connect(self, positions: Tensor, mask: Tensor | None = None, space: Space | None = None) -> Graph:
        """Build the graph of positions (*batch, body, space), in units of their scale; bodies where a mask is False have no edges."""
        if not self.moves:
            return self.complete(positions, mask)
        shape, bodies = positions.shape[:-1], positions.shape[-2]
        flat, there = positions.reshape(-1, bodies, positions.shape[-1]), None if mask is None else mask.reshape(-1, bodies)
        if space is not None:
            space = space.along(lambda sides: sides.expand(*shape[:-1], 1, -1).reshape(-1, 1, sides.shape[-1]))
        return SparseGraph(find_edges(flat, there, space, neighbours=self.neighbours, radius=self.radius), shape)
