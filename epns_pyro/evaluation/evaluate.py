"""Evaluation of a trained simulator: runs every check and writes RUN/evaluation/, which the report reads.

metrics.json        the records of all checks, the headline, and how to reproduce them: see `epns_pyro.evaluation.record`
diagnostics.nc      groups observables, fields, labels: see `epns_pyro.calibration.diagnostics`
fans.nc             quantiles of observables over time, from one initial state (source, initial_state, observable, time, quantile)
stability.nc        fraction of plausible runs over time (source, time)
examples.nc         a few sampled futures to look at (source, trajectory, time, ...)
recalibration.nc    widening factors of intervals, learnt from the validation set
inference_data.nc   ArviZ InferenceData
"""

from __future__ import annotations

import hashlib
import logging
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

from epns_pyro.calibration.idata import inference_data, write_inference_data
from epns_pyro.calibration.verdicts import Verdict
from epns_pyro.data import Store
from epns_pyro.derived import has_hidden_states
from epns_pyro.errors import DataError
from epns_pyro.evaluation import heldout, likelihood
from epns_pyro.evaluation.archive import Archive
from epns_pyro.evaluation.check import Inputs
from epns_pyro.evaluation.checks import CHECKS
from epns_pyro.evaluation.ensembles import as_fields, initial, schedule_of
from epns_pyro.evaluation.forecasters import Forecaster
from epns_pyro.evaluation.record import EvaluationRecord, Run, SetSize
from epns_pyro.evaluation.references import references
from epns_pyro.evaluation.summary import headline
from epns_pyro.evaluation.work import plan
from epns_pyro.machine import threads_for
from epns_pyro.simulator import Simulator
from epns_pyro.training.checkpoint import versions
from epns_pyro.training.presets import family_for
from epns_pyro.training.run import EvaluationConfig, RunFolder

logger = logging.getLogger(__name__)
Progress = Callable[[str, int, int], None]
EXAMPLES, EXAMPLE_MEMBERS = 3, 3
KEPT = "evaluation.kept"  # folder of a run: what an interrupted evaluation has sampled


@dataclass(frozen=True)
class Evaluation:
    """Results of `evaluate`: the record that metrics.json holds, and the verdicts."""

    record: EvaluationRecord
    verdicts: dict[str, list[Verdict]]


def evaluate(
    simulator: Simulator,
    store: Store,
    folder: RunFolder,
    settings: EvaluationConfig | None = None,
    *,
    progress: Progress = lambda what, done, total: None,
) -> Evaluation:
    """Evaluate a simulator on held-out data and write the folder `evaluation` of its run, completely or not at all.

    Parameters
    ----------
    simulator : Simulator
    store : Store
        Needs a set `test`; uses `val` for recalibration, and `same_init` and `long` if present.
    folder : RunFolder
    settings : EvaluationConfig
    progress : callable
        Called as ``progress(stage, done, total)``.
    """
    settings = settings or simulator.config.evaluation
    store = store.states_for(simulator.spec, simulator.context.frame_dt)
    if len(store.spec.sites) == 1:
        settings = settings.for_bodies(store.sites("test")[0])
    if has_hidden_states(simulator.spec) != has_hidden_states(store.spec):
        words = (
            ("infers", "as recorded")
            if has_hidden_states(simulator.spec)
            else ("takes states as recorded, and does not infer", "as hidden")
        )
        raise DataError(f"{store.path}: the model {words[0]} states, the store describes them {words[1]}: open both with one description")
    started = time.perf_counter()
    sizes = plan(simulator, store, settings)
    settings = sizes.settings
    if sizes.words:
        logger.info("%s", sizes.words)
    archive = Archive(folder.path / KEPT, _identity(simulator, store, settings))
    with _written_together(folder.evaluation) as out, threads_for(little=simulator.transition.is_little(1)):
        inputs = Inputs(simulator, store, settings, references(simulator, store), out, archive=archive)
        sections: dict[str, Any] = {}
        for check in CHECKS:
            with _stage(check.title, progress) as inputs.progress:
                if (found := check.measure(inputs)) is not None:
                    sections[check.key] = found
        with _stage("examples", progress):
            _write_examples(inputs.model, store, settings, out, count=1 if sizes.words else EXAMPLES)
            _write_inference_data(store, inputs.forecasts("test"), inputs.scored, settings, out)
        run = _about(simulator, store, folder, settings, time.perf_counter() - started).model_copy(update={"sizes": sizes.words})
        record = EvaluationRecord(run=run, **sections)
        record = record.model_copy(update={"headline": headline(record)})
        record.write(out)
    archive.close()
    return Evaluation(record, inputs.forecasts("test").verdicts)


def _write_examples(model: Forecaster, store: Store, settings: EvaluationConfig, out: Path, count: int) -> None:
    system = store.system
    truth = store.read("test", slice(0, count), start=system.forecast_frame)
    schedule = schedule_of(system, truth, settings.entries)
    given = {} if schedule is None else {"schedule": schedule}
    sampled = model.sample(initial(store, "test", slice(0, count)), truth.shape[1] - 1, EXAMPLE_MEMBERS, settings.seed + 5, **given)
    both = np.concatenate([truth[None].astype(sampled.dtype), sampled])
    data = as_fields(system, both).rename(sample="source")
    sources = ["truth", *(f"member {i + 1}" for i in range(EXAMPLE_MEMBERS))]
    compress = {name: {"zlib": True, "complevel": 4} for name in data.data_vars}
    data.assign_coords(source=sources).to_netcdf(out / "examples.nc", engine="h5netcdf", encoding=compress)


def _write_inference_data(store: Store, judged: heldout.HeldOut, scored: likelihood.Scored, settings: EvaluationConfig, out: Path) -> None:
    """Write observables of forecast and truth, and one-step log-likelihoods (trajectory, time), at the lead times."""
    at_lead_times = scored.log_likelihood.sel(time=judged.lead_times, method="nearest").assign_coords(time=judged.forecast["time"])
    attrs = {"system": store.system.name, "members": settings.members}
    data = inference_data(judged.forecast, judged.truth, log_likelihood=dict(at_lead_times.data_vars), attrs=attrs)
    write_inference_data(data, out / "inference_data.nc")


def _about(simulator: Simulator, store: Store, folder: RunFolder, settings: EvaluationConfig, seconds: float) -> Run:
    config = simulator.config
    again = {"--config": folder.config, "--data": simulator.store or store.path, "--out": "NEW_FOLDER"}
    return Run(
        name=folder.path.name,
        system=store.system.name,
        group=store.system.symmetry.description,
        frame_dt=store.frame_dt,
        time_unit=store.time_unit,
        seed=config.seed,
        step=simulator.step,
        parameters=sum(p.numel() for p in simulator.transition.parameters()),
        model=config.model.model_dump(mode="json"),
        training=config.training.model_dump(mode="json"),
        config_yaml=config.to_yaml(),
        evaluation=settings.model_dump(mode="json"),
        versions=versions(),
        command=shlex.join(["epns-pyro", "train", family_for(config), *(str(part) for option in again.items() for part in option)]),
        store=str(store.path),
        sets={name: SetSize(trajectories=store.size(name), steps=store.steps(name)) for name in store.splits},
        held_out=store.fingerprint("test"),
        sampling_rule=simulator.transition.sampling_rule,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        evaluate_seconds=round(seconds, 1),
    )


def _identity(simulator: Simulator, store: Store, settings: EvaluationConfig) -> str:
    """Return a digest of what forecasts depend on: weights, data, settings, versions."""
    digest = hashlib.sha256()
    for name, weights in simulator.transition.state_dict().items():
        digest.update(name.encode() + weights.detach().cpu().numpy().tobytes())
    sets = [(name, store.fingerprint(name)) for name in store.splits]
    digest.update(repr((sets, settings.model_dump(mode="json"), versions())).encode())
    return digest.hexdigest()


@contextmanager
def _stage(what: str, progress: Progress) -> Iterator[Callable[[int, int], None]]:
    """Show the progress of a stage and log how long it took; yields a function (done, total) for a stage of several parts."""
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
    """Yield an empty folder that replaces `path` after all is written; if anything fails, the old one stays."""
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
