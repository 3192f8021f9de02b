"""The transition of a set of bodies: positions, other vectors, scalars.

The mean is a residual in physical units, x' = x + v dt + ..., v' = v + ..., in two parts: a first guess from h alone, whose law
("what would be said without latents") also standardises the innovation that the posterior sees, and a correction that reads z.
"""

from __future__ import annotations

from typing import Literal

import pydantic
import torch
from pyro.distributions import Independent, Normal
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from epns_pyro.backbones import BACKBONES, Backbone, Features, Signature
from epns_pyro.backbones.base import perceptron, safe_norm
from epns_pyro.config import choice
from epns_pyro.data.context import DataContext
from epns_pyro.errors import ConfigError
from epns_pyro.models.emissions import EMISSIONS, innovation
from epns_pyro.models.transition import TRANSITIONS, Transition, TransitionConfig

FRAME_FLOOR = 1e-3  # vectors of h shorter than this give no axis
INNOVATION_BOUND = 10.0  # innovations beyond this many standard deviations are shortened before a network sees them


class ParticleTransition(Transition):
    """EPNS for particles; equivariant where its backbones are.

    h holds `width` scalars and `hidden_vectors` vectors per body: (*batch, body, width + hidden_vectors * space).
    """

    hidden_event_dim = 2
    chunk = 1024

    def __init__(self, config: ParticlesConfig, context: DataContext) -> None:
        super().__init__()
        self.config, self.spec = config, context.spec
        spec = self.spec
        self.position = position_field(spec)
        dynamic = spec.dynamic_fields
        self._vector_names = [f.name for f in spec.fields if f.is_vector and f.name != self.position]
        self._scalar_names = [f.name for f in spec.fields if not f.is_vector]
        self._dynamic_vectors = [f for f in dynamic if f.is_vector]
        self._dynamic_scalars = [f for f in dynamic if not f.is_vector]
        self._rates = {spec[f.rate_of].name: f.name for f in spec.fields if f.rate_of}
        self.frame_dt = context.frame_dt
        self.register_buffer("step_scales", torch.tensor([context.step_scales[f.name] for f in dynamic]), persistent=False)

        width, vectors, latent = config.width, config.hidden_vectors, config.latent
        noise = config.emission.parameters(spec)
        moved, changed = len(self._dynamic_vectors), len(self._dynamic_scalars)

        def network(scalars_in: int, vectors_in: int, scalars_out: int, vectors_out: int) -> Backbone:
            signature = Signature(scalars_in, vectors_in, scalars_out, vectors_out, spec.space, context.sites[0])
            return config.backbone.build(signature)

        self.encoder = network(2 * len(self._scalar_names), len(self._vector_names), width, vectors)
        self.guess_vectors = nn.Linear(vectors, moved, bias=False)
        self.guess_scalars = perceptron(width, width, changed + noise, small_output=True)
        self.prior_net = perceptron(width, width, 2 * latent, small_output=True)
        self.decoder = network(width + latent, vectors, changed + noise, moved)
        self.posterior_net = network(width + changed, vectors + moved, 2 * latent, 0)
        with torch.no_grad():
            self.guess_vectors.weight.mul_(0.1)
        if config.linear_path:
            # At first the latents hold the mean innovation of the vector fields in the body's own frame, and give it back to each.
            count = min(latent, spec.space)
            path = torch.eye(count, latent).expand(moved, -1, -1)
            self.unload = nn.Parameter(path.clone() / moved)  # (vector field, axis, latent)
            self.load = nn.Parameter(path.clone())

    # -- the four pieces -----------------------------------------------------------------------------------------------

    def forward_model(self, x: Tensor) -> Tensor:
        """h = f(x): (*batch, body, width + hidden_vectors * space)."""
        spec = self.spec
        scalars = (
            torch.stack([spec.get(x, name) / spec[name].scale for name in self._scalar_names], -1) if self._scalar_names else x[..., :0]
        )
        vectors = self._stack_vectors([spec.get(x, name) / spec[name].scale for name in self._vector_names], x)
        hidden = self.encoder(self._positions(x), Features(torch.cat([scalars, torch.asinh(10 * scalars)], -1), vectors))
        return torch.cat([hidden.scalars, hidden.vectors.flatten(-2)], -1)

    def prior(self, x: Tensor, h: Tensor) -> Independent:
        """p(z | h) = Normal(mu(h), sigma(h))."""
        mean, log_scale = self.prior_net(self._pool(self._split(h).scalars)).chunk(2, -1)
        return Normal(mean, bounded_exp(log_scale)).to_event(2)

    def emission(self, x: Tensor, h: Tensor, z: Tensor) -> TorchDistribution:
        """p(x' | h, z) = Normal(x + v dt + guess(h) + sigma(h) correction(h, z), sigma(h, z))."""
        guess, noise = self._guess(x, h)
        hidden = self._split(h)
        z = z.expand(*z.shape[:-2], x.shape[-2], z.shape[-1])
        shape = torch.broadcast_shapes(h.shape[:-1], z.shape[:-1])
        scalars = torch.cat([hidden.scalars.expand(*shape, -1), z.expand(*shape, -1)], -1)
        positions = self._positions(x).expand(*shape, -1)
        out = self.decoder(positions, Features(scalars, hidden.vectors.expand(*shape, *hidden.vectors.shape[-2:])))
        vectors = out.vectors
        if self.config.linear_path:
            vectors = vectors + torch.einsum("...l,fal,...as->...fs", z, self.load, self._frame(hidden))
        correction = self._join(vectors, out.scalars[..., : len(self._dynamic_scalars)])
        loc = guess.mean + guess.variance.sqrt() * correction
        return self._law(loc, noise + out.scalars[..., len(self._dynamic_scalars) :])

    def posterior(self, x: Tensor, h: Tensor, x_next: Tensor) -> Independent:
        """q(z | h, x') = Normal(mu_p + sigma_p a(h, e), sigma_p exp(b(h, e))), e the innovation of x' under the first guess."""
        guess, _ = self._guess(x, h)
        surprise = innovation(guess, self.spec.dynamic(x_next))
        surprise = surprise / (1 + (surprise / INNOVATION_BOUND).square().mean(-1, keepdim=True)).sqrt()
        hidden = self._split(h)
        vectors = torch.stack([self.spec.get_dynamic(surprise, f.name) for f in self._dynamic_vectors], -2)
        scalars = [self.spec.get_dynamic(surprise, f.name)[..., None] for f in self._dynamic_scalars]
        seen = Features(torch.cat([hidden.scalars, *scalars], -1), torch.cat([hidden.vectors, vectors], -2))
        shift, log_scale = self._pool(self.posterior_net(self._positions(x), seen).scalars).chunk(2, -1)
        if self.config.linear_path:
            shift = shift + torch.einsum("...fs,...as,fal->...l", vectors, self._frame(hidden), self.unload)
        prior = self.prior(x, h).base_dist
        return Normal(prior.loc + prior.scale * shift, prior.scale * bounded_exp(log_scale)).to_event(2)

    # -- helpers -------------------------------------------------------------------------------------------------------

    def _guess(self, x: Tensor, h: Tensor) -> tuple[TorchDistribution, Tensor]:
        """The law of x' that h suggests without latents, and its noise parameters."""
        hidden = self._split(h)
        scalars = self.guess_scalars(hidden.scalars)
        change = self._join(self.guess_vectors.weight @ hidden.vectors, scalars[..., : len(self._dynamic_scalars)])
        noise = scalars[..., len(self._dynamic_scalars) :]
        return self._law(self._persistence(x) + change * self._per_channel(self.step_scales), noise), noise

    def _law(self, loc: Tensor, noise: Tensor) -> TorchDistribution:
        return self.config.emission.build(self.spec, loc, noise, self.step_scales)

    def _persistence(self, x: Tensor) -> Tensor:
        """x + v dt for fields with a rate, x for the others: the dynamic channels (*batch, body, dynamic channel)."""
        spec = self.spec
        return spec.pack_dynamic(
            **{
                f.name: spec.get(x, f.name) + (self.frame_dt * spec.get(x, self._rates[f.name]) if f.name in self._rates else 0.0)
                for f in spec.dynamic_fields
            }
        )

    def _frame(self, hidden: Features) -> Tensor:
        """Orthonormal axes that move with each body, (*batch, body, axis, space): Gram-Schmidt on the first vectors of h.

        Where those vectors do not span space (a planar state) the missing axes shrink to zero, and equivariance holds all the same.
        """
        axes: list[Tensor] = []
        for vector in hidden.vectors.unbind(-2)[: self.load.shape[1]]:
            for axis in axes:
                vector = vector - (vector * axis).sum(-1, keepdim=True) * axis
            axes.append(vector / safe_norm(vector, floor=FRAME_FLOOR**2)[..., None])
        return torch.stack(axes, -2)

    def _positions(self, x: Tensor) -> Tensor:
        return self.spec.get(x, self.position) / self.spec[self.position].scale

    def _split(self, h: Tensor) -> Features:
        scalars, vectors = h.split([self.config.width, h.shape[-1] - self.config.width], -1)
        return Features(scalars, vectors.unflatten(-1, (-1, self.spec.space)))

    def _join(self, vectors: Tensor, scalars: Tensor) -> Tensor:
        """Put dynamic vectors (..., field, space) and scalars (..., field) in the order of the spec: (..., dynamic channel)."""
        parts = {f.name: vectors[..., i, :] for i, f in enumerate(self._dynamic_vectors)}
        parts |= {f.name: scalars[..., i : i + 1] for i, f in enumerate(self._dynamic_scalars)}
        return torch.cat([parts[f.name] for f in self.spec.dynamic_fields], -1)

    def _per_channel(self, per_field: Tensor) -> Tensor:
        return torch.cat([value.expand(self.spec.width(f)) for f, value in zip(self.spec.dynamic_fields, per_field, strict=True)])

    def _stack_vectors(self, vectors: list[Tensor], x: Tensor) -> Tensor:
        return torch.stack(vectors, -2) if vectors else x.new_zeros(*x.shape[:-1], 0, self.spec.space)

    def _pool(self, per_body: Tensor) -> Tensor:
        return per_body if self.config.latents == "per-body" else per_body.mean(-2, keepdim=True)


def position_field(spec) -> str:
    """Return the name of the one field that translates.

    Raises
    ------
    ConfigError
        If there is none or more than one: distances between bodies need one position.
    """
    names = [f.name for f in spec.fields if f.translates]
    if len(names) != 1:
        raise ConfigError(f"a particle model needs exactly one field with translates = true (the position), found {names or 'none'}")
    if odd := [f.name for f in spec.fields if f.parity < 0]:
        raise ConfigError(f"particle models handle scalars (0e) and vectors (1o); {', '.join(odd)} is a pseudoscalar or pseudovector")
    return names[0]


def bounded_exp(x: Tensor) -> Tensor:
    """Return exp(x) with x bent smoothly into (-5, 5), so that a scale can neither vanish nor explode."""
    return torch.exp(5 * torch.tanh(x / 5))


@TRANSITIONS.register("particles")
class ParticlesConfig(TransitionConfig):
    """EPNS for particles."""

    name: Literal["particles"] = "particles"
    backbone: choice(BACKBONES) = pydantic.Field(default="vector", validate_default=True)
    emission: choice(EMISSIONS) = pydantic.Field(default="coupled", validate_default=True)
    width: int = pydantic.Field(default=64, gt=0, description="scalar channels of h per body")
    hidden_vectors: int = pydantic.Field(default=8, gt=0, description="vector channels of h per body")
    latent: int = pydantic.Field(default=16, gt=0, description="latent dimensions per body, or of the whole system")
    latents: Literal["per-body", "shared"] = "per-body"
    linear_path: bool = pydantic.Field(
        default=True, description="a linear path from innovation to latents to mean, in the body's own frame"
    )

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> ParticlesConfig:
        if self.linear_path and self.latents == "shared":
            raise ValueError("a linear path needs latents per body: set linear_path to false for shared latents")
        if self.linear_path and self.hidden_vectors < 3:
            raise ValueError(f"a linear path needs 3 hidden vectors for a frame, found hidden_vectors = {self.hidden_vectors}")
        return self

    def build(self, context: DataContext) -> ParticleTransition:
        return ParticleTransition(self, context)
