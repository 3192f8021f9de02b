"""The transition of a set of bodies: positions, other vectors, scalars.

The mean is a residual in physical units, x' = x + v dt + ..., v' = v + ..., in two parts: a first guess from h alone, whose law
("what would be said without latents") also standardises the innovation that the posterior sees, and a correction that reads z. The
first guess follows a learned equation of motion (`integrator`) and adds what a network makes of h.
"""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
import torch
from pyro.distributions import Independent
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from epns_pyro.backbones import BACKBONES, Backbone, BackboneConfig, Features, Signature
from epns_pyro.backbones.bodies.base import perceptron, safe_norm
from epns_pyro.config import one_of
from epns_pyro.context import DataContext
from epns_pyro.models.bodies.emissions import EMISSIONS, EmissionConfig, innovation
from epns_pyro.models.bodies.fields import BodyFields, shortened
from epns_pyro.models.bodies.integrator import Integrator, IntegratorConfig
from epns_pyro.models.normal import Normal
from epns_pyro.models.transition import TRANSITIONS, Transition, TransitionConfig, bounded_exp

FRAME_FLOOR = 1e-3  # vectors of h shorter than this give no axis


class ParticleTransition(Transition):
    """EPNS for particles; equivariant where its backbones are.

    h holds `width` scalars and `hidden_vectors` vectors per body, (*batch, body, width + hidden_vectors * space), then what the
    integrator returns.
    """

    hidden_event_dim = 2
    chunk = 1024

    def __init__(self, config: ParticlesConfig, context: DataContext) -> None:
        super().__init__()
        self.config, self.spec, self.bodies = config, context.spec, BodyFields(context)
        spec, bodies = self.spec, self.bodies
        self.register_buffer("step_scales", torch.tensor([context.step_scales[f.name] for f in spec.dynamic_fields]), persistent=False)

        width, vectors, latent = config.width, config.hidden_vectors, config.latent
        self._ends = [width, width + vectors * spec.space]  # of the scalars and of the vectors of h
        noise = config.emission.parameters(spec)
        moved, changed = len(bodies.dynamic_vectors), len(bodies.dynamic_scalars)

        def network(scalars_in: int, vectors_in: int, scalars_out: int, vectors_out: int) -> Backbone:
            signature = Signature(scalars_in, vectors_in, scalars_out, vectors_out, spec.space, context.sites[0])
            return config.backbone.build(signature)

        self.encoder = network(*bodies.feature_counts, width, vectors)
        self.guess_vectors = nn.Linear(vectors, moved, bias=False)
        self.integrator = Integrator(config.integrator, context) if config.integrator else None
        strained = self.integrator.fields if self.integrator else 0
        self.guess_scalars = perceptron(width + strained, width, changed + noise, small_output=True)
        self.prior_net = perceptron(width, width, 2 * latent, small_output=True)
        self.decoder = network(width + latent, vectors, changed + noise, moved)
        self.posterior_net = network(width + changed, vectors + moved, 2 * latent, 0)
        with torch.no_grad():
            self.guess_vectors.weight.mul_(0.1)
        if config.linear_path:
            # At first the latents hold the mean innovation of the vector fields in the body's own frame, and give it back to each.
            count = min(latent, spec.space)
            path = torch.eye(count, latent).expand(moved, -1, -1)
            self.innovation_to_latents = nn.Parameter(path.clone() / moved)  # (vector field, axis, latent)
            self.latents_to_mean = nn.Parameter(path.clone())

    # -- the four pieces -----------------------------------------------------------------------------------------------

    def forward_model(self, x: Tensor) -> Tensor:
        """h = f(x): (*batch, body, hidden)."""
        hidden = self.encoder(self.bodies.positions(x), self.bodies.features(x))
        motion = self.integrator(x) if self.integrator else ()
        return torch.cat([hidden.scalars, hidden.vectors.flatten(-2), *motion], -1)

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
        positions = self.bodies.positions(x).expand(*shape, -1)
        out = self.decoder(positions, Features(scalars, hidden.vectors.expand(*shape, *hidden.vectors.shape[-2:])))
        vectors = out.vectors
        if self.config.linear_path:
            vectors = vectors + torch.einsum("...l,fal,...as->...fs", z, self.latents_to_mean, self._frame(hidden))
        changed = len(self.bodies.dynamic_scalars)
        correction = self.bodies.join(vectors, out.scalars[..., :changed])
        loc = guess.mean + guess.variance.sqrt() * correction
        return self._law(loc, noise + out.scalars[..., changed:])

    def posterior(self, x: Tensor, h: Tensor, x_next: Tensor) -> Independent:
        """q(z | h, x') = Normal(mu_p + sigma_p a(h, e), sigma_p exp(b(h, e))), e the innovation of x' under the first guess."""
        guess, _ = self._guess(x, h)
        surprise = self.bodies.split(shortened(innovation(guess, self.spec.dynamic(x_next))))
        hidden = self._split(h)
        seen = Features(torch.cat([hidden.scalars, surprise.scalars], -1), torch.cat([hidden.vectors, surprise.vectors], -2))
        shift, log_scale = self._pool(self.posterior_net(self.bodies.positions(x), seen).scalars).chunk(2, -1)
        if self.config.linear_path:
            shift = shift + torch.einsum("...fs,...as,fal->...l", surprise.vectors, self._frame(hidden), self.innovation_to_latents)
        prior = self.prior(x, h).base_dist
        return Normal(prior.loc + prior.scale * shift, prior.scale * bounded_exp(log_scale)).to_event(2)

    # -- helpers -------------------------------------------------------------------------------------------------------

    def _guess(self, x: Tensor, h: Tensor) -> tuple[TorchDistribution, Tensor]:
        """The law of x' that h suggests without latents, and its noise parameters."""
        hidden, bodies = self._split(h), self.bodies
        motion, log_max_kick = h[..., self._ends[1] :].tensor_split([self.spec.dynamic_channels], -1)
        changes, noise = self.guess_scalars(torch.cat([hidden.scalars, log_max_kick], -1)).tensor_split([len(bodies.dynamic_scalars)], -1)
        change = bodies.join(self.guess_vectors.weight @ hidden.vectors, changes)
        mean = bodies.persistence(x) + change * bodies.per_channel(self.step_scales)
        if self.integrator:
            mean = mean + motion
        return self._law(mean, noise), noise

    def _law(self, loc: Tensor, noise: Tensor) -> TorchDistribution:
        return self.config.emission.build(self.spec, loc, noise, self.step_scales)

    def _frame(self, hidden: Features) -> Tensor:
        """Orthonormal axes that move with each body, (*batch, body, axis, space): Gram-Schmidt on the first vectors of h.

        Where those vectors do not span space (a planar state) the missing axes shrink to zero, and equivariance holds all the same.
        """
        axes: list[Tensor] = []
        for vector in hidden.vectors.unbind(-2)[: self.latents_to_mean.shape[1]]:
            for axis in axes:
                vector = vector - (vector * axis).sum(-1, keepdim=True) * axis
            axes.append(vector / safe_norm(vector, floor=FRAME_FLOOR**2)[..., None])
        return torch.stack(axes, -2)

    def _split(self, h: Tensor) -> Features:
        scalars, vectors, _ = h.tensor_split(self._ends, -1)
        return Features(scalars, vectors.unflatten(-1, (-1, self.spec.space)))

    def _pool(self, per_body: Tensor) -> Tensor:
        return per_body if self.config.latents == "per-body" else per_body.mean(-2, keepdim=True)


@TRANSITIONS.register("particles")
class ParticlesConfig(TransitionConfig):
    """EPNS for particles."""

    name: Literal["particles"] = "particles"
    backbone: Annotated[BackboneConfig, one_of(BACKBONES)] = pydantic.Field(default="vector", validate_default=True)
    integrator: IntegratorConfig | None = pydantic.Field(default=IntegratorConfig(), description="null: the first guess is a network alone")
    emission: Annotated[EmissionConfig, one_of(EMISSIONS)] = pydantic.Field(default="coupled", validate_default=True)
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
