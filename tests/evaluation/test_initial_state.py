"""Many futures of one initial state: a planted difference is flagged in what a user reads, two samples of one law are not.

False-failure rate of a statistical test: 1e-6.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from epns_pyro.data import Store, generate
from epns_pyro.evaluation import initial_state
from epns_pyro.evaluation.checks.initial_states import distributions_that_differ, initial_states_told_apart
from epns_pyro.evaluation.forecasters import Forecaster, Truth
from epns_pyro.systems import NBodyConfig
from epns_pyro.training.run import EvaluationConfig

STATES, LINES = 5, 12  # as in the data of `epns-pyro data generate nbody`


@pytest.fixture(scope="module")
def nbody(tmp_path_factory: pytest.TempPathFactory) -> Store:
    sizes = {"train": {"trajectories": 8, "steps": 3}, "same_init": {"trajectories": 100 * STATES, "steps": 3, "initial_states": STATES}}
    return generate(NBodyConfig.parse({"bodies": 3, "dt": 0.01, "sets": sizes}), tmp_path_factory.mktemp("nbody") / "data.zarr")


class Narrower(Forecaster):
    """The true process with a part of its spread about its mean."""

    def __init__(self, truth: Truth, factor: float) -> None:
        self.truth, self.factor = truth, factor

    def sample(self, x0: np.ndarray, steps: int, members: int, seed: int) -> np.ndarray:
        x = self.truth.sample(x0, steps, members, seed)
        return x.mean(0, keepdims=True) + self.factor * (x - x.mean(0, keepdims=True))


def test_a_planted_difference_is_flagged_whatever_the_number_of_tests(nbody: Store) -> None:
    settings = EvaluationConfig(initial_members=100)
    rows, tests, _ = initial_state.compare(Narrower(Truth(nbody.system), 0.4), nbody, settings, {})
    assert (len(rows), len(tests)) == (LINES, STATES)
    assert len(distributions_that_differ(rows)) > LINES / 2
    assert initial_states_told_apart(tests) == list(tests)


def test_the_true_process_is_not_flagged(nbody: Store) -> None:
    """Distances have false alarms in at most 5% of cases, joint tests too; this seed has none."""
    rows, tests, _ = initial_state.compare(Truth(nbody.system), nbody, EvaluationConfig(initial_members=100), {})
    assert len(rows) == LINES
    assert distributions_that_differ(rows) == initial_states_told_apart(tests) == []


def test_false_alarms_are_as_rare_as_promised() -> None:
    """Over 12 lines of five initial states each: both numbers are corrected for."""
    repetitions, rng, names, frames = 150, np.random.default_rng(3), list("abcd"), [1, 2, 3]

    def draw() -> np.ndarray:
        x = rng.normal(size=(30, len(names), len(frames)))
        x[:, 0] = np.round(x[:, 0])  # a count: ties
        return x

    alarms, about = 0, xr.Dataset({name: ((), 0.0) for name in names})
    for _ in range(repetitions):
        states = [initial_state._distances({"model": draw(), "truth": draw()}, rng) | {"runs_left": np.ones((4, 3))} for _ in range(STATES)]
        rows = initial_state._table(states, names, frames, about, 1.0)
        smallest = np.min([state["p_value"] for state in states], 0).ravel()
        np.testing.assert_allclose([row.p_value for row in rows], np.minimum(1, STATES * smallest))
        alarms += bool(distributions_that_differ(rows))
    assert alarms <= stats.binom.isf(1e-6, repetitions, 0.05)


def test_there_is_no_comparison_without_its_set(tmp_path: Path) -> None:
    store = generate(NBodyConfig.parse({"bodies": 3, "dt": 0.01, "sets": {"train": {"trajectories": 2, "steps": 1}}}), tmp_path / "d.zarr")
    assert initial_state.compare(Truth(store.system), store, EvaluationConfig(), {}) is None
