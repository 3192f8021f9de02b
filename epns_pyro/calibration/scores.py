"""Scores of ensembles and forecasts: plain arrays in, plain arrays out.

An ensemble has one more axis than the truth that it forecasts: the sample axis, first unless `axis` says otherwise. Lower is better for
every score. Members that are NaN have died and are left out; if the truth is NaN, or fewer members are alive than the score
needs, the score is NaN.

`fair` estimators are unbiased for the score of the distribution that the members were drawn from; `plain` ones score the finite
ensemble as if it were the whole distribution, and so favour ensembles that are too narrow (Ferro 2014, doi:10.1002/qj.2270).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats
from scipy.spatial.distance import cdist

from epns_pyro.errors import ShapeError

Estimator = Literal["fair", "plain"]
PAIRS_IN_MEMORY = 4_000_000  # numbers that a block of pairwise differences may hold


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error; both have the same shape."""

    value: np.ndarray
    error: np.ndarray

    def interval(self, prob: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Return the ends of the Normal interval of probability `prob`."""
        half = stats.norm.ppf((1 + prob) / 2) * self.error
        return self.value - half, self.value + half


# -- ensembles ---------------------------------------------------------------------------------------------------------


def crps(ensemble: np.ndarray, truth: np.ndarray, *, axis: int = 0, estimator: Estimator = "fair") -> np.ndarray:
    """Continuous ranked probability score, E|X - y| - E|X - X'| / 2, in the unit of the truth.

    Parameters
    ----------
    ensemble : (sample, *batch)
        Members; the sample axis is `axis`.
    truth : (*batch)
    estimator : {"fair", "plain"}
        How E|X - X'| is estimated: from pairs of different members, or from all pairs. Both cost a sort, O(m log m).

    Returns
    -------
    (*batch)
    """
    import scoringrules  # compiles for seconds when it is imported

    kind = _choice(estimator, {"fair": "pwm", "plain": "qd"})

    def score(members: np.ndarray, y: np.ndarray) -> np.ndarray:
        return scoringrules.crps_ensemble(y, members, m_axis=0, estimator=kind, backend="numpy")

    return over_alive(score, np.moveaxis(np.asarray(ensemble, float), axis, 0), truth, need=2)


def energy_score(ensemble: np.ndarray, truth: np.ndarray, *, axis: int = 0, estimator: Estimator = "fair") -> np.ndarray:
    """Energy score, E||X - y|| - E||X - X'|| / 2, the CRPS of vectors (Gneiting & Raftery 2007, doi:10.1198/016214506000001437).

    Parameters
    ----------
    ensemble : (sample, *batch, component)
        Components should have the same unit, or be divided by a scale first. A member with a NaN component counts as dead.
    truth : (*batch, component)

    Returns
    -------
    (*batch)
    """
    import scoringrules

    kind = _choice(estimator, {"fair": "fair", "plain": "nrg"})

    def score(members: np.ndarray, y: np.ndarray) -> np.ndarray:
        rows = max(1, PAIRS_IN_MEMORY // (members.shape[0] ** 2 * members.shape[-1]))
        blocks = [slice(start, start + rows) for start in range(0, len(y), rows)]
        return np.concatenate(
            [scoringrules.es_ensemble(y[b], members[:, b], m_axis=0, estimator=kind, backend="numpy") for b in blocks] or [np.empty(0)]
        )

    return over_alive(score, np.moveaxis(np.asarray(ensemble, float), axis, 0), truth, need=2, vector=True)


def variogram_score(
    ensemble: np.ndarray, truth: np.ndarray, *, axis: int = 0, order: float = 0.5, estimator: Estimator = "fair"
) -> np.ndarray:
    """Variogram score: sum over pairs of components of (E|X_i - X_j|^p - |y_i - y_j|^p)^2, with p = `order`.

    It detects wrong dependence between components, to which the energy score is insensitive (Scheuerer & Hamill 2015,
    doi:10.1175/MWR-D-14-00269.1). The fair estimator subtracts the sampling variance of the ensemble mean of every pair, s^2 / m.

    Parameters
    ----------
    ensemble : (sample, *batch, component)
    truth : (*batch, component)

    Returns
    -------
    (*batch)
    """
    fair = _choice(estimator, {"fair": True, "plain": False})

    def variogram(x: np.ndarray) -> np.ndarray:
        return np.abs(x[..., :, None] - x[..., None, :]) ** order

    def score(members: np.ndarray, y: np.ndarray) -> np.ndarray:
        out = np.empty(len(y))
        for i in range(len(y)):  # one row at a time: (sample, component, component) in memory
            pairs = variogram(members[:, i])
            square = (pairs.mean(0) - variogram(y[i])) ** 2
            out[i] = (square - pairs.var(0, ddof=1) / len(pairs) if fair else square).sum()
        return out

    return over_alive(score, np.moveaxis(np.asarray(ensemble, float), axis, 0), truth, need=2, vector=True)


def over_alive(
    score: Callable[[np.ndarray, np.ndarray], np.ndarray], ensemble: np.ndarray, truth: np.ndarray, *, need: int, vector: bool = False
) -> np.ndarray:
    """Apply `score(members (alive, row), truth (row)) -> (row,)` to ensembles (sample, *batch) whose dead members (NaN) are left out.

    With `vector`, ensemble and truth have a last axis of components. Rows with fewer than `need` members alive, or a NaN truth, give NaN.
    """
    truth = np.asarray(truth, float)
    if ensemble.shape[1:] != truth.shape:
        raise ShapeError(
            f"the ensemble without its sample axis has shape {ensemble.shape[1:]}, the truth {truth.shape}: they must be equal"
        )
    last = truth.shape[-1:] if vector else ()
    out = np.full(truth.shape[: truth.ndim - len(last)], np.nan)
    flat = out.reshape(-1)
    for rows, members, y in alive_groups(ensemble.reshape(len(ensemble), -1, *last), truth.reshape(-1, *last), need=need):
        flat[rows] = score(members, y)
    return out


def alive_groups(ensemble: np.ndarray, truth: np.ndarray, *, need: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Group rows by the number of members alive, so that the arrays of a group contain no NaN.

    Parameters
    ----------
    ensemble : (sample, row) or (sample, row, component)
    truth : (row,) or (row, component)
    need : int
        Groups with fewer members alive are left out, and so are rows whose truth is NaN.

    Yields
    ------
    rows : (group,)
        Which rows.
    members : (alive, group) or (alive, group, component)
    truth : (group,) or (group, component)
    """
    alive, known = np.isfinite(ensemble), np.isfinite(truth)
    if truth.ndim == 2:
        alive, known = alive.all(-1), known.all(-1)
    count = np.where(known, alive.sum(0), 0)
    order = np.argsort(~alive, axis=0, kind="stable")  # alive members first
    for m in np.unique(count[count >= need]):
        rows = np.flatnonzero(count == m)
        yield rows, ensemble[order[:m, rows], rows], truth[rows]


@dataclass(frozen=True)
class SpreadSkill:
    """Spread of an ensemble and error of its mean; `ratio` is 1 for a calibrated ensemble, below 1 for an over-confident one.

    `lower` and `upper` are the ends of the 95% interval of the ratio, from the scatter over trajectories.
    """

    spread: np.ndarray
    rmse: np.ndarray
    ratio: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


def spread_skill(mean: np.ndarray, variance: np.ndarray, members: np.ndarray | int, truth: np.ndarray, *, axis: int = 0) -> SpreadSkill:
    """Compare the spread of ensembles with the error of their mean, without bias for any number of members.

    For a calibrated ensemble of m members E (mean - y)^2 = (1 + 1/m) sigma^2, so the ratio is sqrt(average of (m + 1) / m s^2) /
    sqrt(average of (mean - y)^2) with the unbiased variance s^2 (Fortin et al. 2014, doi:10.1175/JHM-D-14-0008.1).

    Parameters
    ----------
    mean, variance : (trajectory, *batch)
        Ensemble mean and unbiased ensemble variance; independent trajectories lie along `axis`.
    members : int or (trajectory, *batch)
    truth : (trajectory, *batch)

    Returns
    -------
    SpreadSkill
        Each entry (*batch); spread and rmse in the unit of the truth.
    """
    members = np.asarray(members, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        inflated = np.moveaxis((members + 1) / members * variance, axis, 0)
        square = np.moveaxis((mean - truth) ** 2, axis, 0)
        known = np.isfinite(inflated) & np.isfinite(square)
        inflated, square = np.where(known, inflated, np.nan), np.where(known, square, np.nan)
        ratio = ratio_of_means(inflated, square)
        half = stats.norm.ppf(0.975) * ratio.error / ratio.value / 2  # of log sqrt(ratio)
        root = np.sqrt(ratio.value)
        return SpreadSkill(
            spread=np.sqrt(_mean(inflated)), rmse=np.sqrt(_mean(square)), ratio=root, lower=root * np.exp(-half), upper=root * np.exp(half)
        )


# -- densities and categories -------------------------------------------------------------------------------------------


def log_score(log_likelihood: np.ndarray) -> np.ndarray:
    """Logarithmic score, -log p(y), nats, from log-likelihoods of any shape."""
    return -np.asarray(log_likelihood, float)


def log_score_normal(mean: np.ndarray, scale: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Logarithmic score of Normal(mean, scale), nats; shapes broadcast, `scale` is a standard deviation."""
    import scoringrules

    return np.asarray(
        scoringrules.logs_normal(np.asarray(truth, float), np.asarray(mean, float), np.asarray(scale, float), backend="numpy")
    )


def brier_score(probability: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Brier score of a categorical forecast: sum over categories of (p_k - [label = k])^2, between 0 and 2.

    Parameters
    ----------
    probability : (*batch, category)
    label : (*batch)
        Integers in 0 .. category - 1.

    Returns
    -------
    (*batch)
    """
    import scoringrules

    probability, label = _categorical(probability, label)
    happened = np.arange(probability.shape[-1]) == label[..., None]
    return scoringrules.brier_score(happened.astype(float), probability, backend="numpy").sum(-1)


def log_score_categorical(probability: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Logarithmic score of a categorical forecast, -log p(label), nats; infinite where the probability of the label is 0.

    probability (*batch, category), label (*batch) integers, result (*batch).
    """
    probability, label = _categorical(probability, label)
    with np.errstate(divide="ignore"):
        return -np.log(np.take_along_axis(probability, label[..., None], -1)[..., 0])


# -- comparisons --------------------------------------------------------------------------------------------------------


def mean_estimate(values: np.ndarray, *, axis: int = 0) -> Estimate:
    """Mean over independent trajectories along `axis`, with its standard error; NaN are left out."""
    values = np.moveaxis(np.asarray(values, float), axis, 0)
    n = np.isfinite(values).sum(0)
    mean = _mean(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = np.nansum((values - mean) ** 2, axis=0) / (n - 1)
        return Estimate(mean, np.where(n > 1, np.sqrt(variance / n), np.nan))


def ratio_of_means(numerator: np.ndarray, denominator: np.ndarray) -> Estimate:
    """Ratio of two means over the same trajectories (first axis), with its standard error.

    The error is that of the linearised ratio; pairs with a NaN are left out.
    """
    known = np.isfinite(numerator) & np.isfinite(denominator)
    top, bottom = np.where(known, numerator, np.nan), np.where(known, denominator, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = _mean(top) / _mean(bottom)
        return Estimate(ratio, mean_estimate(top - ratio * bottom).error / np.abs(_mean(bottom)))


def skill_score(score: np.ndarray, reference: np.ndarray, *, axis: int = 0) -> Estimate:
    """Skill, 1 - mean(score) / mean(reference): 1 is perfect, 0 no better than the reference, negative worse.

    Parameters
    ----------
    score, reference : (trajectory, *batch)
        Scores of two forecasts of the SAME independent trajectories, along `axis`: the error uses that they are paired.

    Returns
    -------
    Estimate
        (*batch)
    """
    ratio = ratio_of_means(np.moveaxis(np.asarray(score, float), axis, 0), np.moveaxis(np.asarray(reference, float), axis, 0))
    return Estimate(1 - ratio.value, ratio.error)


def difference_of_means(a: np.ndarray, b: np.ndarray, *, axis: int = 0) -> Estimate:
    """Mean of sample a minus mean of sample b (independent of each other), with Welch's standard error; (n, *batch) and (m, *batch)."""
    first, second = mean_estimate(a, axis=axis), mean_estimate(b, axis=axis)
    return Estimate(first.value - second.value, np.hypot(first.error, second.error))


def ks_distance(a: np.ndarray, b: np.ndarray, *, axis: int = 0) -> np.ndarray:
    """Kolmogorov-Smirnov distance D_KS = max over x of |F_a(x) - F_b(x)| between two samples, ties included.

    Parameters
    ----------
    a, b : (n, *batch) and (m, *batch)
        Samples along `axis`.

    Returns
    -------
    (*batch)
    """
    a, b = np.moveaxis(np.asarray(a, float), axis, 0), np.moveaxis(np.asarray(b, float), axis, 0)
    if a.shape[1:] != b.shape[1:]:
        raise ShapeError(f"the samples differ in more than their size: {a.shape[1:]} and {b.shape[1:]}")
    pooled = np.concatenate([a, b])
    weight = np.concatenate([np.full(len(a), 1 / len(a)), np.full(len(b), -1 / len(b))])
    return ks_of_weights(pooled, weight)


def ks_of_weights(pooled: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the largest absolute partial sum of weights in the order of the pooled values, taken at the end of each run of equal values.

    pooled (n, *batch); weight (*repeat, n), 1/n for one sample and -1/m for the other; result (*repeat, *batch). The values are sorted once
    for all relabellings.
    """
    order = np.argsort(pooled, axis=0, kind="stable")
    values = np.take_along_axis(pooled, order, axis=0)
    ends = np.concatenate([values[1:] > values[:-1], np.ones((1, *values.shape[1:]), bool)])
    flat_order, flat_ends = order.reshape(len(order), -1), ends.reshape(len(ends), -1)
    out = np.empty((*weight.shape[:-1], flat_order.shape[1]))
    for i in range(flat_order.shape[1]):
        sums = np.cumsum(weight[..., flat_order[:, i]], axis=-1)
        out[..., i] = np.abs(sums[..., flat_ends[:, i]]).max(-1)
    return out.reshape((*weight.shape[:-1], *pooled.shape[1:]))


def energy_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| between samples a (n, component) and b (m, component), without bias.

    Its mean is zero for two samples of one distribution, so it can be negative (Szekely & Rizzo 2013, doi:10.1016/j.jspi.2013.03.018).
    """
    labels = np.concatenate([np.ones(len(a), bool), np.zeros(len(b), bool)])
    return float(energy_of_labels(pairwise_distance(np.concatenate([a, b])), labels[None])[0])


def pairwise_distance(x: np.ndarray) -> np.ndarray:
    """Euclidean distances between the rows of x (n, component): (n, n)."""
    x = np.asarray(x, float).reshape(len(x), -1)
    return cdist(x, x)


def energy_of_labels(distance: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Return the unbiased squared energy distance for many choices of the first sample.

    distance (n, n), first (repeat, n) booleans -> (repeat,).
    """
    a = first.astype(float)
    n, m = a.sum(1), (1 - a).sum(1)
    to_a = a @ distance
    within_a, total = (to_a * a).sum(1), distance.sum()
    across = (to_a * (1 - a)).sum(1)
    within_b = total - within_a - 2 * across
    return 2 * across / (n * m) - within_a / (n * (n - 1)) - within_b / (m * (m - 1))


def _mean(values: np.ndarray) -> np.ndarray:
    n = np.isfinite(values).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(n > 0, np.nansum(values, axis=0) / n, np.nan)


def _categorical(probability: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    probability, label = np.asarray(probability, float), np.asarray(label)
    if probability.shape[:-1] != label.shape:
        raise ShapeError(f"probabilities {probability.shape} need labels of shape {probability.shape[:-1]}, found {label.shape}")
    if not np.issubdtype(label.dtype, np.integer):
        raise ShapeError(f"labels must be integers, found dtype {label.dtype}")
    return probability, label.astype(np.int64)


def _choice(value: str, known: dict) -> object:
    if value not in known:
        raise ShapeError(f"estimator must be one of {', '.join(known)}, found {value!r}")
    return known[value]
