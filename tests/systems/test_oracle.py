"""The law of one frame of the celestial system: against a slow reference, Monte Carlo and its symmetry.

False-failure rate of a statistical test: 1e-6.
"""

from __future__ import annotations

import numpy as np
import pytest
import slow_nbody
from scipy import stats

from epns_pyro.errors import ShapeError
from epns_pyro.systems import NBodyConfig, trajectory_seeds
from epns_pyro.systems.nbody import NBody

FALSE_FAILURE = 1e-6


def make(**changes) -> NBody:
    return NBodyConfig(**changes).build()


def states(system: NBody, n: int, seed: int = 0) -> np.ndarray:
    return system.initial(n, np.random.default_rng(seed))


@pytest.fixture(scope="module")
def transitions() -> tuple[NBody, np.ndarray, np.ndarray]:
    """4,000 transitions from all over 400 trajectories."""
    system = make()
    x = system.simulate(states(system, 400), 100, trajectory_seeds(0, "test", 400))
    return system, x[:, :-1:10].reshape(-1, 5, 7), x[:, 1::10].reshape(-1, 5, 7)


@pytest.fixture(scope="module")
def scores(transitions) -> np.ndarray:
    return transitions[0].transition_log_prob(*transitions[1:])


# -- mean and covariance -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bodies", [2, 3, 5])
def test_law_is_that_of_the_slow_reference(bodies):
    system = make(bodies=bodies, gravitational_constant=1.3, softening=0.2, sigma=0.3, dt=0.01, frame_dt=0.1)
    x = states(system, 1)[0]
    m, r, v = (system.spec.get(x, name) for name in ("mass", "position", "velocity"))
    mean, covariance = system.transition_law(x)
    r, v, P = slow_nbody.law(m, r, v, G=1.3, eps=0.2, sigma=0.3, dt=0.01, steps=10)
    np.testing.assert_allclose(mean, system.spec.pack_dynamic(position=r, velocity=v), rtol=0, atol=1e-12)
    # the reference has all positions first; a state has the fields of a body together
    place = np.arange(6 * bodies).reshape(2, bodies, 3).swapaxes(0, 1).ravel()
    np.testing.assert_allclose(covariance, P[np.ix_(place, place)], rtol=1e-9, atol=1e-14)


def test_mean_is_the_walk_without_noise():
    noisy, quiet = make(), make(sigma=0)
    x = states(noisy, 4)
    np.testing.assert_array_equal(noisy.transition_law(x)[0], noisy.spec.dynamic(quiet.simulate(x, 1, np.arange(4))[:, 1]))


def test_law_against_monte_carlo():
    n = 100_000
    system = make()
    x = states(system, 1, seed=2)
    y = system.simulate(np.repeat(x, n, axis=0), 1, trajectory_seeds(0, "monte carlo", n))[:, 1]
    mean, covariance = system.transition_law(x[0])
    root = np.linalg.cholesky(covariance)
    white = np.linalg.solve(root, (system.spec.dynamic(y) - mean).reshape(n, -1).T)  # (30, n), N(0, 1) each if the law is right
    tests = 30 + 30 * 31 // 2
    z = stats.norm.isf(FALSE_FAILURE / tests / 2)
    assert np.abs(white.mean(1)).max() < z / np.sqrt(n)
    moments = white @ white.T / n - np.eye(30)
    assert np.abs(moments / np.where(np.eye(30) == 1, np.sqrt(2), 1)).max() < z / np.sqrt(n)
    assert stats.kstest((white**2).sum(0), stats.chi2(30).cdf).pvalue > FALSE_FAILURE


def test_mahalanobis_distances_of_the_data_are_chi_squared(transitions, scores):
    system, x, _ = transitions
    _, log_det = np.linalg.slogdet(system.transition_law(x)[1])
    squared = -2 * scores - log_det - 30 * np.log(2 * np.pi)
    assert stats.kstest(squared, stats.chi2(30).cdf).pvalue > FALSE_FAILURE


def test_covariance_in_free_flight_is_that_of_the_kicks_at_every_stride():
    for oracle_dt in (None, 0.002, 0.01, 0.1):
        system = make(gravitational_constant=1e-30, sigma=0.3, oracle_dt=oracle_dt)
        covariance = system.transition_law(states(system, 1))[1][0]
        left = np.arange(100)[::-1] * 1e-3
        rr, rv, vv = (0.3**2 * 1e-3 * s for s in ((left**2).sum(), left.sum(), 100))
        block = np.kron([[rr, rv], [rv, vv]], np.eye(3))
        np.testing.assert_allclose(covariance, np.kron(np.eye(5), block), rtol=1e-10, atol=1e-18)


# -- scores --------------------------------------------------------------------------------------------------------------


def test_log_prob_is_that_of_scipy(transitions):
    system, x, y = transitions
    for before, after in zip(x[:3], y[:3], strict=True):
        mean, covariance = system.transition_law(before)
        exact = stats.multivariate_normal(mean.ravel(), covariance).logpdf(system.spec.dynamic(after).ravel())
        assert system.transition_log_prob(before, after) == pytest.approx(exact, abs=1e-6)


def test_known_scores_of_the_default_system(transitions, scores):
    """The full law scores 114.3 nats per transition, its diagonal 104.0: ten nats are in the correlations."""
    system, x, y = transitions
    assert scores.mean() == pytest.approx(114.3, abs=0.6)  # standard error 0.1
    diagonal = system.diagonal_log_prob(x, y)
    assert diagonal.mean() == pytest.approx(104.0, abs=0.6)
    assert (scores - diagonal).mean() == pytest.approx(10.3, abs=0.2)
    isotropic = system.diagonal_log_prob(x, y, isotropic=True)
    assert 0 < (diagonal - isotropic).mean() < 0.05


def test_coarser_oracle_gives_the_same_scores(transitions, scores):
    _, x, y = transitions
    coarse = make(oracle_dt=0.005).transition_log_prob(x, y)
    assert abs((coarse - scores).mean()) < 1e-3
    assert np.abs(coarse - scores).max() < 0.3  # close encounters
    assert (coarse != scores).any()


def test_diagonal_score_is_the_product_of_the_marginals(transitions):
    system, x, y = transitions
    mean, covariance = system.transition_law(x[0])
    std = np.sqrt(np.diagonal(covariance)).reshape(5, 6)
    exact = stats.norm(mean, std).logpdf(system.spec.dynamic(y[0]))
    by_field = system.diagonal_log_prob_by_field(x[0], y[0])
    assert by_field == pytest.approx({"position": exact[:, :3].sum(), "velocity": exact[:, 3:].sum()}, abs=1e-8)
    assert system.diagonal_log_prob(x[0], y[0]) == pytest.approx(exact.sum(), abs=1e-8)
    pooled = np.sqrt((std**2).reshape(5, 2, 3).mean(-1, keepdims=True) + np.zeros(3)).reshape(5, 6)
    exact = stats.norm(mean, pooled).logpdf(system.spec.dynamic(y[0])).sum()
    assert system.diagonal_log_prob(x[0], y[0], isotropic=True) == pytest.approx(exact, abs=1e-8)


def test_oracle_is_invariant_under_the_group(transitions, scores):
    system, x, y = transitions
    rng = np.random.default_rng(0)
    isotropic = system.diagonal_log_prob(x[:50], y[:50], isotropic=True)
    for _ in range(4):
        g = system.symmetry.random(x, rng)
        moved = system.spec.act(g, x[:50]), system.spec.act(g, y[:50])
        np.testing.assert_allclose(system.transition_log_prob(*moved), scores[:50], rtol=1e-9)
        np.testing.assert_allclose(system.diagonal_log_prob(*moved, isotropic=True), isotropic, rtol=1e-9)


def test_batches_of_any_shape(transitions, scores):
    system, x, y = transitions
    shaped = system.transition_log_prob(x[:6].reshape(2, 3, 5, 7), y[:6].reshape(2, 3, 5, 7))
    np.testing.assert_array_equal(shaped, scores[:6].reshape(2, 3))
    mean, covariance = system.transition_law(x[:6].reshape(2, 3, 5, 7))
    assert (mean.shape, covariance.shape) == ((2, 3, 5, 6), (2, 3, 30, 30))
    one_to_many = system.transition_log_prob(x[0], y[:4])
    assert one_to_many.shape == (4,)
    assert one_to_many[0] == scores[0]
    assert system.transition_log_prob(x[:0], y[:0]).shape == (0,)
    assert system.diagonal_log_prob(x[:0], y[:0]).shape == (0,)


def test_many_transitions_are_scored_in_pieces(transitions):
    system = make(oracle_dt=0.1)
    _, x, y = transitions
    x, y = np.tile(x, (3, 1, 1)), np.tile(y, (3, 1, 1))  # more than one piece holds
    scores = system.transition_log_prob(x, y).reshape(3, -1)
    np.testing.assert_array_equal(scores[0], scores[1])
    np.testing.assert_array_equal(scores[0], scores[2])


def test_law_belongs_to_the_state_not_to_the_config(transitions):
    system, *_ = transitions
    three = states(make(bodies=3), 2)
    assert system.transition_law(three)[1].shape == (2, 18, 18)


# -- errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"sigma": 0}, {"dt": 0.1}])
def test_no_density_without_noise_or_with_a_single_step(changes):
    system = make(**changes)
    x = states(system, 1)
    assert not system.has_oracle
    for ask in (system.transition_log_prob, system.diagonal_log_prob):
        with pytest.raises(TypeError, match="needs noise and at least two steps"):
            ask(x, x)


def test_shapes_that_do_not_fit_are_named():
    system = make()
    x = states(system, 3)
    with pytest.raises(ShapeError, match=r"\(3, 5, 7\) and the next states \(3, 4, 7\)"):
        system.transition_log_prob(x, x[:, :4])
    with pytest.raises(ShapeError, match="the next state: expected"):
        system.transition_log_prob(x, system.spec.dynamic(x))
