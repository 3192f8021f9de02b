"""The base class of stochastic systems."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pydantic

from epns_pyro.config import Config, Registry
from epns_pyro.errors import ShapeError
from epns_pyro.state import StateSpec
from epns_pyro.symmetry import Group

SYSTEMS = Registry("system")


class SetConfig(Config):
    """One named set of trajectories: `trajectories` runs of `steps` frames after the initial state.

    With `initial_states` k the runs share k initial states evenly: run i starts from
    state i // (trajectories / k). With None every run has its own.
    """

    trajectories: int = pydantic.Field(gt=0)
    steps: int = pydantic.Field(gt=0)
    initial_states: int | None = None


class SystemConfig(Config, ABC):
    """Settings of a system; `build` makes the system.

    Parameters
    ----------
    burn_in : int
        Frames at the start of every trajectory that training windows leave out.
    sets : dict of SetConfig
        Named sets of trajectories, as `data generate` makes them: {name: {trajectories, steps, initial_states}}.
    """

    name: str
    burn_in: int = pydantic.Field(0, ge=0)
    sets: dict[str, SetConfig] = pydantic.Field(default_factory=dict)

    @abstractmethod
    def build(self) -> System: ...


@dataclass(frozen=True)
class Observable:
    """A scalar summary of a state, evaluated along trajectories.

    `values` has shape (*batch, time); `discrete` observables (counts) need randomised PIT values.
    """

    label: str
    unit: str
    values: np.ndarray
    discrete: bool = False


class System(ABC):
    """A stochastic system: its state, symmetry and time step, and, if it can be simulated, the true process.

    States are NumPy float64 arrays (*batch, *site, channel), integers where all fields are labels or categories. A system without a
    simulator (recorded data) leaves `can_simulate` False; one whose transition density is known sets `has_oracle`.
    Optional abilities are declared here with a default; other code does not probe for attributes.
    """

    name: ClassVar[str]
    can_simulate: ClassVar[bool] = False
    can_continue: bool = True  # whether `simulate` goes on from recorded states: not where these say less than the process needs
    report_frames: ClassVar[tuple[int, ...]] = ()  # lead times, in frames, at which distributions are compared; () for four evenly spaced
    key_observables: ClassVar[tuple[str, ...]] = ()  # those that are compared; () for all

    has_oracle: bool = False  # whether `transition_log_prob` is known
    has_diagonal_law: bool = False  # whether `diagonal_log_prob` is known
    has_pair_law: ClassVar[bool] = False  # whether `pair_accelerations` is known
    config: SystemConfig
    spec: StateSpec
    symmetry: Group
    frame_dt: float
    time_unit: str = ""

    @property
    def group(self) -> Group:
        """The former name of `symmetry`."""
        warnings.warn("System.group is now called System.symmetry", DeprecationWarning, stacklevel=2)
        return self.symmetry

    @property
    def first_frame(self) -> int:
        """Number of the first frame used for training: the burn-in of the config."""
        return self.config.burn_in

    @property
    def forecast_frame(self) -> int:
        """Number of the frame that held-out forecasts start from: after the burn-in, with its whole history known."""
        return self.first_frame

    @property
    def frames_given(self) -> int:
        """Number of frames, up to the one that a forecast starts from, that forecasters are given: more than 1 where states are hidden."""
        return 1

    @abstractmethod
    def observables(self, x: np.ndarray) -> dict[str, Observable]:
        """Evaluate every observable on trajectories x (*batch, time, *site, channel)."""

    @abstractmethod
    def alive(self, x: np.ndarray) -> np.ndarray:
        """Return (*batch, time) booleans: True until a trajectory x (*batch, time, *site, channel) first stops being plausible."""

    def initial(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draw n initial states: (n, *site, channel)."""
        raise TypeError(f"system {self.name!r} has no distribution of initial states")

    def simulate(self, x0: np.ndarray, steps: int, seeds: np.ndarray, *, workers: int | None = None) -> np.ndarray:
        """Run the true process from x0 (n, *site, channel) for `steps` frames: (n, steps + 1, *site, channel).

        `seeds` (n,) uint64, one per trajectory: the result does not depend on the number of threads (`workers`, default: all).
        """
        raise TypeError(f"system {self.name!r} has no simulator")

    def transition_log_prob(self, x: np.ndarray, x_next: np.ndarray) -> np.ndarray:
        """Return the true log p(x_next | x) (the oracle), nats, (*batch,), for full states (*batch, *site, channel)."""
        raise TypeError(f"system {self.name!r} has no known transition density")

    def diagonal_log_prob(self, x: np.ndarray, x_next: np.ndarray) -> np.ndarray:
        """Return log Normal(x'; mean(x), diag covariance(x)) of the true process: nats, (*batch,), for full states."""
        raise TypeError(f"system {self.name!r} has no known mean and variances")

    def pair_accelerations(self, x: np.ndarray) -> np.ndarray:
        """Return how body j accelerates body i along the line from j to i, (*batch, body i, body j): positive where it repels it."""
        raise TypeError(f"system {self.name!r} has no known law of pairs")


def trajectory_seeds(seed: int, split: str, n: int, *, start: int = 0) -> np.ndarray:
    """Return seeds of trajectories start .. start + n - 1 of a named set: (n,) uint64, each derived from (seed, set, index).

    Sets of different names have different streams, and a set made in several calls equals the set made at once.
    """
    key = int.from_bytes(split.encode(), "little")
    return np.array(
        [np.random.SeedSequence((seed, key, i)).generate_state(1, np.uint64)[0] for i in range(start, start + n)], dtype=np.uint64
    )


def checked_seeds(spec: StateSpec, x0: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Check what bodies are simulated from, initial states (n, body, channel) and integer seeds (n,); return the seeds as uint64."""
    spec.check(x0, what="the initial states")
    seeds = np.asarray(seeds)
    if x0.ndim != 3 or seeds.shape != x0.shape[:1] or not np.issubdtype(seeds.dtype, np.integer):
        raise ShapeError(
            f"simulate: expected initial states (n, body, {spec.channels}) and n integer seeds, "
            f"found {x0.shape} and {seeds.dtype} {seeds.shape}"
        )
    return seeds.astype(np.uint64)
