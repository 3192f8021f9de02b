"""Trials that depend on each other: decorrelation times against the closed form of AR(1), and verdicts at the promised rate."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from epns_pyro.calibration.bands import ecdf_difference, rank_law
from epns_pyro.calibration.dependence import RELIABLE, autocorrelation_time, widening
from epns_pyro.calibration.diagnostics import field_diagnostics, observable_diagnostics
from epns_pyro.calibration.known import KNOWN
from epns_pyro.calibration.measurements import field_values, observable_values
from epns_pyro.calibration.power import FALSE_ALARM
from epns_pyro.calibration.verdicts import Verdict, Word, judge_fields, judge_observables

MEMBERS = 19


def ar1(rng: np.random.Generator, rho: float, batch: int, length: int) -> np.ndarray:
    x = rng.normal(size=(batch, length))
    for t in range(1, length):
        x[:, t] = rho * x[:, t - 1] + np.sqrt(1 - rho**2) * x[:, t]
    return x


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.8])
def test_the_decorrelation_time_of_ar1_is_that_of_the_closed_form(rho):
    """The positive sequence ends in noise, which adds a little: allowed are 20%."""
    x = ar1(np.random.default_rng(0), rho, 40, 2000)
    found = autocorrelation_time(x, np.zeros(2000), np.arange(2000))
    assert np.median(found) == pytest.approx((1 + rho) / (1 - rho), rel=0.2)
    assert found.min() >= 1


@pytest.mark.parametrize("rho", [0.3, 0.5, 0.7])
def test_what_centring_takes_out_of_short_series_is_put_back(rho):
    """Without it the median time of 50 trials at 0.7 is found 32% too short."""
    x = ar1(np.random.default_rng(0), rho, 3000, 50)
    found = np.median(autocorrelation_time(x, np.zeros(50), np.arange(50)))
    assert found == pytest.approx((1 + rho) / (1 - rho), rel=0.2)


def test_the_order_of_trials_and_the_names_of_recordings_do_not_matter():
    rng = np.random.default_rng(1)
    x, recording, order = ar1(rng, 0.8, 3, 60), np.repeat([0, 1, 2], 20), np.tile(np.arange(20), 3)
    mixed = rng.permutation(60)
    expected = autocorrelation_time(x, recording, order)
    np.testing.assert_allclose(autocorrelation_time(x[:, mixed], np.array(["c", "a", "b"])[recording[mixed]], 10 * order[mixed]), expected)


def test_trials_of_recordings_of_their_own_are_independent():
    x = ar1(np.random.default_rng(2), 0.9, 4, 50)
    np.testing.assert_array_equal(autocorrelation_time(x, np.arange(50), np.zeros(50)), 1)


def test_unknown_trials_are_left_out_and_few_count_as_one():
    x = ar1(np.random.default_rng(3), 0.6, 2, 400)
    x[0, ::7] = np.nan
    x[1, RELIABLE - 1 :] = np.nan
    found = autocorrelation_time(x, np.zeros(400), np.arange(400))
    assert 2 < found[0] < 8
    assert found[1] == RELIABLE - 1


def test_a_constant_series_is_no_error():
    np.testing.assert_array_equal(autocorrelation_time(np.ones((2, 30)), np.zeros(30), np.arange(30)), 1)


def test_widening_is_the_error_of_the_mean_of_ar1():
    """Var(mean) = sigma^2 tau / n, from the sample variance, which is too small by tau / n."""
    rho, n = 0.6, 80
    tau = np.full(20000, (1 + rho) / (1 - rho))
    x = ar1(np.random.default_rng(4), rho, 20000, n)
    error = x.std(1, ddof=1) / np.sqrt(n) * widening(np.full(20000, n), tau)
    assert np.mean(error**2) == pytest.approx(x.mean(1).var(), rel=0.06)
    assert widening(np.array([1, 5]), np.ones(2)).tolist() == [1, 1]


def test_an_ecdf_of_as_many_truths_has_the_p_value_of_its_ranks():
    law, pit = rank_law(30, MEMBERS), np.random.default_rng(5).random((50, 30)) ** 1.3
    np.testing.assert_array_equal(law.p_value_of(ecdf_difference(pit, law)), law.p_value(pit))
    fewer = rank_law(10, MEMBERS).p_value_of(ecdf_difference(pit, law))
    assert (fewer >= law.p_value(pit)).mean() > 0.95


def stretches(rng: np.random.Generator, n: int, rho: float, *, spread: float = 1.0, together: bool = True) -> xr.Dataset:
    """Measure forecasts that know the law of a recording but not its state: calibrated, and as dependent as the recording."""
    time = ("time", np.arange(3.0), {"units": "s"})
    y, x = np.zeros((n, 3)), spread * rng.normal(size=(MEMBERS, n, 3))
    y[:, 1:] = ar1(rng, rho, 1, n)[0, :, None]
    truth = xr.Dataset({"level": (("trajectory", "time"), y)}, {"time": time})
    forecast = xr.Dataset({"level": (("sample", "trajectory", "time"), x)}, {"time": time})
    values = observable_values(forecast, truth, rng=rng)
    order = ("trajectory", np.arange(n), {"spacing": 0.5})
    return values.assign_coords(recording=("trajectory", np.zeros(n, int)), order=order) if together else values


def verdict(values: xr.Dataset) -> Verdict:
    (found,) = judge_observables(observable_diagnostics(values))
    return found


@pytest.mark.parametrize("rho", [0.0, 0.4, 0.8, 0.95])
def test_stretches_of_a_recording_are_not_faulted_more_often_than_promised(rho):
    """False-failure rate 1e-6; as independent trials 0.8 and 0.95 are faulted in 6 and 9 of 10 cases."""
    rng, repetitions = np.random.default_rng(6), 60
    words = Counter(verdict(stretches(rng, 60, rho)).word for _ in range(repetitions))
    alarms = repetitions - words[Word.CALIBRATED] - words[Word.TOO_FEW_DATA]
    assert alarms <= stats.binom.isf(1e-6, repetitions, FALSE_ALARM)
    if rho > 0.7:
        alone = [verdict(stretches(rng, 60, rho, together=False)).word for _ in range(20)]
        assert sum(word not in (Word.CALIBRATED, Word.TOO_FEW_DATA) for word in alone) > 5


def test_a_verdict_says_what_stretches_are_worth():
    rng = np.random.default_rng(7)
    found = verdict(stretches(rng, 300, 0.2))
    assert found.word == Word.CALIBRATED
    assert "; 300 stretches, equivalent to " in found.sentence
    assert "independent ones (decorrelation " in found.sentence
    assert found.sentence.endswith(" s)")
    few = verdict(stretches(rng, 60, 0.97))
    assert few.word == Word.TOO_FEW_DATA
    assert few.power == 0
    assert "but with 60 stretches, equivalent to " in few.sentence


def test_a_plain_fault_is_found_in_stretches():
    assert verdict(stretches(np.random.default_rng(8), 100, 0.5, spread=0.4)).word == Word.OVER_CONFIDENT


@pytest.mark.parametrize("kind", ["perfect", "under-dispersed"])
def test_one_trial_of_each_recording_changes_nothing(kind):
    rng = np.random.default_rng(9)
    forecast, truth = KNOWN[kind].draw(rng, trajectories=30, members=MEMBERS, steps=3)
    apart = {"recording": ("trajectory", np.arange(30)), "order": ("trajectory", np.zeros(30))}
    for variables, measure, diagnose, judge in (
        (["level"], observable_values, observable_diagnostics, judge_observables),
        (["vector"], field_values, field_diagnostics, judge_fields),
    ):
        values = measure(forecast[variables], truth[variables], rng=rng)
        alone, together = diagnose(values), diagnose(values.assign_coords(apart))
        assert (together["decorrelation"] == 1).all()
        for name in alone.data_vars:
            np.testing.assert_array_equal(together[name], alone[name], err_msg=str(name))
        assert [v.p_value for v in judge(together)] == [v.p_value for v in judge(alone)]


def test_every_error_of_dependent_trials_is_wider():
    rng = np.random.default_rng(10)
    values = stretches(rng, 80, 0.8)
    alone, together = observable_diagnostics(values.drop_vars(["recording", "order"])), observable_diagnostics(values)
    for name in ("crps_error", "bias_error", "shift_error", "stretch_error", "pooled_location_error"):
        assert (together[name] > 1.2 * alone[name]).all(), name
    for low, high in (("coverage_lower", "coverage_upper"), ("spread_skill_lower", "spread_skill_upper"), ("band_lower", "band_upper")):
        assert (together[high] - together[low]).mean() > 1.2 * (alone[high] - alone[low]).mean(), low
