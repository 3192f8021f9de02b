"""Central forces between pairs: along the line between two bodies, by their distance and static attributes alone.

    vector_i = prod_c |a_ic|^{n_c} sum_j (r_j - r_i) sum_h s_h(a_i, a_j, e_ij) prod_k (|r_j - r_i|^2 + eps_k^2)^{p_hk / 2} e^{-m r}

A head is a power law whose exponent changes at learned lengths eps_k: its logarithm is a network with one hidden layer of the logarithm of
the distance, and laws of nature (a spring, softened gravity, two charges) are within reach exactly. The strength s is bilinear in the
attributes a of the two bodies, linear in those e of the pair, plus a network of both. A power of an attribute of the body that is moved
does for its mass: an acceleration is a force over it. Screened forces fall off as exp(-m r), too. Where nothing bounds them such forces
have a potential, if they are the same both ways: leapfrog with them is symplectic. The bound is on the length of a vector, or on each of
its components where only turns that map the axes of space to each other are symmetries.

A fit may leave powers out that data do not ask for: a sum of powers that cancel each other follows any law where there are data, and none
where bodies come closer than they did. A head of no strength stays so, as do n_c = 0 and m = 0, from which only a fit departs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator
from typing import Any, ClassVar, Literal, cast

import numpy as np
import pydantic
import torch
from torch import Tensor, nn

from epns_pyro.backbones.bodies.base import BACKBONES, Backbone, BackboneConfig, Features, Signature, perceptron
from epns_pyro.backbones.bodies.edges import displacements
from epns_pyro.backbones.bodies.graphs import DenseGraph, Graph, GraphConfig
from epns_pyro.backbones.bodies.laws import PLAIN, CentralForces, Form, Law, Reading
from epns_pyro.geometry import Space

LENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # eps_k before training, in units of the scale of positions
SHORTEST = (0.001, 0.01, 0.03, 0.06, 0.1, 0.2, 0.4)  # the first of them where fits start: no softening, or some
EXPONENTS = (0.0, -1.0, -2.0, -3.0)  # of the distance, by head before training: a spring ... the force of a charge
ATOMS = (0.0, -3.0, -8.0, -14.0)  # where another fit starts: a charge, and the two powers of Lennard and Jones
STEEPEST = 40.0  # logarithm of the largest power of a distance: what is beyond has a square that single precision does not hold
NEAREST = 1e-12  # squared: keeps a force finite where two bodies are in one place
SCREENINGS = (0.7, 1.4, 2.8)  # m where fits of screened forces start, per unit of the scale of positions
LIGHTEST = 1e-3  # of the scale of an attribute: keeps its powers finite
ALIKE = 1e-3  # relative spread of the size of an attribute, below which it is the same for all
LARGEST = 300.0  # length to which a vector is bounded before training: nothing throws a body out


class CentralNetwork(Law):
    """Sums of central forces over pairs, and of functions of the distance for scalars; reads no vectors."""

    equivariant: ClassVar[bool] = True
    periodic: ClassVar[bool] = True
    reads_vectors: ClassVar[bool] = False

    def __init__(self, signature: Signature, config: CentralConfig) -> None:
        super().__init__(signature)
        self.graph, s = config.graph, signature
        self.outputs = s.out_scalars + s.out_vectors
        heads, attributes = len(EXPONENTS) * self.outputs, 2 * s.in_scalars + s.pairs
        self.linear = nn.Linear(1 + attributes, heads, bias=False)
        self.screening = nn.Parameter(torch.zeros(self.outputs, 1))
        if s.in_scalars:
            self.product = nn.Parameter(0.1 * torch.randn(heads, s.in_scalars, s.in_scalars))
            self.inertia = nn.Parameter(torch.zeros(self.outputs, s.in_scalars))
        self.bend = perceptron(attributes, config.width, heads, small_output=True) if attributes else None
        self.log_lengths = nn.Parameter(torch.tensor(LENGTHS).log())
        exponents = torch.zeros(len(EXPONENTS), len(LENGTHS))
        exponents[:, 0] = torch.tensor(EXPONENTS)
        self.exponents = nn.Parameter(exponents.repeat(self.outputs, 1))
        if s.out_vectors:
            self.log_largest = nn.Parameter(torch.tensor(LARGEST).log().repeat(s.out_vectors, 1))

    def largest(self, bodies: int) -> int:
        return self.graph.edges(bodies, self.signature.space) * self.linear.out_features

    @property
    def last_layers(self) -> tuple[nn.Linear, ...]:
        return (self.linear, *(() if self.bend is None else (self.bend[-1],)))

    @property
    def linear_parameters(self) -> tuple[nn.Parameter, ...]:
        return (self.linear.weight, *((self.product,) if self.signature.in_scalars else ()))

    @property
    def powers(self) -> int:
        """Number of powers of the distance that every output is a sum of."""
        return len(EXPONENTS)

    @property
    def kept(self) -> tuple[int, ...]:
        on = self._strength_of_heads > 0
        return tuple(on.unflatten(0, (-1, self.powers)).any(0).nonzero()[:, 0].tolist())

    @torch.no_grad()
    def keep(self, powers: Collection[int]) -> None:
        """Switch all other powers off: their strengths are zero, and a head of no strength is never trained."""
        off = [head for head in range(self.linear.out_features) if head % self.powers not in powers]
        for strength in self._weights_of_heads:
            strength[off] = 0.0
        if self.bend is not None:
            cast("nn.Linear", self.bend[-1]).bias[off] = 0.0

    def belongs_to(self, parameter: nn.Parameter, powers: Collection[int]) -> Tensor:
        """Return which numbers of a parameter belong to some powers, or to all, and to the form of the law: (number,)."""
        alive = torch.ones_like(parameter, dtype=torch.bool)
        if any(parameter is each for each in (self.screening, getattr(self, "inertia", None))):
            alive = parameter != 0
        by_head = (*self._weights_of_heads, self.exponents, *(() if self.bend is None else (self.bend[-1].bias,)))
        if any(parameter is each for each in by_head):
            alive[[head for head in range(len(parameter)) if head % self.powers not in powers]] = False
        return alive.flatten().cpu()

    @property
    def _weights_of_heads(self) -> tuple[nn.Parameter, ...]:
        return (*self.linear_parameters, *(() if self.bend is None else (self.bend[-1].weight,)))

    @property
    def _strength_of_heads(self) -> Tensor:
        """How strong every head is, (head,): one of no strength is off."""
        return torch.stack([part.detach().abs().flatten(1).sum(-1) for part in self._weights_of_heads]).sum(0)

    @property
    def bounds(self) -> tuple[nn.Parameter, ...]:
        return (self.log_largest,) if self.signature.out_vectors else ()

    @property
    def simple_parameters(self) -> tuple[nn.Parameter, ...]:
        return (*self.linear_parameters, self.log_lengths, self.screening, *((self.inertia,) if self.signature.in_scalars else ()))

    def sizes(self, features: Features) -> list[int]:
        """Return the scalars whose size differs between bodies: one of them may be a mass, or something like it."""
        if not self.signature.in_scalars:
            return []
        size = features.scalars.abs().flatten(0, -2)
        spread = size.std(0, correction=0) / size.mean(0).clamp_min(LIGHTEST)
        return [i for i, apart in enumerate((spread > ALIKE).tolist()) if apart]

    @torch.no_grad()
    def starts(self, form: Form = PLAIN) -> Iterator[None]:
        before = {name: value.clone() for name, value in self.state_dict().items()}
        tried = SHORTEST if form.inertia is None else SHORTEST[::2]
        without = (EXPONENTS, tried, (0.0,)), (ATOMS, tried[:1], (0.0,))
        for powers, lengths, screenings in ((EXPONENTS, tried[:1], SCREENINGS),) if form.screened else without:
            for shortest, screening in itertools.product(lengths, screenings):
                self.load_state_dict(before)
                self.log_lengths[0] = math.log(shortest)
                self.exponents[:, 0] = self.exponents.new_tensor(powers).repeat(self.outputs)
                self.screening.fill_(screening)
                if self.signature.in_scalars:
                    self.inertia.zero_()
                if form.inertia is not None:
                    self.inertia[:, form.inertia] = -1.0
                yield

    @torch.no_grad()
    def unsoften(self) -> bool:
        softened = bool(self.log_lengths[0] > math.log(2 * SHORTEST[0]))
        if softened:
            self.log_lengths[0] = math.log(SHORTEST[0])
        return softened

    @torch.no_grad()
    def read(self, vector: int) -> Reading | None:
        output = self.signature.out_scalars + vector
        heads = slice(output * self.powers, (output + 1) * self.powers)
        bent = self.bend is not None and cast("nn.Linear", self.bend[-1]).weight[heads].any()
        if bent or self.exponents[heads, 1:].any():
            return None
        on = torch.stack([part[heads].abs().flatten(1).sum(-1) for part in self.linear_parameters]).sum(0) > 0
        powers = (self.exponents[heads, 0][on] + 1).tolist()  # a force is a vector of the length of the distance times this
        inertia = {i: power for i, power in enumerate(self.inertia[output].tolist()) if power} if self.signature.in_scalars else {}
        return Reading(tuple(sorted(powers, reverse=True)), max(0.0, self.screening[output].item()), inertia)

    @torch.no_grad()
    def scale_output(self, factor: float) -> Backbone:
        if self.signature.in_scalars:
            self.product.mul_(factor)
        return super().scale_output(factor)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load weights; older ones know neither inertia nor screening, which is the same as none."""
        for name in ("screening", *(("inertia",) if self.signature.in_scalars else ())):
            state_dict.setdefault(prefix + name, torch.zeros_like(getattr(self, name)))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def evaluate(self, positions: Tensor, features: Features) -> Features:
        space = self.signature.space_of(features)
        graph = self.graph.connect(positions, features.mask, space)
        return self._forces(positions, graph, space, self._strengths(features, graph), self._halves)

    def at(self, features: Features) -> Callable[[Tensor, Tensor], Features]:
        if self.graph.moves:
            return super().at(features)
        graph = self.graph.complete(features.scalars, features.mask)
        space, strengths, halves = self.signature.space_of(features), self._strengths(features, graph), self._halves
        return lambda positions, vectors: self._forces(positions, graph, space, strengths, halves)

    @torch.no_grad()
    def central_forces(self, features: Features) -> CentralForces | None:
        s = self.signature
        if self.graph.moves or s.out_scalars or s.out_vectors != 1:
            return None
        batch, bodies = features.scalars.shape[:-2], features.scalars.shape[-2]
        states, others, space = batch.numel(), max(bodies - 1, 0), s.space_of(features)
        there = torch.ones(*batch, bodies, dtype=torch.bool) if features.mask is None else features.mask
        sides = torch.tensor(space.box or (0.0,) * s.space, dtype=torch.float64) if space.sides is None else space.sides
        halves, heads = self._halves, self._strength_of_heads > 0
        lengths = halves.any(-1)
        strengths = self._strengths(features, DenseGraph(features.scalars))[..., heads]
        return CentralForces(
            _array(strengths.expand(*batch, bodies, others, -1).reshape(states, bodies, others, int(heads.sum()))),
            there.expand(*batch, bodies).reshape(states, bodies).numpy(),
            _array(sides.expand(*batch, 1, s.space).reshape(states, s.space)),
            _array(halves[lengths][:, heads]),
            _array((2 * self.log_lengths[lengths]).exp() + NEAREST),
            max(0.0, self.screening.item()),
            self.log_largest.exp().item(),
            s.axes,
        )

    @property
    def _halves(self) -> Tensor:
        """Exponents of squared distances, (length, head); a head of no strength has zeros: zero times infinity is no number."""
        return self.exponents.mT * (self._strength_of_heads.sign() / 2)

    def _strengths(self, features: Features, graph: Graph) -> Tensor:
        """Return s_h of every edge, (*edge, head): what does not change as bodies move."""
        s, theirs = self.signature, graph.senders(features.scalars)
        ours = graph.receivers(features.scalars).expand_as(theirs)
        attributes = torch.cat([ours, theirs, *(() if features.pairs is None else (graph.pairs(features.pairs),))], -1)
        strengths = nn.functional.linear(attributes, self.linear.weight[:, 1:], self.linear.weight[:, 0])
        if s.in_scalars:
            mixed = graph.receivers(torch.einsum("...a,hab->...hb", features.scalars, self.product))
            strengths = strengths + (mixed * theirs[..., None, :]).sum(-1)
        if self.bend is not None:
            strengths = strengths + self.bend(attributes)
        strengths = strengths * self._strength_of_heads.sign()
        if not s.in_scalars:
            return strengths
        exponents = self.inertia * self.inertia.detach().sign().square()  # zero stays so
        lightness = ((features.scalars.square() + LIGHTEST**2).log() @ (exponents.mT / 2)).exp()
        return strengths * graph.receivers(lightness.repeat_interleave(len(EXPONENTS), -1))

    def _forces(self, positions: Tensor, graph: Graph, space: Space, strengths: Tensor, halves: Tensor) -> Features:
        s = self.signature
        way = displacements(positions, graph, space)
        squared = way.square().sum(-1, keepdim=True)
        powers = (squared + ((2 * self.log_lengths).exp() + NEAREST)).log() @ halves
        along = (strengths * powers.clamp_max(STEEPEST).exp()).unflatten(-1, (self.outputs, -1)).sum(-1)
        along = along * (-(squared + NEAREST).sqrt() * self.screening[:, 0].relu()).exp()
        scalars, pulls = along.split([s.out_scalars, s.out_vectors], -1)
        vectors = graph.collect(pulls[..., None] * way[..., None, :])
        if s.out_vectors and s.axes:
            largest = self.log_largest.exp()
            vectors = torch.maximum(torch.minimum(vectors, largest), -largest)
        elif s.out_vectors:
            excess = vectors.square().sum(-1, keepdim=True) * (-2 * self.log_largest).exp()
            vectors = vectors * excess.hypot(torch.ones_like(excess)).rsqrt()
        return Features(graph.collect(scalars), vectors)


def _array(values: Tensor) -> np.ndarray:
    return values.detach().double().contiguous().numpy()


@BACKBONES.register("central")
class CentralConfig(BackboneConfig):
    """Central forces between pairs, for an integrator: they conserve energy."""

    name: Literal["central"] = "central"
    width: int = pydantic.Field(default=16, gt=0, description="hidden channels of the network of attributes")
    graph: GraphConfig = GraphConfig()

    def build(self, signature: Signature) -> CentralNetwork:
        return CentralNetwork(signature, self)
