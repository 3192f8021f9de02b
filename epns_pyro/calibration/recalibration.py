"""Recalibration of the intervals of an ensemble: conformal widening or narrowing per lead time, learnt on separate data.

Conformalised quantile regression (Romano, Patterson & Candes 2019, arXiv:1905.03222) with the ensemble's own order statistics as
quantiles and its interval width as the unit, each side separately so that bias is corrected too: with low and high the ends of the central
interval of level 1 - a and w its width, the scores (low - y) / w and (y - high) / w of n calibration trajectories have conformal
quantiles q_low and q_high, the ceil((n + 1)(1 - a / 2))-th smallest. The corrected interval [low - q_low w, high + q_high w] covers the
truth of a new trajectory with probability at least 1 - a for any forecaster, if the trajectories are exchangeable; for a
calibrated ensemble q is near 0 and the interval hardly changes. Stretches of one recording are not exchangeable: they count as their
effective number (`calibration.dependence`).

Fit on one set of trajectories and test on another: `fit`, `apply` and `compare` take Datasets, and the factors are a small Dataset to
store with a run.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from epns_pyro.calibration.bands import proportion_interval
from epns_pyro.calibration.dependence import decorrelation
from epns_pyro.calibration.measurements import check_variables, choose_lead_times, living, observed
from epns_pyro.calibration.pit import central_interval
from epns_pyro.errors import DataError, nearest

LEVELS = (0.5, 0.8, 0.9, 0.95)
FEWEST = 19  # trajectories that intervals of 90% can be learnt from


def fit(
    forecast: xr.Dataset, truth: xr.Dataset, *, lead_times: Sequence[float] | None = None, levels: Sequence[float] = LEVELS
) -> xr.Dataset:
    """Learn by how much to widen the intervals of scalar observables.

    Parameters
    ----------
    forecast : Dataset, (sample, trajectory, time)
        Of calibration trajectories, which are used neither for training nor for the reported numbers.
    truth : Dataset, (trajectory, time)
    lead_times : sequence of float, optional
        As for `observable_values`.
    levels : sequence of float
        Levels of the intervals, e.g. 0.9.

    Returns
    -------
    Dataset, dims (observable, lead_time, level)
        widen_low, widen_high: in widths of the interval, negative where it is narrowed; least_width: width that is used for an
        interval that has collapsed to a point; trajectories: the effective number that was used.

    Raises
    ------
    DataError
        If there are too few trajectories for a level: 2 / (1 - level) - 1 are needed, 19 for 90% and 39 for 95%.
    """
    levels = sorted(levels)
    names = check_variables(forecast, truth)
    chosen = choose_lead_times(forecast, lead_times)
    learnt = {key: np.empty((len(names), len(chosen), len(levels))) for key in ("widen_low", "widen_high", "least_width", "trajectories")}
    forecast, truth = (x.sel(time=chosen, method="nearest") for x in (forecast, truth))
    for i, name in enumerate(names):
        ensemble, y = living(forecast, name), observed(truth, name)
        for j, level in enumerate(levels):
            low, high = central_interval(len(ensemble), level).ends(ensemble)
            mean_width = np.nanmean(high - low, axis=0)
            least = np.where(mean_width > 0, mean_width / 1000, 1.0)
            width = np.maximum(high - low, least)
            at = (i, slice(None), j)
            sides = (low - y) / width, (y - high) / width
            tau = decorrelation(truth, *(side.T for side in sides))
            learnt["widen_low"][at], n = _conformal_quantile(sides[0], level, name, tau)
            learnt["widen_high"][at], _ = _conformal_quantile(sides[1], level, name, tau)
            learnt["least_width"][at], learnt["trajectories"][at] = least, n
    dims = ("observable", "lead_time", "level")
    return xr.Dataset(
        {key: (dims, value) for key, value in learnt.items()},
        coords={"observable": list(names), "lead_time": ("lead_time", chosen, dict(forecast["time"].attrs)), "level": levels},
        attrs={"method": "conformalised ensemble intervals, each side by itself"},
    )


def independent(forecast: xr.Dataset, truth: xr.Dataset, *, lead_times: Sequence[float] | None = None, level: float = 0.9) -> int:
    """Return how many independent trajectories intervals can be learnt from: the fewest over observables and lead times."""
    names = check_variables(forecast, truth)
    chosen = choose_lead_times(forecast, lead_times)
    forecast, truth = (x.sel(time=chosen, method="nearest") for x in (forecast, truth))
    worth = []
    for name in names:
        ensemble, y = living(forecast, name), observed(truth, name)
        low, high = central_interval(len(ensemble), level).ends(ensemble)
        n = np.isfinite(low + high + y).sum(0)
        worth.append(float(np.min(n / decorrelation(truth, (low - y).T, (y - high).T))))
    return int(min(worth))


def apply(recalibration: xr.Dataset, forecast: xr.Dataset) -> xr.Dataset:
    """Return the recalibrated intervals of a forecast.

    Parameters
    ----------
    recalibration : Dataset
        From `fit`.
    forecast : Dataset, (sample, trajectory, time)
        With the variables and lead times of the recalibration; any trajectories.

    Returns
    -------
    Dataset, dims (observable, trajectory, lead_time, level)
        lower, upper: after; raw_lower, raw_upper: before. Intervals of higher levels contain those of lower ones.
    """
    names = [str(name) for name in recalibration["observable"].values]
    for name in names:
        if name not in forecast:
            raise DataError(
                f"the forecast has no variable {name!r}, which the recalibration knows: {nearest(name, map(str, forecast.data_vars))}"
            )
    chosen = choose_lead_times(forecast, recalibration["lead_time"].values)
    forecast = forecast.sel(time=chosen, method="nearest")
    ends = []
    for name in names:
        ensemble, learnt = living(forecast, name), recalibration.sel(observable=name).transpose("lead_time", "level")
        low, high = (
            np.stack(side, -1)
            for side in zip(*(central_interval(len(ensemble), level).ends(ensemble) for level in learnt["level"].values), strict=True)
        )
        width = np.maximum(high - low, learnt["least_width"].values)
        lower = np.minimum.accumulate(low - learnt["widen_low"].values * width, axis=-1)
        upper = np.maximum.accumulate(high + learnt["widen_high"].values * width, axis=-1)
        ends.append((lower, upper, low, high))
    dims = ("observable", "trajectory", "lead_time", "level")
    return xr.Dataset(
        {
            key: (dims, np.stack(side))
            for key, side in zip(("lower", "upper", "raw_lower", "raw_upper"), zip(*ends, strict=True), strict=True)
        },
        coords={key: recalibration[key] for key in ("observable", "lead_time", "level")},
    )


def compare(recalibration: xr.Dataset, forecast: xr.Dataset, truth: xr.Dataset) -> xr.Dataset:
    """Compare intervals before and after recalibration, on trajectories used neither for training nor for `fit`.

    Returns
    -------
    Dataset, dims (stage = "before", "after"; observable, lead_time, level)
        coverage with coverage_lower, coverage_upper (95%, Wilson), width (mean, unit of the observable) and interval_score (mean; it
        penalises width and misses together, lower is better).
    """
    import scoringrules

    intervals = apply(recalibration, forecast)
    truth = truth.sel(time=intervals["lead_time"].values, method="nearest")
    y = np.stack([observed(truth, str(name)) for name in intervals["observable"].values])[..., None]
    alpha = 1 - intervals["level"].values
    stages = []
    for prefix in ("raw_", ""):
        low, high = intervals[f"{prefix}lower"].values, intervals[f"{prefix}upper"].values
        known = np.isfinite(low) & np.isfinite(high) & np.isfinite(y)
        inside, n = ((low <= y) & (y <= high) & known).sum(1), known.sum(1)
        hits = np.moveaxis(np.where(known, (low <= y) & (y <= high), np.nan), 1, -1)
        tau = decorrelation(truth, hits)
        lower, upper = proportion_interval(inside / tau, n / tau)
        seen, ends = np.nan_to_num(y[..., 0]), np.nan_to_num(np.stack([low, high]))
        score = np.stack(
            [scoringrules.interval_score(seen, *ends[..., k], float(a), backend="numpy") for k, a in enumerate(alpha)], -1
        )  # level by level: it takes an array of one level for none
        with np.errstate(invalid="ignore", divide="ignore"):
            numbers = (inside / n, lower, upper, np.where(known, high - low, 0).sum(1) / n, np.where(known, score, 0).sum(1) / n)
        stages.append(np.stack(numbers))
    names = ("coverage", "coverage_lower", "coverage_upper", "width", "interval_score")
    dims = ("stage", "observable", "lead_time", "level")
    return xr.Dataset(
        {name: (dims, value) for name, value in zip(names, np.stack(stages, 1), strict=True)},
        coords={"stage": ["before", "after"], **{key: intervals[key] for key in ("observable", "lead_time", "level")}},
    )


def sentences(comparison: xr.Dataset, *, level: float = 0.9) -> dict[str, str]:
    """Describe, for every observable, what recalibration changed: over all lead times, and at the lead time that is worst after it.

    The lead time that was worst before is not singled out: it was worst partly by chance, so it would look better after any change.
    Deviations of opposite sign cancel in the average coverage, so the average absolute deviation is given as well.
    """
    at_level = comparison.sel(level=level)
    unit, count = comparison["lead_time"].attrs.get("units", ""), comparison.sizes["lead_time"]
    out = {}
    for name in comparison["observable"].values:
        one = at_level.sel(observable=name)
        off = abs(one["coverage"] - level)
        mean, distance = (100 * x.mean("lead_time").sel(stage=["before", "after"]).values for x in (one["coverage"], off))
        i = int(np.nan_to_num(off.sel(stage="after").values, nan=-1).argmax())
        worst = one.sel(stage="after").isel(lead_time=i)
        value, low, high = (100 * float(worst[f"coverage{end}"]) for end in ("", "_lower", "_upper"))
        when = f"{float(worst['lead_time']):.4g} {unit}".strip()
        score = one["interval_score"].mean("lead_time")
        gain = 1 - float(score.sel(stage="after") / score.sel(stage="before"))
        out[str(name)] = (
            f"{level:.0%} intervals cover {mean[0]:.0f}% before and {mean[1]:.0f}% after recalibration on average over {count} lead times, "
            f"with average deviations of {distance[0]:.1f} and {distance[1]:.1f} points; worst after it {value:.0f}% "
            f"({low:.0f}-{high:.0f}) at "
            f"{when}; interval score {abs(gain):.0%} {'better' if gain >= 0 else 'worse'}"
        )
    return out


def _conformal_quantile(score: np.ndarray, level: float, name: str, tau: np.ndarray | float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return the conformal quantile of one side of an interval: score (trajectory, lead_time) -> (lead_time,).

    The effective number of trajectories is smaller by a factor tau (lead_time,). Also returns this number, (lead_time,).
    """
    everything = np.isfinite(score).sum(0)
    n = np.where(tau > 1, np.floor(everything / tau), everything).astype(int)
    share = np.ceil((n + 1) * (1 + level) / 2 - 1e-9) / np.maximum(n, 1)
    place = np.ceil(share * everything - 1e-9).astype(int)
    if (share > 1).any() or not n.all():
        needed = int(np.ceil(2 / (1 - level) - 1 - 1e-9))
        raise DataError(f"{name!r}: {level:.0%} intervals need {needed} trajectories, found {n.min()}: give more or leave out the level")
    return np.take_along_axis(np.sort(score, axis=0), place[None] - 1, axis=0)[0], n
