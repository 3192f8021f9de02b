"""Things that forecast: the trained model, the true process, and the naive references that a model has to beat."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from epns_pyro.context import DataContext
from epns_pyro.derived import complete, free_fields
from epns_pyro.models import Feedback
from epns_pyro.models.program import PathProgram
from epns_pyro.simulator import Simulator
from epns_pyro.state import StateSpec
from epns_pyro.systems import System, trajectory_seeds
from epns_pyro.training.stock_pyro import forecast
from epns_pyro.training.validation import as_tensor


class Forecaster(ABC):
    """Samples futures."""

    label: str  # what tables call it
    has_density: ClassVar[bool] = False  # whether `log_prob` is known

    @abstractmethod
    def sample(self, x0: np.ndarray, steps: int, members: int, seed: int) -> np.ndarray:
        """Sample futures of x0 (trajectory, *site, channel): (sample, trajectory, time, *site, channel); time 0 is x0."""

    def log_prob(self, x: np.ndarray, x_next: np.ndarray) -> np.ndarray:
        """log p(x' | x) of full states (*batch, *site, channel): nats, (*batch,)."""
        raise TypeError(f"{self.label}: its transition density is not known")


@dataclass(frozen=True)
class Model(Forecaster):
    """The trained simulator, by ancestral sampling unless its mean is fed back."""

    simulator: Simulator
    feedback: Feedback = Feedback.ANCESTRAL
    label: ClassVar[str] = "model"

    def sample(self, x0: np.ndarray, steps: int, members: int, seed: int) -> np.ndarray:
        out = None
        for block in self.simulator.rollout_blocks(x0, steps=steps, members=members, seed=seed, feedback=self.feedback):
            if out is None:  # labels go back to the integers that they are stored as
                kind = block.states.dtype if np.issubdtype(x0.dtype, np.floating) else x0.dtype
                out = np.empty((members, len(x0), *block.states.shape[2:]), kind)
            out[block.samples, block.trajectories] = block.states
        return out


@dataclass(frozen=True)
class Programs(Forecaster):
    """A pair of Pyro programs on paths that is no step-by-step simulator."""

    model: PathProgram
    guide: PathProgram
    label: ClassVar[str] = "model"

    def sample(self, x0: np.ndarray, steps: int, members: int, seed: int) -> np.ndarray:
        start = as_tensor(x0, next(self.model.parameters()).device)
        blocks = forecast(self.model, self.guide, start, steps=steps, members=members, seed=seed)
        return np.concatenate([block.cpu().numpy() for block in blocks])


@dataclass(frozen=True)
class Truth(Forecaster):
    """The true process: another ensemble of it is the best that any model can do."""

    system: System
    label: ClassVar[str] = "true process"

    def sample(self, x0: np.ndarray, steps: int, members: int, seed: int) -> np.ndarray:
        repeated = np.broadcast_to(x0, (members, *x0.shape)).reshape(-1, *x0.shape[1:])
        seeds = trajectory_seeds(seed, "evaluation", len(repeated))
        paths = self.system.simulate(np.ascontiguousarray(repeated), steps, seeds)
        return paths.reshape(members, len(x0), *paths.shape[1:])


@dataclass(frozen=True)
class Persistence(Forecaster):
    """x' = x + v dt + fitted Normal noise for fields with a rate, x' = x + noise for the others; particles only.

    The noise is that of the training set: one standard deviation per field, `DataContext.step_scales`.
    """

    context: DataContext
    label: ClassVar[str] = "persistence with fitted noise"
    has_density: ClassVar[bool] = True

    def sample(self, x0: np.ndarray, steps: int, members: int, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        x = np.broadcast_to(x0, (members, *x0.shape)).astype(np.float64)
        path = [x]
        for _ in range(steps):
            mean, scale = self._law(x)
            x = self._advance(x, mean + scale * rng.standard_normal(mean.shape))
            path.append(x)
        return np.stack(path, axis=2)

    def log_prob(self, x: np.ndarray, x_next: np.ndarray) -> np.ndarray:
        """log p(x' | x) of full states (*batch, *site, channel): nats, (*batch,), of the bodies that are there before and after."""
        mean, scale = self._law(x)
        z = (_channels(self.context.spec, self._free, x_next) - mean) / scale
        terms = -0.5 * z**2 - np.log(scale) - 0.5 * np.log(2 * np.pi)
        return np.nansum(terms, axis=tuple(range(-1 - len(self.context.spec.sites), 0)))

    def _law(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean (*batch, *site, free channel) and scale (free channel,) of the fields that are predicted."""
        spec, dt = self.context.spec, self.context.frame_dt
        rates = {f.rate_of: f.name for f in spec.fields if f.rate_of}
        fields = free_fields(spec)
        mean = {f.name: spec.get(x, f.name) + (dt * spec.get(x, rates[f.name]) if f.name in rates else 0) for f in fields}
        scale = np.concatenate([np.full(spec.width(f), self.context.step_scales[f.name]) for f in fields])
        return self._free.pack(**mean), scale

    @property
    def _free(self) -> StateSpec:
        spec = self.context.spec
        return StateSpec(tuple(replace(f, rate_of="", differences=False) for f in free_fields(spec)), spec.sites, spec.space)

    def _advance(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the state after x (*batch, *site, channel) in which the predicted channels are y (*batch, *site, free channel)."""
        spec, free = self.context.spec, self._free
        return spec.advance(x, complete(spec, x, {name: free.get(y, name) for name in free.names}, self.context.frame_dt))


def _channels(spec: StateSpec, part: StateSpec, x: np.ndarray) -> np.ndarray:
    """The channels of a part of the fields: (*batch, *site, channel of the part)."""
    return np.concatenate([x[..., spec.slice(name)] for name in part.names], -1)
