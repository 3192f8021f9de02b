"""The power of the tests of a verdict: which faults they would find, and how many data that takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from epns_pyro.calibration.bands import normal_rank_cdf, rank_law, spread_that_covers
from epns_pyro.calibration.dependence import enough
from epns_pyro.calibration.pit import dispersion, location

FALSE_ALARM = 0.05
POWER = 0.8
FEWEST = 10  # trajectories; fewer are always too few data
MOST_TIMES = 73  # powers of 1.1 that are tried: up to 1,000 times as many data


@dataclass(frozen=True)
class Fault:
    """A fault that the tests must be able to find before anything is called calibrated.

    Truths are Normal(0, 1) and members Normal(shift, spread) at every lead time; `contrast` detects the fault when lead times are pooled.
    """

    words: str
    spread: float
    shift: float
    contrast: Callable[[np.ndarray, int], np.ndarray]


TOO_NARROW = Fault("90% intervals that cover 70%", spread_that_covers(0.7, nominal=0.9), 0.0, dispersion)
NARROW_COMPONENTS = replace(TOO_NARROW, words="90% intervals of components that cover 70%")
OFF_CENTRE = Fault("an agreement that is off by half a standard deviation", 1.0, 0.5, location)


def detection_power(
    n: int, members: int, lead_times: int, *, error: float = np.nan, share: float = 1.0, fault: Fault = TOO_NARROW
) -> float:
    """Return the probability that a family of tests finds a fault: the larger power of its two halves.

    Parameters
    ----------
    n, members, lead_times : int
        Number of independent trajectories, size of the ensemble, number of lead times for which the rank tests are corrected.
    error : float
        Standard error of the pooled contrast of a calibrated ensemble. By default that of a single lead time, 1 / sqrt(n): right if all
        lead times are fully dependent, too cautious otherwise.
    share : float
        Part of the false-alarm rate that the family may use.
    """
    if n < FEWEST or members < 2:
        return 0.0
    alpha = FALSE_ALARM * share / 2
    exact = rank_law(n, members).power(1 - alpha / lead_times, spread=fault.spread, shift=fault.shift)
    return max(float(exact), _pooled_power(n, members, error, share, fault))


def times_as_many(n: int, tau: float, members: int, *, error: float = np.nan, share: float = 1.0, fault: Fault = TOO_NARROW) -> float:
    """Return how many times as many trials would find a fault with probability `POWER`, if lead times are pooled; NaN: no number does.

    There are n trials of decorrelation time tau; otherwise as `detection_power`.
    """
    if members < 2:
        return math.nan
    for factor in 1.1 ** np.arange(MOST_TIMES):
        known, larger = np.isfinite(error) and error > 0, int(n * factor / tau)
        smaller = error / np.sqrt(factor) if known else np.nan
        if enough(int(n * factor), tau, FEWEST) and _pooled_power(larger, members, smaller, share, fault) >= POWER:
            return float(factor)
    return math.nan


def _pooled_power(n: int, members: int, error: float, share: float, fault: Fault) -> float:
    """Return the probability that the tests of all lead times together find a fault."""
    alpha = FALSE_ALARM * share / 2
    weight = np.diff(normal_rank_cdf(np.arange(members + 2), members, fault.spread, fault.shift))
    contrast = fault.contrast((np.arange(members + 1) + 0.5) / (members + 1), members)
    mean = (weight * contrast).sum()
    deviation = np.sqrt((weight * contrast**2).sum() - mean**2)  # 1 for a calibrated ensemble
    error = error if np.isfinite(error) and error > 0 else 1 / np.sqrt(n)
    threshold = stats.t.isf(alpha / 4, n - 1)  # two tests, two sides
    return float(stats.nct.sf(threshold, n - 1, abs(mean) / (deviation * error)))


def times(factor: float) -> str:
    """Write how many times as many, rounded up."""
    return f"{math.ceil(factor * 10) / 10:.1f} times" if factor < 3 else f"{math.ceil(factor)} times"
