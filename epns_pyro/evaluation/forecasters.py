"""Forecasters: the trained model, the true process, and the references that a model must beat."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

import numpy as np

from epns_pyro.inference.rollout import sample_one_step
from epns_pyro.models import Feedback
from epns_pyro.models.program import PathProgram
from epns_pyro.simulator import Simulator
from epns_pyro.systems import System, trajectory_seeds
from epns_pyro.training.stock_pyro import sample_futures
from epns_pyro.training.validation import as_tensor

FEW = 32  # bodies: states of more are large


class Forecaster(ABC):
    """Samples futures of initial states."""

    has_density: ClassVar[bool] = False  # whether `log_prob` is known

    @property
    def earlier_frames(self) -> int:
        """Return how many recorded states before x0 it is given, as `past` of `sample`; a forecaster given none need not know the word."""
        return 0

    @property
    def label(self) -> str:
        """Return its name in tables: by default that of its class."""
        return type(self).__name__.lower()

    @abstractmethod
    def sample(self, x0: np.ndarray, steps: int, members: int, seed: int, *, schedule: np.ndarray | None = None) -> np.ndarray:
        """Sample futures of x0 (trajectory, *site, channel): (sample, trajectory, time, *site, channel); time 0 is x0.

        A schedule (trajectory, time, *site, channel), recorded states after x0, says who enters, where, and leaves, and how long steps
        last. A forecaster that knows nothing of that is given none.
        """

    def log_prob(self, x: np.ndarray, x_next: np.ndarray) -> np.ndarray:
        """Return log p(x' | x) of full states (*batch, *site, channel): nats, (*batch,)."""
        raise TypeError(f"{self.label}: its transition density is not known")


@dataclass(frozen=True)
class Model(Forecaster):
    """The trained simulator: ancestral sampling by default, or with its mean fed back."""

    simulator: Simulator
    feedback: Feedback = Feedback.ANCESTRAL
    label: ClassVar[str] = "model"

    @property
    def earlier_frames(self) -> int:
        return self.simulator.transition.earlier_frames

    def sample(
        self,
        x0: np.ndarray,
        steps: int,
        members: int,
        seed: int,
        *,
        schedule: np.ndarray | None = None,
        past: np.ndarray | None = None,
    ) -> np.ndarray:
        if steps == 1 and schedule is None and self._shares_a_step(x0):
            return self._one_step(x0, members, seed, past)
        more: dict[str, Any] = {"feedback": self.feedback, "schedule": schedule, "past": past}
        blocks = self.simulator.rollout_blocks(x0, steps=steps, members=members, seed=seed, **more)
        first = next(blocks)
        kind = first.states.dtype if np.issubdtype(x0.dtype, np.floating) else x0.dtype  # labels stay integers, like the initial states
        out = np.empty((members, len(x0), *first.states.shape[2:]), kind)
        for block in chain([first], blocks):
            out[block.samples, block.trajectories] = block.states
        return out

    def _shares_a_step(self, x0: np.ndarray) -> bool:
        """Return whether a state is so large that members of single steps are sampled by one step, not each by its own."""
        sim = self.simulator
        bodies = len(sim.spec.sites) == 1 and x0.shape[-2] > FEW and not sim.infers_states
        return bodies and self.feedback is Feedback.ANCESTRAL

    def _one_step(self, x0: np.ndarray, members: int, seed: int, past: np.ndarray | None) -> np.ndarray:
        sim = self.simulator
        before = None if past is None else sim.local(past)
        return sim.context.to_global(sample_one_step(sim.transition, sim.local(x0), members, seed, past=before)).cpu().numpy()


@dataclass(frozen=True)
class Programs(Forecaster):
    """A pair of Pyro programs over whole trajectories, for models that are not step-by-step simulators."""

    model: PathProgram
    guide: PathProgram
    label: ClassVar[str] = "model"

    def sample(self, x0: np.ndarray, steps: int, members: int, seed: int, *, schedule: np.ndarray | None = None) -> np.ndarray:
        start = as_tensor(x0, next(self.model.parameters()).device)
        blocks = sample_futures(self.model, self.guide, start, steps=steps, members=members, seed=seed)
        return np.concatenate([block.cpu().numpy() for block in blocks])


@dataclass(frozen=True)
class Truth(Forecaster):
    """The true process: no forecast can be better than another ensemble of it."""

    system: System
    label: ClassVar[str] = "true process"

    def sample(self, x0: np.ndarray, steps: int, members: int, seed: int, *, schedule: np.ndarray | None = None) -> np.ndarray:
        repeated = np.broadcast_to(x0, (members, *x0.shape)).reshape(-1, *x0.shape[1:])
        seeds = trajectory_seeds(seed, "evaluation", len(repeated))
        paths = self.system.simulate(np.ascontiguousarray(repeated), steps, seeds)
        return paths.reshape(members, len(x0), *paths.shape[1:])
