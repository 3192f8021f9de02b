"""Two-sample tests: size, power and the words they find. False-failure rate of a statistical test: 1e-6."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from epns_pyro.calibration import two_sample as ts
from epns_pyro.calibration.scores import energy_distance, ks_distance
from epns_pyro.errors import DataError, ShapeError

TESTS = {
    "ks": lambda a, b, rng: ts.ks_test(a[:, 0], b[:, 0], rng=rng, relabellings=99),
    "energy": lambda a, b, rng: ts.energy_test(a, b, rng=rng, relabellings=99),
    "classifier": lambda a, b, rng: ts.classifier_test(a, b, rng=rng, relabellings=99),
}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(2)


def rejections(test, draw_model, draw_truth, rng: np.random.Generator, repetitions: int) -> int:
    return sum(bool(TESTS[test](draw_model(), draw_truth(), rng).p_value <= 0.05) for _ in range(repetitions))


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize("discrete", [False, True])
def test_two_samples_of_one_law_are_told_apart_one_time_in_twenty(rng, test, discrete):
    def draw(n):
        return rng.poisson(1.5, (n, 2)) if discrete else rng.normal(size=(n, 2))

    hits = rejections(test, lambda: draw(30), lambda: draw(45), rng, 150)
    assert hits <= stats.binom.isf(1e-6, 150, 0.05)
    assert hits >= 1 or discrete  # a test of few distinct values may be cautious


@pytest.mark.parametrize(
    ("test", "change"),
    [
        ("ks", lambda x: x + 0.8),
        ("energy", lambda x: x + 0.8),
        ("energy", lambda x: 2 * x),
        ("classifier", lambda x: x + 0.8),
        ("classifier", lambda x: 2 * x),
        ("classifier", lambda x: x + 1.5 * x[:, ::-1]),  # correlated
    ],
)
def test_different_laws_are_found(rng, test, change):
    hits = rejections(test, lambda: change(rng.normal(size=(100, 2))), lambda: rng.normal(size=(100, 2)), rng, 20)
    assert hits >= 17


def test_statistics_are_those_of_the_scores_and_floors_those_of_relabelling(rng):
    a, b = rng.normal(size=(60, 3)), rng.normal(size=(80, 3))
    ks = ts.ks_test(a, b, rng=rng, relabellings=400)
    np.testing.assert_allclose(ks.statistic, ks_distance(a, b))
    assert ks.statistic.shape == ks.floor.shape == ks.p_value.shape == (3,)
    np.testing.assert_allclose(ks.floor, 1.358 * np.sqrt(1 / 60 + 1 / 80), rtol=0.12)  # Kolmogorov's asymptotic quantile
    assert (ks.typical < ks.floor).all()
    np.testing.assert_array_equal(ks.p_value <= 0.05, ks.statistic > ks.floor)
    np.testing.assert_allclose([stats.ks_2samp(a[:, i], b[:, i], method="exact").pvalue for i in range(3)], ks.p_value, rtol=1e-9)
    energy = ts.energy_test(a, b, rng=rng, scale=np.ones(3))
    assert energy.statistic == pytest.approx(energy_distance(a, b))
    assert abs(energy.typical) < 0.01


@pytest.mark.parametrize("values", [range(9), [0, 0, 1, 1, 1, 2, 3, 3, 3], [0, 0, 0, 0, 0, 0, 0, 0, 1], [0] * 9], ids=str)
def test_p_values_of_ks_are_the_share_of_all_relabellings_with_and_without_ties(values):
    """Counted by hand: all 126 ways to call four of nine values the first sample."""
    pooled = np.array(values, float)
    first = np.array([np.isin(np.arange(9), some) for some in itertools.combinations(range(9), 4)])
    reached = np.array([ks_distance(pooled[one], pooled[~one]) for one in first])
    expected = [(reached >= d - 1e-12).mean() for d in reached]
    np.testing.assert_allclose(ts.ks_p_value(reached, np.repeat(pooled[:, None], len(reached), 1), 4), expected)


def test_p_values_of_ks_can_be_as_small_as_the_data_make_them(rng):
    a, b = rng.normal((9, 0.6), size=(200, 2)), rng.normal(size=(200, 2))
    p = ts.ks_test(a, b, rng=rng, relabellings=20).p_value
    assert p[0] == pytest.approx(2 / math.comb(400, 200))
    assert 0 < p[1] < 1e-5


@pytest.mark.parametrize("test", [ts.energy_test, ts.classifier_test])
def test_relabellings_are_enough_for_one_of_many_tests_whatever_the_pieces(rng, test, monkeypatch):
    a, b, tests = rng.normal(size=(30, 2)) + 3, rng.normal(size=(30, 2)), 60
    relabellings = ts.relabellings_for(tests)
    found = test(a, b, rng=np.random.default_rng(1), relabellings=relabellings)
    assert found.p_value * tests < ts.FALSE_ALARM / 5
    monkeypatch.setattr(ts, "BLOCK", 700)
    again = test(a, b, rng=np.random.default_rng(1), relabellings=relabellings)
    assert (again.p_value, again.statistic) == (found.p_value, pytest.approx(found.statistic))


def test_the_energy_test_does_not_depend_on_units(rng):
    a, b = rng.normal(size=(40, 2)), rng.normal(size=(40, 2)) * [1, 3]
    plain = ts.energy_test(a, b, rng=np.random.default_rng(0))
    scaled = ts.energy_test(a * [1, 1000], b * [1, 1000], rng=np.random.default_rng(0))
    assert plain.statistic == pytest.approx(scaled.statistic)
    assert plain.p_value == scaled.p_value


def test_a_classifier_is_right_half_the_time_by_chance_whatever_the_sizes(rng):
    found = [ts.classifier_test(rng.normal(size=(20, 2)), rng.normal(size=(120, 2)), rng=rng, relabellings=20).statistic for _ in range(60)]
    assert np.mean(found) == pytest.approx(0.5, abs=0.05)
    found = [ts.classifier_test(rng.normal(size=(30, 2)) + 1.5, rng.normal(size=(300, 2)), rng=rng).statistic for _ in range(20)]
    assert np.mean(found) > 0.78  # the best is 86%: both samples count the same
    certain = ts.classifier_test(rng.normal(size=(50, 1)) + 9, rng.normal(size=(50, 1)), rng=rng)
    assert certain.statistic == 1
    assert certain.lower > 0.9
    assert certain.p_value == pytest.approx(1 / 1001)


def test_the_same_seed_gives_the_same_numbers(rng):
    a, b = rng.normal(size=(30, 12)), rng.normal(size=(30, 12))
    one, two = (ts.classifier_test(a, b, rng=np.random.default_rng(4)) for _ in range(2))
    assert one == two


def test_sentences(rng):
    a, b = rng.normal(size=(100, 1)), rng.normal(size=(100, 1))
    assert ts.ks_test(a[:, 0], b[:, 0], rng=rng).sentence().startswith("model and truth cannot be told apart: D_KS 0.")
    assert ts.ks_test(a[:, 0] + 3, b[:, 0], rng=rng).sentence().startswith("model and truth differ: D_KS 0.")
    assert "(p = " in ts.classifier_test(a + 3, b, rng=rng).sentence()
    assert "can be told apart: a classifier is right 9" in ts.classifier_test(a + 3, b, rng=rng).sentence()
    assert ts.means_sentence(a[:, 0] + 1, a[:, 0], unit="J").startswith("mean of the model minus mean of the truth: +1 ± 0.1")


def test_wrong_input_is_refused_in_one_line(rng):
    with pytest.raises(ShapeError, match=r"differ only in the number of runs, found \(5, 2\) and \(5, 3\)"):
        ts.energy_test(np.zeros((5, 2)), np.zeros((5, 3)), rng=rng)
    with pytest.raises(DataError, match="at least 10 runs of each, found 9 and 20"):
        ts.classifier_test(np.zeros((9, 1)), np.zeros((20, 1)), rng=rng)
    with pytest.raises(DataError, match="the model holds NaN or infinite values in 1 runs"):
        ts.ks_test(np.array([1.0, np.nan]), np.zeros(3), rng=rng)
    with pytest.raises(DataError, match="at least 2 runs each, found 1 and 3"):
        ts.ks_test(np.zeros(1), np.zeros(3), rng=rng)
