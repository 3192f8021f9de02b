"""Judging the contenders of a study, all alike, by what the paper reports; every part is kept as soon as it is measured.

RUN/study.json: the parts by name, or why the run failed.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from epns_pyro.data import Store
from epns_pyro.evaluation import heldout, initial_state
from epns_pyro.evaluation.checks.stability import stability
from epns_pyro.evaluation.checks.symmetry import equivariance
from epns_pyro.plain import read_json
from epns_pyro.studies.contenders import Contender
from epns_pyro.studies.plan import Job
from epns_pyro.training.run import EvaluationConfig
from epns_pyro.training.validation import as_tensor, draw_transitions

PATHS = 40  # test trajectories whose paths are scored
LENGTHS = (1, 10)  # steps of their beginnings that are scored too
LEVEL = 0.9  # of the intervals whose coverage is reported
SHOWN = 60  # times of the curve of plausible runs that are kept

Part = dict[str, Any]


def likelihood(contender: Contender, store: Store, settings: EvaluationConfig) -> Part:
    """Score held-out transitions: nats per transition, and the true density of the same ones where it is known."""
    x, x_next = draw_transitions(store, "test", settings.likelihood_transitions)
    scores = contender.score(as_tensor(x), as_tensor(x_next)[:, None], settings.importance_samples)
    found = {name: float(value.mean()) for name, value in scores._asdict().items()} | {"median_elbo": float(scores.elbo.median())}
    if store.system.has_oracle:
        found["gap"] = float(store.system.transition_log_prob(x, x_next).mean()) - found["iwae"]
    return found


def path(contender: Contender, store: Store, settings: EvaluationConfig) -> Part:
    """Score held-out paths given their starts, whole and their beginnings: nats per transition."""
    x = as_tensor(store.read("test", slice(0, min(PATHS, settings.trajectories)), start=store.system.forecast_frame))
    whole = x.shape[1] - 1

    def per_step(steps: int) -> float:
        return float(contender.score(x[:, 0], x[:, 1 : steps + 1], settings.importance_samples).iwae.mean()) / steps

    return {"path": per_step(whole)} | {f"path_{steps}": per_step(steps) for steps in LENGTHS if steps < whole}


def calibration(contender: Contender, store: Store, settings: EvaluationConfig) -> Part:
    """Forecast held-out trajectories: CRPS of every observable, and how often central intervals hold the truth, over lead times."""
    found = heldout.measure(contender.forecaster, store, "test", settings, references={}).diagnostics["observables"]
    coverage, nominal = (found[name].sel(level=LEVEL, method="nearest") for name in ("coverage", "nominal"))
    return {
        "coverage": float(coverage.mean()),
        "nominal": float(nominal),
        "coverage_error": float(abs(coverage - nominal).mean()),
        "crps": {str(name): float(found["crps"].sel(observable=name).mean()) for name in found["observable"].values},
    }


def distances(contender: Contender, store: Store, settings: EvaluationConfig) -> Part | None:
    """Compare distributions of observables from one initial state with true ones; where no run stays finite the distance is 1."""
    found = initial_state.compare(contender.forecaster, store, settings, {})
    if found is None:
        return None
    rows = [row.model_dump(mode="json", include={"observable", "label", "time", "frame", "ks", "typical"}) for row in found.distances]
    return {"ks": float(np.mean([row["ks"] for row in rows])) if rows else 1.0, "distances": rows}


def long_runs(contender: Contender, store: Store, settings: EvaluationConfig) -> Part:
    """Follow runs ten times as long as training trajectories: which share is still plausible."""
    found, data = stability(contender.forecaster, store, settings)
    at = np.unique(np.linspace(0, data.sizes["time"] - 1, SHOWN).astype(int))
    alive = data["alive"].isel(time=at)
    curve = [alive["time"].values.tolist(), alive.sel(source="model").values.tolist(), alive.sel(source="truth").values.tolist()]
    return {"alive": found.final_alive_model, "runs": found.runs, "long_steps": found.steps, "curve": curve}


def symmetry(contender: Contender, store: Store, settings: EvaluationConfig) -> Part | None:
    """Transform held-out futures by random elements of the symmetry group: the largest relative change of the log density."""
    return {"symmetry": equivariance(contender.simulator, store, settings).maximum} if contender.simulator else None


def cost(contender: Contender, store: Store, settings: EvaluationConfig) -> Part | None:
    """Count parameters, steps and seconds of training."""
    return {"parameters": contender.parameters, "steps": contender.steps, "seconds": contender.seconds} if contender.steps else None


PARTS: dict[str, Callable[[Contender, Store, EvaluationConfig], Part | None]] = {
    "cost": cost,
    "likelihood": likelihood,
    "path": path,
    "symmetry": symmetry,
    "calibration": calibration,
    "distances": distances,
    "long_runs": long_runs,
}
ON_FEW_DATA = ("cost", "likelihood")  # the parts of runs on few training data


def parts_of(job: Job) -> tuple[str, ...]:
    """Return the parts that are measured of a run."""
    return tuple(PARTS) if job.whole else ON_FEW_DATA


class Results:
    """What was measured of a run so far, in RUN/study.json."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "study.json"
        self.parts: dict[str, Any] = read_json(self.path) if self.path.is_file() else {}

    @property
    def failure(self) -> str:
        """Why there will be no more; "" if nothing went wrong."""
        return str(self.parts.get("failed", ""))

    def missing(self, parts: tuple[str, ...]) -> list[str]:
        """Return the parts that are still to be measured."""
        return [] if self.failure else [name for name in parts if name not in self.parts]

    def keep(self, name: str, value: Any) -> None:
        """Add one part; after a crash the file is the old one or the new one."""
        self.parts[name] = _finite(value)
        temporary = self.path.with_name(self.path.name + ".partial")
        temporary.write_text(json.dumps(self.parts, indent=1, allow_nan=False), encoding="utf-8")
        os.replace(temporary, self.path)


def judge(
    contender: Contender,
    store: Store,
    settings: EvaluationConfig,
    results: Results,
    parts: tuple[str, ...],
    report: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Measure what is missing of some parts, and keep each as soon as it is there."""
    for name in results.missing(parts):
        report(parts.index(name), len(parts))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            results.keep(name, PARTS[name](contender, store, settings))
    report(len(parts), len(parts))


def _finite(value: Any) -> Any:
    """Return plain data with null in the place of NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
