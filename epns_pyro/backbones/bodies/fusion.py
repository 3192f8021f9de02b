"""Fusion of neighbourhoods: an equivariant network whose terms depend on several neighbours at once, after Li et al. (arXiv:2211.07482).

A body sums the spherical harmonics of its neighbours, weighted by functions of invariants, into legs:

    A^l_c = sum_j R_c(i, j) Y^l(r_ij / |r_ij|)        positions
    V^l_c = sum_j R'_c(i, j) Y^l(v_jc - v_ic)         velocities and other vectors, mixed to channels; Y^l(v) grows as |v|^l
    N^1_c = v_ic                                      the body's own

and fuses up to three of them (`fusion_blocks`). One leg gives a sum over pairs of bodies. Two legs give functions of two neighbours at
once, such as of the angle between them, a polynomial of degree `lmax` of its cosine; three legs of three neighbours.

The publication has no code. From its idea come the blocks; legs of velocities, weights from invariants and a potential are ours.
"""

from __future__ import annotations

import itertools
from typing import ClassVar, Literal

import pydantic
import torch
from torch import Tensor, nn

from epns_pyro.backbones.bodies.base import BACKBONES, Backbone, BackboneConfig, Features, Signature, perceptron
from epns_pyro.backbones.bodies.edges import DISTANCE_CHANNELS, Edges, bounded, gram
from epns_pyro.backbones.bodies.fusion_blocks import CartesianBlock, FusionBlock, SphericalBlock
from epns_pyro.backbones.bodies.fusion_diagrams import Legs
from epns_pyro.backbones.bodies.gradient import Gradient
from epns_pyro.backbones.bodies.graphs import Graph, GraphConfig
from epns_pyro.backbones.bodies.vector import vector_norm

WAVES = 8  # radial functions where there is a reach
GAIN = 4.0  # of the weights of neighbours before training: legs are then of order one


def harmonics(vectors: Tensor, lmax: int) -> list[Tensor]:
    """Return Y^l(v) of vectors (..., space), (..., component) for l = 0 .. lmax <= 2: polynomials of degree l, as in e3nn.

    Of unit vectors the squares of all components have the mean one. With fewer than 3 dimensions they are those of a plane or a line in
    space; for l = 1 they are the vectors themselves.
    """
    found = [torch.ones_like(vectors[..., :1]), 3**0.5 * vectors]
    if lmax < 2:
        return found[: lmax + 1]
    in_space = nn.functional.pad(vectors, (0, 3 - vectors.shape[-1]))
    x, y, z = in_space.unbind(-1)
    quadrupole = [3**0.5 * x * z, 3**0.5 * x * y, y * y - 0.5 * (x * x + z * z), 3**0.5 * y * z, 3**0.5 / 2 * (z * z - x * x)]
    return [found[0], 3**0.5 * in_space, 5**0.5 * torch.stack(quadrupole, -1)]


def within(length: Tensor, reach: float) -> Tensor:
    """Return a weight of distances that vanishes at the reach together with its first two derivatives."""
    return (1 - (length / reach).square()).clamp(min=0.0) ** 3


def waves(length: Tensor, reach: float) -> Tensor:
    """Return sin(n pi r / reach) / (n pi r / reach) of distances (*edge, 1) for n = 1 .. WAVES: (*edge, WAVES)."""
    return torch.sinc(length / reach * torch.arange(1, WAVES + 1, device=length.device))


class FusionLayer(nn.Module):
    """One round: sum the neighbours into legs, fuse these, and update scalars (width) and vectors (channel).

    Parameters
    ----------
    reads : bool
        Whether bodies have vectors before the layer.
    makes : bool
        Whether they have vectors after it.
    """

    def __init__(self, config: FusionConfig, pairs: int, *, reads: bool, makes: bool) -> None:
        super().__init__()
        self.lmax, self.reach, self.channels, width = config.lmax, config.reach, config.channels, config.width
        self.reads, self.makes = reads, makes
        self.block = self._block(config.legs)
        degrees = config.lmax + 1 + config.lmax * reads
        seen = DISTANCE_CHANNELS + pairs + (WAVES if self.reach else 0) + (3 * self.channels if reads else 0)
        self.norm = nn.LayerNorm(width)
        self.receiver = nn.Linear(width, width)
        self.sender = nn.Linear(width, width, bias=False)
        self.edge = nn.Linear(seen, width, bias=False)
        self.message = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.radial = nn.Linear(width, degrees * self.channels, bias=False)
        with torch.no_grad():
            self.radial.weight.mul_(GAIN)
        self.weigh = perceptron(width, width, self.channels * self.block.weights)
        self.scalars = nn.Linear(self.channels, width, bias=False)
        self.update = perceptron(width + self.channels, width, width + self.channels * makes)
        if makes:
            self.vectors = nn.Linear(self.channels, self.channels, bias=False)

    def _block(self, most: int) -> FusionBlock:
        degrees = tuple(f"{l}{'o' if l % 2 else 'e'}" for l in range(self.lmax + 1))  # noqa: E741
        legs: Legs = (("A", degrees), *((("V", degrees[1:]), ("N", ("1o",))) if self.reads else ()))
        form = CartesianBlock if self.lmax == 1 else SphericalBlock
        return form(legs, most, ("0e", "1o") if self.makes else ("0e",))

    def forward(self, scalars: Tensor, vectors: Tensor, edges: Edges, graph: Graph) -> tuple[Tensor, Tensor]:
        seen, arrows = self.norm(scalars), vector_norm(vectors.mT).mT
        legs = self._legs(seen, arrows, edges, graph)
        weights = self.weigh(seen).unflatten(-1, (self.channels, -1))
        fused = self.block(legs, weights)
        invariants = fused["0e"][..., 0]
        change = self.update(torch.cat([seen, invariants], -1))
        scalars = scalars + self.scalars(invariants) + change[..., : seen.shape[-1]]
        if not self.makes:
            return scalars, vectors
        gates, space = change[..., seen.shape[-1] :, None], vectors.shape[-1]
        return scalars, vectors + gates * (self.vectors.weight @ fused["1o"][..., :space])

    def _legs(self, seen: Tensor, arrows: Tensor, edges: Edges, graph: Graph) -> dict[str, Tensor]:
        """Sum what neighbours are to a body: (*batch, body, channel, component) by leg."""
        known, envelope = [edges.distance], edges.envelope
        if self.reach:
            known.append(waves(edges.length, self.reach))
            envelope = envelope * within(edges.length, self.reach)
        if self.reads:
            ours, theirs, along = graph.receivers(arrows), graph.senders(arrows), edges.direction[..., None, :]
            known += [(ours * along).sum(-1), (theirs * along).sum(-1), (ours * theirs).sum(-1)]
        joint = graph.receivers(self.receiver(seen)) + graph.senders(self.sender(seen)) + self.edge(torch.cat(known, -1))
        radial = self.radial(self.message(joint) * envelope).unflatten(-1, (-1, self.channels, 1)).unbind(-3)
        parts = harmonics(edges.direction[..., None, :], self.lmax)
        legs = {"A": parts}
        if self.reads:
            legs["V"] = harmonics(theirs - ours, self.lmax)[1:]
            parts = parts + legs["V"]
        weighted = torch.cat([weight * part for weight, part in zip(radial, parts, strict=True)], -1)
        sizes = [sum(part.shape[-1] for part in some) for some in legs.values()]
        summed = dict(zip(legs, graph.collect(weighted).split(sizes, -1), strict=True))
        if self.reads:
            summed["N"] = harmonics(arrows, self.lmax)[1]
        return summed


class FusionNetwork(Backbone):
    """Fuse neighbourhoods for `layers` rounds, from scalars and vectors to scalars and vectors."""

    equivariant: ClassVar[bool] = True
    periodic: ClassVar[bool] = True

    def __init__(self, signature: Signature, config: FusionConfig) -> None:
        super().__init__(signature)
        self.graph = config.graph
        s, seen = signature, signature.in_vectors
        self.embed_scalars = perceptron(s.in_scalars + seen * (seen + 1) // 2, config.width, config.width)
        if seen:
            self.embed_vectors = nn.Linear(seen, config.channels, bias=False)
        carried = [bool(seen), *(True,) * (config.layers - 1), bool(s.out_vectors)]
        self.layers = nn.ModuleList(FusionLayer(config, s.pairs, reads=reads, makes=makes) for reads, makes in itertools.pairwise(carried))
        self.norm = nn.LayerNorm(config.width)
        self.out_scalars = perceptron(config.width, config.width, s.out_scalars)
        if s.out_scalars:
            self.sum_scalars = nn.Linear(config.width, s.out_scalars, bias=False)
        if s.out_vectors:
            self.out_vectors = nn.Linear(config.channels, s.out_vectors, bias=False)

    @property
    def last_layers(self) -> tuple[nn.Linear, ...]:
        sums = (self.sum_scalars,) if self.signature.out_scalars else ()
        return (self.out_scalars[-1], *sums, *((self.out_vectors,) if self.signature.out_vectors else ()))

    def evaluate(self, positions: Tensor, features: Features) -> Features:
        space = self.signature.space_of(features)
        graph = self.graph.connect(positions, features.mask, space)
        edges = Edges.between(positions, graph, space, features.pairs)
        seen = bounded(features.vectors)
        scalars = self.embed_scalars(torch.cat([features.scalars, gram(seen)], -1))
        # (*batch, body, channel, space); without input vectors the first layer makes them
        vectors = self.embed_vectors.weight @ seen if self.signature.in_vectors else torch.zeros_like(positions)[..., None, :]
        for layer in self.layers:
            scalars, vectors = layer(scalars, vectors, edges, graph)
        out = self.out_scalars(self.norm(scalars))
        if self.signature.out_scalars:
            out = out + self.sum_scalars(scalars)
        if not self.signature.out_vectors:
            return Features(out, seen[..., :0, :])
        return Features(out, self.out_vectors.weight @ vectors)


@BACKBONES.register("fusion")
class FusionConfig(BackboneConfig):
    """Fusion of neighbourhoods: terms that depend on several neighbours at once."""

    name: Literal["fusion"] = "fusion"
    legs: int = pydantic.Field(default=3, ge=1, le=3, description="sums over neighbours in a product; 1: sums over pairs")
    lmax: int = pydantic.Field(default=1, ge=1, le=2, description="highest degree of the harmonics of a direction")
    layers: int = pydantic.Field(default=2, gt=0, description="rounds of messages")
    width: int = pydantic.Field(default=64, gt=0, description="scalar channels per body, and width of the perceptrons")
    channels: int = pydantic.Field(default=16, gt=0, description="channels of legs and of vectors per body")
    reach: float | None = pydantic.Field(
        default=None, gt=0, description="distance from which bodies do not act, in standard deviations of the positions"
    )
    forces: Literal["free", "potential"] = pydantic.Field(
        default="free", description="potential: vectors are minus gradients of invariants, forces that conserve energy; reads no vectors"
    )
    graph: GraphConfig = GraphConfig()

    @pydantic.model_validator(mode="after")
    def _smooth(self) -> FusionConfig:
        if self.reach and self.graph.radius and self.reach > self.graph.radius:
            raise ValueError(
                f"reach: expected at most the radius of the graph, {self.graph.radius:g}, found {self.reach:g}: forces would jump"
            )
        return self

    def build(self, signature: Signature) -> Backbone:
        def network(signature: Signature) -> FusionNetwork:
            return FusionNetwork(signature, self)

        return Gradient(signature, network) if self.forces == "potential" and signature.out_vectors else network(signature)
