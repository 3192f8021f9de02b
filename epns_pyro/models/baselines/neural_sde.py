"""A neural stochastic differential equation (NSDE), observed at every frame.

    dy = (rate(y) + mu(x)) dt + sigma(x) dW        drift and diffusion are networks of the state, sigma is one number per body and field
    x' | path ~ Normal(y(frame_dt), s)             s: one small number per field

after Li et al., Scalable Gradients for Stochastic Differential Equations (AISTATS 2020). The frame is cut into K steps of Euler and
Maruyama, kick before drift. The latents are the noise of all of them: z_j = sum_k Q_kj eps_k with Q the orthonormal polynomials on the K
steps, again standard Normal. In these coordinates the first two latents of a field settle where it arrives, and that of its rate, so a
guide of independent latents comes close to the posterior; it never does in the eps_k themselves.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Literal

import pydantic
import torch
from pyro.distributions import Independent
from torch import Tensor, nn

from epns_pyro.backbones import BACKBONES, BackboneConfig
from epns_pyro.config import one_of
from epns_pyro.context import DataContext
from epns_pyro.durations import require_even
from epns_pyro.errors import ConfigError
from epns_pyro.models.bodies.emissions import DiagonalConfig
from epns_pyro.models.bodies.fields import BodyFields, shortened
from epns_pyro.models.bodies.step import BodyStep
from epns_pyro.models.normal import Normal, masked
from epns_pyro.models.transition import TRANSITIONS, Carry, Transition, TransitionConfig, bounded_exp

OBSERVATION = 0.1  # of the step scale: the noise around the end of a path, before training
CARRIED = -3.0  # log of the diffusion, before training, of a field whose rate carries noise to it


class NeuralSDE(Transition):
    """h = (mu, sigma) at the state that a frame starts from: (*batch, body, 2 dynamic channels).

    The latents of a body are noise with an axis for every axis of space: they turn with the bodies.
    """

    hidden_event_dim = 2
    block_size = 1024
    unit: Tensor
    log_diffusion: Tensor
    basis: Tensor

    def __init__(self, config: NeuralSDEConfig, context: DataContext) -> None:
        super().__init__()
        if derived := [f.name for f in context.spec.fields if f.differences or f.lag_of]:
            raise ConfigError(f"model 'neural-sde' predicts all dynamic fields, and {', '.join(derived)} cannot be: use 'particles'")
        require_even(context.spec, "neural-sde")
        self.config, self.spec, self.bodies = config, context.spec, BodyFields(context)
        self.absences = context.absences
        spec, bodies, steps = self.spec, self.bodies, config.substeps
        fields, moved, changed = len(spec.dynamic_fields), len(bodies.dynamic_vectors), len(bodies.dynamic_scalars)
        self.latent_fields = tuple(
            replace(f, name=f"{f.name}_{j}", translates=False, rate_of="") for j in range(steps) for f in spec.dynamic_fields
        )
        unit = torch.tensor([context.step_scales[f.name] for f in spec.dynamic_fields])
        self.register_buffer("unit", unit, persistent=False)
        carried = torch.tensor([CARRIED if f.name in bodies.rates else 0.0 for f in spec.dynamic_fields])
        self.register_buffer("log_diffusion", carried, persistent=False)
        self.register_buffer("basis", polynomials(steps).to(unit.dtype), persistent=False)
        scalars, vectors = bodies.feature_counts
        self.field = bodies.build(config.backbone, scalars, vectors, changed + fields, moved, pairs=True)
        # what the guide reads off an innovation: weights of its vectors, scalar shifts, widths; and vectors of its own
        self.read = [steps * moved * moved, steps * changed, steps * fields]
        self.posterior_net = bodies.build(
            config.backbone, scalars + fields + changed, vectors + moved, sum(self.read), steps * moved, pairs=True
        )
        self.observation = nn.Parameter(torch.full((fields,), math.log(OBSERVATION)))

    def step(self, carry: Carry) -> NeuralSDEStep:
        return NeuralSDEStep(self, carry)

    def coefficients(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """h = (mu(x), sigma(x)), both in units of the step scale per frame: (*batch, body, 2 dynamic channels)."""
        bodies = self.bodies
        out = self.field(bodies.positions(x), bodies.features(x, mask))
        changes, log_scale = out.scalars.tensor_split([len(bodies.dynamic_scalars)], -1)
        return torch.cat([bodies.join(out.vectors, changes), bodies.per_channel(bounded_exp(log_scale + self.log_diffusion))], -1)

    def first_channel(self, y: Tensor, name: str) -> Tensor:
        """A number per body of a field whose channels are all the same: (*batch, body)."""
        value = self.spec.get_dynamic(y, name)
        return value[..., 0] if self.spec[name].is_vector else value


class NeuralSDEStep(BodyStep):
    """The laws of one step. Bodies that are absent, NaN in the carry, act on no other, and have no latents and no likelihood."""

    def __init__(self, transition: NeuralSDE, carry: Carry) -> None:
        self.transition, self.bodies = transition, transition.bodies
        self.x, self.mask = self.bodies.present(carry.x)
        super().__init__(transition.spec, carry, transition.coefficients(self.x, self.mask))

    @property
    def prior(self) -> Independent:
        """p(z) = Normal(0, 1): white noise."""
        zero = self.x.new_zeros(*self.x.shape[:-1], self.transition.config.substeps * self.spec.dynamic_channels)
        return masked(Normal(zero, torch.ones_like(zero)).to_event(2), self.mask)

    def emission(self, z: Tensor) -> Independent:
        """p(x' | h, z) = Normal(y_K(x, z), s)."""
        transition = self.transition
        end = self._solve(z.unflatten(-1, (transition.config.substeps, -1)))
        law = DiagonalConfig().build(self.spec, end, transition.observation.expand(*end.shape[:-1], -1), transition.unit)
        return masked(law, self.mask)

    def posterior(self, x_next: Tensor) -> Independent:
        """q(z | h, x') = Normal(A(x, e) e + b(x, e), sigma(x, e)), e the way from the end of the path without noise to x'."""
        transition, bodies, steps = self.transition, self.bodies, self.transition.config.substeps
        following, stays = bodies.present(x_next)
        following = bodies.next_to(self.x, following)
        silent = self.x.new_zeros(*self.x.shape[:-1], steps, self.spec.dynamic_channels)
        surprise = shortened((self.spec.dynamic(following) - self._solve(silent)) / bodies.per_channel(transition.unit))
        if stays is not None:
            surprise = surprise * stays[..., None]
        e, seen = bodies.split(surprise), bodies.features(self.x, self.mask)
        _, diffusion = self.h.chunk(2, -1)
        spread = torch.stack([transition.first_channel(diffusion, f.name) for f in self.spec.dynamic_fields], -1).log()
        seen = replace(seen, scalars=torch.cat([seen.scalars, spread, e.scalars], -1), vectors=torch.cat([seen.vectors, e.vectors], -2))
        out = transition.posterior_net(bodies.positions(self.x), seen)
        weights, shifts, log_scale = (part.unflatten(-1, (steps, -1)) for part in out.scalars.split(transition.read, -1))
        count = len(bodies.dynamic_vectors)
        vectors = weights.unflatten(-1, (count, count)) @ e.vectors[..., None, :, :] + out.vectors.unflatten(-2, (steps, count))
        mean, log_scale = bodies.join(vectors, shifts).flatten(-2), bodies.per_channel(log_scale).flatten(-2)
        if stays is not None:  # the prior for a body that has left
            mean, log_scale = mean * stays[..., None], log_scale * stays[..., None]
        return masked(Normal(mean, bounded_exp(log_scale)).to_event(2), self.mask)

    def _solve(self, z: Tensor) -> Tensor:
        """End of the path that noise z (*batch, body, step, dynamic channel) drives: (*batch, body, dynamic channel)."""
        transition, spec, bodies, x = self.transition, self.spec, self.bodies, self.x
        unit, noise, steps = bodies.per_channel(transition.unit), transition.basis @ z, transition.config.substeps
        mask = None if self.mask is None else self.mask.expand(z.shape[:-2])
        for k in range(steps):
            drift, diffusion = (self.h if k == 0 else transition.coefficients(x, mask)).chunk(2, -1)
            kick = unit * (drift / steps + diffusion * noise[..., k, :] / math.sqrt(steps))
            x = spec.advance(x, bodies.persistence(spec.advance(x, spec.dynamic(x) + kick), bodies.frame_dt / steps))
        return spec.dynamic(x)


def polynomials(count: int) -> Tensor:
    """Orthonormal polynomials on `count` equal steps, in the order of their degree: (step, degree), float64; the first is constant."""
    time = torch.linspace(-1, 1, count, dtype=torch.float64) if count > 1 else torch.zeros(1, dtype=torch.float64)
    q, r = torch.linalg.qr(time[:, None] ** torch.arange(count))
    return q * r.diagonal().sign()


@TRANSITIONS.register("neural-sde")
class NeuralSDEConfig(TransitionConfig):
    """NSDE: a baseline; equivariant with an equivariant backbone."""

    name: Literal["neural-sde"] = "neural-sde"
    backbone: Annotated[BackboneConfig, one_of(BACKBONES)] = pydantic.Field(default="vector", validate_default=True)
    substeps: int = pydantic.Field(default=4, ge=1, le=16, description="steps of Euler and Maruyama per frame")

    def build(self, context: DataContext) -> NeuralSDE:
        return NeuralSDE(self, context)
