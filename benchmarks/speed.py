"""How much a training step and a rollout step cost: operators, arithmetic and processor time, of presets and backbones.

    python benchmarks/speed.py                                  # table, then benchmarks/results/speed.csv and .json
    python benchmarks/speed.py --against v0.2.0                 # two commits, round by round in turn
    python benchmarks/speed.py --suite bodies --against HEAD~9  # from 100 to 10,000 bodies
    python benchmarks/speed.py --model default --task "rollout 1"

Processor time of one thread is measured, and every round times every variant once, in turn: what else the machine does then disturbs all
of them alike. Ratios are taken within rounds; their median and quartiles are given. `floor` is the arithmetic of matrix products over the
rate of a large product on this machine in the same run.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from common import write_table
from speed_workloads import BODIES, MODELS

from epns_pyro import __version__

ROOT = Path(__file__).parents[1]
TASKS = ("train 64", "rollout 1", "rollout 64", "rollout 1000")
SUITES = {
    "particles": [
        *((m, t) for m in ("default", "default, no integrator", "pairs") for t in TASKS),
        *(("frames (paper preset)", t) for t in TASKS[:3]),
    ],
    "backbones": [(m, t) for m in MODELS if m not in ("pairs", "cells") for t in TASKS[:3]],
    "bodies": [(f"{n} bodies", "train 1") for n in BODIES],
    "cells": [("cells", t) for t in ("train 4", "rollout 1", "rollout 16")],
}
SLICE = 0.25  # seconds of a measurement, at least


class Version:
    """A version of the package at work in a process of its own."""

    def __init__(self, root: Path) -> None:
        command = [sys.executable, str(Path(__file__).with_name("speed_workloads.py")), str(root)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, *request: Any) -> Any:
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise click.ClickException(f"the process that measures {request[1:]} has ended: see above")
        return json.loads(answer)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """Check a commit out in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "other"
        git("worktree", "add", "--quiet", "--detach", str(place), commit)
        try:
            yield place
        finally:
            git("worktree", "remove", "--force", str(place))


def git(*words: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *words], check=True, text=True, capture_output=True).stdout.strip()


def machine() -> dict[str, Any]:
    """Return hardware and versions."""
    about = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in about.read_text().splitlines() if line.startswith("model name")] if about.exists() else []
    )
    processor = f"{names[0]}, {len(names)} cores" if names else platform.processor()
    versions = {"epns_pyro": __version__, "torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()}
    return {
        "processor": processor,
        "threads": 1,
        **versions,
        "commit": git("describe", "--always", "--dirty"),
        "tree": git("rev-parse", "HEAD:epns_pyro"),  # of the package: it stays the same when a commit is rebased
    }


def quartiles(values: list[float]) -> list[float]:
    return [float(q) for q in np.quantile(values, (0.25, 0.5, 0.75))]


def measure(versions: dict[str, Version], chosen: list[tuple[str, str]], rounds: int) -> list[dict[str, Any]]:
    """Count and time every task in every version; rounds take turns."""
    counts = {(v, *which): version.ask("count", *which) for which in chosen for v, version in versions.items()}
    calls = {which: max(1, round(SLICE / max(version.ask("seconds", *which, 1) for version in versions.values()))) for which in chosen}
    times: dict[tuple[str, str, str], list[float]] = {key: [] for key in counts}
    for number in range(rounds):
        for which in chosen:
            for v in list(versions) if number % 2 else reversed(versions):
                times[v, *which].append(versions[v].ask("seconds", *which, calls[which]))
    first, rates = next(iter(versions)), next(iter(versions.values())).ask("rates")
    rows = []
    for (v, model, task), seconds in times.items():
        low, middle, high = quartiles(seconds)
        counted = counts[v, model, task]
        row = {"model": model, "task": task, "version": v, **counted, "seconds": middle, "seconds_q1": low, "seconds_q3": high}
        row |= {"floor": counted["flop"] / rates["flop_rate"]}
        paired = [theirs / mine for mine, theirs in zip(times[first, model, task], seconds, strict=True)]
        rows.append(row | dict(zip(("ratio_q1", "ratio", "ratio_q3"), quartiles(paired), strict=True)) | rates)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    columns = (
        f"{'model':28} {'task':13} {'version':10} {'operators':>9} {'kernels':>8} {'MFLOP':>8} {'floor ms':>9} {'peak MB':>8} {'ms':>9}"
    )
    print(f"{columns} {'quartiles':>19} {'ratio to the first':>22}")
    for r in rows:
        floor, middle, low, high = (1e3 * r[name] for name in ("floor", "seconds", "seconds_q1", "seconds_q3"))
        what = f"{r['model']:28} {r['task']:13} {r['version'][:10]:10} {r['operators']:9} {r['kernels']:8} {r['flop'] / 1e6:8.0f}"
        ratio = f"{r['ratio']:8.2f} ({r['ratio_q1']:.2f}-{r['ratio_q3']:.2f})"
        print(f"{what} {floor:9.2f} {r['peak'] / 2**20:8.0f} {middle:9.2f} {low:9.2f}-{high:9.2f} {ratio}")


@click.command()
@click.option("--suite", type=click.Choice(list(SUITES)), default="particles", show_default=True)
@click.option("--model", "models", multiple=True, help="Models of the suite; all by default.  Repeatable.")
@click.option(
    "--task", "tasks", multiple=True, help='Tasks, such as "train 64" or "rollout 1"; by default those of the suite.  Repeatable.'
)
@click.option("--against", metavar="COMMIT", help="A commit to compare with this checkout.")
@click.option("--rounds", default=7, show_default=True)
@click.option(
    "--out", type=click.Path(path_type=Path), help="FILE.csv, with FILE.json beside it.  [default: speed_SUITE in benchmarks/results]"
)
def main(suite: str, models: tuple[str, ...], tasks: tuple[str, ...], against: str | None, rounds: int, out: Path | None) -> None:
    chosen = [(m, t) for m, t in SUITES[suite] if (not models or m in models) and (not tasks or t in tasks)]
    if not chosen:
        raise click.UsageError(f"no such work in suite {suite}: expected {'; '.join(' / '.join(which) for which in SUITES[suite])}")
    started, about = time.perf_counter(), machine()
    with ExitStack() as stack:
        roots = {"here": ROOT}
        if against:
            roots[git("rev-parse", "--short", against)] = stack.enter_context(checkout(against))
        versions = {name: Version(root) for name, root in roots.items()}
        try:
            rows = measure(versions, chosen, rounds)
        finally:
            for version in versions.values():
                version.close()
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    show(rows)
    print(f"{time.perf_counter() - started:.0f} s")
    out = out or ROOT / "benchmarks" / "results" / f"speed_{suite}.csv"
    write_table(rows, out)
    out.with_suffix(".json").write_text(json.dumps({"machine": about, "rounds": rounds, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
