"""The transition of a set of bodies: positions, other vectors, scalars.

The mean is a residual in physical units, x' = x + v dt + ..., v' = v + ..., in two parts: a first guess from h alone, whose law
also standardises the innovation that the posterior reads, and a correction that reads z. The first guess is the result of a learned
equation of motion (`integrator`) plus a network of h.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Literal

import pydantic
import torch
from pyro.distributions import Independent
from torch import Tensor, nn

from epns_pyro.backbones import BACKBONES, Backbone, BackboneConfig, Features
from epns_pyro.backbones.bodies.base import centroid, perceptron, safe_norm
from epns_pyro.backbones.bodies.window import HistoryNetwork
from epns_pyro.config import one_of
from epns_pyro.context import DataContext
from epns_pyro.models.bodies.autoregression import Autoregression
from epns_pyro.models.bodies.echo import Echo
from epns_pyro.models.bodies.emissions import EMISSIONS, EmissionConfig, completed, innovation
from epns_pyro.models.bodies.fields import BodyFields, shortened
from epns_pyro.models.bodies.history import HistoryConfig
from epns_pyro.models.bodies.integrator import IntegratorConfig, Motion
from epns_pyro.models.bodies.kicks import kicked_noise
from epns_pyro.models.bodies.step import BodyStep
from epns_pyro.models.normal import Normal, masked, unmasked
from epns_pyro.models.transition import TRANSITIONS, Carry, LawOfNature, Transition, TransitionConfig, bounded_exp
from epns_pyro.once import once
from epns_pyro.presence import presence

START = 0.01  # scale of the output of networks before training
SHARE = 0.3  # share of the innovation that latents encode before training
AT_ONCE = 2**19  # numbers in the largest tensor of a block of states: 2 MiB, which stay in the cache of a processor
FRAME_FLOOR = 1e-3  # vectors of h shorter than this give no axis


class ParticleTransition(Transition):
    """EPNS for particles; equivariant where its backbones are."""

    hidden_event_dim = 2
    step_scales: Tensor

    def __init__(self, config: ParticlesConfig, context: DataContext) -> None:
        super().__init__()
        self.config, self.spec, self.bodies = config, context.spec, BodyFields(context)
        self.absences = context.absences
        spec, bodies = self.spec, self.bodies
        self.register_buffer("step_scales", torch.tensor([context.step_scales[f.name] for f in bodies.free.fields]), persistent=False)

        width, vectors, latent = config.width, config.hidden_vectors, config.latent
        noise = config.emission.parameters(bodies.free)
        moved, changed = len(bodies.dynamic_vectors), len(bodies.dynamic_scalars)

        def network(scalars_in: int, vectors_in: int, scalars_out: int, vectors_out: int) -> Backbone:
            return bodies.build(config.backbone, scalars_in, vectors_in, scalars_out, vectors_out, pairs=True)

        self.history = config.history.build(context)
        seen = (config.history.scalars, config.history.vectors) if self.history else (0, 0)  # of earlier frames
        self.earlier_frames = config.history.frames - 1
        self.encoder = network(*(a + b for a, b in zip(bodies.feature_counts, seen, strict=True)), width, vectors)
        self.guess_vectors = nn.Linear(vectors, moved, bias=False)
        self.integrator = config.integrator.build(context) if config.integrator else None
        self.echo = Echo(bodies.widths, self.step_scales) if config.echo else None
        self.autoregression = Autoregression(bodies) if config.autoregression else None
        strained = (self.integrator.signs if self.integrator else 0) + (self.echo is not None)
        self.guess_scalars = perceptron(width + strained, width, changed + noise, small_output=True)
        self.prior_net = perceptron(width, width, 2 * latent, small_output=True)
        self.decoder = network(width + latent, vectors, changed + noise, moved).scale_output(START)
        self.posterior_net = network(width + changed, vectors + moved, 2 * latent, 0).scale_output(START)
        with torch.no_grad():  # before training the model is persistence with the noise of the data, as nearly as latents allow
            for layer in (self.guess_vectors, self.guess_scalars[-1], self.prior_net[-1]):
                layer.weight.mul_(START)
            if (kicked := kicked_noise(context)) is not None:
                self.guess_scalars[-1].bias[changed:] = config.emission.start(bodies.free, kicked)
        self._sites, self.block_size = context.sites[0], self._that_fit(context.sites[0])
        if config.linear_path:
            self._start_linear_path(min(latent, spec.space), latent)

    @torch.no_grad()
    def _start_linear_path(self, axes: int, latent: int) -> None:
        """Set weights so that latents encode a share of one vector field's innovation, in the body's own frame, and add it to the mean.

        With x' = persistence + sigma (a z + sqrt(1 - a^2) e) the law of x' is the same for every share a, and a guide with the mean
        a (x' - persistence) / sigma is the posterior: latents are in use from the start, at no cost in the bound.
        """
        bodies = self.bodies
        path = torch.zeros(len(bodies.dynamic_vectors), axes, latent)  # (vector field, axis, latent)
        driven = next(i for i, f in enumerate(bodies.dynamic_vectors) if f.name not in bodies.rates)
        path[driven] = SHARE * torch.eye(axes, latent)
        self.innovation_to_latents, self.latents_to_mean = nn.Parameter(path.clone()), nn.Parameter(path.clone())
        field = bodies.free.names.index(bodies.dynamic_vectors[driven].name)
        self.guess_scalars[-1].bias[len(bodies.dynamic_scalars) + field] += 0.5 * math.log(1 - SHARE**2)

    def step(self, carry: Carry) -> ParticleStep:
        return ParticleStep(self, carry)

    def at_once(self, x: Tensor) -> int:
        return self.block_size if x.shape[-2] == self._sites else self._that_fit(x.shape[-2])

    def is_little(self, states: int) -> bool:
        return 1 < self.block_size >= states

    def _that_fit(self, bodies: int) -> int:
        largest = max(network.largest(bodies) for network in self.modules() if isinstance(network, (Backbone, HistoryNetwork)))
        return max(1, min(1024, AT_ONCE // largest))

    def start(self, x0: Tensor) -> Carry:
        motion = self.integrator.start(*self._placed(x0)) if self.integrator else ()
        echo = (self.echo.start(x0),) if self.echo else ()
        return Carry(x0, ((self.history.start(x0),) if self.history else ()) + motion + echo)

    def remembered(self, carry: Carry, following: Tensor) -> tuple[Tensor, ...]:
        if self.echo:  # it is in units of the noise, which takes all of the step
            return super().remembered(carry, following)
        _, held, _ = self.split(carry)
        motion = self.integrator(*self._placed(carry.x), held) if self.integrator and held else None
        memory = self.memory_after(carry, motion, self.spec.dynamic(following))
        if motion and self.history:  # it starts with the first state that is known
            known = presence(self.spec, carry.x).any(-1)[..., None, None]
            afresh = self.integrator.start(*self._placed(following))
            return memory[:1] + tuple(torch.where(known, *pair) for pair in zip(memory[1:], afresh, strict=True))
        return memory

    def _placed(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the states that an equation of motion starts from, and which bodies are present; finite also before a recording."""
        x, mask = self.bodies.present(x)
        return (torch.where(x.isnan(), 0.0, x) if self.history else x), mask

    def split(self, carry: Carry) -> tuple[tuple[Tensor, ...], ...]:
        """Take the memory of a carry apart: earlier frames, what the equation of motion remembers, and the echo; each may be empty."""
        own, rest = int(self.history is not None), len(carry.memory) - (self.echo is not None)
        return carry.memory[:own], carry.memory[own:rest], carry.memory[rest:]

    def memory_after(self, carry: Carry, motion: Motion | None, y: Tensor) -> tuple[Tensor, ...]:
        """Return the memory of the carry after a step to y (*batch, body, dynamic channel)."""
        frames = (self.history.advance(*self.split(carry)[0], carry.x),) if self.history else ()
        if not self.integrator or not motion:
            return frames
        x, mask = self._placed(carry.x)
        return frames + self.integrator.remember(x, motion, y, mask)

    @property
    def has_motion(self) -> bool:
        return self.integrator is not None and bool(self.integrator.kicked_velocity)

    @property
    def law(self) -> LawOfNature | None:
        return None if self.integrator is None else self.integrator.law

    def acceleration(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the acceleration of the integrator, without what networks add at the end of a frame: (*batch, body, space)."""
        return super().acceleration(x, mask) if self.integrator is None else self.integrator.acceleration(x, mask)

    def frame(self, hidden: Features) -> Tensor:
        """Orthonormal axes that move with each body, (*batch, body, axis, space): Gram-Schmidt on the first vectors of h.

        If these vectors do not span space (a planar state), the missing axes are zero, and equivariance still holds.
        """
        axes: list[Tensor] = []
        for vector in hidden.vectors.unbind(-2)[: self.latents_to_mean.shape[1]]:
            for axis in axes:
                vector = vector - (vector * axis).sum(-1, keepdim=True) * axis
            axes.append(vector / safe_norm(vector, floor=FRAME_FLOOR**2)[..., None])
        return torch.stack(axes, -2)

    def pool(self, per_body: Tensor, mask: Tensor | None) -> Tensor:
        """Return the features per latent entity, body or whole system: (*batch, entity, channel)."""
        return per_body if self.config.latents == "per-body" else centroid(per_body, mask)


class ParticleStep(BodyStep):
    """The laws of one step of a set of bodies.

    h holds `width` scalars and `hidden_vectors` vectors per body, (*batch, body, width + hidden_vectors * space), then what the
    integrator returns, and what earlier frames add to the first guess. Bodies that are absent, NaN in the carry, have no edges, no latents
    and no likelihood.
    """

    def __init__(self, transition: ParticleTransition, carry: Carry) -> None:
        self.transition, self.bodies = transition, transition.bodies
        self.x, self.mask = self.bodies.present(carry.x)
        self.positions = self.bodies.positions(self.x)
        features = self.bodies.features(self.x, self.mask)
        features = replace(features, around=transition.encoder.look(self.positions, features))
        self._around = features.around  # the other networks have the same settings
        self._pairs, self._sides = features.pairs, features.sides
        earlier, remembered, self.echoes = transition.split(carry)
        self.past = transition.history(*earlier, carry.x) if transition.history else None
        self.hidden = transition.encoder(self.positions, self.past.beside(features) if self.past else features)
        self.motion = transition.integrator(self.x, self.mask, remembered) if transition.integrator else None
        moved = (self.motion.change, self.motion.signs) if self.motion else ()
        trend = (self.past.trend,) if self.past else ()
        h = torch.cat([self.hidden.scalars, self.hidden.vectors.flatten(-2), *moved, *trend], -1)
        super().__init__(transition.spec, carry, h)

    @once
    def prior(self) -> Independent:
        """Return p(z | h) = Normal(mu(h), sigma(h)) of every present body."""
        pooled = self.transition.pool(self.hidden.scalars, self.mask)
        mean, log_scale = self.transition.prior_net(pooled).chunk(2, -1)
        return masked(Normal(mean, bounded_exp(log_scale)).to_event(2), self._with_latents)

    def emission(self, z: Tensor) -> Independent:
        """p(x' | h, z) = Normal(x + v dt + guess(h) + sigma(h) correction(h, z), sigma(h, z))."""
        transition, hidden, bodies = self.transition, self.hidden, self.bodies
        z = z.expand(*z.shape[:-2], self.x.shape[-2], z.shape[-1])
        shape = torch.broadcast_shapes(self.h.shape[:-1], z.shape[:-1])
        scalars = torch.cat([hidden.scalars.expand(*shape, -1), z.expand(*shape, -1)], -1)
        mask = None if self.mask is None else self.mask.expand(shape)
        pairs = None if self._pairs is None else self._pairs.expand(*shape, *self._pairs.shape[-2:])
        around = None if self._around is None else self._around.expand(shape[:-1])
        features = Features(scalars, hidden.vectors.expand(*shape, *hidden.vectors.shape[-2:]), mask, pairs, self._sides, around)
        out = transition.decoder(self.positions.expand(*shape, -1), features)
        vectors = out.vectors
        if transition.config.linear_path:
            vectors = vectors + torch.einsum("...l,fal->...fa", z, transition.latents_to_mean) @ self._frame
        scalars_out = len(bodies.dynamic_scalars)
        correction = bodies.join(vectors, out.scalars[..., :scalars_out])
        loc = self._guess.mean + self._unit_of(self._guess) * correction
        law = self._law(loc, self._noise + out.scalars[..., scalars_out:])
        return masked(completed(law, bodies, self.x), self.mask)

    def posterior(self, x_next: Tensor) -> Independent:
        """q(z | h, x') = Normal(mu_p + sigma_p a(h, e), sigma_p exp(b(h, e))), e the innovation of x' under the first guess.

        It is the prior for a body that has left.
        """
        transition, hidden, bodies = self.transition, self.hidden, self.bodies
        following, stays = bodies.present(x_next)
        following = bodies.next_to(self.x, following)
        e = shortened(innovation(self._guess, bodies.to_free(self.spec.dynamic(following))))
        if stays is not None:
            e = e * stays[..., None]
        surprise = bodies.split(e)
        seen = Features(
            torch.cat([hidden.scalars, surprise.scalars], -1),
            torch.cat([hidden.vectors, surprise.vectors], -2),
            self._both(stays),
            self._pairs,
            self._sides,
            self._around if stays is None else None,  # a body that has left has no edges
        )
        shift, log_scale = transition.pool(transition.posterior_net(self.positions, seen).scalars, seen.mask).chunk(2, -1)
        if transition.config.linear_path:
            shift = shift + torch.einsum("...fa,fal->...l", surprise.vectors @ self._frame.mT, transition.innovation_to_latents)
        prior = unmasked(self.prior)
        if stays is not None and self._with_latents is not None:
            shift, log_scale = shift * stays[..., None], log_scale * stays[..., None]
        return masked(Normal(prior.loc + prior.scale * shift, prior.scale * bounded_exp(log_scale)).to_event(2), self._with_latents)

    def advance(self, y: Tensor, following: Tensor | None = None) -> Carry:
        """Go on from y, with what the history, the equation of motion and the echo remember."""
        memory = self.transition.memory_after(self.carry, self.motion, y)
        return replace(super().advance(y, following), memory=memory + self._echoes_after(y))

    def _echoes_after(self, y: Tensor) -> tuple[Tensor, ...]:
        if not (echo := self.transition.echo):
            return ()
        after, there = self.bodies.present(self.spec.advance(self.carry.x, y))
        reached = self.bodies.to_free(self.spec.dynamic(self.bodies.next_to(self.x, after)))
        missed = reached - self._trend
        return (echo.remember(self.echoes[0].expand(*missed.shape[:-1], -1), missed, self._noise_unit, self._both(there)),)

    # -- what the laws share ---------------------------------------------------------------------------------------------

    @once
    def _guess(self) -> Independent:
        """The law of the first guess: x' given h alone."""
        return self._law(self._guess_mean, self._noise)

    @property
    def noise_inputs(self) -> Tensor:
        """What the noise of the first guess depends on, (*batch, body, channel)."""
        signs = () if self.motion is None else (self.motion.signs,)
        known = () if self.transition.echo is None else (self.transition.echo.known(self.echoes[0]),)
        return torch.cat([self.hidden.scalars, *signs, *known], -1)

    @property
    def foreseen(self) -> Tensor:
        """Where the equation of motion leads, persistence where there is none: (*batch, body, free channel)."""
        persistence = self.bodies.to_free(self.bodies.persistence(self.x))
        return persistence if self.motion is None else persistence + self.motion.change

    @once
    def _guess_parameters(self) -> tuple[Tensor, Tensor]:
        """Changes of dynamic scalars, and noise parameters, (*batch, body, ...)."""
        return self.transition.guess_scalars(self.noise_inputs).tensor_split([len(self.bodies.dynamic_scalars)], -1)

    @property
    def _noise(self) -> Tensor:
        return self._guess_parameters[1]

    @once
    def _guess_mean(self) -> Tensor:
        bodies, transition = self.bodies, self.transition
        change = bodies.join(transition.guess_vectors.weight @ self.hidden.vectors, self._guess_parameters[0])
        mean = self._trend + change * (self._noise_unit if transition.config.guess_unit == "noise" else bodies.per_channel(self._units))
        return mean if transition.echo is None else mean + transition.echo.expected(self.echoes[0], self._noise_unit)

    @property
    def _trend(self) -> Tensor:
        trend = self.foreseen if self.past is None else self.foreseen + self.past.trend
        if (linear := self.transition.autoregression) is None:
            return trend
        return trend + self.bodies.join(linear(self.x), self.x.new_zeros(*self.x.shape[:-1], len(self.bodies.dynamic_scalars)))

    @once
    def _noise_unit(self) -> Tensor:
        """The usual size of the noise, (*batch, body, free channel), without a gradient."""
        return self._unit_of(self._law(torch.zeros_like(self._trend), self._noise.detach()))

    @once
    def _units(self) -> Tensor:
        """Typical changes in this step: (field,), or (*batch, body, field) where steps are uneven."""
        return self.bodies.step_units(self.x, self.transition.step_scales)

    @once
    def _frame(self) -> Tensor:
        return self.transition.frame(self.hidden)

    @property
    def _with_latents(self) -> Tensor | None:
        """Return which entities have latents, (*batch, entity): the present bodies, or the one entity of a global latent."""
        return self.mask if self.transition.config.latents == "per-body" else None

    def _law(self, loc: Tensor, noise: Tensor) -> Independent:
        emission = self.transition.config.emission
        return emission.build(self.bodies.free, loc, noise, self._units, self._standstill if emission.makes_steps else None)

    @once
    def _standstill(self) -> Tensor:
        """What is predicted if bodies stay where they are, (*batch, body, free channel): zero for velocities."""
        still = self.bodies.split(self.bodies.to_free(self.spec.dynamic(self.x)))
        moves = still.vectors.new_tensor([not field.differences for field in self.bodies.dynamic_vectors])[:, None]
        return self.bodies.join(still.vectors * moves, still.scalars)

    def _unit_of(self, law: Independent) -> Tensor:
        """The unit of corrections: the standard deviation of a law, or that of its usual noise where guesses are measured in noise."""
        config = self.transition.config
        return config.emission.usual_scale(law) if config.guess_unit == "noise" else config.emission.scale(law)

    def _both(self, stays: Tensor | None) -> Tensor | None:
        return self.mask if stays is None or self.mask is None else self.mask & stays


@TRANSITIONS.register("particles")
class ParticlesConfig(TransitionConfig):
    """EPNS for particles."""

    name: Literal["particles"] = "particles"
    backbone: Annotated[BackboneConfig, one_of(BACKBONES)] = pydantic.Field(default="vector", validate_default=True)
    history: HistoryConfig = HistoryConfig()
    integrator: IntegratorConfig | None = pydantic.Field(default=IntegratorConfig(), description="null: no equation of motion")
    emission: Annotated[EmissionConfig, one_of(EMISSIONS)] = pydantic.Field(
        default="coupled", validate_default=True, description="the law of the noise of a step"
    )
    width: int = pydantic.Field(default=64, gt=0, description="scalar channels of h per body")
    hidden_vectors: int = pydantic.Field(default=8, gt=0, description="vector channels of h per body")
    latent: int = pydantic.Field(default=16, gt=0, description="latent dimensions per body, or of the whole system")
    latents: Literal["per-body", "shared"] = pydantic.Field(default="per-body", description="per body, or shared by all")
    guess_unit: Literal["change", "noise"] = pydantic.Field(
        default="change",
        description="unit of the network's part of the first guess: a typical change, or the noise, which may become far smaller",
    )
    echo: bool = pydantic.Field(
        default=False,
        description="whether the first guess goes on with a part of what earlier frames missed; needs guess_unit noise",
    )
    autoregression: bool = pydantic.Field(
        default=False,
        description="whether the first guess has a part that is linear in the velocities of the state, where training starts from least "
        "squares; for positions recorded without errors",
    )
    linear_path: bool = pydantic.Field(
        default=True, description="a linear path from innovation to latents to mean, in the body's own frame"
    )

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> ParticlesConfig:
        if self.linear_path and self.latents == "shared":
            raise ValueError("a linear path needs latents per body: set linear_path to false for shared latents")
        if self.echo and self.guess_unit != "noise":
            raise ValueError("an echo is measured in noise: set guess_unit to noise")
        if self.echo and self.history.frames > 1:
            raise ValueError("a window of frames sees what they missed, without an echo: set echo to false, or history.frames to 1")
        if self.linear_path and self.hidden_vectors < 3:
            raise ValueError(f"a linear path needs 3 hidden vectors for a frame, found hidden_vectors = {self.hidden_vectors}")
        return self

    def build(self, context: DataContext) -> ParticleTransition:
        return ParticleTransition(self, context)
