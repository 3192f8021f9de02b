"""Forecasts of held-out trajectories or stretches of them, measured in blocks so that memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr

from epns_pyro.calibration import recalibration
from epns_pyro.calibration.categorical import label_diagnostics, label_values
from epns_pyro.calibration.diagnostics import field_diagnostics, observable_diagnostics
from epns_pyro.calibration.measurements import field_values, observable_values
from epns_pyro.calibration.verdicts import Verdict, judge_fields, judge_labels, judge_observables
from epns_pyro.data import Store
from epns_pyro.derived import judged_fields
from epns_pyro.evaluation import ensembles
from epns_pyro.evaluation.archive import Archive
from epns_pyro.evaluation.ensembles import AWAY, Kept
from epns_pyro.evaluation.field_of_view import FieldOfView, field_of_view
from epns_pyro.evaluation.forecasters import Forecaster
from epns_pyro.evaluation.trials import trials
from epns_pyro.state import StateSpec
from epns_pyro.training.run import EvaluationConfig

VIEW = "field_of_view"  # attribute of diagnostics: the region in which bodies are judged
MEASURED = 256 * 2**20  # bytes of ensembles (at their lead times) that are measured at once


@dataclass(frozen=True)
class HeldOut:
    """Results on held-out trajectories: diagnostics by group (observables, fields, labels), verdicts, and the observables themselves.

    `forecast` (sample, trajectory, time) and `truth` (trajectory, time) hold the observables at the lead times, for recalibration;
    `displacement` (forecaster, sample, trajectory, time) how far positions are from the truth in every frame, where there are positions.
    """

    diagnostics: dict[str, xr.Dataset]
    verdicts: dict[str, list[Verdict]]
    forecast: xr.Dataset
    truth: xr.Dataset
    lead_times: np.ndarray
    displacement: xr.DataArray | None = None


def measure(
    forecaster: Forecaster,
    store: Store,
    split: str,
    settings: EvaluationConfig,
    *,
    references: Mapping[str, Forecaster],
    progress: Callable[[int, int], None] = lambda done, total: None,
    archive: Archive | None = None,
) -> HeldOut:
    """Forecast up to `settings.trajectories` trajectories of a set, or stretches of them, and diagnose observables and fields.

    `archive` is that of `ensembles.forecast`.
    """
    system, held_out = store.system, trials(store, split, settings)
    count, steps = len(held_out), held_out.steps
    frames = ensembles.lead_frames(steps)
    lead_times, keep = system.frame_dt * frames, ensembles.at_frames(system, frames)
    placed = len(system.spec.sites) == 1 and system.spec.position is not None and system.spec.position.dynamic
    rng = np.random.default_rng((settings.seed, 1))
    view = field_of_view(store) if settings.entries == ensembles.KEPT else None
    scales = {f.name: f.scale for f in store.context().spec.fields}
    state = system.spec.channels * int(np.prod(store.sites(split))) * ensembles.NUMBER
    fit = MEASURED // (settings.members * len(frames) * state * (1 + len(references)))
    measured: dict[str, list[xr.Dataset]] = {}
    for block in ensembles.blocks(count, max(1, min(settings.block, fit))):
        path = held_out.read(block)
        x0, there = path[:, 0] if system.frames_given == 1 else held_out.initial(block), ensembles.followed(system, path, settings.entries)
        in_members = there
        if view is not None and there is not None:
            there, in_members = view.judged(system.spec, path, there)
        truth, judged = ensembles.kept_of(system, path, keep, there), _judged(system.spec, in_members, view)
        schedule = ensembles.schedule_of(system, path, settings.entries)
        seed, away = _seed(settings.seed, split, block.start), _from(system.spec, path) if placed else None
        seen, *others = (
            ensembles.forecast(
                one, x0, steps, settings.members, seed + i, keep, there=judged, schedule=schedule, past=past, away=away, archive=archive
            )
            for i, one in enumerate((forecaster, *references.values()))
            for past in [held_out.past(block, one.earlier_frames)]
        )
        values = _measure(system.spec, seen, truth, dict(zip(references, others, strict=True)), rng, scales, lead_times)
        if placed:
            values[AWAY] = xr.concat([one[AWAY] for one in (seen, *others)], "forecaster").assign_coords(forecaster=["model", *references])
        for name, value in values.items():
            measured.setdefault(name, []).append(value)
        progress(block.stop, count)
    joined = {name: xr.concat(parts, "trajectory", combine_attrs="override") for name, parts in measured.items()}
    diagnose = {"observables": observable_diagnostics, "fields": field_diagnostics, "labels": label_diagnostics}
    diagnostics = {name: function(held_out.label(joined[name])) for name, function in diagnose.items() if name in joined}
    image = next((f"{f.name} image" for f in system.spec.dynamic_fields if f.kind == "label"), "")
    judge = {"observables": judge_observables, "fields": judge_fields, "labels": lambda d: [judge_labels(d, image)]}
    verdicts = {name: judge[name](found) for name, found in diagnostics.items()}
    if view is not None and system.spec.position is not None:
        diagnostics = {name: found.assign_attrs({VIEW: view.words(system.spec.position.unit)}) for name, found in diagnostics.items()}
    away = joined[AWAY][AWAY] if placed else None
    return HeldOut(diagnostics, verdicts, joined["forecast"], held_out.label(joined["truth"]), lead_times, away)


def _judged(spec: StateSpec, there: np.ndarray | None, view: FieldOfView | None) -> Callable[[np.ndarray, slice], np.ndarray] | None:
    """Return what says which bodies of members, of some trajectories, are judged; None if all are."""
    if there is None:
        return None
    return lambda states, some: there[some] if view is None else there[some] & view.stays(spec, states)


def _from(spec: StateSpec, path: np.ndarray) -> Callable[[np.ndarray, slice], np.ndarray]:
    return lambda states, some: ensembles.displacement(spec, states, path[some])


def _measure(
    spec: StateSpec,
    seen: Kept,
    truth: Kept,
    others: dict[str, Kept],
    rng: np.random.Generator,
    scales: dict[str, float],
    lead_times: np.ndarray,
) -> dict[str, xr.Dataset]:
    """Measure one block of trajectories: diagnostics by group, and the observables of forecast and truth."""
    naive = {name: other["observables"] for name, other in others.items()}
    out = {
        "observables": observable_values(seen["observables"], truth["observables"], rng=rng, lead_times=lead_times, references=naive),
        "forecast": seen["observables"],
        "truth": truth["observables"],
    }
    fields, true_fields = seen["fields"], truth["fields"]
    if real := [f.name for f in judged_fields(spec) if f.kind == "real"]:
        naive = {name: other["fields"][[*real, "alive"]] for name, other in others.items()}
        out["fields"] = field_values(
            fields[[*real, "alive"]], true_fields[real], rng=rng, scales=scales, lead_times=lead_times, references=naive
        )
    for name in [f.name for f in spec.dynamic_fields if f.kind == "label"][:1]:  # of the image; mothers follow from it
        naive = {key: other["fields"][name] for key, other in others.items()}
        out["labels"] = label_values(
            fields[name], true_fields[name], rng=rng, alive=fields["alive"], lead_times=lead_times, references=naive
        )
    return out


def recalibrate(fitted_on: HeldOut, judged_on: HeldOut) -> tuple[xr.Dataset, dict[str, str]]:
    """Learn from one set of forecasts by how much to widen intervals; say how this changes the intervals of another set.

    Raises
    ------
    DataError
        If there are too few trajectories for 90% intervals.
    """
    worth = recalibration.independent(fitted_on.forecast, fitted_on.truth, lead_times=fitted_on.lead_times)
    levels = [level for level in recalibration.LEVELS if level <= 0.9 or worth >= 2 / (1 - level) - 1]
    learnt = recalibration.fit(fitted_on.forecast, fitted_on.truth, lead_times=fitted_on.lead_times, levels=levels)
    return learnt, recalibration.sentences(recalibration.compare(learnt, judged_on.forecast, judged_on.truth))


def _seed(seed: int, split: str, start: int) -> int:
    return int(np.random.SeedSequence((seed, int.from_bytes(split.encode(), "little"), start)).generate_state(1)[0])
