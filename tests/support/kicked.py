"""Bodies that are kicked and pulled back, recorded with errors and gaps, and everything about them in closed form."""

from __future__ import annotations

import numpy as np
import torch
from pyro.distributions import Independent
from torch import Tensor

from epns_pyro.context import DataContext
from epns_pyro.durations import relative
from epns_pyro.models.bodies.emissions import CoupledNormal
from epns_pyro.models.bodies.fields import BodyFields
from epns_pyro.models.bodies.step import BodyStep
from epns_pyro.models.building import Recording
from epns_pyro.models.normal import Normal, masked
from epns_pyro.models.transition import Carry, Transition
from epns_pyro.state import Field, StateSpec

DT, SPREAD = 0.5, 1.3
DRIFT = np.array([[1.0, DT], [-0.2, 0.9]])  # not a free motion: what is learned of the pull back has to know it
ROOT = np.array([[0.2, 0.0], [0.25, 0.4]])


def spec(noise: float | str, space: int = 2, *, uneven: bool = False) -> StateSpec:
    fields = (Field("position", "1o", noise=noise), Field("velocity", "1o", rate_of="position", hidden=True, scale=SPREAD))
    lasting = (Field("duration", dynamic=False, kind="duration", scale=DT),) if uneven else ()
    return StateSpec(fields + lasting, space=space)


def longer(ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """Return DRIFT and ROOT of a step that lasts `ratio` times as long."""
    return np.eye(2) + ratio * (DRIFT - np.eye(2)), ROOT * ratio**0.5


class Kicked(Transition):
    """x' = DRIFT x + ROOT e per axis, of longer steps as `longer` says; latents that say nothing."""

    hidden_event_dim = 2

    def __init__(self, noise: float | str, bodies: int = 2, *, exact: bool = True, absences: bool = True, uneven: bool = False) -> None:
        super().__init__()
        context = DataContext(spec(noise, uneven=uneven), DT, {"position": 0.4, "velocity": 0.7}, (bodies,), absences=absences)
        self.spec, self.bodies = context.spec, BodyFields(context)
        self.register_buffer("drift", torch.tensor(DRIFT))
        self.register_buffer("root", torch.tensor(ROOT))
        recording = Recording(context).double()
        self.add_module("recorded_by", recording)
        if exact:  # the law that states are inferred with is that of the transition
            units = recording.step_scales
            with torch.no_grad():
                recording.return_rate.copy_((recording.drift - self.drift) * units / units[:, None])

    def step(self, carry: Carry) -> _KickedStep:
        return _KickedStep(self, carry)


class _KickedStep(BodyStep):
    def __init__(self, transition: Kicked, carry: Carry) -> None:
        self.transition, self.bodies = transition, transition.bodies
        self.x, self.mask = self.bodies.present(carry.x)
        fields = transition.spec.dynamic(self.x).unflatten(-1, (2, -1))
        ratio = relative(transition.spec, self.x)
        self.ratio = self.x.new_ones(self.x.shape[:-1]) if ratio is None else ratio
        drift, eye = transition.drift.to(self.x), torch.eye(2).to(self.x)
        super().__init__(transition.spec, carry, ((eye + self.ratio[..., None, None] * (drift - eye)) @ fields).flatten(-2))

    @property
    def prior(self) -> Independent:
        zeros = self.h.new_zeros(*self.h.shape[:-1], 1)
        return masked(Normal(zeros, zeros + 1).to_event(2), self.mask)

    def emission(self, z: Tensor) -> Independent:
        root = self.transition.root.to(self.h) * self.ratio[..., None, None] ** 0.5
        return masked(CoupledNormal(self.h, root).to_event(1), self.mask)

    def posterior(self, x_next: Tensor) -> Independent:
        return self.prior


def simulate(
    noise: float,
    batch: int,
    frames: int,
    rng: np.random.Generator,
    *,
    bodies: int = 2,
    missing: float = 0.0,
    durations: np.ndarray | None = None,
) -> np.ndarray:
    """Recordings (batch, time, body, channel): NaN where a body was missed, zeros for the velocity.

    With `durations` (time,) of the steps to come, frames are uneven, and the states say so.
    """
    x = np.zeros((batch, frames, bodies, 2, 2))
    x[:, 0, :, 1] = SPREAD * rng.standard_normal(x[:, 0, :, 1].shape)
    for t in range(1, frames):
        drift, root = longer(1.0 if durations is None else durations[t - 1] / DT)
        x[:, t] = drift @ x[:, t - 1] + root @ rng.standard_normal(x[:, t].shape)
    y = x[..., 0, :] + noise * rng.standard_normal(x[..., 0, :].shape)
    y[rng.random(y.shape[:-1]) < missing] = np.nan
    lasting = [] if durations is None else [np.broadcast_to(durations[:, None, None], (*y.shape[:-1], 1))]
    return np.concatenate([y, np.where(np.isnan(y), np.nan, 0.0), *lasting], -1)


def evidence(recording: np.ndarray, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """log p(y_{1:T} | y_0) of recordings (batch, time, body, channel), (batch,), and the mean velocity (batch, body, space) at the end.

    A slow Kalman filter of every body and axis of its own, from its first detection to its last.
    """
    batch, _, bodies, channels = recording.shape
    total, velocity = np.zeros(batch), np.full((batch, bodies, 2), np.nan)
    for b, i, k in np.ndindex(batch, bodies, 2):
        y = recording[b, :, i, k]
        seen = np.flatnonzero(np.isfinite(y))
        if not len(seen):
            continue
        mean, spread = np.array([y[seen[0]], 0.0]), np.diag([noise**2, SPREAD**2])
        for t in range(seen[0] + 1, seen[-1] + 1):
            drift, root = longer(recording[b, t - 1, i, 4] / DT if channels > 4 else 1.0)
            mean, spread = drift @ mean, drift @ spread @ drift.T + root @ root.T
            if np.isfinite(y[t]):
                variance = spread[0, 0] + noise**2
                total[b] -= 0.5 * ((y[t] - mean[0]) ** 2 / variance + np.log(2 * np.pi * variance))
                gain = spread[:, 0] / variance
                mean, spread = mean + gain * (y[t] - mean[0]), spread - np.outer(gain, spread[0])
        velocity[b, i, k] = mean[1]
    return total, velocity
