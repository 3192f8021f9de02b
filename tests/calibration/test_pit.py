"""PIT values, ranks, coverage and contrasts. False-failure rate of a statistical test: 1e-6."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from epns_pyro.calibration import pit as p
from epns_pyro.errors import ConfigError, ShapeError


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def uniform_p_value(pit: np.ndarray, cells: int) -> float:
    return stats.chisquare(np.bincount((pit * cells).astype(int), minlength=cells)).pvalue


@pytest.mark.parametrize("members", [1, 2, 9, 40])
def test_pit_values_are_exactly_uniform_for_any_number_of_members_and_any_ties(rng, members):
    for draw in (lambda size: rng.normal(size=size), lambda size: rng.integers(0, 3, size), lambda size: np.zeros(size)):
        ensemble, truth = draw((members, 20_000)), draw(20_000)
        pit = p.pit_values(ensemble, truth, rng.random(20_000))
        assert uniform_p_value(pit, 20) > 1e-6
        counts = np.bincount(p.ranks(pit, members), minlength=members + 1)
        assert len(counts) == members + 1
        assert stats.chisquare(counts).pvalue > 1e-6


def test_ranks_without_ties_are_the_number_of_members_below(rng):
    ensemble, truth = rng.normal(size=(50, 12, 7)), rng.normal(size=(50, 7))
    pit = p.pit_values(ensemble, truth, rng.random((50, 7)), axis=1)
    np.testing.assert_array_equal(p.ranks(pit, 12), (ensemble < truth[:, None]).sum(1))


def test_ties_spread_the_truth_over_the_tied_places(rng):
    ensemble = np.array([0.0, 1, 1, 1, 2])[:, None] * np.ones((1, 30_000))
    rank = p.ranks(p.pit_values(ensemble, np.ones(30_000), rng.random(30_000)), 5)
    counts = np.bincount(rank, minlength=6)
    assert counts[[0, 5]].sum() == 0
    assert stats.chisquare(counts[1:5]).pvalue > 1e-6


def test_dead_members_are_left_out_and_the_rest_stays_uniform(rng):
    ensemble, truth = rng.normal(size=(9, 20_000)), rng.normal(size=20_000)
    ensemble[rng.random(ensemble.shape) < 0.4] = np.nan
    ensemble[:, :5], truth[5:9] = np.nan, np.nan
    pit = p.pit_values(ensemble, truth, rng.random(20_000))
    assert np.isnan(pit[:9]).all()
    assert np.isfinite(pit[9:]).sum() > 19_900
    known = pit[np.isfinite(pit)]
    assert uniform_p_value(known, 20) > 1e-6
    assert stats.chisquare(np.bincount(p.ranks(known, 9), minlength=10)).pvalue > 1e-6
    assert (p.ranks(pit[:9], 9) == -1).all()


@pytest.mark.parametrize("members", [2, 3, 5, 10, 19, 20, 99, 100])
@pytest.mark.parametrize("prob", [0.5, 0.8, 0.9, 0.95])
def test_nominal_levels_are_what_the_interval_covers_exactly(rng, members, prob):
    interval = p.central_interval(members, prob)
    every_rank = (np.arange(members + 1) + 0.5) / (members + 1)
    assert interval.covers(every_rank).mean() == pytest.approx(interval.nominal)
    assert abs(interval.nominal - prob) <= max(1 / (members + 1), abs(p.central_interval(members, 0.999).nominal - prob)) + 1e-12
    ensemble, truth = rng.normal(size=(members, 20_000)), rng.normal(size=20_000)
    low, high = interval.ends(ensemble)
    inside = int(((low < truth) & (truth < high)).sum())
    assert stats.binomtest(inside, 20_000, interval.nominal).pvalue > 1e-6
    np.testing.assert_array_equal(interval.covers(p.pit_values(ensemble, truth, rng.random(20_000))), (low < truth) & (truth < high))


def test_99_members_give_the_round_levels():
    assert [p.central_interval(99, level).nominal for level in (0.5, 0.8, 0.9)] == pytest.approx([0.5, 0.8, 0.9])


def test_ends_leave_dead_members_out():
    ensemble = np.concatenate([np.arange(9.0), np.full(10, np.nan)])[:, None]
    low, high = p.central_interval(19, 0.8).ends(ensemble)  # the second from either end of 19, so the first of 9
    assert (low[0], high[0]) == (0.0, 8.0)
    assert np.isnan(p.central_interval(19, 0.8).ends(np.full((19, 1), np.nan))).all()


@pytest.mark.parametrize("members", [2, 7, 100])
def test_contrasts_have_mean_0_and_variance_1_over_equally_likely_ranks(members):
    every_rank = (np.arange(members + 1) + 0.5) / (members + 1)
    for contrast in (p.location, p.dispersion):
        values = contrast(every_rank, members)
        assert values.mean() == pytest.approx(0, abs=1e-12)
        assert (values**2).mean() == pytest.approx(1)
    assert (p.location(every_rank, members) * p.dispersion(every_rank, members)).mean() == pytest.approx(0, abs=1e-12)
    assert (np.diff(p.location(every_rank, members)) > 0).all()
    assert p.dispersion(every_rank, members)[[0, -1]].min() > 0
    variance, spare = p.normal_score_moments(members)
    score = p.normal_scores(every_rank, members)
    assert variance == pytest.approx((score**2).mean())
    assert spare == pytest.approx(((score**2 / variance - 1) ** 2).mean())
    assert np.isnan(p.location(np.array([np.nan]), members)).all()


@pytest.mark.parametrize(("members", "bins"), [(100, 10), (7, 10), (9, 4)])
def test_rank_histograms_count_everybody_and_expect_the_right_share(rng, members, bins):
    pit = rng.random((3, 5000))
    pit[0, :100] = np.nan
    found = p.rank_histogram(pit, members, bins)
    np.testing.assert_array_equal(found.count.sum(-1), [4900, 5000, 5000])
    np.testing.assert_allclose(found.expected.sum(-1), [4900, 5000, 5000])
    assert len(found.edges) == min(bins, members + 1) + 1
    for count, expected in zip(found.count, found.expected, strict=True):
        assert stats.chisquare(count, expected).pvalue > 1e-6
    np.testing.assert_array_equal(p.counts_below(pit, members, np.array([3]))[..., 0], (pit < 3 / (members + 1)).sum(-1))


def test_wrong_input_is_refused_in_one_line():
    with pytest.raises(ShapeError, match="must have one shape"):
        p.pit_values(np.zeros((3, 4)), np.zeros(4), np.zeros(5))
    with pytest.raises(ConfigError, match="at least 2 members, found 1"):
        p.central_interval(1, 0.9)
    with pytest.raises(ConfigError, match=r"between 0 and 1, found 90"):
        p.central_interval(10, 90)
