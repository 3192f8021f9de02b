"""Equivariant spatio-temporal attention over a window of frames, after ESTAG (Wu et al., NeurIPS 2023, arXiv:2405.12868).

Spectra of the paths of bodies (`spectra`) are features of bodies and of pairs. Then rounds of messages between the bodies of each frame
alternate with attention of each body to its own earlier frames. What differs from the publication, and why:

- It gives features of the last frame to a stochastic model, not a predicted frame. The linear combination of earlier frames, which is the
  published prediction, is in `epns_pyro.models.bodies.history`.
- The power of a body is |F|^2, with the conjugate: without it bodies on circles are invisible. Beside the shares of the bins it keeps the
  logarithm of the power itself, so that a body at rest is not all noise.
- Of pairs it reads the real and the imaginary part of <F_i, F_j>, not the absolute value: the phase says who follows whom.
- Only the bins 1 .. floor(T / 2): the others are copies. There is no learned filter per bin, the networks that read the bins can make one.
- From every path a straight line is subtracted, since a drift leaks into all bins; its slope is given as a vector.
- Each frame has several vector channels: velocities and all other vectors, and the changes from frame to frame, formed from the states
  themselves in units of typical changes. Long vectors are shortened as a whole, not clipped per axis; a direction shrinks to zero with the
  distance. Messages are those of the backbone `vector`.
- Scores of the attention are divided by the root of the width; it is causal. All frames see the spectrum of the whole window, so that only
  the features of the last frame are given out.
- Bodies may be unknown in the first frames of a window: they send nothing there, and nobody attends to them.
- In a periodic box paths go on across its sides. Every frame has a graph of its own.
"""

from __future__ import annotations

import math
from typing import Literal

import pydantic
import torch
from torch import Tensor, nn

from epns_pyro.backbones.bodies.base import Features, Signature, perceptron
from epns_pyro.backbones.bodies.edges import Edges, bounded, gram
from epns_pyro.backbones.bodies.graphs import GraphConfig
from epns_pyro.backbones.bodies.spectra import Spectrum, about_centroid, detrended, spectrum
from epns_pyro.backbones.bodies.vector import VectorLayer, vector_norm
from epns_pyro.backbones.bodies.window import HISTORIES, HistoryNetwork, HistoryNetworkConfig, Window


class TemporalAttention(nn.Module):
    """Attention of every body to its own earlier frames: scalars (width) and vectors (vectors), (*batch, time, body, ...)."""

    def __init__(self, width: int, vectors: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query, self.key = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.value = perceptron(width, width, width)
        self.gate = nn.Linear(width, vectors)

    def forward(self, scalars: Tensor, vectors: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Add what was seen to scalars (*batch, time, body, channel) and vectors (*batch, time, body, space, channel)."""
        seen = self.norm(scalars)
        value = self.value(seen)
        weights = self.weights(seen, known)
        gated = self.gate(value)[..., None, :] * vector_norm(vectors)
        return (
            scalars + torch.einsum("...bts,...sbc->...tbc", weights, value),
            vectors + torch.einsum("...bts,...sbdc->...tbdc", weights, gated),
        )

    def weights(self, seen: Tensor, known: Tensor) -> Tensor:
        """Return how much frame t of a body attends to its frame s: (*batch, body, t, s); itself, or one before it that is known."""
        scores = torch.einsum("...tbc,...sbc->...bts", self.query(seen), self.key(seen)) / math.sqrt(seen.shape[-1])
        frames = seen.shape[-3]
        own = torch.eye(frames, dtype=torch.bool, device=seen.device)
        earlier = torch.ones_like(own).tril()
        return scores.masked_fill(~(earlier & known.mT[..., None, :] | own), -torch.inf).softmax(-1)


class Estag(HistoryNetwork):
    """Messages between the bodies of each frame and attention of each body to its past, in turn, for `layers` rounds."""

    def __init__(self, signature: Signature, frames: int, config: EstagConfig) -> None:
        super().__init__(signature, frames)
        self.graph, s, bins = config.graph, signature, frames // 2
        self.per_edge = max(config.width, s.space * config.vectors)
        seen = s.in_vectors + 1  # with the mean velocity
        self.embed_scalars = perceptron(s.in_scalars + seen * (seen + 1) // 2 + 2 * bins, config.width, config.width)
        self.embed_vectors = nn.Linear(seen, config.vectors, bias=False)
        self.time = nn.Parameter(0.1 * torch.randn(frames, 1, config.width))
        self.messages = nn.ModuleList(VectorLayer(config.width, config.vectors, s.pairs + 2 * bins) for _ in range(config.layers))
        self.attention = nn.ModuleList(TemporalAttention(config.width, config.vectors) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.out_scalars = perceptron(config.width, config.width, s.out_scalars)
        self.out_gates = perceptron(config.width, config.width, config.vectors)
        self.out_vectors = nn.Linear(config.vectors, s.out_vectors, bias=False)

    def largest(self, bodies: int) -> int:
        return self.frames * self.graph.edges(bodies, self.signature.space) * self.per_edge

    def forward(self, window: Window) -> Features:
        known, features, space = window.known, window.features, self.signature.space_of(window.features)
        there = known.to(window.positions)[..., None]
        _, velocity = detrended(window.paths, known)
        found = spectrum(detrended(about_centroid(window.paths, known), known)[0])

        vectors = torch.cat([features.vectors, velocity[..., None, :, None, :].expand(*features.vectors.shape[:-2], 1, -1)], -2)
        vectors = bounded(vectors) * there[..., None]
        of_body = torch.cat(powers(found), -1).unsqueeze(-3).expand(*features.scalars.shape[:-1], -1)
        scalars = self.embed_scalars(torch.cat([features.scalars, gram(vectors), of_body], -1)) + self.time
        vectors = self.embed_vectors(vectors.mT)  # (*batch, time, body, space, channel)

        graph = self.graph.connect(window.positions, known, space)
        edges = Edges.between(window.positions, graph, space, self._of_pairs(found, features))
        for messages, attention in zip(self.messages, self.attention, strict=True):
            scalars, vectors = messages(scalars, vectors, edges, graph)
            scalars, vectors = attention(scalars, vectors, known)
        scalars, vectors = self.norm(scalars[..., -1, :, :]), vectors[..., -1, :, :, :]
        gated = self.out_gates(scalars)[..., None, :] * vector_norm(vectors)
        return Features(self.out_scalars(scalars), self.out_vectors(gated).mT)

    @staticmethod
    def _of_pairs(found: Spectrum, features: Features) -> Tensor:
        """Attributes of pairs in every frame: those given, and those of the spectrum, (*batch, time, body, body, channel)."""
        attributes = coherence(found).unsqueeze(-4)
        attributes = attributes.expand(*features.scalars.shape[:-1], *attributes.shape[-2:])
        return attributes if features.pairs is None else torch.cat([features.pairs, attributes], -1)


def powers(found: Spectrum) -> tuple[Tensor, Tensor]:
    """Return the logarithm of 1 + |F|^2 of a spectrum in typical steps, and the share of each bin: each (*batch, body, bin)."""
    power = found.power().mT
    return torch.log1p(power), power / (1 + power.sum(-1, keepdim=True))


def coherence(found: Spectrum) -> Tensor:
    """Return <F_i, F_j>, real and imaginary parts, divided by the root of (1 + |F_i|^2)(1 + |F_j|^2): (*batch, body, body, 2 * bin)."""
    size = (1 + found.power()).rsqrt()
    cross = found.cross() * size[..., :, None] * size[..., None, :]
    return torch.cat([part.movedim(-3, -1) for part in cross.unbind(0)], -1)


@HISTORIES.register("estag")
class EstagConfig(HistoryNetworkConfig):
    """Spectra of paths, messages within frames, attention between frames."""

    name: Literal["estag"] = "estag"
    width: int = pydantic.Field(default=32, gt=0, description="scalar channels per body and frame")
    vectors: int = pydantic.Field(default=8, gt=0, description="vector channels per body and frame")
    layers: int = pydantic.Field(default=2, gt=0, description="rounds of messages and attention")
    graph: GraphConfig = GraphConfig()

    def build(self, signature: Signature, frames: int) -> Estag:
        return Estag(signature, frames, self)
