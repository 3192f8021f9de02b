"""The noise of a symplectic step: a covariance that the map transports, or kicks inside the map as latents.

`covariance`: x' ~ Normal(S(x), P(x)), S the map without noise, P white noise on momenta transported by its derivative. An exact density, so
there are no latents: the sample site z has width zero. Its draws are symplectic to first order in the noise.

`kicks`: the latents of a body are its kicks at K Gauss nodes, x' ~ Normal(S(x, z), s) with a small s, that of a recording. For every z the
map is symplectic. Two nodes give the covariance of free flight exactly, one gives a law without volume, for s to fill. In free flight
C z = e / s, e the way from S(x, 0) to x', and the posterior of z is Normal; it is the guide, from the same C and a few steps of
Gauss and Newton's method, so no network has to learn it. The coordinates of z are turned so that its dimensions are independent there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import pydantic
import torch
from pyro.distributions import Independent
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from epns_pyro.config import Config, Registry
from epns_pyro.fields import Field
from epns_pyro.models.bodies.emissions import CoupledNormal
from epns_pyro.models.bodies.fields import shortened
from epns_pyro.models.bodies.step import BodyStep
from epns_pyro.models.normal import Normal, masked
from epns_pyro.models.symplectic.flow import Grade, Kick, gauss_nodes
from epns_pyro.models.symplectic.laws import FullNormal, factor_of
from epns_pyro.models.transition import Carry, Observed

if TYPE_CHECKING:
    from epns_pyro.models.symplectic.transition import SymplecticTransition

NOISES = Registry("noise")


class SymplecticStep(BodyStep, ABC):
    """One step: h is the end of the frame without noise, (*batch, body, dynamic channel)."""

    def __init__(self, transition: SymplecticTransition, carry: Carry) -> None:
        self.transition, self.bodies = transition, transition.bodies
        self.x, self.mask = self.bodies.present(carry.x)
        self.flow = transition.flow(self.x, self.mask)
        self.start = transition.phase(self.x)
        self.path = list(self.flow.path(*self.start))
        super().__init__(transition.spec, carry, transition.channels(*self.path[-1]))

    @cached_property
    def sigma(self) -> Tensor:
        """Strength of the noise on velocities, per root of time: (*batch, body)."""
        return self.transition.sigma(self.x, self.mask)

    def latents(self, loc: Tensor, scale: Tensor) -> Independent:
        return masked(Normal(loc, scale).to_event(2), self.mask)


class NoiseConfig(Config, ABC):
    """How noise enters a symplectic step."""

    name: str
    minimum: float = pydantic.Field(default=1e-4, gt=0, description="smallest error of a recording, in typical changes per frame")

    @property
    def kicks(self) -> int:
        """Return how many kicks per frame are latents of a body."""
        return 0

    def latent_fields(self, velocity: Field) -> tuple[Field, ...]:
        """Return the latents of a body as fields: they turn with it."""
        return tuple(replace(velocity, name=f"kick_{k}", translates=False, rate_of="") for k in range(self.kicks))

    @abstractmethod
    def build(self, transition: SymplecticTransition, carry: Carry) -> SymplecticStep:
        """Make the step of a transition from a carry."""


# -- a covariance ------------------------------------------------------------------------------------------------------------------


class CovarianceStep(SymplecticStep):
    """A step without latents, whose emission is Normal with the transported covariance."""

    def __init__(self, transition: SymplecticTransition, carry: Carry, grade: Grade) -> None:
        super().__init__(transition, carry)
        self.grade = grade

    @cached_property
    def prior(self) -> Independent:
        empty = self.x.new_zeros(*self.x.shape[:-1], 0)
        return self.latents(empty, torch.ones_like(empty))

    def posterior(self, x_next: Tensor) -> Independent:
        return self.prior

    def emission(self, z: Tensor) -> TorchDistribution:
        """p(x' | x) = Normal(S(x), P(x) + s^2)."""
        shape = torch.broadcast_shapes(z.shape[:-2], self.x.shape[:-2])
        return self._law if shape == self._law.batch_shape else self._law.expand(shape)

    def observe(self, emission: TorchDistribution, x_next: Tensor) -> Observed:
        if not isinstance(emission, FullNormal):
            return super().observe(emission, x_next)
        following, stays = self.bodies.present(x_next)
        if stays is not None and self.mask is not None:
            emission = self._of_system(self.mask & stays).expand(emission.batch_shape)
        return Observed(emission, self.spec.dynamic(self.bodies.next_to(self.x, following)))

    @cached_property
    def _law(self) -> TorchDistribution:
        if self.grade == "system":
            return self._of_system(self.mask)
        variance = self._recording
        if self.grade == "free-flight":
            factor = factor_of(self._transported + torch.diag_embed(variance)).to(self.h.dtype)
            return masked(CoupledNormal(self.h, factor).to_event(1), self.mask)
        per_channel = variance.repeat_interleave(self.spec.space, -1)
        factor = factor_of(self._transported + torch.diag_embed(per_channel)).to(self.h.dtype)
        return masked(FullNormal(self.h, factor).to_event(1), self.mask)

    def _of_system(self, there: Tensor | None) -> FullNormal:
        """Return the law of all bodies, or of those that are there."""
        bodies, space = self.start[0].shape[-2:]
        by_body = torch.arange(2 * bodies * space).view(2, bodies, space).transpose(0, 1).flatten().to(self.h.device)
        whole = self._transported[..., by_body, :][..., by_body]
        variance = self._recording.repeat_interleave(space, -1).expand(*self.h.shape).flatten(-2)
        whole = whole + torch.diag_embed(variance)
        if there is not None:
            counts = there.repeat_interleave(self.h.shape[-1], -1)
            eye = torch.eye(whole.shape[-1], dtype=whole.dtype, device=whole.device)
            whole = torch.where(counts[..., :, None] & counts[..., None, :], whole, eye)
        return FullNormal(self.h, factor_of(whole).to(self.h.dtype), 2, there)

    @cached_property
    def _transported(self) -> Tensor:
        """The covariance P(x), float64, as a matrix per body or of the system, by field."""
        covariance = self.flow.covariance([q for q, _ in self.path], self.sigma, self.grade)
        return covariance.matrix(positions_first=self.transition.positions_first)

    @property
    def _recording(self) -> Tensor:
        """The variance s^2 of every field, float64: (*batch, body, field)."""
        return self.transition.spread(self.x).double().square()


@NOISES.register("covariance")
class CovarianceConfig(NoiseConfig):
    """A Normal law with the covariance that the map transports: an exact likelihood, no latents."""

    name: Literal["covariance"] = "covariance"
    grade: Grade = pydantic.Field(
        default="body",
        description="what transports the noise: free-flight; the forces on each body, others fixed; or those of the whole system",
    )

    def build(self, transition: SymplecticTransition, carry: Carry) -> CovarianceStep:
        return CovarianceStep(transition, carry, self.grade)


# -- kicks ---------------------------------------------------------------------------------------------------------------------------


class KickStep(SymplecticStep):
    """A step whose latents are kicks inside the map."""

    def __init__(self, transition: SymplecticTransition, carry: Carry, config: KicksConfig) -> None:
        super().__init__(transition, carry)
        self.config = config

    @cached_property
    def prior(self) -> Independent:
        """p(z) = Normal(0, 1)."""
        zero = self.x.new_zeros(*self.x.shape[:-1], self.config.nodes * self.spec.space)
        return self.latents(zero, torch.ones_like(zero))

    def emission(self, z: Tensor) -> Independent:
        """p(x' | x, z) = Normal(S(x, z), s)."""
        end = self._end(z.unflatten(-1, (self.config.nodes, -1)))
        law = Normal(end, self._spread.repeat_interleave(self.spec.space, -1).expand_as(end)).to_event(2)
        return masked(law, None if self.mask is None else self.mask.expand(end.shape[:-1]))

    def posterior(self, x_next: Tensor) -> Independent:
        """q(z | x, x') = Normal((C'C + 1)^-1 C' (e / s + C m), diag(C'C + 1)^-1/2), e the way from S(x, m) to x', m the mean before."""
        bodies, config = self.bodies, self.config
        following, stays = bodies.present(x_next)
        goal = self.spec.dynamic(bodies.next_to(self.x, following))
        response = self._response @ self._turn
        precision = response.mT @ response + torch.eye(config.nodes, dtype=response.dtype, device=response.device)

        def better(mean: Tensor, end: Tensor) -> Tensor:
            missed = shortened((goal - end) / self._spread.repeat_interleave(self.spec.space, -1), config.farthest)
            if stays is not None:
                missed = missed * stays[..., None]
            missed = missed.unflatten(-1, (2, -1))
            return torch.linalg.solve(precision, response.mT @ (missed + response @ mean))

        mean = self.x.new_zeros(*self.x.shape[:-1], config.nodes, self.spec.space)
        with torch.no_grad():
            for _ in range(config.iterations):
                mean = better(mean, self._end(mean))
        mean = better(mean, self._end(mean))  # the gradient is that of the last step
        scale = precision.diagonal(dim1=-2, dim2=-1).rsqrt()[..., None].expand_as(mean)
        if stays is not None:  # the prior for a body that has left
            scale = torch.where(stays[..., None, None], scale, 1.0)
        return self.latents(mean.flatten(-2), scale.flatten(-2))

    def _end(self, z: Tensor) -> Tensor:
        """Return S(x, z) for latents (*batch, body, node, space): (*batch, body, dynamic channel)."""
        turned = self._turn @ z
        kicks = [Kick(time, size[..., None] * turned[..., k, :]) for k, (time, size) in enumerate(self._sizes)]
        return self.transition.channels(*self.flow(*self.start, kicks))

    @property
    def _sizes(self) -> list[tuple[float, Tensor]]:
        """Times of the kicks, as fractions of the frame, and their standard deviations (*batch, body)."""
        whole = self.sigma * torch.as_tensor(self.flow.duration, dtype=self.x.dtype).sqrt()
        return [(time, weight**0.5 * whole) for time, weight in zip(*gauss_nodes(self.config.nodes), strict=True)]

    @cached_property
    def _spread(self) -> Tensor:
        """The error s of every field: (*batch, body, field)."""
        return self.transition.spread(self.x).expand(*self.x.shape[:-1], 2)

    @cached_property
    def _response(self) -> Tensor:
        """Change of the end of a frame in free flight by each kick, in units of s: (*batch, body, field, node)."""
        duration = torch.as_tensor(self.flow.duration, dtype=self.x.dtype, device=self.x.device)
        friction = self.flow.friction
        columns = []
        for time, size in self._sizes:
            left = (1 - time) * duration
            if friction is None:
                moved, kept = left.expand_as(size), torch.ones_like(size)
            else:
                kept = torch.exp(-friction * left).expand_as(size)
                moved = (1 - kept) / friction
            columns.append(size[..., None] * torch.stack([moved, kept][:: 1 if self.transition.positions_first else -1], -1))
        return torch.stack(columns, -1) / self._spread[..., None]

    @cached_property
    def _turn(self) -> Tensor:
        """An orthogonal matrix (*batch, body, node, node) that makes latents independent given the end of a frame in free flight.

        A change of coordinates of white noise changes no law, so no gradient flows through it.
        """
        response = self._response.detach().double()
        return torch.linalg.eigh(response.mT @ response).eigenvectors.to(self.x.dtype)


@NOISES.register("kicks")
class KicksConfig(NoiseConfig):
    """Kicks at Gauss nodes inside the map, as latents: every draw is symplectic."""

    name: Literal["kicks"] = "kicks"
    nodes: Literal[1, 2, 3] = pydantic.Field(default=2, description="kicks per frame")
    iterations: int = pydantic.Field(default=2, ge=0, le=20, description="steps of Gauss and Newton's method to the kicks that led to x'")
    farthest: float = pydantic.Field(default=1e4, gt=0, description="longest way that is believed at once, in units of the error s")
    minimum: float = pydantic.Field(default=1e-3, gt=0, description="smallest error s of a recording, in typical changes per frame")

    @property
    def kicks(self) -> int:
        return self.nodes

    def build(self, transition: SymplecticTransition, carry: Carry) -> KickStep:
        return KickStep(transition, carry, self)
