"""ODE2VAE: an equation of second order in a latent space, with a Bayesian neural network for the acceleration.

    W ~ Normal(0, 1),   (s_0, v_0) ~ p(s, v | x_0),   ds/dt = v,   dv/dt = f_W(s, v),   x_t ~ Normal(x_0 + D(s_t, v_t) - D(s_0, v_0), sigma)

after Yildiz, Heinonen & Lahdesmaki, ODE2VAE: Deep generative second order ODEs with Bayesian neural networks (NeurIPS 2019), as a model
of what follows a known state: the encoder of the start is its prior, and the guide refines it with the first frames. All bodies share one
latent space, as the pixels of a frame do there: nothing is equivariant.
"""

from __future__ import annotations

import itertools
import math
from typing import Literal

import pydantic
import pyro
import torch
from pyro.distributions import Normal
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from epns_pyro.backbones.bodies.base import perceptron
from epns_pyro.config import Config
from epns_pyro.context import DataContext
from epns_pyro.durations import require_even
from epns_pyro.models.baselines.ode import GlobalDrawProgram, rk4
from epns_pyro.models.bodies.fields import BodyFields
from epns_pyro.models.program import observed, trajectory_plate
from epns_pyro.models.transition import bounded_exp

SEEN = 3  # frames of the future that the guide reads
SPREAD = -3.0  # log of the standard deviation of q(W), before training


class LatentODE(nn.Module):
    """Encoder, equation of motion and decoder; `latent` is the size of s and of v."""

    scales: Tensor

    def __init__(self, config: ODE2VAEConfig, context: DataContext) -> None:
        super().__init__()
        self.config, self.spec, self.frame_dt = config, context.spec, context.frame_dt
        spec, q = self.spec, config.latent
        require_even(spec, "ode2vae")
        self.bodies = BodyFields(context)
        scalars, vectors = self.bodies.feature_counts
        seen = context.sites[0] * (scalars + (1 + vectors) * spec.space)
        self.encoder = perceptron(seen, config.width, config.width, 4 * q)
        self.refiner = perceptron((1 + SEEN) * seen, config.width, config.width, 4 * q, small_output=True)
        last = nn.Linear(config.width, context.sites[0] * spec.dynamic_channels, bias=False)  # a bias would cancel
        self.decoder = nn.Sequential(perceptron(2 * q, config.width, config.width), nn.SiLU(), last)
        self.layers = list(itertools.pairwise([2 * q, config.width, config.width, q]))
        scales = torch.tensor([f.scale for f in spec.dynamic_fields])
        self.register_buffer("scales", self.bodies.per_channel(scales), persistent=False)
        self.log_noise = nn.Parameter(torch.full((len(spec.dynamic_fields),), config.noise).log())

    @property
    def weights(self) -> int:
        """Number of weights of f_W."""
        return sum((fan_in + 1) * fan_out for fan_in, fan_out in self.layers)

    def flat(self, x: Tensor) -> Tensor:
        """Whole states as one vector, positions from the centroid of their bodies: (*batch, channel)."""
        features, positions = self.bodies.features(x), self.bodies.positions(x)
        centred = positions - positions.mean(-2, keepdim=True)
        return torch.cat([features.scalars, centred, features.vectors.flatten(-2)], -1).flatten(-2)

    def start(self, x0: Tensor) -> Normal:
        """p(s_0, v_0 | x_0) = Normal(mu(x_0), sigma(x_0)), (*batch, 2 latent)."""
        mean, log_scale = self.encoder(self.flat(x0)).chunk(2, -1)
        return Normal(mean, bounded_exp(log_scale + SPREAD))

    def refined(self, x0: Tensor, path: Tensor) -> Normal:
        """q(s_0, v_0 | x_0, x_{1..3}) = Normal(mu_p + sigma_p a, sigma_p exp(b)), the last frame again where there are fewer."""
        frames = [x0, *(observed(self.spec, path, min(t, path.shape[-3])) for t in range(1, SEEN + 1))]
        shift, log_scale = self.refiner(torch.cat([self.flat(x) for x in frames], -1)).chunk(2, -1)
        prior = self.start(x0)
        return Normal(prior.loc + prior.scale * shift, prior.scale * bounded_exp(log_scale))

    def advance(self, z: Tensor, weights: Tensor) -> Tensor:
        """Move latents (*batch, 2 latent) one frame further under f_W, W (*draw, 1, weight)."""
        matrices, start = [], 0
        for fan_in, fan_out in self.layers:
            stop = start + (fan_in + 1) * fan_out
            matrices.append(weights[..., start:stop].unflatten(-1, (fan_in + 1, fan_out)))
            start = stop

        def derivative(z: Tensor) -> Tensor:
            hidden = z[..., None, :]
            for number, matrix in enumerate(matrices):
                hidden = hidden if number == 0 else torch.tanh(hidden)
                hidden = (hidden @ matrix[..., :-1, :] + matrix[..., -1:, :]) / math.sqrt(matrix.shape[-2])
            return torch.cat(torch.broadcast_tensors(z.chunk(2, -1)[1], hidden[..., 0, :]), -1)

        return rk4(derivative, z, 1.0, self.config.substeps)

    def observation(self, x0: Tensor, z: Tensor, z0: Tensor) -> TorchDistribution:
        """Normal(x_0 + D(z) - D(z_0), sigma) over the dynamic channels, event (body, dynamic channel)."""
        change = (self.decoder(z) - self.decoder(z0)).unflatten(-1, (-1, self.spec.dynamic_channels))
        loc = self.spec.dynamic(x0) + self.scales * change
        return Normal(loc, (self.scales * self.bodies.per_channel(self.log_noise.exp())).expand_as(loc)).to_event(2)


class ODE2VAEModel(GlobalDrawProgram):
    """p(x_{1:T}, z_0, W | x_0) = p(W) p(z_0 | x_0) prod_t Normal(x_t; x_0 + D(z_t) - D(z_0), sigma), z_t the ODE's path from z_0.

    Sites: ``weights`` (weight,) in the plate ``draw`` of size 1, for all trajectories; ``z_0`` (2 latent,) and ``x_t`` (body, dynamic
    channel) in the plate ``trajectory``.

    Parameters
    ----------
    latent : LatentODE
    transitions : int
        Number of transitions of the training data, from all of which W is inferred.
    """

    def __init__(self, latent: LatentODE, *, transitions: int) -> None:
        super().__init__(latent.spec, transitions)
        self.latent = latent

    def forward(self, x0: Tensor, path: Tensor | None = None, *, horizon: int | None = None) -> Tensor:
        latent = self.latent
        spec = latent.spec
        steps = self._start(x0, path, horizon)
        with self._of_all(path):
            zero = x0.new_zeros(latent.weights)
            weights = pyro.sample("weights", Normal(zero, torch.ones_like(zero)).to_event(1))
        with trajectory_plate(spec, x0):
            z = z0 = pyro.sample("z_0", latent.start(x0).to_event(1))
            for t in range(1, steps + 1):
                z = latent.advance(z, weights)
                law = latent.observation(x0, z, z0)
                pyro.sample(f"x_{t}", law, obs=None if path is None else spec.dynamic(observed(spec, path, t)))
        return z


class ODE2VAEGuide(GlobalDrawProgram):
    """q(W) q(z_0 | x_0, x_{1..3}). Without a path only W has a site: forecasts are of the dynamics learned."""

    def __init__(self, latent: LatentODE, *, transitions: int) -> None:
        super().__init__(latent.spec, transitions)
        self.latent = latent
        self.loc = nn.Parameter(torch.randn(latent.weights))
        self.log_scale = nn.Parameter(torch.full((latent.weights,), SPREAD))

    def forward(self, x0: Tensor, path: Tensor | None = None, *, horizon: int | None = None) -> None:
        self._start(x0, path, horizon)
        with self._of_all(path):
            pyro.sample("weights", Normal(self.loc, self.log_scale.exp()).to_event(1))
        if path is not None:
            with trajectory_plate(self.spec, x0):
                pyro.sample("z_0", self.latent.refined(x0, path).to_event(1))


class ODE2VAEConfig(Config):
    """Settings of an ODE2VAE."""

    name: Literal["ode2vae"] = "ode2vae"
    latent: int = pydantic.Field(default=32, gt=0, description="dimensions of the latent position, and of the latent velocity")
    width: int = pydantic.Field(default=128, gt=0)
    substeps: int = pydantic.Field(default=1, gt=0, description="Runge-Kutta steps per frame")
    noise: float = pydantic.Field(default=0.1, gt=0, description="observation noise before training, in units of the scale of a field")

    def build(self, context: DataContext, *, transitions: int) -> tuple[ODE2VAEModel, ODE2VAEGuide]:
        """Return model and guide for training data with this number of transitions."""
        latent = LatentODE(self, context)
        return ODE2VAEModel(latent, transitions=transitions), ODE2VAEGuide(latent, transitions=transitions)
