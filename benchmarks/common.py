"""What benchmarks share: train a run that is thrown away, do a study, and write a table."""

from __future__ import annotations

import csv
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from epns_pyro.data import Store
from epns_pyro.runs import load
from epns_pyro.simulator import Simulator
from epns_pyro.studies import Study, make_plan, work
from epns_pyro.studies.measures import Row, collect
from epns_pyro.training.run import RunConfig, RunFolder
from epns_pyro.training.trainer import Hardware, Trainer

ALONE = {"model.integrator": None}  # particle models whose first guess is a network alone


def train(config: RunConfig, store: Store, *, which: str) -> tuple[Simulator, float]:
    """Train on the CPU in a folder of its own; return the simulator with its "last" or "best" weights, and the seconds of training."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder(Path(scratch) / "run")
        folder.create(config)
        started = time.perf_counter()
        Trainer(config, store, folder, Hardware("cpu")).fit()
        seconds = time.perf_counter() - started
        return load(folder.path, which=which), seconds


def study(file: Path, folder: Path, only: Sequence[str], jobs: int) -> list[Row]:
    """Do what is missing of a study of one seed, in a folder, and return its rows."""
    plan = make_plan(Study.named(str(file)), out=folder, seeds=1, models=tuple(only))
    plan.check()
    work.make_data(plan, lambda what, done, total: None)
    unfinished = work.run(plan, jobs=jobs)
    rows = collect(plan, unfinished)
    for row in rows:
        print(row.name, row.trajectories, row.failures or next(iter(row.seeds.values()))["likelihood"], flush=True)
    return rows


def write_table(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Write rows as CSV, with the columns of the first."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
