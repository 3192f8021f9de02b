"""The compiled generators: published test vectors, and the laws they claim. False-failure rate of a statistical test: 1e-6."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from numba import njit
from scipy import stats

from epns_pyro.errors import ConfigError
from epns_pyro.systems import rng as random
from epns_pyro.threads import limited

FALSE_FAILURE = 1e-6


@njit
def draws(sample, n, seed):
    rng, out = random.seeded(seed), np.empty(n)
    for i in range(n):
        out[i] = sample(rng)
    return out


def test_splitmix64_seeds_by_its_published_vector():
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert random.seeded(np.uint64(1234567)).tolist() == expected


def test_xoshiro256_plus_plus_gives_its_published_vector():
    rng = np.array([1, 2, 3, 4], np.uint64)
    expected = [41943041, 58720359, 3588806011781223, 3591011842654386, 9228616714210784205, 9973669472204895162]
    assert [int(random.bits64(rng)) for _ in expected] == expected


def test_largest_seed_is_a_seed():
    top = random.seeded(np.uint64(2**64 - 1))
    assert top.dtype == np.uint64
    assert len(set(top.tolist())) == 4


@pytest.mark.parametrize("n", [1, 7, 41472, 2**32 - 1])
def test_below_is_the_high_word_of_the_product(n):
    rng = random.seeded(np.uint64(3))
    twin = rng.copy()
    for _ in range(2000):
        assert random.below(rng, n) == (int(random.bits64(twin)) * n) >> 64


def test_below_is_uniform():
    rng = random.seeded(np.uint64(5))
    counts = np.bincount([random.below(rng, 12) for _ in range(60_000)], minlength=12)
    assert stats.chisquare(counts).pvalue > FALSE_FAILURE


@pytest.mark.parametrize(
    ("sample", "law"), [(random.uniform, stats.uniform), (random.exponential, stats.expon), (random.normal, stats.norm)]
)
def test_law(sample, law):
    x = draws(sample, 1_000_000, np.uint64(7))
    assert stats.kstest(x, law.cdf).pvalue > FALSE_FAILURE
    assert abs(stats.pearsonr(x[1:], x[:-1]).statistic) * 1e3 < stats.norm.isf(FALSE_FAILURE / 2)


def test_normal_has_the_right_tails():
    # The Kolmogorov-Smirnov distance does not look there: count what lies beyond edges that the tail code alone can reach.
    x = draws(random.normal, 4_000_000, np.uint64(11))
    for edge in (3.0, random._TAIL, 4.2):
        for tail in (x > edge, x < -edge):
            assert stats.binomtest(int(tail.sum()), x.size, stats.norm.sf(edge)).pvalue > FALSE_FAILURE


def test_thread_limit_is_kept_and_restored():
    with limited(None):
        pass  # starts numba's threads; to ask numba outside would leave torch with as many
    before = numba.get_num_threads()
    with limited(1):
        assert numba.get_num_threads() == 1
    with limited(10_000):
        assert numba.get_num_threads() == numba.config.NUMBA_NUM_THREADS
    assert numba.get_num_threads() == before
    with pytest.raises(ConfigError, match="workers must be at least 1, found 0"), limited(0):
        pass
