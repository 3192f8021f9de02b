"""Measurements of each trajectory: its PIT values and scores, before anything is averaged.

Every number here depends on one trajectory and its own ensemble. Many trajectories can therefore be measured in blocks that are joined
with `xarray.concat(blocks, "trajectory")`: memory is that of one block, and the result is that of measuring all at once. Random
numbers (which rank the truth among tied members) are taken trajectory by trajectory from the given generator.

A forecast is a Dataset with dims (sample, trajectory, time, ...), the truth one with dims (trajectory, time, ...) and the same variables.
Lead time 0, the known initial state, is not forecast. If the forecast has a boolean variable `alive` (sample, trajectory, time), members
that are not alive are left out, and the number of the others is recorded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
import xarray as xr

from epns_pyro.calibration.multivariate import PRE_RANKS, PreRank, multivariate_pit
from epns_pyro.calibration.pit import central_interval, pit_values
from epns_pyro.calibration.scores import crps, energy_score, variogram_score
from epns_pyro.errors import DataError, nearest

LEAD_TIMES = 10  # length of the default grid of lead times
COMPONENTS = 64  # of a longer vector, this many evenly spaced components are used
VECTOR_SCORES = {"energy_score": energy_score, "variogram_score": variogram_score}
SCORED = 1000  # members that vector scores compare in pairs: their fair estimators are unbiased for any number
SHARPNESS = 0.9  # level of the interval whose width is reported as sharpness


class Observed(Protocol):
    """An observable: `values` (*dims), a label, a unit, and whether its values are counts."""

    label: str
    unit: str
    values: np.ndarray
    discrete: bool


def observable_dataset(
    observables: Mapping[str, Observed], time: np.ndarray, *, time_unit: str = "", alive: np.ndarray | None = None
) -> xr.Dataset:
    """Label observables: values (sample, trajectory, time) of a forecast or (trajectory, time) of the truth become a Dataset.

    Parameters
    ----------
    observables : mapping of name to observable
    time : (time,)
        In `time_unit`.
    alive : (sample, trajectory, time) booleans, optional
        Which members are still plausible.
    """
    dims = ("sample", "trajectory", "time")
    data = xr.Dataset(coords={"time": ("time", np.asarray(time, float), {"units": time_unit})})
    for name, observable in observables.items():
        values = np.asarray(observable.values)
        attrs = {"label": observable.label, "unit": observable.unit, "discrete": int(observable.discrete)}
        data[name] = xr.DataArray(values, dims=dims[-values.ndim :], attrs=attrs)
    if alive is not None:
        data["alive"] = xr.DataArray(np.asarray(alive, bool), dims=dims)
    return data


def as_paths(data: xr.Dataset, lead_times: Sequence[float] | None = None) -> xr.Dataset:
    """Turn time series into vectors whose components are the lead times, so that `field_values` tests dependence over time.

    The result has one `time`, the last, and a dim `step`.
    """
    chosen = choose_lead_times(data, lead_times)
    paths = data.sel(time=chosen).rename(time="step").drop_vars("step").expand_dims(time=chosen[-1:], axis=-1)
    if "alive" in paths:
        paths["alive"] = paths["alive"].all("step")
    paths["time"].attrs.update(data["time"].attrs)
    return paths


def choose_lead_times(data: xr.Dataset, lead_times: Sequence[float] | np.ndarray | None = None) -> np.ndarray:
    """Return lead times that `data` has.

    The given ones, matched up to rounding, or about ten evenly spaced ones that end at the last.
    """
    time = np.asarray(data["time"].values, float)
    forecast = np.arange(len(time))[time > 0]
    if len(forecast) == 0:
        raise DataError("the forecast has no time after 0: there is nothing to test")
    if lead_times is None:
        ends = np.linspace(0, len(forecast), min(LEAD_TIMES, len(forecast)) + 1)[1:]
        return time[forecast[np.round(ends).astype(int) - 1]]
    index = [int(np.abs(time - t).argmin()) for t in lead_times]
    for asked, i in zip(lead_times, index, strict=True):
        if not np.isclose(asked, time[i], rtol=1e-6, atol=1e-9) or time[i] <= 0:
            raise DataError(f"lead time {asked:g} is not a time after 0 of the forecast (nearest: {time[i]:g}, last: {time[-1]:g})")
    return time[sorted(set(index))]


def observable_values(
    forecast: xr.Dataset,
    truth: xr.Dataset,
    *,
    rng: np.random.Generator,
    lead_times: Sequence[float] | None = None,
    references: Mapping[str, xr.Dataset] | None = None,
) -> xr.Dataset:
    """Measure scalar observables, trajectory by trajectory.

    Parameters
    ----------
    forecast : Dataset, (sample, trajectory, time)
        One variable per observable with attributes `label`, `unit`, `discrete` (all optional), and optionally `alive`.
    truth : Dataset, (trajectory, time)
    rng : numpy.random.Generator
        Ranks the truth at random among tied members.
    lead_times : sequence of float, optional
        Times to use, in the unit of the time coordinate; about ten evenly spaced ones by default.
    references : mapping of str to Dataset, optional
        Forecasts of the same trajectories without learning, shaped like `forecast`, with 2 or more samples.

    Returns
    -------
    Dataset, dims (observable, trajectory, lead_time) and (reference, ...)
        pit, alive (number of members), truth, mean, variance (unbiased), width (of the central 90% interval), crps, crps_reference;
        attribute `members`: the size of the ensemble.

    Raises
    ------
    DataError
        If forecast, truth and references do not hold the same variables, trajectories and times.
    """
    references = references or {}
    names = check_variables(forecast, truth, references)
    chosen = choose_lead_times(forecast, lead_times)
    forecast, truth = _at(forecast, chosen), _at(truth, chosen)
    members, n = forecast.sizes["sample"], forecast.sizes["trajectory"]
    uniforms = rng.random((n, len(names), len(chosen)))
    interval = central_interval(members, SHARPNESS)
    naive = [_at(reference, chosen) for reference in references.values()]
    measured = []
    for i, name in enumerate(names):
        ensemble, y = living(forecast, name), observed(truth, name)
        low, high = interval.ends(ensemble)
        alive = np.isfinite(ensemble).sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.nansum(ensemble, 0) / alive
            variance = np.nansum((ensemble - mean) ** 2, 0) / (alive - 1)
        one = {
            "pit": pit_values(ensemble, y, uniforms[:, i]),
            "alive": alive,
            "truth": y,
            "mean": mean,
            "variance": np.where(alive > 1, variance, np.nan),
            "width": high - low,
            "crps": crps(ensemble, y),
        }
        if references:
            one["crps_reference"] = np.stack([crps(living(reference, name), y) for reference in naive])
        measured.append(one)
    dims = ("trajectory", "lead_time")
    out = xr.Dataset(
        {
            key: (("observable", *(("reference",) if key == "crps_reference" else ()), *dims), np.stack([one[key] for one in measured]))
            for key in measured[0]
        }
    )
    about = [{**truth[name].attrs, **forecast[name].attrs} for name in names]
    out = out.assign_coords(
        observable=list(names),
        label=("observable", [str(a.get("label", name)) for a, name in zip(about, names, strict=True)]),
        unit=("observable", [str(a.get("unit", "")) for a in about]),
        discrete=("observable", [bool(a.get("discrete", False)) for a in about]),
    )
    return _finish(out, forecast, chosen, references)


def field_values(
    forecast: xr.Dataset,
    truth: xr.Dataset,
    *,
    rng: np.random.Generator,
    vectors: Mapping[str, Sequence[str]] | None = None,
    scales: Mapping[str, float] | None = None,
    lead_times: Sequence[float] | None = None,
    references: Mapping[str, xr.Dataset] | None = None,
    pre_ranks: Mapping[str, PreRank] = PRE_RANKS,
) -> xr.Dataset:
    """Measure vectors (fields, or several observables together), trajectory by trajectory.

    Parameters
    ----------
    forecast : Dataset, (sample, trajectory, time, ...)
    truth : Dataset, (trajectory, time, ...)
    rng : numpy.random.Generator
    vectors : mapping of str to sequence of str, optional
        Name of each vector and its variables, with all their other dims flattened; by default each variable is a vector.
    scales : mapping of str to float, optional
        Variables are divided by these before the energy and variogram scores compare components; needed if units differ.
    lead_times, references
        As for `observable_values`.
    pre_ranks : mapping of str to callable
        As for `multivariate_pit`.

    Returns
    -------
    Dataset
        pit (field, trajectory, lead_time, component), NaN beyond a vector's last component; joint_pit (field, pre_rank, trajectory,
        lead_time); alive, energy_score, variogram_score (field, trajectory, lead_time); energy_score_reference, variogram_score_reference
        (reference, ...); attribute `members`.
    """
    references, scales = references or {}, scales or {}
    names = check_variables(forecast, truth, references)
    vectors = vectors or {name: (name,) for name in names}
    for variable in [v for used in vectors.values() for v in used]:
        if variable not in names:
            raise DataError(f"the forecast has no variable {variable!r}: {nearest(variable, names)}")
    chosen = choose_lead_times(forecast, lead_times)
    forecast, truth = _at(forecast, chosen), _at(truth, chosen)
    naive = [_at(reference, chosen) for reference in references.values()]
    kept = {name: _thinned(truth, used) for name, used in vectors.items()}
    scale = {name: _scale(truth, used, scales)[kept[name]] for name, used in vectors.items()}
    draws = [len(keep) + len(pre_ranks) for keep in kept.values()]
    uniforms = rng.random((truth.sizes["trajectory"], len(chosen), sum(draws)))
    measured = []
    for i in range(len(chosen)):
        at = [data.isel(time=[i]) for data in (forecast, truth, *naive)]
        for (name, keep), random in zip(kept.items(), np.split(uniforms[:, i], np.cumsum(draws)[:-1], axis=1), strict=True):
            ensemble, y, *others = (_vector(data, vectors[name], keep) for data in at)
            measured.append(_vector_values(ensemble, y, others, scale[name], random, pre_ranks.values(), max(map(len, kept.values()))))
    lead = ("lead_time", "field")
    table = {key: np.stack([one[key] for one in measured]).reshape(len(chosen), len(kept), *measured[0][key].shape) for key in measured[0]}
    out = xr.Dataset({key: ((*lead, *_DIMS.get(key, ("trajectory",))), value) for key, value in table.items()})
    out = out.assign_coords(field=list(kept), pre_rank=list(pre_ranks))
    return _finish(out.transpose("field", ..., "trajectory", "lead_time", "component"), forecast, chosen, references)


_DIMS = {"pit": ("trajectory", "component"), "joint_pit": ("pre_rank", "trajectory")}
_DIMS |= {f"{name}_reference": ("reference", "trajectory") for name in VECTOR_SCORES}


def _vector_values(
    ensemble: np.ndarray,
    y: np.ndarray,
    references: list[np.ndarray],
    scale: np.ndarray,
    uniforms: np.ndarray,
    pre_ranks: Iterable[PreRank],
    width: int,
) -> dict[str, np.ndarray]:
    """Measure one vector at one lead time: ensemble and references (sample, trajectory, component), y (trajectory, component).

    PIT values are filled with NaN to `width` components. Components without a truth (absent bodies) have no PIT value and are left out of
    the joint ranks and scores.
    """
    n, components = y.shape
    pit = np.full((n, width), np.nan)
    pit[:, :components] = pit_values(ensemble, y, uniforms[:, :components])
    unknown = np.isnan(y)
    y = np.where(unknown & ~unknown.all(-1, keepdims=True), 0.0, y)
    ensemble, *references = (np.where(unknown, 0.0, members) for members in (ensemble, *references))
    joint = [multivariate_pit(ensemble, y, rank, uniforms[:, components + j]) for j, rank in enumerate(pre_ranks)]
    measured = {
        "pit": pit,
        "joint_pit": np.array(joint).reshape(-1, n),
        "alive": np.isfinite(ensemble).all(-1).sum(0),
    }
    for name, score in VECTOR_SCORES.items():
        measured[name] = score(ensemble[:SCORED] / scale, y / scale)
        if references:
            measured[f"{name}_reference"] = np.stack([score(reference[:SCORED] / scale, y / scale) for reference in references])
    return measured


# -- reading datasets -----------------------------------------------------------------------------------------------------


def check_variables(forecast: xr.Dataset, truth: xr.Dataset, references: Mapping[str, xr.Dataset] | None = None) -> tuple[str, ...]:
    """Return the variables to test, after checking that forecast, truth and references match."""
    references = references or {}
    names = tuple(str(name) for name in forecast.data_vars if name != "alive")
    if not names:
        raise DataError("the forecast holds no variable to test")
    for what, other, lead in (
        ("forecast", forecast, ("sample",)),
        *((k, v, ("sample",)) for k, v in references.items()),
        ("truth", truth, ()),
    ):
        for name in names:
            if name not in other:
                raise DataError(f"the {what} has no variable {name!r}, which the forecast has: {nearest(name, map(str, other.data_vars))}")
            if missing := [d for d in (*lead, "trajectory", "time") if d not in other[name].dims]:
                raise DataError(f"{what}: variable {name!r} has no dim {missing[0]!r}, found {other[name].dims}")
        for dim in ("trajectory", "time"):
            if other.sizes[dim] != truth.sizes[dim]:
                raise DataError(f"the {what} has {other.sizes[dim]} entries along {dim!r}, the truth {truth.sizes[dim]}")
        if not np.allclose(other["time"], truth["time"]):
            raise DataError(f"the {what} and the truth have different times")
    return names


def _at(data: xr.Dataset, lead_times: np.ndarray) -> xr.Dataset:
    return data.sel(time=lead_times, method="nearest")


def observed(data: xr.Dataset, name: str) -> np.ndarray:
    """Return values as floats, with leading dims in the order (sample, trajectory, time)."""
    lead = [d for d in ("sample", "trajectory", "time") if d in data[name].dims]
    return data[name].transpose(*lead, ...).values.astype(float)


def living(forecast: xr.Dataset, name: str) -> np.ndarray:
    """Return members (sample, trajectory, time, ...), NaN where they are not alive."""
    values = observed(forecast, name)
    values[~np.isfinite(values)] = np.nan
    if "alive" in forecast:
        values[~forecast["alive"].transpose("sample", "trajectory", "time").values.astype(bool)] = np.nan
    return values


def _vector(data: xr.Dataset, variables: Iterable[str], keep: np.ndarray) -> np.ndarray:
    """Return components of a vector at the one lead time of `data`: (sample, trajectory, component) or (trajectory, component)."""
    lead = 2 if "sample" in data.dims else 1  # the axis of length 1 after these is time
    parts = [living(data, name) if lead == 2 else observed(data, name) for name in variables]
    return np.concatenate([part.reshape(*part.shape[:lead], -1) for part in parts], axis=-1)[..., keep]


def _sizes(truth: xr.Dataset, variables: Iterable[str]) -> list[int]:
    return [int(np.prod([size for dim, size in truth[name].sizes.items() if dim not in ("trajectory", "time")])) for name in variables]


def _thinned(truth: xr.Dataset, variables: Sequence[str]) -> np.ndarray:
    """Return which components of a vector to use: all, or COMPONENTS of them, evenly spaced."""
    total = sum(_sizes(truth, variables))
    return np.unique(np.round(np.linspace(0, total - 1, min(total, COMPONENTS))).astype(int))


def _scale(truth: xr.Dataset, variables: Sequence[str], scales: Mapping[str, float]) -> np.ndarray:
    """Return the scale of every component; NaN (no scores) where variables of different units have none."""
    units = {truth[name].attrs.get("unit", "") for name in variables}
    unknown = 1.0 if len(variables) == 1 or len(units) == 1 else np.nan
    return np.concatenate(
        [np.full(size, scales.get(name, unknown)) for name, size in zip(variables, _sizes(truth, variables), strict=True)]
    )


def _finish(out: xr.Dataset, forecast: xr.Dataset, chosen: np.ndarray, references: Mapping[str, xr.Dataset]) -> xr.Dataset:
    out = out.assign_coords(lead_time=("lead_time", chosen, dict(forecast["time"].attrs)))
    if references:
        out = out.assign_coords(reference=list(references))
    if "trajectory" in forecast.coords:
        out = out.assign_coords(trajectory=forecast["trajectory"].values)
    out.attrs["members"] = int(forecast.sizes["sample"])
    return out
