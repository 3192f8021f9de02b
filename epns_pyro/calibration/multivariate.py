"""Ranks of vectors: a pre-rank maps the truth and each member to a number, and the truth has a rank among these numbers.

That rank is uniform if truth and members have the same distribution. A pre-rank may use the whole pool of truth and members if it treats
them symmetrically. The pre-ranks here first replace every component by its rank in the pool; this removes units and margins and leaves
the dependence between components (Thorarinsdottir, Scheuerer & Heinz 2016, doi:10.1080/10618600.2014.977447; Allen, Ziegel & Ginsbourger
2024, arXiv:2307.05846). For a physical pre-rank, such as the kinetic energy of a state, use an observable with its univariate
diagnostics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from scipy.stats import rankdata

from epns_pyro.calibration.pit import pit_values
from epns_pyro.calibration.scores import alive_groups
from epns_pyro.errors import ShapeError

PreRank = Callable[[np.ndarray], np.ndarray]  # pool of ranks in (0, 1), (pool, trajectory, component) -> (pool, trajectory)


def average_rank(pool: np.ndarray) -> np.ndarray:
    """Return the mean of the component ranks: too rarely extreme in an ensemble whose components are too weakly dependent."""
    return pool.mean(-1)


def disagreement(pool: np.ndarray) -> np.ndarray:
    """Return the spread of the component ranks of a vector: low where components rise and fall together."""
    return pool.std(-1)


def distance(pool: np.ndarray) -> np.ndarray:
    """Return the Mahalanobis distance from the centre of the pool, with the covariance of its ranks: detects any wrong correlation.

    The covariance is shrunk by a tenth towards its diagonal, so that it can be inverted with any number of members.
    """
    centred = pool - pool.mean(0)
    covariance = np.einsum("pti,ptj->tij", centred, centred) / len(pool)
    diagonal = np.einsum("tii->ti", covariance)
    covariance *= 0.9
    np.einsum("tii->ti", covariance)[...] = diagonal + 1e-9
    return np.einsum("pti,tij,ptj->pt", centred, np.linalg.inv(covariance), centred, optimize=True)


PRE_RANKS: Mapping[str, PreRank] = {"average rank": average_rank, "disagreement": disagreement, "distance": distance}


def multivariate_pit(ensemble: np.ndarray, truth: np.ndarray, pre_rank: PreRank, uniforms: np.ndarray) -> np.ndarray:
    """Return randomised PIT values of the pre-rank of vectors, uniform on (0, 1) if members and truth have the same distribution.

    Parameters
    ----------
    ensemble : (sample, trajectory, component)
        A member with a NaN component is left out.
    truth : (trajectory, component)
    pre_rank : callable
        Pool of component ranks in (0, 1), (pool, trajectory, component) -> (pool, trajectory); the truth is one of the pool.
    uniforms : (trajectory,)
        Independent uniforms on [0, 1).

    Returns
    -------
    (trajectory,)
    """
    ensemble, truth = np.asarray(ensemble, float), np.asarray(truth, float)
    if ensemble.ndim != 3 or ensemble.shape[1:] != truth.shape or np.shape(uniforms) != truth.shape[:1]:
        raise ShapeError(
            "expected an ensemble (sample, trajectory, component), a truth (trajectory, component) and uniforms (trajectory,), "
            f"found {ensemble.shape}, {truth.shape}, {np.shape(uniforms)}"
        )
    uniforms = np.asarray(uniforms)
    out = np.full(len(truth), np.nan)
    for rows, members, y in alive_groups(ensemble, truth, need=1):
        pool = np.concatenate([y[None], members])
        value = pre_rank((rankdata(pool, axis=0) - 0.5) / len(pool))
        out[rows] = pit_values(_settle(value[1:], value[0]), value[0], uniforms[rows])
    return out


def _settle(members: np.ndarray, truth: np.ndarray) -> np.ndarray:
    # sums in a different order differ in the last digits: count these as ties
    return np.where(np.isclose(members, truth, rtol=1e-10, atol=1e-12), truth, members)
