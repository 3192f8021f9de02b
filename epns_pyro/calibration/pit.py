"""Probability integral transforms (PIT) of truths in their ensembles, and ranks, histograms, coverage and contrasts made from them.

If the truth and the m members have the same distribution, the truth has each of the ranks 0 .. m among them with equal probability,
exactly and for every m. The PIT value u = (rank + V) / (m + 1), V uniform on (0, 1), is then exactly uniform; where members tie with
the truth (counts, labels), the rank is drawn among the tied places, which keeps that exact (Czado, Gneiting & Held 2009,
doi:10.1111/j.1541-0420.2009.01191.x). The random numbers are arguments; they are never made here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import ndtri

from epns_pyro.errors import ConfigError, ShapeError


def pit_values(ensemble: np.ndarray, truth: np.ndarray, uniforms: np.ndarray, *, axis: int = 0) -> np.ndarray:
    """Return randomised PIT values, uniform on (0, 1) if the ensemble is calibrated.

    Parameters
    ----------
    ensemble : (sample, *batch)
        Members, sample axis `axis`. Dead members (NaN) are left out; the PIT value is exact for those alive.
    truth : (*batch)
    uniforms : (*batch)
        Independent uniforms on [0, 1), e.g. `rng.random(truth.shape)`; they place the truth within its rank and among ties.

    Returns
    -------
    (*batch)
        NaN where the truth is NaN or no member is alive.
    """
    ensemble, truth = np.moveaxis(np.asarray(ensemble), axis, 0), np.asarray(truth)
    if ensemble.shape[1:] != truth.shape or np.shape(uniforms) != truth.shape:
        raise ShapeError(
            f"the ensemble without its sample axis, the truth and the uniforms must have one shape, found {ensemble.shape[1:]}, "
            f"{truth.shape}, {np.shape(uniforms)}"
        )
    below, tied = (ensemble < truth).sum(0), (ensemble == truth).sum(0)
    alive = np.isfinite(ensemble).sum(0)
    pit = (below + uniforms * (tied + 1)) / (alive + 1)
    return np.where(np.isfinite(truth) & (alive > 0), pit, np.nan)


def ranks(pit: np.ndarray, members: int) -> np.ndarray:
    """Return the ranks 0 .. members that randomised PIT values stand for; -1 where the PIT value is NaN.

    If some members have died, the rank is that of the PIT value among all `members`: still exactly uniform for a calibrated ensemble.
    """
    known = np.isfinite(pit)
    return np.where(known, np.minimum((np.where(known, pit, 0) * (members + 1)).astype(np.int64), members), -1)


@dataclass(frozen=True)
class RankHistogram:
    """Numbers of truths in each bin of ranks.

    `count` (*batch, bin), beside the number `expected` (*batch, bin) for a calibrated ensemble.
    """

    edges: np.ndarray
    count: np.ndarray
    expected: np.ndarray


def rank_histogram(pit: np.ndarray, members: int, bins: int = 10) -> RankHistogram:
    """Count ranks in at most `bins` bins of whole ranks, as equal as possible.

    Parameters
    ----------
    pit : (*batch, trajectory)

    Returns
    -------
    RankHistogram
        Edges (bin + 1,) as fractions of the members + 1 ranks.
    """
    cells = np.unique(np.round(np.linspace(0, members + 1, min(bins, members + 1) + 1)).astype(int))
    below = counts_below(pit, members, cells)
    n = below[..., -1:]
    return RankHistogram(cells / (members + 1), np.diff(below, axis=-1), n * np.diff(cells) / (members + 1))


def counts_below(pit: np.ndarray, members: int, cells: np.ndarray) -> np.ndarray:
    """Count the trajectories whose rank is below each of `cells` (point,): pit (*batch, trajectory) -> (*batch, point)."""
    rank = ranks(pit, members)
    flat = rank.reshape(-1, rank.shape[-1])
    histogram = np.zeros((len(flat), members + 2), np.int64)  # column 0: unknown
    np.add.at(histogram, (np.arange(len(flat))[:, None], flat + 1), 1)
    histogram[:, 0] = 0
    return np.cumsum(histogram, axis=1)[:, np.asarray(cells)].reshape(*rank.shape[:-1], len(cells))


@dataclass(frozen=True)
class CentralInterval:
    """The interval between the order statistics number `tail` and members + 1 - `tail`, which covers with probability `nominal`.

    For a calibrated ensemble the coverage is exactly (members + 1 - 2 tail) / (members + 1): 99 members give exactly 50, 80, 90 and 98%,
    but 96% instead of 95%. A finite ensemble does not have every level.
    """

    members: int
    tail: int

    @property
    def nominal(self) -> float:
        return 1 - 2 * self.tail / (self.members + 1)

    def ends(self, ensemble: np.ndarray, *, axis: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Return both ends of the interval of an ensemble (sample, *batch), each (*batch); NaN members are left out, in proportion."""
        ensemble = np.sort(np.moveaxis(np.asarray(ensemble, float), axis, 0), axis=0)  # NaN last
        alive = np.isfinite(ensemble).sum(0)
        low = np.clip(np.round(self.tail * (alive + 1) / (self.members + 1)).astype(int), 1, np.maximum(alive, 1)) - 1
        high = np.maximum(alive - 1 - low, 0)
        return tuple(np.take_along_axis(ensemble, place[None], axis=0)[0] for place in (low, high))

    def covers(self, pit: np.ndarray) -> np.ndarray:
        """Return for each PIT value whether the truth is in the interval.

        1.0, 0.0, or NaN where unknown; ties with an end are decided by the rank.
        """
        rank = ranks(pit, self.members)
        return np.where(rank < 0, np.nan, (rank >= self.tail) & (rank <= self.members - self.tail))


def central_interval(members: int, prob: float) -> CentralInterval:
    """Return the central interval of an ensemble of `members` whose exact nominal level is nearest to `prob`."""
    if members < 2:
        raise ConfigError(f"an interval needs at least 2 members, found {members}")
    if not 0 < prob < 1:
        raise ConfigError(f"the probability of an interval must lie between 0 and 1, found {prob}")
    return CentralInterval(members, int(np.clip(round((members + 1) * (1 - prob) / 2), 1, members // 2)))


# -- contrasts: one number per rank, mean 0 and variance 1 if calibrated -------------------------------------------------


@lru_cache(maxsize=64)
def _rank_scores(members: int) -> dict[str, np.ndarray]:
    centred = (np.arange(members + 1) + 0.5) / (members + 1) - 0.5
    linear = centred / centred.std()
    square = centred**2 - (centred**2).mean()
    quadratic = square / square.std() if members > 1 else square
    return {"location": linear, "dispersion": quadratic, "normal": ndtri(centred + 0.5)}


def location(pit: np.ndarray, members: int) -> np.ndarray:
    """Return the linear contrast of the rank, shape of `pit`: positive where the truth is high; mean 0, variance 1 if calibrated.

    The first two orthogonal contrasts of a rank histogram (Jolliffe & Primo 2008, doi:10.1175/2007MWR2219.1) show bias and wrong spread.
    """
    return _contrast(pit, members, "location")


def dispersion(pit: np.ndarray, members: int) -> np.ndarray:
    """Return the quadratic contrast of the rank: positive where the truth is far from the centre (over-confidence).

    Mean 0, variance 1 if calibrated; shape of `pit`.
    """
    return _contrast(pit, members, "dispersion")


def normal_scores(pit: np.ndarray, members: int) -> np.ndarray:
    """Return the rank as a standard Normal quantile; shape of `pit`.

    About how many standard deviations of the ensemble the truth is above its centre.
    """
    return _contrast(pit, members, "normal")


def normal_score_moments(members: int) -> tuple[float, float]:
    """Return the variance of the normal score of a calibrated ensemble, and the variance of its square divided by that variance squared."""
    score = _rank_scores(members)["normal"]
    variance = (score**2).mean()
    return float(variance), float((score**4).mean() / variance**2 - 1)


def largest_shift(members: int) -> float:
    """Return the largest shift that ranks can show: every truth above every member, in standard deviations of the normal score."""
    return float(_rank_scores(members)["normal"][-1] / np.sqrt(normal_score_moments(members)[0]))


def _contrast(pit: np.ndarray, members: int, name: str) -> np.ndarray:
    rank = ranks(pit, members)
    return np.where(rank < 0, np.nan, _rank_scores(members)[name][rank])
