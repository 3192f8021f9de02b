"""A damaged file is read, or refused in one line: never a traceback, never a hang. `make fuzz` tries many more cases."""

from __future__ import annotations

import os
import time
from pathlib import Path

import harness
import numpy as np
import pytest
from readers import READERS as FILES
from runs import READERS as RUNS

from epns_pyro.errors import DataError


def touched(folder: Path, rng: np.random.Generator) -> str:
    return "touched"


def reader(read) -> harness.Reader:
    return harness.Reader("made up", lambda folder: (folder / "file").write_text("sound"), read, (touched,))


def fail(error: BaseException):
    def read(folder: Path) -> None:
        raise error

    return read


@pytest.mark.parametrize(
    ("read", "outcome", "said"),
    [
        (lambda folder: (folder / "file").read_text(), harness.WORKED, ""),
        (fail(DataError("file: is damaged")), harness.CLEAR, "is damaged"),
        (fail(DataError("two\nlines")), harness.TRACEBACK, "two"),
        (fail(DataError("x" * 5000)), harness.TRACEBACK, "xxx"),
        (fail(RuntimeError("no guard")), harness.TRACEBACK, "no guard"),
        (fail(SystemExit(2)), harness.TRACEBACK, "SystemExit"),
        (lambda folder: np.ones(2**34).sum(), harness.TRACEBACK, "MemoryError"),
        (lambda folder: os._exit(9), harness.TRACEBACK, "exit code 9"),
        (lambda folder: time.sleep(60), harness.HANG, "still running"),
    ],
)
def test_every_ending_is_told_apart(read, outcome, said):
    results = list(harness.run(harness.cases([reader(read)], 2), seconds=0.5))
    assert [result.outcome for result in results] == [outcome, outcome]
    assert said in results[0].message
    assert harness.summary(results).startswith("tried 2, ")
    assert f"{outcome} 2" in harness.summary(results)


@pytest.mark.parametrize("reader", [*FILES, *RUNS], ids=lambda reader: reader.name)
def test_damaged_input_is_read_or_refused_in_one_line(reader):
    results = list(harness.run(harness.cases([reader], 2)))
    assert [r for r in results if r.outcome in (harness.TRACEBACK, harness.HANG)] == []
    assert {r.outcome for r in results} >= {harness.CLEAR}  # the damage is felt
