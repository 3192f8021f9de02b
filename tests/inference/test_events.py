"""Probabilities of events are counted, with errors that hold for no hits too."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from small import config, trainer

from epns_pyro.data import Store
from epns_pyro.errors import ConfigError, ShapeError
from epns_pyro.inference.events import Exceeds, Probability
from epns_pyro.runs import load
from epns_pyro.simulator import Simulator


@pytest.fixture(scope="module")
def sim(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Simulator:
    folder = tmp_path_factory.mktemp("events") / "run"
    trainer(store, folder, config()).fit()
    return load(folder)


def test_the_interval_is_that_of_clopper_and_pearson():
    found = Probability(3, 100)
    assert found.value == 0.03
    assert found.error == pytest.approx(np.sqrt(0.03 * 0.97 / 100))
    assert found.interval == pytest.approx(stats.binomtest(3, 100).proportion_ci())
    assert str(found) == "0.03 ± 0.017 (95% interval 0.0062 to 0.085; 3 of 100 futures)"
    low, high = Probability(0, 1000).interval
    assert (low, high) == (0, pytest.approx(3.69e-3, rel=0.01))
    assert Probability(5, 5).interval[1] == 1


def test_events_are_counted_in_the_futures_of_the_simulator(sim: Simulator, store: Store):
    x0 = store.read("test", 0)[0, 0]
    futures = sim.rollout(x0[None], steps=4, members=300, seed=3).isel(trajectory=0)
    distance = np.linalg.norm(futures["position"], axis=-1).max(-1)  # (sample, time)
    threshold = float(np.quantile(distance[:, 4], 0.7))
    found = sim.probability(Exceeds(sim.system, "furthest_body", threshold, step=4), x0, steps=4, members=300, seed=3)
    assert found.hits == (distance[:, 4] > threshold).sum()
    assert found.members == 300
    assert sim.probability(Exceeds(sim.system, "furthest_body", threshold, step=4), x0.tolist(), steps=4, members=300, seed=3) == found
    ever = sim.probability(Exceeds(sim.system, "furthest_body", threshold), x0, steps=4, members=300, seed=3)
    assert ever.hits == (distance[:, 1:].max(1) > threshold).sum()
    there = np.stack([x0, 2 * x0, x0])[None]  # out and back again
    far = 1.5 * np.linalg.norm(sim.spec.get(x0, "position"), axis=-1).max()
    assert Exceeds(sim.system, "furthest_body", far)(there).tolist() == [True]
    assert Exceeds(sim.system, "furthest_body", far, step=2)(there).tolist() == [False]
    assert Exceeds(sim.system, "furthest_body", far)(there[:, ::2]).tolist() == [False]
    own = sim.probability(lambda x: sim.spec.get(x, "position")[:, -1, 0, 0] > np.inf, x0[None], steps=2, members=50)
    assert (own.hits, own.error) == (0, 0)


def test_questions_without_an_answer(sim: Simulator, store: Store):
    x0 = store.read("test", 0)[0, 0]
    with pytest.raises(ConfigError, match="did you mean 'total_energy'"):
        sim.probability(Exceeds(sim.system, "totl_energy", 0.0), x0, steps=2, members=5)
    with pytest.raises(ShapeError, match="step 7, and the futures have 2"):
        sim.probability(Exceeds(sim.system, "total_energy", 0.0, step=7), x0, steps=2, members=5)
    with pytest.raises(ShapeError, match=r"one boolean per future, shape \(5,\), found float64 \(5, 3, 3, 7\)"):
        sim.probability(lambda x: x, x0, steps=2, members=5)
    with pytest.raises(ShapeError, match="initial state of a probability: expected one, found 2"):
        sim.probability(lambda x: x, np.stack([x0, x0]), steps=2, members=5)
