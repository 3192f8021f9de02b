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
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from epns_pyro.calibration import verdicts
from epns_pyro.calibration.idata import inference_data, write_inference_data
from epns_pyro.data import Store
from epns_pyro.errors import DataError
from epns_pyro.evaluation import checks, heldout, initial_state, likelihood
from epns_pyro.evaluation.forecasters import Forecaster, Model
from epns_pyro.evaluation.headline import headline
from epns_pyro.evaluation.references import references
from epns_pyro.inference import RunFolder, Simulator, path_bounds
from epns_pyro.inference.checkpoint import versions
from epns_pyro.inference.run import EvaluationConfig
from epns_pyro.inference.validation import as_tensor

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
        progress("likelihood", 0, 1)
        scored = likelihood.score(simulator, store, settings, others)
        latent = likelihood.latents(simulator, store, settings)
        equivariance = checks.equivariance(simulator, store, settings)
        progress("likelihood", 1, 1)

        judged = heldout.measure(
            model, store, "test", settings, references=others, progress=lambda done, total: progress("held-out forecasts", done, total)
        )
        for name, data in judged.diagnostics.items():
            data.to_netcdf(out / "diagnostics.nc", group=name, mode="a", engine="h5netcdf")
        recalibrated = _recalibrate(model, store, settings, judged, out, progress)

        progress("one initial state", 0, 1)
        compared = initial_state.compare(model, store, settings, others)
        if compared is not None:
            compared[2].to_netcdf(out / "fans.nc", engine="h5netcdf")
        progress("one initial state", 1, 1)

        progress("long horizon", 0, 1)
        stable, alive = checks.stability(model, store, settings)
        alive.to_netcdf(out / "stability.nc", engine="h5netcdf")
        progress("long horizon", 1, 1)

        _write_examples(model, store, settings, out)
        _write_inference_data(simulator, store, judged, settings, out)
        metrics = {
            "format": "epns-pyro evaluation",
            "version": 1,
            "run": _about(simulator, store, folder, settings, time.perf_counter() - started),
            "likelihood": scored,
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
    model: Forecaster, store: Store, settings: EvaluationConfig, judged: heldout.HeldOut, out: Path, progress: Progress
) -> dict[str, str]:
    if not settings.recalibrate or "val" not in store.groups:
        return {}
    stage = "recalibration"
    fitted = heldout.measure(model, store, "val", settings, references={}, progress=lambda done, total: progress(stage, done, total))
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
    data = heldout.as_fields(system, both).drop_vars("alive").rename(sample="source")
    sources = ["truth", *(f"member {i + 1}" for i in range(EXAMPLE_MEMBERS))]
    compress = {name: {"zlib": True, "complevel": 4} for name in data.data_vars}
    data.assign_coords(source=sources).to_netcdf(out / "examples.nc", engine="h5netcdf", encoding=compress)


def _write_inference_data(simulator: Simulator, store: Store, judged: heldout.HeldOut, settings: EvaluationConfig, out: Path) -> None:
    """Observables of forecast and truth at the lead times, and the log-likelihood bound of every held-out trajectory."""
    count = judged.truth.sizes["trajectory"]
    x = as_tensor(store.read("test", slice(0, min(count, settings.piece)), start=store.system.first_frame), simulator.device)
    bounds = path_bounds(simulator.transition, x[:, 0], x[:, 1:], num_samples=1)
    elbo = np.full(count, np.nan)
    elbo[: len(x)] = bounds.elbo.cpu().numpy()
    attrs = {"system": store.system.name, "members": settings.members}
    log_likelihood = {"elbo": xr.DataArray(elbo, dims="trajectory")}
    write_inference_data(
        inference_data(judged.forecast, judged.truth, log_likelihood=log_likelihood, attrs=attrs), out / "inference_data.nc"
    )


def _about(simulator: Simulator, store: Store, folder: RunFolder, settings: EvaluationConfig, seconds: float) -> dict[str, Any]:
    config = simulator.config
    return {
        "name": folder.path.name,
        "system": store.system.name,
        "group": store.system.group.description,
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
        "command": f"epns-pyro train nbody --config {folder.config} --data {store.path} --out NEW_FOLDER",
        "store": str(store.path),
        "sets": {name: {"trajectories": store.size(name), "steps": store.steps(name)} for name in store.groups},
        "sampling_rule": getattr(simulator.transition, "sampling_rule", "ancestral: prior and emission are sampled at every step"),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "evaluate_seconds": round(seconds, 1),
    }


@contextmanager
def _written_together(path: Path) -> Iterator[Path]:
    """Give an empty folder that takes the place of `path` once all is written."""
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    shutil.rmtree(path, ignore_errors=True)
    os.replace(partial, path)


def _finite(data: Any) -> Any:
    """JSON knows no NaN: replace them by null."""
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
