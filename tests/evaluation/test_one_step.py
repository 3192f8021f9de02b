"""One step after recorded frames: the true law passes, and a law of a step that is too wide is told from errors that build up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from epns_pyro.data import Store, generate, open_store
from epns_pyro.evaluation import Inputs
from epns_pyro.evaluation.checks.one_step import OneStep, OneStepCheck, StepOf, _origin
from epns_pyro.evaluation.evaluated import Evaluated
from epns_pyro.evaluation.forecasters import Truth
from epns_pyro.evaluation.record import EvaluationRecord
from epns_pyro.simulator import Simulator
from epns_pyro.systems import NBodyConfig
from epns_pyro.systems.base import SetConfig
from epns_pyro.training.run import EvaluationConfig


@pytest.fixture
def recorded(made_once: Callable) -> Store:
    """Sixty true trajectories of three bodies."""
    sets = {"train": SetConfig(trajectories=4, steps=6), "test": SetConfig(trajectories=60, steps=6)}
    return open_store(made_once("one_step.zarr", lambda path: generate(NBodyConfig(bodies=3, sets=sets), path)))


def judge(sim: Simulator, store: Store, folder: Path, *, noise: float) -> OneStep:
    """What the check says of the true process with its noise multiplied."""
    truth = store.system.config
    inputs = Inputs(sim, store, EvaluationConfig(members=19), {}, folder)
    inputs.__dict__["model"] = Truth(truth.override({"sigma": noise * truth.sigma}).build())
    return OneStepCheck().measure(inputs)


def test_the_true_law_passes(sim: Simulator, recorded: Store, tmp_path: Path) -> None:
    found = judge(sim, recorded, tmp_path, noise=1.0)
    assert found.frames == 150
    assert len(found.quantities) > 5
    assert not found.faults
    assert (tmp_path / "one_step.nc").is_file()


def test_a_law_with_too_much_noise_is_at_fault(sim: Simulator, recorded: Store, tmp_path: Path) -> None:
    found = judge(sim, recorded, tmp_path, noise=3.0)
    assert next(one for one in found.faults if one.label == "total energy").spread > 1.2
    (line,) = OneStepCheck().headline(found)
    assert line.good is False
    assert "total energy" in line.note
    (section,) = OneStepCheck().sections(found, Evaluated(EvaluationRecord()))
    assert any("one step" in row for row in section.items[0].rows)


@pytest.mark.parametrize(
    ("after_one_step", "in_forecasts", "origin"),
    [
        ("calibrated", "calibrated", "–"),
        ("over-confident", "calibrated", "one step"),
        ("over-confident", "over-confident", "one step"),
        ("calibrated", "biased", "errors that build up"),
        ("too few data to say", "biased", "–"),
        ("calibrated", "", "–"),
    ],
)
def test_the_origin_of_a_fault(after_one_step: str, in_forecasts: str, origin: str) -> None:
    one = StepOf(label="energy", word=after_one_step, shift=0, shift_error=0.1, spread=1)
    assert _origin(one, in_forecasts) == origin
