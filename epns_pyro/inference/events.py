"""The probability of an event given the initial state, estimated by counting, with its error."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from epns_pyro.errors import ConfigError, ShapeError, nearest
from epns_pyro.inference.rollout import Block
from epns_pyro.systems import System

Event = Callable[[np.ndarray], np.ndarray]  # futures (sample, time, *site, channel), float64, time 0 is x0 -> booleans (sample,)
LEVEL = 0.95


@dataclass(frozen=True)
class Exceeds:
    """The event that an observable of a system is above a threshold.

    Parameters
    ----------
    system : System
    observable : str
        Name of one of its observables.
    threshold : float
        In the unit of the observable.
    step : int, optional
        Step at which it must happen; None: at any step after the initial state.
    """

    system: System
    observable: str
    threshold: float
    step: int | None = None

    def __call__(self, x: np.ndarray) -> np.ndarray:
        if self.step is not None and not 0 <= self.step < x.shape[1]:
            raise ShapeError(f"the event is asked for at step {self.step}, and the futures have {x.shape[1] - 1}: choose more steps")
        observables = self.system.observables(x)
        if self.observable not in observables:
            raise ConfigError(f"no observable {self.observable!r}: {nearest(self.observable, observables)}")
        values = observables[self.observable].values
        return (values[:, 1:].max(1) if self.step is None else values[:, self.step]) > self.threshold


@dataclass(frozen=True)
class Probability:
    """A probability counted from independent futures.

    Parameters
    ----------
    hits, members : int
        Number of futures with the event, and number of futures.
    implausible : int
        Futures that were implausible in their last frame; they are counted like all others.
    """

    hits: int
    members: int
    implausible: int = 0

    @property
    def value(self) -> float:
        """Fraction of futures with the event; unbiased."""
        return self.hits / self.members

    @property
    def error(self) -> float:
        """Monte Carlo standard error of the value; 0 without hits, where only the interval is meaningful."""
        return float(np.sqrt(self.value * (1 - self.value) / self.members))

    @property
    def interval(self) -> tuple[float, float]:
        """Clopper-Pearson interval of 95%, valid for any number of hits; without hits its upper end is about 3.7 / members."""
        from scipy import stats  # takes a second to import, and loading a run does without

        tail = (1 - LEVEL) / 2
        low = stats.beta.ppf(tail, self.hits, self.members - self.hits + 1) if self.hits else 0.0
        high = stats.beta.ppf(1 - tail, self.hits + 1, self.members - self.hits) if self.hits < self.members else 1.0
        return float(low), float(high)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.3g} ± {self.error:.2g} ({LEVEL:.0%} interval {low:.2g} to {high:.2g}; {self.hits} of {self.members} futures)"


def count(event: Event, states: np.ndarray) -> int:
    """Count the futures (sample, time, *site, channel) that have the event.

    Raises
    ------
    ShapeError
        If the event does not return one boolean per future.
    """
    answer = np.asarray(event(states))
    if answer.shape != (len(states),) or answer.dtype != bool:
        raise ShapeError(f"the event: expected one boolean per future, shape ({len(states)},), found {answer.dtype} {answer.shape}")
    return int(answer.sum())


def probability(event: Event, system: System, blocks: Iterable[Block]) -> Probability:
    """Count an event in the futures of one initial state, block by block."""
    hits = members = implausible = 0
    for block in blocks:
        states = block.states[:, 0].astype(np.float64 if np.issubdtype(block.states.dtype, np.floating) else block.states.dtype)
        hits, members = hits + count(event, states), members + len(states)
        implausible += int((~system.alive(states)[:, -1]).sum())
    return Probability(hits, members, implausible)
