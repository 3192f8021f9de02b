"""Scores against scoringrules, SciPy and closed forms. False-failure rate of a statistical test: 1e-6."""

from __future__ import annotations

import numpy as np
import pytest
import scoringrules
from scipy import stats

from epns_pyro.calibration import scores
from epns_pyro.errors import ShapeError

SIGMAS = 4.9  # two-sided 1e-6


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.mark.parametrize(("estimator", "theirs"), [("fair", "fair"), ("plain", "nrg")])
def test_ensemble_scores_equal_scoringrules(rng, estimator, theirs):
    ensemble, truth = rng.normal(size=(3, 12, 5, 4)), rng.normal(size=(3, 5, 4))  # (row, sample, row, component)
    options = {"m_axis": 1, "estimator": theirs, "backend": "numpy"}
    np.testing.assert_allclose(
        scores.crps(ensemble, truth, axis=1, estimator=estimator), scoringrules.crps_ensemble(truth, ensemble, **options), rtol=1e-12
    )
    np.testing.assert_allclose(
        scores.energy_score(ensemble, truth, axis=1, estimator=estimator), scoringrules.es_ensemble(truth, ensemble, **options), rtol=1e-12
    )
    np.testing.assert_allclose(
        scores.variogram_score(ensemble, truth, axis=1, estimator=estimator),
        scoringrules.vs_ensemble(truth, ensemble, **options),
        rtol=1e-9,
    )


@pytest.mark.parametrize("estimator", ["fair", "plain"])
def test_the_energy_score_of_one_component_is_the_crps(rng, estimator):
    ensemble, truth = rng.normal(size=(9, 20)), rng.normal(size=20)
    np.testing.assert_allclose(
        scores.energy_score(ensemble[..., None], truth[:, None], estimator=estimator), scores.crps(ensemble, truth, estimator=estimator)
    )


def test_the_crps_of_a_large_normal_ensemble_is_the_closed_form():
    quantiles = 1.5 + 2 * stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000)
    truth = np.array([-3.0, 1.5, 4.0])
    ensemble = np.broadcast_to(quantiles[:, None], (20_000, 3))
    np.testing.assert_allclose(scores.crps(ensemble, truth), scoringrules.crps_normal(truth, 1.5, 2.0, backend="numpy"), atol=2e-4)


def test_the_fair_crps_is_unbiased_for_few_members_and_the_plain_one_is_not(rng):
    ensemble, truth = rng.normal(size=(3, 40_000)), np.full(40_000, 0.4)
    exact = scoringrules.crps_normal(0.4, 0.0, 1.0, backend="numpy")
    fair, plain = (scores.mean_estimate(scores.crps(ensemble, truth, estimator=kind)) for kind in ("fair", "plain"))
    assert abs(fair.value - exact) < SIGMAS * fair.error
    assert plain.value - exact > 10 * plain.error


def test_the_fair_variogram_score_is_unbiased(rng):
    truth = np.broadcast_to([0.3, -0.8], (30_000, 2))
    few, many = rng.normal(size=(3, 30_000, 2)), rng.normal(size=(200_000, 1, 2))
    exact = scores.variogram_score(many, truth[:1])[0]
    estimate = scores.mean_estimate(scores.variogram_score(few, truth))
    assert abs(estimate.value - exact) < SIGMAS * estimate.error + 0.01


def test_the_energy_score_does_not_depend_on_the_block_size(rng, monkeypatch):
    ensemble, truth = rng.normal(size=(6, 11, 3)), rng.normal(size=(11, 3))
    whole = scores.energy_score(ensemble, truth)
    monkeypatch.setattr(scores, "PAIRS_IN_MEMORY", 6 * 6 * 3 * 2)
    np.testing.assert_allclose(scores.energy_score(ensemble, truth), whole, rtol=1e-13)


@pytest.mark.parametrize("score", [scores.crps, scores.energy_score, scores.variogram_score])
def test_dead_members_are_left_out_and_unknown_truths_score_nan(rng, score):
    vector = score is not scores.crps
    ensemble, truth = rng.normal(size=(8, 4, 3)), rng.normal(size=(4, 3))
    ensemble[2, 1], ensemble[5, 1, 0] = np.nan, np.inf  # a vector is dead if one of its components is
    ensemble[1:, 2] = np.nan  # one member is left
    truth[3, 0] = np.nan
    found = score(ensemble, truth)
    first = score(ensemble[[0, 1, 3, 4, 6, 7]], truth)
    assert found.shape == ((4,) if vector else (4, 3))
    np.testing.assert_array_equal(found[1] if vector else found[1, 0], first[1] if vector else first[1, 0])
    assert np.isnan(found[2]).all()
    assert np.isnan(found[3] if vector else found[3, 0])
    assert np.isfinite(found[0]).all()


def test_spread_and_skill_agree_for_a_calibrated_ensemble_of_any_size(rng):
    for members in (2, 3, 20):
        ensemble, truth = rng.normal(size=(members, 20_000)), rng.normal(size=20_000)
        found = scores.spread_skill(ensemble.mean(0), ensemble.var(0, ddof=1), members, truth)
        error = np.log(found.upper / found.ratio) / 1.96
        assert abs(np.log(found.ratio)) < SIGMAS * error
        assert found.rmse == pytest.approx(np.sqrt(1 + 1 / members), rel=0.05)
    narrow = scores.spread_skill(0.5 * ensemble.mean(0), 0.25 * ensemble.var(0, ddof=1), 20, truth)
    assert narrow.upper < 0.6


def test_the_interval_of_the_spread_skill_ratio_covers(rng):
    inside = 0
    for _ in range(400):
        ensemble, truth = rng.normal(size=(10, 60)), rng.normal(size=60)
        found = scores.spread_skill(ensemble.mean(0), ensemble.var(0, ddof=1), 10, truth)
        inside += found.lower <= 1 <= found.upper
    assert stats.binomtest(inside, 400, 0.95).pvalue > 1e-6


def test_densities_and_categories_equal_closed_forms(rng):
    mean, scale, truth = rng.normal(size=6), rng.uniform(0.5, 2, 6), rng.normal(size=6)
    np.testing.assert_allclose(scores.log_score_normal(mean, scale, truth), -stats.norm.logpdf(truth, mean, scale))
    np.testing.assert_array_equal(scores.log_score(np.array([-2.0, 1.0])), [2.0, -1.0])
    p = np.array([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0]])
    np.testing.assert_allclose(scores.brier_score(p, np.array([1, 0])), [0.25 + 0.49 + 0.04, 0])
    np.testing.assert_allclose(scores.log_score_categorical(p, np.array([1, 2])), [-np.log(0.3), np.inf])


def test_skill_is_paired_and_its_interval_covers(rng):
    inside, width, unpaired = 0, [], []
    for _ in range(400):
        hardness = np.exp(rng.normal(size=200))  # some trajectories are hard for everybody
        reference, score = hardness * rng.uniform(0.9, 1.1, 200), 0.7 * hardness * rng.uniform(0.9, 1.1, 200)
        skill = scores.skill_score(score, reference)
        low, high = skill.interval()
        inside += low <= 0.3 <= high
        width.append(skill.error)
        unpaired.append(score.std() / np.sqrt(200) / reference.mean())
    assert stats.binomtest(inside, 400, 0.95).pvalue > 1e-6
    assert np.mean(width) < np.mean(unpaired) / 3
    assert scores.skill_score(np.zeros(5), np.ones(5)).value == 1


def test_ks_distance_equals_scipy_with_and_without_ties(rng):
    for a, b in ((rng.normal(size=(30, 2)), rng.normal(size=(50, 2))), (rng.integers(0, 5, (30, 2)), rng.integers(1, 6, (50, 2)))):
        theirs = [stats.ks_2samp(a[:, i], b[:, i]).statistic for i in range(2)]
        np.testing.assert_allclose(scores.ks_distance(a, b), theirs)
        np.testing.assert_allclose(scores.ks_distance(a.T, b.T, axis=1), theirs)


def test_energy_distance_equals_its_definition_and_is_zero_on_average(rng):
    a, b = rng.normal(size=(7, 3)), rng.normal(size=(5, 3))

    def mean_pair(x, y, same):
        pairs = [np.linalg.norm(p - q) for i, p in enumerate(x) for j, q in enumerate(y) if not same or i != j]
        return np.mean(pairs)

    by_hand = 2 * mean_pair(a, b, False) - mean_pair(a, a, True) - mean_pair(b, b, True)
    assert scores.energy_distance(a, b) == pytest.approx(by_hand, rel=1e-12)
    draws = scores.mean_estimate([scores.energy_distance(rng.normal(size=(6, 2)), rng.normal(size=(9, 2))) for _ in range(2000)])
    assert abs(draws.value) < SIGMAS * draws.error


def test_difference_of_means_is_welch(rng):
    a, b = rng.normal(1, 2, 40), rng.normal(0, 1, 90)
    found = scores.difference_of_means(a, b)
    assert found.value / found.error == pytest.approx(stats.ttest_ind(a, b, equal_var=False).statistic)
    a[3] = np.nan
    assert scores.difference_of_means(a, b).value == pytest.approx(np.nanmean(a) - b.mean())


def test_wrong_input_is_refused_in_one_line():
    with pytest.raises(ShapeError, match=r"without its sample axis has shape \(4,\), the truth \(5,\)"):
        scores.crps(np.zeros((3, 4)), np.zeros(5))
    with pytest.raises(ShapeError, match="estimator must be one of fair, plain, found 'nrg'"):
        scores.crps(np.zeros((3, 4)), np.zeros(4), estimator="nrg")
    with pytest.raises(ShapeError, match="labels must be integers, found dtype float64"):
        scores.brier_score(np.ones((2, 3)) / 3, np.zeros(2))
    with pytest.raises(ShapeError, match=r"need labels of shape \(2,\), found \(3,\)"):
        scores.log_score_categorical(np.ones((2, 3)) / 3, np.zeros(3, int))
    with pytest.raises(ShapeError, match="differ in more than their size"):
        scores.ks_distance(np.zeros((3, 2)), np.zeros((3, 1)))
