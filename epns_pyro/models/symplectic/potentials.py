"""Learned potential energies, invariant under the symmetry, of bodies whose attributes do not change.

    pair       U = sum_{i<j} mu_ij sum_h s_h(a_i, a_j, e_ij) phi_h(|q_i - q_j|)       and fields of a fixed centre or axis, if there are any
    network    U = sum_i m_i e_i(q; a),  e an invariant network                       differentiated by autograd

A force is a gradient of U by construction, whatever the weights are; a network of forces that reads velocities, other neighbours, or
features that move with the bodies is none, and a map made of its kicks is not symplectic.

Positions q are in the unit of the data, (*batch, body, space). Masses m are in units of their scale, and accelerations are forces over m.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Annotated, Literal

import pydantic
import torch
from torch import Tensor, nn

from epns_pyro.backbones import BACKBONES, BackboneConfig
from epns_pyro.backbones.bodies.base import perceptron
from epns_pyro.config import Config, Registry, one_of
from epns_pyro.context import DataContext
from epns_pyro.models.bodies.fields import BodyFields
from epns_pyro.state import StateSpec

POTENTIALS = Registry("potential")

LENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # eps_k before training, in units of the scale of positions
EXPONENTS = (2.0, 1.0, -1.0, -2.0)  # of the distance, by head before training: spring, constant force, charge, steeper
NEAREST = 1e-3  # a length that is added to every eps_k, likewise: forces stay finite where bodies meet


class Landscape(ABC):
    """U as a function of positions (*batch, body, space) alone: masses, charges and bonds are known."""

    @abstractmethod
    def energy(self, q: Tensor) -> Tensor:
        """Return U: (*batch,), in masses times the square of the unit of velocities."""

    @abstractmethod
    def forces(self, q: Tensor) -> Tensor:
        """Return -dU/dq: (*batch, body, space)."""

    @abstractmethod
    def curvature(self, q: Tensor) -> Tensor:
        """Return the second derivatives of U: (*batch, body, space, body, space)."""

    def own_curvature(self, q: Tensor) -> Tensor:
        """Return the second derivatives of U by the position of one body, the others fixed: (*batch, body, space, space)."""
        return self.curvature(q).diagonal(dim1=-4, dim2=-2).movedim(-1, -3)


class Potential(nn.Module, ABC):
    """U for the fields of given data.

    Attributes
    ----------
    seen : BodyFields
        What a potential may read: all fields except velocities and the duration of a frame.
    length, energy_unit : float
        The unit of distances, and that of energies: accelerations of order one change a velocity in a frame as the data do.
    """

    def __init__(self, context: DataContext, velocity: str, mass: str) -> None:
        super().__init__()
        spec = context.spec
        fields = tuple(f for f in spec.fields if f.name != velocity and f.kind != "duration")
        self.full, self.velocity, self.mass = spec, velocity, mass
        self.seen = BodyFields(replace(context, spec=replace(spec, fields=fields)))
        self.length = self.seen.spec[self.seen.position].scale
        self.energy_unit = self.length * context.step_scales[velocity] / context.frame_dt

    def visible(self, x: Tensor) -> Tensor:
        """Return what a potential reads of full states: (*batch, body, channel of `seen`)."""
        return torch.cat([x[..., self.full.slice(f.name)] for f in self.seen.spec.fields], -1)

    def masses(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return masses in units of their scale, (*batch, body); 1 where the data have none, and for bodies that are absent."""
        if not self.mass:
            return x.new_ones(x.shape[:-1])
        found = self.full.get(x, self.mass) / self.full[self.mass].scale
        return found if mask is None else torch.where(mask, found, 1.0)

    @abstractmethod
    def at(self, x: Tensor, mask: Tensor | None = None) -> Landscape:
        """Return U for the attributes in full states x (*batch, body, channel); bodies where a mask is False do not count."""


class PotentialConfig(Config, ABC):
    """How a potential energy is learned."""

    name: str

    @abstractmethod
    def build(self, context: DataContext, velocity: str, mass: str) -> Potential:
        """Make the potential for given data; `velocity` and `mass` are names of fields, the latter "" where there is none."""


# -- pairs -----------------------------------------------------------------------------------------------------------------------


class Radial(nn.Module):
    """phi_h = prod_k (s + eps_k^2)^{p_hk / 2} of a squared distance s, in units of the scale of positions squared.

    Its logarithm is a network with one hidden layer of the logarithm of the distance: power laws with softened ends are within reach
    exactly, and everything is smooth at s = 0.
    """

    def __init__(self, copies: int) -> None:
        super().__init__()
        self.log_lengths = nn.Parameter(torch.tensor(LENGTHS).log())
        exponents = torch.zeros(len(EXPONENTS), len(LENGTHS))
        exponents[:, 0] = torch.tensor(EXPONENTS)
        self.exponents = nn.Parameter(exponents.repeat(copies, 1) + 0.1 * torch.randn(copies * len(EXPONENTS), len(LENGTHS)) * (copies > 1))

    def forward(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return phi and its first two derivatives by s (*pair,): each (*pair, head)."""
        near = s[..., None] + (2 * self.log_lengths).exp() + NEAREST**2
        half = self.exponents.mT / 2
        value, inverse = (near.log() @ half).exp(), near.reciprocal()
        slope = inverse @ half
        return value, value * slope, value * (slope.square() - inverse.square() @ half)


class PairPotential(Potential):
    """Radial functions of distances, with strengths that depend on the attributes of both bodies and of their pair, symmetrically.

    A strength is in units of the relative acceleration of the two, U_ij = mu_ij u(r) with the reduced mass mu_ij: then light bodies are
    as easy to learn as heavy ones.
    """

    def __init__(self, config: PairPotentialConfig, context: DataContext, velocity: str, mass: str) -> None:
        super().__init__(context, velocity, mass)
        seen, self.radial = self.seen, Radial(config.copies)
        heads, own = len(self.radial.exponents), seen.feature_counts[0]
        attributes = 2 * own + len(seen.pairs)
        self.constant = nn.Parameter(torch.zeros(heads))
        self.linear = nn.Parameter(torch.zeros(heads, own))
        self.product = nn.Parameter(torch.zeros(heads, own, own))
        self.pair = nn.Parameter(torch.zeros(heads, len(seen.pairs)))
        self.bend = perceptron(attributes, config.width, heads, small_output=True) if attributes else None
        if self.bend is not None:
            for start in self.bend[-1].parameters():
                nn.init.zeros_(start)  # before training bodies move freely
        fixed, directions = not seen.spec[seen.position].translates, len(seen.space.special_directions)
        self.centre = nn.Parameter(torch.zeros(heads, 1 + own)) if fixed else None
        self.slope = nn.Parameter(torch.zeros(directions)) if directions else None

    def at(self, x: Tensor, mask: Tensor | None = None) -> PairLandscape:
        return PairLandscape(self, x, mask)

    @property
    def linear_parameters(self) -> tuple[nn.Parameter, ...]:
        """Parameters in which forces are linear."""
        found = (self.constant, self.linear, self.product, self.pair, self.centre, self.slope)
        return tuple(parameter for parameter in found if parameter is not None and parameter.numel())

    @property
    def silent_parameters(self) -> tuple[nn.Parameter, ...]:
        """Parameters which, as long as they are zero, leave forces to the linear ones."""
        return () if self.bend is None else tuple(self.bend[-1].parameters())

    def strengths(self, ours: Tensor, theirs: Tensor, pairs: Tensor | None) -> Tensor:
        """Return s_h of pairs with attributes (*pair, attribute) and those of the pairs themselves: (*pair, head)."""
        both, products = 0.5 * (self.product + self.product.mT), ours[..., :, None] * theirs[..., None, :]
        found = self.constant + (ours + theirs) @ self.linear.mT + products.flatten(-2) @ both.flatten(1).mT
        found = found if pairs is None else found + pairs @ self.pair.mT
        if self.bend is None:
            return found
        return found + self.bend(torch.cat([ours + theirs, ours * theirs, *(() if pairs is None else (pairs,))], -1))


class PairLandscape(Landscape):
    """U of a `PairPotential` in closed form, with its first and second derivatives."""

    def __init__(self, potential: PairPotential, x: Tensor, mask: Tensor | None) -> None:
        self.potential, seen, bodies = potential, potential.seen, x.shape[-2]
        self.first, self.second = torch.triu_indices(bodies, bodies, 1, device=x.device)
        features, self.mass = seen.features(potential.visible(x), mask), potential.masses(x, mask)
        self.space = potential.full.space_of(x)
        ours, theirs = (features.scalars.index_select(-2, end) for end in (self.first, self.second))
        pairs = None
        if features.pairs is not None:
            there, back = features.pairs[..., self.first, self.second, :], features.pairs[..., self.second, self.first, :]
            pairs = 0.5 * (there + back)
        one, two = (self.mass.index_select(-1, end) for end in (self.first, self.second))
        weight = one * two / (one + two)
        if mask is not None:
            weight = weight * (mask.index_select(-1, self.first) & mask.index_select(-1, self.second))
        self.strengths = weight[..., None] * potential.strengths(ours, theirs, pairs)
        if potential.centre is not None:
            there = self.mass if mask is None else self.mass * mask
            self.about = there[..., None] * (potential.centre[:, 0] + features.scalars @ potential.centre[:, 1:].mT)
        self.pull = None
        if potential.slope is not None:
            directions = x.new_tensor(seen.space.special_directions)
            self.pull = self.mass[..., None] * (potential.slope @ directions) * potential.energy_unit / potential.length

    def energy(self, q: Tensor) -> Tensor:
        found = (self.strengths * self.potential.radial(self._squared(self._way(q)))[0]).sum((-2, -1))
        if self.potential.centre is not None:
            found = found + (self.about * self.potential.radial(self._squared(q))[0]).sum((-2, -1))
        found = found * self.potential.energy_unit
        return found if self.pull is None else found - (self.pull * q).sum((-2, -1))

    def forces(self, q: Tensor) -> Tensor:
        way = self._way(q)
        along = self._rate(self.strengths, self._squared(way))[..., None] * way
        found = torch.zeros_like(q).index_add(-2, self.first, -along).index_add(-2, self.second, along)
        if self.potential.centre is not None:
            found = found - self._rate(self.about, self._squared(q))[..., None] * q
        return found if self.pull is None else found + self.pull

    def curvature(self, q: Tensor) -> Tensor:
        bodies, blocks = q.shape[-2], self._of_pairs(q)
        found = torch.diag_embed(self.own_curvature(q).movedim(-3, -1))  # (*batch, space, space, body, body)
        found = found.movedim((-2, -1), (-4, -3)).flatten(-4, -3)
        found = found.index_add(-3, self.first * bodies + self.second, -blocks)
        found = found.index_add(-3, self.second * bodies + self.first, -blocks)
        return found.unflatten(-3, (bodies, bodies)).transpose(-3, -2)

    def own_curvature(self, q: Tensor) -> Tensor:
        blocks = self._of_pairs(q)
        found = blocks.new_zeros(*q.shape, q.shape[-1]).index_add(-3, self.first, blocks).index_add(-3, self.second, blocks)
        return found if self.potential.centre is None else found + self._blocks(self.about, q)

    # -- functions of a way (*pair, space) -------------------------------------------------------------------------------------

    def _way(self, q: Tensor) -> Tensor:
        """Return the way from the second to the first body of every pair: (*batch, pair, space)."""
        return self.space.displacement(q.index_select(-2, self.second), q.index_select(-2, self.first))

    def _squared(self, way: Tensor) -> Tensor:
        return (way / self.potential.length).square().sum(-1)

    def _rate(self, strengths: Tensor, squared: Tensor) -> Tensor:
        """Return u'(r) / r: (*pair,)."""
        return (strengths * self.potential.radial(squared)[1]).sum(-1) * (2 * self.potential.energy_unit / self.potential.length**2)

    def _of_pairs(self, q: Tensor) -> Tensor:
        return self._blocks(self.strengths, self._way(q))

    def _blocks(self, strengths: Tensor, way: Tensor) -> Tensor:
        """Return the second derivatives by a way, (*pair, space, space)."""
        unit, length = self.potential.energy_unit, self.potential.length
        _, first, second = self.potential.radial(self._squared(way))
        even = (2 * unit / length**2) * (strengths * first).sum(-1)
        along = (4 * unit / length**4) * (strengths * second).sum(-1)
        eye = torch.eye(way.shape[-1], dtype=way.dtype, device=way.device)
        return even[..., None, None] * eye + along[..., None, None] * way[..., :, None] * way[..., None, :]


@POTENTIALS.register("pair")
class PairPotentialConfig(PotentialConfig):
    """Sums of radial functions over pairs: momentum and angular momentum are conserved."""

    name: Literal["pair"] = "pair"
    width: int = pydantic.Field(default=16, gt=0, description="hidden channels of the network of attributes")
    copies: int = pydantic.Field(default=1, gt=0, le=16, description=f"radial functions, in sets of {len(EXPONENTS)}")

    def build(self, context: DataContext, velocity: str, mass: str) -> PairPotential:
        return PairPotential(self, context, velocity, mass)


# -- any invariant network -------------------------------------------------------------------------------------------------------


class NetworkPotential(Potential):
    """The sum over bodies of an invariant network of positions and attributes."""

    def __init__(self, config: NetworkPotentialConfig, context: DataContext, velocity: str, mass: str) -> None:
        super().__init__(context, velocity, mass)
        self.network = self.seen.build(config.network, *self.seen.feature_counts, 1, 0, pairs=True).scale_output(0.0)

    def at(self, x: Tensor, mask: Tensor | None = None) -> NetworkLandscape:
        return NetworkLandscape(self, x, mask)


class NetworkLandscape(Landscape):
    """U of a `NetworkPotential`: forces are one reverse pass, the curvature another one through it."""

    def __init__(self, potential: NetworkPotential, x: Tensor, mask: Tensor | None) -> None:
        self.potential, self.mask, self._seen = potential, mask, potential.visible(x)
        self.mass = potential.masses(x) if mask is None else potential.masses(x, mask) * mask

    def energy(self, q: Tensor) -> Tensor:
        seen, shape = self.potential.seen, q.shape[:-1]
        dynamic = {seen.position: q}
        x = seen.spec.advance(self._seen.expand(*shape, -1), seen.spec.pack_dynamic(**dynamic))
        mask = None if self.mask is None else self.mask.expand(shape)
        per_body = self.potential.network(seen.positions(x), seen.features(x, mask)).scalars[..., 0]
        return (self.mass * per_body).sum(-1) * self.potential.energy_unit

    def forces(self, q: Tensor) -> Tensor:
        return self._forces(q, torch.is_grad_enabled())[0]

    def curvature(self, q: Tensor) -> Tensor:
        bodies, space = q.shape[-2:]
        basis = torch.eye(bodies * space, dtype=q.dtype, device=q.device).view(-1, *[1] * (q.dim() - 2), bodies, space)
        copies = q.expand(len(basis), *q.shape)  # one product of all of them with all directions
        forces, at = self._forces(copies, create_graph=True)
        (products,) = torch.autograd.grad(forces, at, -basis.expand_as(copies), create_graph=torch.is_grad_enabled())
        return products.movedim(0, -1).unflatten(-1, (bodies, space))

    def _forces(self, q: Tensor, create_graph: bool) -> tuple[Tensor, Tensor]:
        """Return the forces, and the positions by which they can be differentiated."""
        with torch.enable_grad():
            at = q if q.requires_grad else q.detach().requires_grad_()
            (forces,) = torch.autograd.grad(-self.energy(at).sum(), at, create_graph=create_graph)
        return forces, at


@POTENTIALS.register("network")
class NetworkPotentialConfig(PotentialConfig):
    """Any invariant network of the positions: forces of three and more bodies too."""

    name: Literal["network"] = "network"
    network: Annotated[BackboneConfig, one_of(BACKBONES)] = pydantic.Field(default="pairwise", validate_default=True)

    def build(self, context: DataContext, velocity: str, mass: str) -> NetworkPotential:
        return NetworkPotential(self, context, velocity, mass)


def velocity_and_mass(spec: StateSpec, position: str, mass: str) -> tuple[str, str]:
    """Return the names of the velocity, "" where there is none, and of the field of masses, "" where all weigh the same."""
    velocity = next((f.name for f in spec.fields if f.rate_of == position), "")
    known = mass in spec and not spec[mass].dynamic and not spec[mass].is_vector and spec[mass].kind == "real"
    return velocity, mass if known else ""
