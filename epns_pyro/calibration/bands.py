"""Exact simultaneous bands of rank ECDFs, with p-values and power, and intervals of proportions.

The test is that of Säilynoja, Bürkner & Vehtari (2022, arXiv:2103.10522). The number of ranks below a cell of the grid is Binomial; the
statistic gamma is the smallest two-sided Binomial tail probability over the grid; the band at level `prob` holds every ECDF whose gamma
exceeds a critical value, so "the ECDF leaves its band" and "p <= 1 - prob" are the same event. The law of gamma is computed, not
exceeds a critical value, so "the ECDF leaves its band" and "p <= 1 - prob" are the same event. The distribution of gamma is computed, not
simulated: counts along the grid are a Poisson process conditioned on its total, so the probability of staying in a band is a chain of

All of it assumes INDEPENDENT values: independent trajectories at one lead time, never pooled over bodies, pixels or times. Dependent
stretches of one recording count as a smaller number of independent ones (see `dependence`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from scipy import stats
from scipy.special import gammaln, ndtr, ndtri, xlogy

from epns_pyro.calibration.pit import counts_below
from epns_pyro.errors import ConfigError

GRID_POINTS = 100  # the ECDF is evaluated at most at this many points
SAME = 1 + 1e-9  # tail probabilities equal up to rounding count as equal


@dataclass(frozen=True)
class Band:
    """Simultaneous band of an ECDF.

    At `level` (point,) the ECDF stays between `lower` and `upper` (point,), both included, with probability `prob` or more.
    """

    level: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    prob: float


@dataclass(frozen=True)
class RankLaw:
    """The distribution of the rank ECDF of `n` independent truths, each among `members` members of a calibrated ensemble.

    Make it with `rank_law`, which keeps those made before.
    """

    n: int
    members: int

    @cached_property
    def cells(self) -> np.ndarray:
        """Ranks at which the ECDF is evaluated, (point,): whole ranks, so that the Binomial probabilities are exact."""
        return np.unique(np.round(np.linspace(1, self.members, min(self.members, GRID_POINTS))).astype(int))

    @property
    def level(self) -> np.ndarray:
        """Probability of a rank below each cell, (point,)."""
        return self.cells / (self.members + 1)

    @cached_property
    def _tails(self) -> np.ndarray:
        # (point, count): two-sided tail probability of seeing `count` ranks below the cell
        law = stats.binom(self.n, self.level[:, None])
        count = np.arange(self.n + 1)
        return np.minimum(1, 2 * np.minimum(law.cdf(count), law.sf(count - 1)))

    def statistic(self, pit: np.ndarray) -> np.ndarray:
        """Gamma, the smallest pointwise tail probability along the ECDF: pit (*batch, trajectory) -> (*batch)."""
        return self._statistic(counts_below(pit, self.members, self.cells))

    def _statistic(self, counts: np.ndarray) -> np.ndarray:
        return self._tails[np.arange(len(self.cells)), counts].min(-1)

    def p_value(self, pit: np.ndarray) -> np.ndarray:
        """Return the probability that the ECDF of a calibrated ensemble deviates at least as much.

        pit (*batch, trajectory) without NaN -> (*batch); exact, but never below 1e-12.
        """
        return self._p_value_of_counts(counts_below(pit, self.members, self.cells))

    def _p_value_of_counts(self, counts: np.ndarray) -> np.ndarray:
        gamma = self._statistic(counts)
        unique, where = np.unique(gamma, return_inverse=True)
        return np.clip(1 - self._stays(unique, self.level), 1e-12, 1)[where].reshape(gamma.shape)

    def p_value_of(self, difference: np.ndarray) -> np.ndarray:
        """Return the probability that the ECDF of n independent truths deviates as much as a given one, of more but dependent truths.

        difference (*batch, point), ECDF minus its expectation -> (*batch). Counts are rounded towards their expectation.
        """
        count, expected = self.n * (difference + self.level), self.n * self.level
        return self._p_value_of_counts(np.where(count > expected, np.floor(count + 1e-9), np.ceil(count - 1e-9)).astype(int))

    def critical(self, prob: float) -> float:
        """Return the largest attainable gamma with a p-value of at most 1 - prob; 0 if even the most extreme ECDF has a larger one."""
        return _critical(self, prob)

    def band(self, prob: float) -> Band:
        """Return the simultaneous band that a calibrated ensemble leaves with probability at most 1 - prob."""
        inside = self._tails > self.critical(prob) * SAME
        lower = inside.argmax(1)
        upper = self.n - inside[:, ::-1].argmax(1)
        return Band(self.level, lower / self.n, upper / self.n, prob)

    def power(self, prob: float, *, spread: float, shift: float = 0.0) -> float:
        """Return the probability that the ECDF leaves its band when truths are Normal(0, 1) and members Normal(shift, spread)."""
        return _power(self, prob, spread, shift)

    def _stays(self, gamma: np.ndarray, cdf: np.ndarray) -> np.ndarray:
        """Return the probability that all counts have tails above gamma (level,).

        Ranks fall below the cells with probabilities cdf (point,); result (level,).
        """
        arrivals = _poisson(np.arange(self.n + 1), self.n * np.diff(np.concatenate([[0.0], cdf, [1.0]]))[:, None])
        inside, before = np.ones((len(gamma), 1)), np.arange(1)  # inside[g, i]: in the band until here, with before[i] ranks
        for tail, arrive in zip(self._tails, arrivals, strict=False):
            count = np.flatnonzero(tail > gamma.min() * SAME)
            new = count - before[:, None]
            move = np.where(new >= 0, arrive[new], 0)
            inside, before = (inside @ move) * (tail[count] > gamma[:, None] * SAME), count
        return np.clip(inside @ arrivals[-1][self.n - before] / _poisson(self.n, self.n), 0, 1)


def _poisson(count: np.ndarray | int, mean: np.ndarray | int) -> np.ndarray:
    return np.exp(xlogy(count, mean) - mean - gammaln(np.asarray(count) + 1.0))


@lru_cache(maxsize=256)
def rank_law(n: int, members: int) -> RankLaw:
    """Return the distribution of the rank ECDF of n truths among `members` members; cached, with what was computed for it."""
    if n < 1 or members < 1:
        raise ConfigError(f"a rank ECDF needs at least one trajectory and one member, found {n} and {members}")
    return RankLaw(n, members)


@lru_cache(maxsize=1024)
def _critical(law: RankLaw, prob: float) -> float:
    if not 0 < prob < 1:
        raise ConfigError(f"the probability of a band must lie between 0 and 1, found {prob}")
    attainable = np.unique(law._tails[law._tails <= 1 - prob])  # gamma never exceeds its p-value
    low, high = -1, len(attainable)  # the p-value of attainable[low] is small enough, that of attainable[high] is not
    while high - low > 1:
        middle = (low + high) // 2
        rare = 1 - law._stays(attainable[middle : middle + 1], law.level)[0] <= 1 - prob
        low, high = (middle, high) if rare else (low, middle)
    return float(attainable[low]) if low >= 0 else 0.0


@lru_cache(maxsize=1024)
def _power(law: RankLaw, prob: float, spread: float, shift: float) -> float:
    return float(1 - law._stays(np.array([law.critical(prob)]), normal_rank_cdf(law.cells, law.members, spread, shift))[0])


def ecdf_difference(pit: np.ndarray, law: RankLaw) -> np.ndarray:
    """ECDF minus its expectation at the points of the law: pit (*batch, trajectory) without NaN -> (*batch, point)."""
    return counts_below(pit, law.members, law.cells) / law.n - law.level


@lru_cache(maxsize=64)
def _normal_grid(points: int = 400) -> np.ndarray:
    return ndtri((np.arange(points) + 0.5) / points)


def normal_rank_cdf(cells: np.ndarray, members: int, spread: float, shift: float = 0.0) -> np.ndarray:
    """P(rank < cell) of a Normal(0, 1) truth among members drawn from Normal(shift, spread): (point,)."""
    below = ndtr((_normal_grid() - shift) / spread)  # probability that one member lies below the truth
    return stats.binom.cdf(np.asarray(cells)[:, None] - 1, members, below).mean(1)


def spread_that_covers(coverage: float, nominal: float = 0.9) -> float:
    """Return the spread, in units of the right one, of a Normal forecast whose intervals of level `nominal` cover only `coverage`."""
    return float(ndtri((1 + coverage) / 2) / ndtri((1 + nominal) / 2))


def proportion_interval(
    successes: np.ndarray | float, n: np.ndarray | float, prob: float = 0.95, method: str = "wilson"
) -> tuple[np.ndarray, np.ndarray]:
    """Return the interval of a proportion: "wilson" (its level on average) or "clopper-pearson" (never below its level).

    successes, n broadcast to (*batch); both ends (*batch), NaN where n is 0.
    """
    successes, n = np.broadcast_arrays(np.asarray(successes, float), np.asarray(n, float))
    with np.errstate(divide="ignore", invalid="ignore"):
        if method == "wilson":
            z2 = stats.norm.ppf((1 + prob) / 2) ** 2
            p = successes / n
            centre, half = (p + z2 / (2 * n)) / (1 + z2 / n), np.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n**2))) / (1 + z2 / n)
            return centre - half, centre + half
        if method == "clopper-pearson":
            tail = (1 - prob) / 2
            lower = np.where(successes == 0, 0, stats.beta.ppf(tail, successes, n - successes + 1))
            upper = np.where(successes == n, 1, stats.beta.isf(tail, successes + 1, n - successes))
            return np.where(n > 0, lower, np.nan), np.where(n > 0, upper, np.nan)
    raise ConfigError(f"method must be 'wilson' or 'clopper-pearson', found {method!r}")


def proportion_band(nominal: np.ndarray, n: int, prob: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Return the range of proportions that n independent trials show with probability `prob` or more.

    Their probability of success is `nominal` (*batch); both ends (*batch).
    """
    tail = (1 - prob) / 2
    return stats.binom.ppf(tail, n, nominal) / n, stats.binom.isf(tail, n, nominal) / n
