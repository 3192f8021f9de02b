"""Doing a study: all runs are trained and judged, an interrupt loses nothing, and one failure is one row."""

from __future__ import annotations

import csv
import errno
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_study

from epns_pyro.errors import TrainingError
from epns_pyro.studies import Plan, work
from epns_pyro.studies.judging import PARTS, Results
from epns_pyro.studies.measures import as_csv, collect
from epns_pyro.studies.page import make_page


def measured(plan: Plan) -> dict[str, dict[str, Any]]:
    """What was measured of every run of the first seed, without the time, which differs from run to run."""
    found = {job.label: Results(job.folder.path).parts for job in plan.jobs if job.seed == 0}
    return {name: parts | {"cost": {**(parts["cost"] or {}), "seconds": None}} for name, parts in found.items()}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A study that nobody interrupted. Do not write to it."""
    plan = small_study.ready(tmp_path_factory.mktemp("study"))
    assert work.run(plan) == {}
    return plan


def test_everything_is_measured(done: Plan) -> None:
    table = csv.DictReader(io.StringIO(as_csv(collect(done, {}))))
    rows = {(row["model"], row["trajectories"]): row for row in table}
    assert rows.keys() == {("epns", "14"), ("epns", "10"), ("gp-ode", "14"), ("persistence", "14"), ("truth", "14")}
    epns, few, ode, truth = (rows[key] for key in (("epns", "14"), ("epns", "10"), ("gp-ode", "14"), ("truth", "14")))
    assert all(epns[f"{name}_mean"] and epns[f"{name}_sd"] for name in ("elbo", "iwae", "gap", "path", "ks", "crps", "coverage", "alive"))
    assert few["iwae_mean"]
    assert not few["ks_mean"]
    assert float(epns["symmetry_mean"]) < 1e-9
    assert not ode["symmetry_mean"]
    assert abs(float(truth["gap_mean"])) < 1e-3  # models are given states in single precision
    assert float(truth["crps_mean"]) == 1
    assert float(truth["ks_mean"]) < float(epns["ks_mean"])
    assert int(ode["parameters_mean"]) > 1000
    assert epns["seeds"] == "2"
    assert float(epns["ks_total_energy_10_floor"]) < 0.5


def test_seeds_differ(done: Plan) -> None:
    for row in collect(done, {}):
        values = row.values("iwae")
        assert len(values) == (1 if row.model.reference else 2)
        assert len(set(values)) == len(values)


class Stop(KeyboardInterrupt):
    """An interrupt of our own."""


def stopping(after: int) -> Callable[[work.Event], None]:
    count = 0

    def report(event: work.Event) -> None:
        nonlocal count
        count += 1
        if count == after:
            raise Stop

    return report


def test_interrupted_again_and_again_gives_the_same_numbers(done: Plan, tmp_path: Path) -> None:
    """Stopped after every few events, in the middle of training and of judging, until nothing is left to do."""
    plan, stops = small_study.ready(tmp_path, seeds=1), 0
    while stops < 50:
        try:
            work.run(plan, report=stopping(4 + sum(work.is_finished(job) for job in plan.jobs)))
            break
        except Stop:
            stops += 1
    assert stops > 5
    assert measured(plan) == measured(done)


def test_what_is_finished_is_not_done_again(done: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "contender", lambda job, report: pytest.fail("trained again"))
    events: list[work.Event] = []
    assert work.run(done, report=events.append) == {}
    assert {event.phase for event in events} == {"finished"}


def test_a_run_that_diverges_is_a_row_that_says_so(tmp_path: Path) -> None:
    """A learning rate of 1e12 makes the loss infinite."""
    plan = small_study.ready(
        tmp_path, seeds=1, models=("pns-mlp",), training__learning_rate=1e12, training__max_bad_steps=2, training__steps=12
    )
    assert work.run(plan) == {}
    mlp, *references = collect(plan, {})
    assert not mlp.seeds
    assert "not finite" in mlp.failures[0]
    assert all(row.seeds for row in references)
    page = make_page(plan, collect(plan, {}))
    (section,) = [section for section in page.sections if section.key == "failures"]
    assert "not finite" in section.items[0].rows[0][-1]
    assert all(map(work.is_finished, plan.jobs))


def test_a_run_that_dies_of_something_else_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small_study.ready(tmp_path, seeds=1, models=("epns",))

    def out_of_memory(*_: object) -> None:
        raise MemoryError("no memory left")

    with monkeypatch.context() as patched:
        patched.setitem(PARTS, "path", out_of_memory)
        failed = work.run(plan)
    whole = [number for number, job in enumerate(plan.jobs) if job.whole]
    assert failed == {number: "MemoryError: no memory left" for number in whole}
    assert "MemoryError" in collect(plan, failed)[0].failures[0]
    assert work.run(plan) == {}
    assert not collect(plan, {})[0].failures


def test_a_full_disk_stops_the_study_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small_study.ready(tmp_path, seeds=1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "x.ckpt")

    monkeypatch.setattr(work, "contender", full)
    with pytest.raises(OSError, match="No space left"):
        work.run(plan)


def test_a_failure_of_training_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small_study.ready(tmp_path, seeds=1)

    def diverged(*_: object) -> None:
        raise TrainingError("the loss was not finite")

    monkeypatch.setattr(work, "contender", diverged)
    work.run(plan)
    assert Results(plan.jobs[0].folder.path).failure == "the loss was not finite"


def test_two_commands_do_not_work_on_one_run(tmp_path: Path) -> None:
    plan = small_study.ready(tmp_path, seeds=1)
    with work._alone(plan.jobs[0].folder.path), pytest.raises(OSError, match="another process is working on this run"):
        work.run(plan)


@pytest.mark.slow
def test_several_at_a_time_give_the_same_numbers(done: Plan, tmp_path: Path) -> None:
    plan = small_study.ready(tmp_path, seeds=1)
    events: list[work.Event] = []
    assert work.run(plan, jobs=2, report=events.append) == {}
    assert {event.phase for event in events} == {"training", "judging", "finished"}
    assert measured(plan) == measured(done)
