"""Judging a trained simulator: runs every check and writes RUN/evaluation/, which the report reads.

metrics.json        headline, likelihood table, latents, symmetry, verdicts, distances, stability, and how to reproduce them
diagnostics.nc      groups observables, fields, labels: see `epns_pyro.calibration.diagnostics`
fans.nc             quantiles of observables over time from one initial state (source, initial_state, observable, time, quantile)
stability.nc        share of plausible runs over time (source, time)
examples.nc         a few futures to look at (source, trajectory, time, ...)
recalibration.nc    by how much to widen intervals, learnt from the validation set
inference_data.nc   ArviZ InferenceData
"""

from __future__ import annotations

import json
import logging
import math
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from epns_pyro.calibration import verdicts
from epns_pyro.calibration.idata import inference_data, write_inference_data
from epns_pyro.data import Store
from epns_pyro.errors import DataError
from epns_pyro.evaluation import checks, heldout, initial_state, likelihood
from epns_pyro.evaluation.ensembles import as_fields
from epns_pyro.evaluation.forecasters import Forecaster, Model
from epns_pyro.evaluation.headline import headline
from epns_pyro.evaluation.references import references
from epns_pyro.simulator import Simulator
from epns_pyro.training.checkpoint import versions
from epns_pyro.training.run import EvaluationConfig, RunFolder

logger = logging.getLogger(__name__)
Progress = Callable[[str, int, int], None]
EXAMPLES, EXAMPLE_MEMBERS = 3, 3


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found: the content of metrics.json, and the verdicts."""

    metrics: dict[str, Any]
    verdicts: dict[str, list[verdicts.Verdict]]


def evaluate(
    simulator: Simulator,
    store: Store,
    folder: RunFolder,
    settings: EvaluationConfig | None = None,
    *,
    progress: Progress = lambda what, done, total: None,
) -> Evaluation:
    """Evaluate a simulator on held-out data and write the folder `evaluation` of its run, whole or not at all.

    Parameters
    ----------
    simulator : Simulator
    store : Store
        With a set `test`; `val` is used for recalibration, `same_init` and `long` where they are there.
    folder : RunFolder
    settings : EvaluationConfig
    progress : callable
        Called as ``progress(stage, done, total)``.
    """
    settings = settings or simulator.config.evaluation
    if simulator.spec.names != store.spec.names:
        raise DataError(f"{store.path}: has the fields {', '.join(store.spec.names)}, the model has {', '.join(simulator.spec.names)}")
    started, model, others = time.perf_counter(), Model(simulator), references(simulator, store)
    with _written_together(folder.evaluation) as out:
        with _stage("likelihood", progress):
            scored = likelihood.score(simulator, store, settings, others)
            latent = likelihood.latents(simulator, store, settings)
        with _stage("symmetry", progress):
            equivariance = checks.equivariance(simulator, store, settings)
        with _stage("held-out forecasts", progress) as advance:
            judged = heldout.measure(model, store, "test", settings, references=others, progress=advance)
            for name, data in judged.diagnostics.items():
                data.to_netcdf(out / "diagnostics.nc", group=name, mode="a", engine="h5netcdf")
        recalibrated = {}
        if settings.recalibrate and "val" in store.splits:
            with _stage("recalibration", progress) as advance:
                recalibrated = _recalibrate(model, store, settings, judged, out, advance)
        with _stage("one initial state", progress):
            compared = initial_state.compare(model, store, settings, others)
            if compared is not None:
                compared[2].to_netcdf(out / "fans.nc", engine="h5netcdf")
        with _stage("long horizon", progress):
            stable, alive = checks.stability(model, store, settings)
            alive.to_netcdf(out / "stability.nc", engine="h5netcdf")
        with _stage("examples", progress):
            _write_examples(model, store, settings, out)
            _write_inference_data(store, judged, scored, settings, out)
        metrics = {
            "format": "epns-pyro evaluation",
            "version": 1,
            "run": _about(simulator, store, folder, settings, time.perf_counter() - started),
            "likelihood": scored.table,
            "latents": latent,
            "equivariance": equivariance,
            "verdicts": verdicts.as_json(judged.verdicts),
            "same_init": compared[0] if compared else [],
            "two_sample": compared[1] if compared else [],
            "stability": stable,
            "recalibration": recalibrated,
        }
        metrics["headline"] = headline(metrics)
        (out / "metrics.json").write_text(json.dumps(_finite(metrics), indent=1, ensure_ascii=False), encoding="utf-8")
    return Evaluation(metrics, judged.verdicts)


def _recalibrate(
    model: Forecaster, store: Store, settings: EvaluationConfig, judged: heldout.HeldOut, out: Path, advance: Callable[[int, int], None]
) -> dict[str, str]:
    fitted = heldout.measure(model, store, "val", settings, references={}, progress=advance)
    try:
        learnt, sentences = heldout.recalibrate(fitted, judged)
    except DataError as error:
        logger.info("no recalibration: %s", error)
        return {}
    learnt.to_netcdf(out / "recalibration.nc", engine="h5netcdf")
    return sentences


def _write_examples(model: Forecaster, store: Store, settings: EvaluationConfig, out: Path) -> None:
    system = store.system
    truth = store.read("test", slice(0, EXAMPLES), start=system.first_frame)
    sampled = model.sample(truth[:, 0], truth.shape[1] - 1, EXAMPLE_MEMBERS, settings.seed + 5)
    both = np.concatenate([truth[None].astype(sampled.dtype), sampled])
    data = as_fields(system, both).rename(sample="source")
    sources = ["truth", *(f"member {i + 1}" for i in range(EXAMPLE_MEMBERS))]
    compress = {name: {"zlib": True, "complevel": 4} for name in data.data_vars}
    data.assign_coords(source=sources).to_netcdf(out / "examples.nc", engine="h5netcdf", encoding=compress)


def _write_inference_data(store: Store, judged: heldout.HeldOut, scored: likelihood.Scored, settings: EvaluationConfig, out: Path) -> None:
    """Observables of forecast and truth, and one-step log-likelihoods (trajectory, time), all at the lead times."""
    at_lead_times = scored.log_likelihood.sel(time=judged.lead_times, method="nearest").assign_coords(time=judged.forecast["time"])
    attrs = {"system": store.system.name, "members": settings.members}
    data = inference_data(judged.forecast, judged.truth, log_likelihood=dict(at_lead_times.data_vars), attrs=attrs)
    write_inference_data(data, out / "inference_data.nc")


def _about(simulator: Simulator, store: Store, folder: RunFolder, settings: EvaluationConfig, seconds: float) -> dict[str, Any]:
    config = simulator.config
    return {
        "name": folder.path.name,
        "system": store.system.name,
        "group": store.system.symmetry.description,
        "frame_dt": store.frame_dt,
        "time_unit": store.time_unit,
        "seed": config.seed,
        "step": simulator.step,
        "parameters": sum(p.numel() for p in simulator.transition.parameters()),
        "model": config.model.model_dump(mode="json"),
        "training": config.training.model_dump(mode="json"),
        "config_yaml": config.to_yaml(),
        "evaluation": settings.model_dump(mode="json"),
        "versions": versions(),
        "command": shlex.join(
            ["epns-pyro", "train", store.system.name, "--config", str(folder.config), "--data", str(store.path), "--out", "NEW_FOLDER"]
        ),
        "store": str(store.path),
        "sets": {name: {"trajectories": store.size(name), "steps": store.steps(name)} for name in store.splits},
        "sampling_rule": simulator.transition.sampling_rule,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "evaluate_seconds": round(seconds, 1),
    }


@contextmanager
def _stage(what: str, progress: Progress) -> Iterator[Callable[[int, int], None]]:
    """Show the progress of a stage and note how long it took; gives a function (done, total) for stages in several parts."""
    started, parts = time.perf_counter(), 1

    def advance(done: int, total: int) -> None:
        nonlocal parts
        parts = total
        progress(what, done, total)

    progress(what, 0, 1)
    yield advance
    progress(what, parts, parts)
    logger.debug("%s: %.1f s", what, time.perf_counter() - started)


@contextmanager
def _written_together(path: Path) -> Iterator[Path]:
    """Give an empty folder that takes the place of `path` once all is written; what was there stays if anything goes wrong."""
    partial, old = (path.with_name(f"{path.name}.{state}") for state in ("partial", "old"))
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if path.exists():
        path.rename(old)
    partial.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _finite(data: Any) -> Any:
    """JSON knows no NaN: replace them by null."""
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
