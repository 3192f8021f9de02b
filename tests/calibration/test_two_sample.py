"""Two-sample tests: size, power and the words they find. False-failure rate of a statistical test: 1e-6."""

from __future__ import annotations

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
    np.testing.assert_allclose([stats.ks_2samp(a[:, i], b[:, i]).pvalue for i in range(3)], ks.p_value, atol=0.1)
    energy = ts.energy_test(a, b, rng=rng, scale=np.ones(3))
    assert energy.statistic == pytest.approx(energy_distance(a, b))
    assert abs(energy.typical) < 0.01


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
    assert certain.p_value == pytest.approx(1 / 501)


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
