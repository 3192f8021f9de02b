"""The rank-ECDF test against enumeration and simulation. False-failure rate of a statistical test: 1e-6."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from epns_pyro.calibration import bands
from epns_pyro.errors import ConfigError


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


@pytest.mark.parametrize(("n", "members"), [(1, 1), (3, 1), (5, 2), (4, 4), (6, 3)])
def test_p_values_equal_the_enumeration_of_every_outcome(n, members):
    law = bands.RankLaw(n, members)
    every = (np.array(list(product(range(members + 1), repeat=n))) + 0.5) / (members + 1)  # all equally likely
    gamma = law.statistic(every)
    exact = (gamma[:, None] * bands.SAME >= gamma).mean(1)
    np.testing.assert_allclose(law.p_value(every), exact, rtol=1e-9)
    for prob in (0.5, 0.8, 0.95):
        rare = exact <= 1 - prob + 1e-12
        assert law.critical(prob) == pytest.approx(gamma[rare].max() if rare.any() else 0)


@pytest.mark.parametrize(("n", "members", "prob"), [(10, 9, 0.95), (50, 20, 0.8), (100, 100, 0.95), (30, 1000, 0.9), (400, 50, 0.95)])
def test_bands_hold_their_probability_and_never_less(rng, n, members, prob):
    law = bands.rank_law(n, members)
    pit = rng.random((4000, n))
    band, difference = law.band(prob), bands.ecdf_difference(pit, law)
    left = ((difference < band.lower - band.level - 1e-12) | (difference > band.upper - band.level + 1e-12)).any(-1)
    np.testing.assert_array_equal(left, law.p_value(pit) <= 1 - prob)  # the same event
    size = 1 - law._stays(np.array([law.critical(prob)]), law.level)[0]
    assert size <= 1 - prob
    assert size > 0.75 * (1 - prob)  # and not much less: the counts are whole numbers
    assert stats.binomtest(int(left.sum()), 4000, size).pvalue > 1e-6


def test_the_grid_looks_at_whole_ranks_and_is_bounded():
    assert len(bands.rank_law(10, 1000).cells) == bands.GRID_POINTS
    np.testing.assert_array_equal(bands.rank_law(10, 4).cells, [1, 2, 3, 4])
    assert bands.rank_law(10, 4) is bands.rank_law(10, 4)


def test_an_ecdf_far_out_has_the_least_p_value_and_a_typical_one_a_large(rng):
    law = bands.rank_law(100, 50)
    p = law.p_value(np.stack([np.full(100, 0.999), (np.arange(100) + 0.5) / 100]))
    assert p[0] == 1e-12
    assert p[1] > 0.99


@pytest.mark.parametrize(("spread", "shift"), [(0.7, 0.0), (1.5, 0.0), (1.0, 0.4)])
def test_exact_power_equals_simulation(rng, spread, shift):
    n, members = 60, 20
    law = bands.rank_law(n, members)
    truth = rng.normal(size=(2000, n))
    ensemble = shift + spread * rng.normal(size=(members, 2000, n))
    pit = ((ensemble < truth).sum(0) + 0.5) / (members + 1)
    found = int((law.p_value(pit) <= 0.05).sum())
    power = law.power(0.95, spread=spread, shift=shift)
    assert abs(found / 2000 - power) < 4.9 * np.sqrt(power * (1 - power) / 2000) + 0.003  # the second: integration over the truth


def test_power_of_a_right_forecast_is_the_size():
    law = bands.rank_law(50, 20)
    assert law.power(0.95, spread=1.0) == pytest.approx(1 - law._stays(np.array([law.critical(0.95)]), law.level)[0], abs=2e-3)


def test_a_forecast_of_the_stated_spread_covers_what_is_stated():
    spread = bands.spread_that_covers(0.7)
    assert stats.norm.cdf(spread * stats.norm.ppf(0.95)) * 2 - 1 == pytest.approx(0.7)


@pytest.mark.parametrize(("method", "theirs"), [("wilson", "wilson"), ("clopper-pearson", "exact")])
def test_proportion_intervals_equal_scipy(method, theirs):
    successes = np.array([0, 3, 71, 100])
    low, high = bands.proportion_interval(successes, 100, 0.9, method)
    expected = [stats.binomtest(int(k), 100).proportion_ci(0.9, theirs) for k in successes]
    np.testing.assert_allclose(low, [ci.low for ci in expected], atol=1e-12)
    np.testing.assert_allclose(high, [ci.high for ci in expected], atol=1e-12)
    assert np.isnan(bands.proportion_interval(0, 0, method=method)).all()


def test_proportion_bands_hold_at_least_their_probability():
    for n, nominal in ((20, 0.9), (100, 0.5)):
        low, high = bands.proportion_band(np.array(nominal), n)
        inside = stats.binom.cdf(round(high * n), n, nominal) - stats.binom.cdf(round(low * n) - 1, n, nominal)
        assert 0.95 <= inside < 0.99


def test_wrong_input_is_refused_in_one_line():
    with pytest.raises(ConfigError, match="at least one trajectory and one member, found 0 and 5"):
        bands.rank_law(0, 5)
    with pytest.raises(ConfigError, match="between 0 and 1, found 95"):
        bands.rank_law(10, 5).band(95)
    with pytest.raises(ConfigError, match="'wilson' or 'clopper-pearson', found 'wald'"):
        bands.proportion_interval(1, 2, method="wald")
