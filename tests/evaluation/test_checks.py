"""A diagnostic is one file: a check from outside is measured, written, read again, and shown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from epns_pyro.data import Store
from epns_pyro.errors import ConfigError, DataError
from epns_pyro.evaluation import CHECKS, Check, Fault, Inputs, Severity, add_check, evaluate
from epns_pyro.evaluation.evaluated import Evaluated
from epns_pyro.evaluation.parts import Section, Table
from epns_pyro.evaluation.record import EvaluationRecord, HeadlineLine, Known, Record
from epns_pyro.evaluation.summary import headline, verdict
from epns_pyro.report import write_report
from epns_pyro.simulator import Simulator
from epns_pyro.training.run import EvaluationConfig, RunFolder

SMALL = EvaluationConfig(members=9, trajectories=4, importance_samples=2, likelihood_transitions=8)


class Speed(Record):
    """Largest speed of the held-out data."""

    largest: Known


class SpeedCheck(Check[Speed]):
    key, title, record = "speed", "speed", Speed

    def measure(self, inputs: Inputs) -> Speed:
        x = inputs.store.read("test")
        return Speed(largest=float(np.linalg.norm(inputs.store.spec.get(x, "velocity"), axis=-1).max()))

    def sections(self, record: Speed | None, found: Evaluated) -> Iterator[Section]:
        if record is not None:
            yield Section("speed", "Speed <b>", "The largest speed.", [Table((), [("largest", f"{record.largest:.3f}")])])

    def headline(self, record: Speed) -> Iterator[HeadlineLine]:
        yield HeadlineLine(label="speed", value=f"{record.largest:.3f}", good=record.largest < 1)

    def faults(self, record: Speed) -> Iterator[Fault]:
        if record.largest >= 1:
            yield Fault(Severity.BROKEN, "bodies are too fast")


@pytest.fixture
def only_speed() -> Iterator[None]:
    """The list of checks with the one from outside alone."""
    before = CHECKS[:]
    CHECKS.clear()
    add_check(SpeedCheck())
    yield
    CHECKS[:] = before


@pytest.mark.usefixtures("only_speed")
def test_a_check_from_outside_is_measured_written_read_and_shown(sim: Simulator, store: Store, tmp_path: Path) -> None:
    found = evaluate(sim, store, RunFolder(tmp_path / "run"), SMALL).record
    folder = tmp_path / "run" / "evaluation"
    again = EvaluationRecord.read(folder)
    speed = SpeedCheck().read(again)
    assert speed == SpeedCheck().read(found)
    assert speed.largest > 0
    assert [line.label for line in again.headline] == ["speed"]
    assert ("bodies are too fast" in verdict(again)) == (speed.largest >= 1)
    page = write_report(folder, tmp_path / "report.html").read_text()
    assert '<section id="speed">' in page
    assert "Speed &lt;b&gt;" in page
    assert f"{speed.largest:.3f}" in page


@pytest.mark.usefixtures("only_speed")
def test_the_section_of_a_check_from_outside_is_checked_when_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text('{"format": "epns-pyro evaluation", "version": 1, "speed": {"largest": "fast"}}')
    with pytest.raises(DataError, match=r"metrics\.json: speed: largest: expected a number, found 'fast'"):
        headline(EvaluationRecord.read(tmp_path))


def test_an_evaluation_that_knows_more_checks_is_shown_without_them(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text('{"format": "epns-pyro evaluation", "version": 1, "speed": {"largest": 3.0}}')
    page = write_report(tmp_path, tmp_path / "report.html").read_text()
    assert '<section id="speed">' not in page


@pytest.mark.usefixtures("only_speed")
def test_a_key_is_taken_once() -> None:
    with pytest.raises(ConfigError, match="'speed': its key is taken"):
        add_check(SpeedCheck())


def test_every_check_has_a_key_of_its_own_and_a_title() -> None:
    assert len({check.key for check in CHECKS}) == len({check.title for check in CHECKS}) == len(CHECKS)
