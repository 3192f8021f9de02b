"""A linear-Gaussian transition with latents, and what is known about it in closed form."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from pyro.distributions import Independent, Normal
from torch import Tensor, nn

from epns_pyro.conditioning.observations import Observations
from epns_pyro.context import DataContext
from epns_pyro.models.transition import MarkovTransition
from epns_pyro.state import Field, StateSpec

SPEC = StateSpec(
    fields=(Field("mass", "0e", dynamic=False), Field("position", "1o"), Field("velocity", "1o")),
    sites=("body",),
    space=2,
)
BODIES, CHANNELS = 2, 4
SIZE = BODIES * CHANNELS
CONTEXT = DataContext(SPEC, 0.1, {"position": 1.0, "velocity": 1.0}, (BODIES,))
PRIOR = 0.5  # standard deviation of the initial state, where it is not known


class LinearGaussian(MarkovTransition):
    """x' = R x + B z + sigma e with a rotation R, z of 2 numbers per body; the guide has the right mean and is as wide as the posterior."""

    spec, hidden_event_dim = SPEC, 2

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(3)
        self.rotation = nn.Parameter(torch.tensor(0.95 * np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0]))
        self.load = torch.tensor(0.3 * rng.normal(size=(SIZE, 2 * BODIES)))
        self.sigma = torch.tensor(0.1 + 0.2 * rng.random(SIZE))

    def forward_model(self, x: Tensor) -> Tensor:
        return (SPEC.dynamic(x).flatten(-2) @ self.rotation.T).unflatten(-1, (BODIES, CHANNELS))

    def prior(self, x: Tensor, h: Tensor) -> Independent:
        zeros = h.new_zeros(*h.shape[:-1], 2)
        return Normal(zeros + 0.3, zeros + 0.8).to_event(2)

    def emission(self, x: Tensor, h: Tensor, z: Tensor) -> Independent:
        mean = h + (z.flatten(-2) @ self.load.T).unflatten(-1, (BODIES, CHANNELS))
        return Normal(mean, self.sigma.reshape(BODIES, CHANNELS).expand(mean.shape)).to_event(2)

    def posterior(self, x: Tensor, h: Tensor, x_next: Tensor) -> Independent:
        standard = 0.8 * self.load
        covariance = torch.linalg.inv(torch.eye(2 * BODIES) + standard.T @ (standard / self.sigma[:, None] ** 2))
        surprise = (SPEC.dynamic(x_next) - h).flatten(-2) - 0.3 * self.load.sum(-1)
        mean = 0.3 + 0.8 * surprise / self.sigma**2 @ standard @ covariance
        scale = 0.8 * covariance.diagonal().sqrt().expand(mean.shape)
        return Normal(mean.unflatten(-1, (BODIES, 2)), scale.unflatten(-1, (BODIES, 2))).to_event(2)

    @property
    def law(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Matrix, offset and covariance of x' given x."""
        load = self.load.numpy()
        return self.rotation.detach().numpy(), 0.3 * load.sum(-1), 0.64 * load @ load.T + np.diag(self.sigma.numpy() ** 2)


def pack(flat: np.ndarray) -> np.ndarray:
    """Full states (*batch, body, channel) of vectors (*batch, state)."""
    y = flat.reshape(*flat.shape[:-1], BODIES, CHANNELS)
    position, velocity = SPEC.slice("position", among_dynamic=True), SPEC.slice("velocity", among_dynamic=True)
    return SPEC.pack(mass=np.ones(y.shape[:-1]), position=y[..., position], velocity=y[..., velocity])


def draw_path(transition: LinearGaussian, steps: int, rng: np.random.Generator) -> np.ndarray:
    """A trajectory of the process: (time, state)."""
    matrix, offset, covariance = transition.law
    path = [rng.normal(size=SIZE)]
    for _ in range(steps):
        path.append(matrix @ path[-1] + offset + rng.multivariate_normal(np.zeros(SIZE), covariance))
    return np.array(path)


class Exact(NamedTuple):
    """Means (time, state) and covariances (time, state, state) of filter and smoother, and log p(y_{0:t}) (time,)."""

    mean: np.ndarray
    covariance: np.ndarray
    evidence: np.ndarray
    smooth_mean: np.ndarray
    smooth_covariance: np.ndarray


def kalman(transition: LinearGaussian, mean: np.ndarray, covariance: np.ndarray, observations: Observations) -> Exact:
    """Kalman filter and Rauch-Tung-Striebel smoother, from x_0 ~ Normal(mean, covariance)."""
    matrix, offset, noise = transition.law
    values, errors = (a.reshape(len(a), -1) for a in (observations.values, observations.noise))
    filtered, predicted, evidence, total = [], [], [], 0.0
    for t, (value, error) in enumerate(zip(values, errors, strict=True)):
        if t:
            mean, covariance = matrix @ mean + offset, matrix @ covariance @ matrix.T + noise
        predicted.append((mean, covariance))
        seen = np.isfinite(value)
        if seen.any():
            see = np.eye(SIZE)[seen]
            spread = see @ covariance @ see.T + np.diag(error[seen] ** 2)
            surprise = value[seen] - see @ mean
            total -= 0.5 * (surprise @ np.linalg.solve(spread, surprise) + np.linalg.slogdet(2 * np.pi * spread)[1])
            gain = covariance @ see.T @ np.linalg.inv(spread)
            mean, covariance = mean + gain @ surprise, covariance - gain @ spread @ gain.T
        filtered.append((mean, covariance))
        evidence.append(total)
    smoothed = [filtered[-1]]
    for (mean, covariance), (mean_ahead, ahead) in zip(filtered[-2::-1], predicted[:0:-1], strict=True):
        back = covariance @ matrix.T @ np.linalg.inv(ahead)
        later_mean, later = smoothed[-1]
        smoothed.append((mean + back @ (later_mean - mean_ahead), covariance + back @ (later - ahead) @ back.T))
    means, covariances = map(np.array, zip(*filtered, strict=True))
    smooth_means, smooth_covariances = map(np.array, zip(*smoothed[::-1], strict=True))
    return Exact(means, covariances, np.array(evidence), smooth_means, smooth_covariances)
