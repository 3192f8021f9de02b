"""Silicon: known energies of small clusters, forces, what is conserved, and the law of one frame. False-failure rate of a test: 1e-6."""

from __future__ import annotations

import numpy as np
import pytest
import slow_silicon
from scipy import stats

from epns_pyro.data import generate
from epns_pyro.errors import ConfigError
from epns_pyro.systems import SiliconConfig, trajectory_seeds

FALSE_FAILURE = 1e-6
BOND = 2 ** (1 / 6)  # length of the bond of two atoms, by the choice of B
TETRAHEDRON = np.array([[0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / 3**0.5


def make(**changes):
    return SiliconConfig(**changes).build()


def at(system, position, velocity=0.0):
    position = np.asarray(position, float)
    return system.spec.pack(position=position, velocity=np.broadcast_to(velocity, position.shape))


def clusters(system, n, seed=0):
    return system.initial(n, np.random.default_rng(seed))


# -- energy and forces -------------------------------------------------------------------------------------------------------


def test_two_atoms_are_bound_by_one_unit_of_energy():
    system = make(bodies=2)
    assert system.potential_energy(at(system, [[0, 0, 0], [BOND, 0, 0]])) == pytest.approx(-1, abs=1e-8)
    np.testing.assert_allclose(system.acceleration(at(system, [[0, 0, 0], [BOND, 0, 0]])), 0, atol=1e-6)
    assert system.potential_energy(at(system, [[0, 0, 0], [1.8, 0, 0]])) == 0


def test_a_tetrahedron_costs_no_energy_of_angles():
    """Four bonds, and angles as the potential wants them; a right angle costs lambda w^2 / 9."""
    system, pairs = make(), make(angles=0)
    x = at(system, BOND * TETRAHEDRON)
    assert system.potential_energy(x) == pytest.approx(-4, abs=1e-7)
    assert system.observables(x[None])["angle_energy"].values == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(system.acceleration(x), 0, atol=1e-6)
    corner = at(system, BOND * np.array([[0, 0, 0], [1.0, 0, 0], [0, 1, 0]]))
    cost = 21 * np.exp(2 * 1.2 / (BOND - 1.8)) / 9
    apart = BOND * 2**0.5
    ends = slow_silicon.A * (slow_silicon.B / apart**4 - 1) * np.exp(1 / (apart - 1.8))
    assert system.potential_energy(corner) - pairs.potential_energy(corner) > cost
    assert pairs.potential_energy(corner) == pytest.approx(-2 + ends, abs=1e-8)


@pytest.mark.parametrize("angles", [21.0, 0.0])
def test_forces_are_minus_the_gradient_of_the_energy(angles):
    system = make(bodies=6, angles=angles)
    r = np.random.default_rng(0).normal(scale=0.9, size=(5, 6, 3))
    x = at(system, r)
    np.testing.assert_allclose(system.potential_energy(x), [slow_silicon.energy(one, angles) for one in r], rtol=1e-12)
    a = system.acceleration(x)
    for one, found in zip(r, a, strict=True):
        np.testing.assert_allclose(found, slow_silicon.acceleration(one, angles), rtol=1e-11, atol=1e-9)
    size = np.abs(a).sum((-2, -1))
    assert (np.abs(a.sum(-2)).max(-1) < 1e-13 * size).all()  # no net force, no net torque
    assert (np.abs(np.cross(r, a).sum(-2)).max(-1) < 1e-13 * size).all()


def test_bodies_of_three_act_at_once():
    """The third atom changes the force between two, by more than its own forces on them."""
    system, rng = make(bodies=3), np.random.default_rng(1)
    r = BOND * np.array([[0, 0, 0], [1, 0, 0], [0.2, 0.95, 0]]) + 0.02 * rng.normal(size=(3, 3))
    whole = system.acceleration(at(system, r))
    parts = np.zeros((3, 3))
    for pair in ([0, 1], [0, 2], [1, 2]):
        parts[pair] += system.acceleration(at(system, r[pair]))
    assert np.abs(whole - parts).max() > 1
    np.testing.assert_allclose(make(bodies=3, angles=0).acceleration(at(system, r)), parts, rtol=1e-12, atol=1e-12)


# -- the process -------------------------------------------------------------------------------------------------------------


def test_energy_and_momenta_are_kept_without_kicks():
    """Energy to second order in the step, momentum and angular momentum to rounding."""
    drift = []
    for dt in (2.5e-3, 1.25e-3):
        system = make(sigma=0, dt=dt)
        x = system.simulate(clusters(system, 20), 40, np.arange(20, dtype=np.uint64))
        position, velocity = (system.spec.get(x, name) for name in ("position", "velocity"))
        energy = system.total_energy(x)
        drift.append(np.abs(energy - energy[:, :1]).max(-1))
        assert np.abs(velocity.sum(-2)).max() < 1e-12
        angular = np.cross(position, velocity).sum(-2)
        assert np.abs(angular - angular[:, :1]).max() < 1e-12
        assert system.alive(x).all()
    assert np.median(drift[0]) < 1e-3
    assert np.median(drift[0] / drift[1]) == pytest.approx(4, abs=0.4)


def test_kicks_heat_as_they_should():
    """d<E>/dt = (3/2) bodies sigma^2; momentum is the sum of the kicks."""
    system = make(sigma=0.2)
    x = system.simulate(clusters(system, 400), 10, trajectory_seeds(0, "test", 400))
    energy = system.total_energy(x)
    gain, expected = energy[:, -1] - energy[:, 0], 1.5 * 5 * 0.2**2 * 0.5
    error = gain.std() / 20
    assert abs(gain.mean() - expected) < stats.norm.isf(FALSE_FAILURE / 2) * error
    momentum = system.spec.get(x[:, -1] - x[:, 0], "velocity").sum(-2).ravel()
    assert stats.kstest(momentum / np.sqrt(5 * 0.2**2 * 0.5), "norm").pvalue > FALSE_FAILURE


def test_clusters_start_bound_at_rest_and_warm():
    system = make()
    x = clusters(system, 200)
    position, velocity = (system.spec.get(x, name) for name in ("position", "velocity"))
    assert (system.potential_energy(x) < -3.4).all()
    for mean in (position.mean(1), velocity.mean(1)):
        np.testing.assert_allclose(mean, 0, atol=1e-12)
    assert stats.kstest(velocity.ravel() / np.sqrt(0.1 * 4 / 5), "norm").pvalue > FALSE_FAILURE  # a fifth went with the mean
    assert np.isfinite(clusters(make(bodies=30), 1)).all()


# -- the oracle --------------------------------------------------------------------------------------------------------------


def test_law_is_that_of_the_slow_reference():
    system = make(bodies=4, sigma=0.3, dt=0.005, frame_dt=0.02)
    x = clusters(system, 1)[0]
    mean, covariance = system.transition_law(x)
    r, v, P = slow_silicon.law(*(system.spec.get(x, name) for name in ("position", "velocity")), 0.3, 0.005, 4)
    np.testing.assert_allclose(mean, system.spec.pack_dynamic(position=r, velocity=v), rtol=0, atol=1e-10)
    place = np.arange(24).reshape(2, 4, 3).swapaxes(0, 1).ravel()
    np.testing.assert_allclose(covariance, P[np.ix_(place, place)], rtol=1e-6, atol=1e-12)


def test_mahalanobis_distances_of_the_data_are_chi_squared():
    system = make()
    x = system.simulate(clusters(system, 100), 40, trajectory_seeds(0, "test", 100))
    before, after = x[:, :-1:10].reshape(-1, 5, 6), x[:, 1::10].reshape(-1, 5, 6)
    _, log_det = np.linalg.slogdet(system.transition_law(before)[1])
    squared = -2 * system.transition_log_prob(before, after) - log_det - 30 * np.log(2 * np.pi)
    assert stats.kstest(squared, stats.chi2(30).cdf).pvalue > FALSE_FAILURE
    pairs = make(angles=0).transition_log_prob(before, after)
    assert (system.transition_log_prob(before, after) - pairs).mean() > 5  # without the angles the law is another one


def test_sets_are_generated_and_a_frame_is_a_whole_number_of_steps(tmp_path):
    sets = {"train": {"trajectories": 3, "steps": 4}, "val": {"trajectories": 2, "steps": 4}, "test": {"trajectories": 2, "steps": 4}}
    store = generate(SiliconConfig.parse({"sets": sets, "bodies": 3}), tmp_path / "silicon.zarr")
    assert store.read("train").shape == (3, 5, 3, 6)
    with pytest.raises(ConfigError, match="whole number of integrator steps"):
        SiliconConfig.parse({"frame_dt": 0.051})
