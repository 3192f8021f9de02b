"""Forecasts of held-out trajectories, measured piece by piece so that memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr

from epns_pyro.calibration import recalibration
from epns_pyro.calibration.categorical import label_diagnostics, label_values
from epns_pyro.calibration.diagnostics import field_diagnostics, observable_diagnostics
from epns_pyro.calibration.measurements import choose_lead_times, field_values, observable_dataset, observable_values
from epns_pyro.calibration.verdicts import Verdict, judge_fields, judge_labels, judge_observables
from epns_pyro.data import Store, to_dataset
from epns_pyro.evaluation.forecasters import Forecaster
from epns_pyro.inference.run import EvaluationConfig
from epns_pyro.systems import System

ENSEMBLE, PATH = ("sample", "trajectory", "time"), ("trajectory", "time")


@dataclass(frozen=True)
class HeldOut:
    """What held-out trajectories say: diagnostics by group (observables, fields, labels), verdicts, and the observables themselves.

    `forecast` (sample, trajectory, time) and `truth` (trajectory, time) hold the observables at the lead times, for recalibration.
    """

    diagnostics: dict[str, xr.Dataset]
    verdicts: dict[str, list[Verdict]]
    forecast: xr.Dataset
    truth: xr.Dataset
    lead_times: np.ndarray


def measure(
    forecaster: Forecaster,
    store: Store,
    group: str,
    settings: EvaluationConfig,
    *,
    references: Mapping[str, Forecaster],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> HeldOut:
    """Forecast the first `settings.trajectories` of a set from their first natural frame, and diagnose observables and fields."""
    system, count = store.system, min(settings.trajectories, store.size(group))
    rng = np.random.default_rng((settings.seed, 1))
    pieces: dict[str, list[xr.Dataset]] = {"observables": [], "fields": [], "labels": [], "forecast": [], "truth": []}
    scales = {f.name: f.scale for f in store.context().spec.fields}
    lead_times = None
    for start in range(0, count, settings.piece):
        x = store.read(group, slice(start, min(start + settings.piece, count)), start=system.first_frame)
        seed = _seed(settings.seed, group, start)
        sampled = {
            name: one.sample(x[:, 0], x.shape[1] - 1, settings.members, seed + i)
            for i, (name, one) in enumerate([("forecast", forecaster), *references.items()])
        }
        states, truth = sampled.pop("forecast"), x
        seen, true = observe(system, states), observe(system, truth)
        lead_times = choose_lead_times(seen)
        others = {name: observe(system, other) for name, other in sampled.items()}
        pieces["observables"].append(observable_values(seen, true, rng=rng, lead_times=lead_times, references=others))
        pieces["forecast"].append(_at(seen, lead_times))
        pieces["truth"].append(_at(true, lead_times))
        fields, true_fields = as_fields(system, states), as_fields(system, truth)
        other_fields = {name: as_fields(system, other) for name, other in sampled.items()}
        if real := [f.name for f in system.spec.dynamic_fields if f.kind == "real"]:
            pick = {name: data[[*real, "alive"]] for name, data in other_fields.items()}
            values = field_values(
                fields[[*real, "alive"]], true_fields[real], rng=rng, scales=scales, lead_times=lead_times, references=pick
            )
            pieces["fields"].append(values)
        for name in (f.name for f in system.spec.dynamic_fields if f.kind == "label"):
            naive = {key: data[name] for key, data in other_fields.items()}
            values = label_values(fields[name], true_fields[name], rng=rng, alive=fields["alive"], lead_times=lead_times, references=naive)
            pieces["labels"].append(values)
        progress(min(start + settings.piece, count), count)
    joined = {name: xr.concat(parts, "trajectory", combine_attrs="override") for name, parts in pieces.items() if parts}
    diagnose = {"observables": observable_diagnostics, "fields": field_diagnostics, "labels": label_diagnostics}
    diagnostics = {name: function(joined[name]) for name, function in diagnose.items() if name in joined}
    label = next((f.name for f in system.spec.dynamic_fields if f.kind == "label"), "")
    judge = {"observables": judge_observables, "fields": judge_fields, "labels": lambda d: [judge_labels(d, label)]}
    verdicts = {name: judge[name](found) for name, found in diagnostics.items()}
    return HeldOut(diagnostics, verdicts, joined["forecast"], joined["truth"], lead_times)


def recalibrate(fitted_on: HeldOut, judged_on: HeldOut) -> tuple[xr.Dataset, dict[str, str]]:
    """Learn by how much to widen intervals from one set of forecasts; say what that does to another.

    Raises
    ------
    DataError
        If there are too few trajectories for 90% intervals.
    """
    trajectories = fitted_on.truth.sizes["trajectory"]
    levels = [level for level in recalibration.LEVELS if level <= 0.9 or trajectories >= 2 / (1 - level) - 1]
    learnt = recalibration.fit(fitted_on.forecast, fitted_on.truth, lead_times=fitted_on.lead_times, levels=levels)
    return learnt, recalibration.sentences(recalibration.compare(learnt, judged_on.forecast, judged_on.truth))


def observe(system: System, x: np.ndarray) -> xr.Dataset:
    """Evaluate all observables on states (*dims, time, *site, channel): (sample, trajectory, time) or (trajectory, time)."""
    time = system.frame_dt * np.arange(x.shape[-2 - len(system.spec.sites)])
    alive = system.alive(x) if x.ndim == 4 + len(system.spec.sites) else None
    with np.errstate(over="ignore", invalid="ignore"):
        return observable_dataset(system.observables(x), time, time_unit=system.time_unit, alive=alive)


def as_fields(system: System, x: np.ndarray) -> xr.Dataset:
    """Label the fields of states; an ensemble also gets `alive`."""
    ensemble = x.ndim == 4 + len(system.spec.sites)
    data = to_dataset(system.spec, x, ENSEMBLE if ensemble else PATH, frame_dt=system.frame_dt)
    data["time"].attrs["units"] = system.time_unit
    return data.assign(alive=(ENSEMBLE, system.alive(x))) if ensemble else data


def _at(data: xr.Dataset, lead_times: np.ndarray) -> xr.Dataset:
    return data.sel(time=lead_times, method="nearest")


def _seed(seed: int, group: str, start: int) -> int:
    return int(np.random.SeedSequence((seed, int.from_bytes(group.encode(), "little"), start)).generate_state(1)[0])
