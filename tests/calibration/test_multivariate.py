"""Multivariate ranks: uniform for a right forecast, not for wrong dependence. False-failure rate of a statistical test: 1e-6."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from epns_pyro.calibration.bands import rank_law
from epns_pyro.calibration.multivariate import PRE_RANKS, multivariate_pit
from epns_pyro.calibration.pit import ranks
from epns_pyro.errors import ShapeError


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def correlated(rng: np.random.Generator, shape: tuple[int, ...], correlation: float, components: int) -> np.ndarray:
    common = rng.normal(size=(*shape, 1))
    return np.sqrt(correlation) * common + np.sqrt(1 - correlation) * rng.normal(size=(*shape, components))


@pytest.mark.parametrize("name", PRE_RANKS)
@pytest.mark.parametrize("discrete", [False, True])
def test_a_right_forecast_has_uniform_ranks(rng, name, discrete):
    ensemble, truth = correlated(rng, (6, 7000), 0.5, 3), correlated(rng, (7000,), 0.5, 3)
    if discrete:
        ensemble, truth = np.round(ensemble), np.round(truth)  # most of the pool ties
    pit = multivariate_pit(ensemble, truth, PRE_RANKS[name], rng.random(7000))
    assert stats.chisquare(np.bincount(ranks(pit, 6), minlength=7)).pvalue > 1e-6


@pytest.mark.parametrize(("right", "forecast"), [(0.8, 0.0), (0.0, 0.8), (0.7, 0.3)])
def test_wrong_correlation_is_seen_although_every_margin_is_right(rng, right, forecast):
    ensemble, truth = correlated(rng, (50, 150), forecast, 4), correlated(rng, (150,), right, 4)
    law = rank_law(150, 50)
    p = {name: law.p_value(multivariate_pit(ensemble, truth, rank, rng.random(150))) for name, rank in PRE_RANKS.items()}
    assert p["disagreement"] < 1e-4
    assert min(p["average rank"], p["distance"]) < 1e-2
    margins = [law.p_value(((ensemble[..., i] < truth[:, i]).sum(0) + 0.5) / 51) for i in range(4)]
    assert min(margins) > 1e-3


def test_the_directions_are_those_that_the_descriptions_promise(rng):
    ensemble, truth = correlated(rng, (50, 500), 0.0, 4), correlated(rng, (500,), 0.8, 4)
    average, apart, _ = (multivariate_pit(ensemble, truth, rank, rng.random(500)) for rank in PRE_RANKS.values())
    assert np.abs(average - 0.5).mean() > 0.3  # members go together too little: truth is extreme on average
    assert apart.mean() < 0.3  # and its components disagree less


def test_distance_sees_correlations_that_cancel_in_the_average(rng):
    sign = np.array([1, -1, 1, -1])
    ensemble, truth = correlated(rng, (50, 200), 0.6, 4) * sign, rng.normal(size=(200, 4))
    assert rank_law(200, 50).p_value(multivariate_pit(ensemble, truth, PRE_RANKS["distance"], rng.random(200))) < 1e-6


def test_ranks_do_not_depend_on_units_and_few_members_do_no_harm(rng):
    ensemble, truth, uniforms = correlated(rng, (3, 40), 0.5, 6), correlated(rng, (40,), 0.5, 6), rng.random(40)
    for rank in PRE_RANKS.values():
        pit = multivariate_pit(ensemble, truth, rank, uniforms)
        np.testing.assert_allclose(multivariate_pit(np.exp(3 * ensemble), np.exp(3 * truth), rank, uniforms), pit)
        assert ((pit > 0) & (pit < 1)).all()


def test_sums_that_differ_in_the_last_digit_are_ties():
    ensemble, truth, uniforms = np.zeros((9, 50, 1)), np.zeros((50, 1)), np.linspace(0.01, 0.99, 50)

    def pre_rank(pool):
        return np.stack([np.full(pool.shape[1], 0.3), *[np.full(pool.shape[1], 0.1 + 0.2)] * (len(pool) - 1)])

    np.testing.assert_allclose(multivariate_pit(ensemble, truth, pre_rank, uniforms), uniforms)


def test_dead_members_and_unknown_truths(rng):
    ensemble, truth, uniforms = rng.normal(size=(8, 5, 3)), rng.normal(size=(5, 3)), rng.random(5)
    ensemble[2:4, 1, 0], ensemble[:, 2], truth[3, 1] = np.nan, np.nan, np.nan
    pit = multivariate_pit(ensemble, truth, PRE_RANKS["average rank"], uniforms)
    assert np.isnan(pit[[2, 3]]).all()
    alone = multivariate_pit(np.delete(ensemble[:, [1]], [2, 3], axis=0), truth[[1]], PRE_RANKS["average rank"], uniforms[[1]])
    assert pit[1] == alone[0]


def test_wrong_shapes_are_refused():
    with pytest.raises(ShapeError, match=r"found \(3, 4, 2\), \(4, 3\), \(4,\)"):
        multivariate_pit(np.zeros((3, 4, 2)), np.zeros((4, 3)), PRE_RANKS["distance"], np.zeros(4))
