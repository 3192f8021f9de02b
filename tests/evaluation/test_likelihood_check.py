"""The headline of the likelihood: a model is called worse than persistence only where a paired test says so."""

from __future__ import annotations

import numpy as np
import pytest

from epns_pyro.calibration.scores import mean_estimate
from epns_pyro.evaluation.checks.likelihood import LikelihoodCheck, lead_over_persistence
from epns_pyro.evaluation.record import Likelihood, LikelihoodRow

ELBO = LikelihoodRow(key="elbo", name="model, ELBO", value=1.644, error=0.024)


def likelihood(difference: float, error: float, trajectories: int | None = 20) -> Likelihood:
    naive = {"value": 1.644 - difference, "error": 0.023, "difference": difference, "difference_error": error}
    return Likelihood(trajectories=trajectories, rows=(ELBO, LikelihoodRow(key="persistence", name="persistence", **naive)))


@pytest.mark.parametrize(
    ("difference", "error", "good", "fault"),
    [(-0.003, 0.004, None, False), (-0.003, 0.0005, False, True), (0.003, 0.0005, True, False), (0.003, 0.004, None, False)],
)
def test_a_difference_is_called_one_where_the_paired_test_finds_it(difference, error, good, fault):
    record = likelihood(difference, error)
    line = next(iter(LikelihoodCheck().headline(record)))
    assert line.good is good
    assert [f.words for f in LikelihoodCheck().faults(record)] == (["the forecast of one step is worse than persistence"] if fault else [])
    assert ("which is no clear difference" in line.note) == (good is None)
    assert (line.value, "1.647 ± 0.023" in line.note or difference > 0) == ("1.644 ± 0.024 nats", True)


def test_rows_of_an_older_evaluation_are_compared_by_their_own_errors():
    rows = (ELBO, LikelihoodRow(key="persistence", name="persistence", value=1.647, error=0.023))
    assert lead_over_persistence(Likelihood(rows=rows)).clear == 0
    rows = (ELBO, LikelihoodRow(key="persistence", name="persistence", value=2.0, error=0.023))
    assert lead_over_persistence(Likelihood(rows=rows)).clear == -1
    assert lead_over_persistence(Likelihood(rows=(ELBO,))) is None


def test_one_trajectory_tells_nothing():
    assert lead_over_persistence(likelihood(-5.0, float("nan"), trajectories=1)).clear == 0


def test_models_that_are_as_good_are_blamed_at_the_stated_rate():
    rng, blamed = np.random.default_rng(0), 0
    for _ in range(2000):
        ahead = mean_estimate(rng.normal(size=8))
        blamed += lead_over_persistence(likelihood(float(ahead.value), float(ahead.error), trajectories=8)).clear < 0
    assert abs(blamed / 2000 - 0.01) < 4 * np.sqrt(0.01 * 0.99 / 2000)
