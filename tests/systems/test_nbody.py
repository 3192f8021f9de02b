"""The celestial simulator against a slow reference, REBOUND and the laws of physics. False-failure rate of a statistical test: 1e-6."""

from __future__ import annotations

import numba
import numpy as np
import pytest
import rebound
import slow_nbody
from scipy import stats

from epns_pyro.config import Config
from epns_pyro.errors import ConfigError, ShapeError
from epns_pyro.symmetry import EuclideanElement
from epns_pyro.systems import SYSTEMS, NBodyConfig, trajectory_seeds
from epns_pyro.systems.nbody import NBody

FALSE_FAILURE = 1e-6


def make(**changes) -> NBody:
    return NBodyConfig(**changes).build()


def states(system: NBody, n: int, seed: int = 0) -> np.ndarray:
    return system.initial(n, np.random.default_rng(seed))


def parts(system: NBody, x: np.ndarray) -> list[np.ndarray]:
    return [system.spec.get(x, name) for name in ("mass", "position", "velocity")]


SEED = np.zeros(1, np.uint64)


# -- the integrator without noise --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bodies", [2, 5, 7])
def test_simulator_walks_like_the_slow_reference(bodies):
    system = make(sigma=0, bodies=bodies, gravitational_constant=1.3, softening=0.2, dt=5e-3)
    x0 = states(system, 1)
    end = system.simulate(x0, 3, SEED)[0, -1]
    m, r, v = slow = [a[0] for a in parts(system, x0)]
    r, v = slow_nbody.run(*slow, G=1.3, eps=0.2, dt=5e-3, steps=60)
    np.testing.assert_allclose(end, system.spec.pack(mass=m, position=r, velocity=v), rtol=0, atol=1e-12)


def test_integrator_is_of_second_order():
    exact = make(sigma=0, dt=1e-4, frame_dt=1)
    x0 = states(exact, 8)
    target = exact.simulate(x0, 1, SEED.repeat(8))[:, -1]
    dts = np.array([4e-3, 2e-3, 1e-3])
    errors = [np.abs(make(sigma=0, dt=dt, frame_dt=1).simulate(x0, 1, SEED.repeat(8))[:, -1] - target).max() for dt in dts]
    order = np.polyfit(np.log(dts), np.log(errors), 1)[0]
    assert 1.9 < order < 2.1, errors


def test_energy_drift_is_small_and_momentum_is_kept_without_noise():
    system = make(sigma=0)
    x = system.simulate(states(system, 50), 100, SEED.repeat(50))
    seen = system.observables(x)
    energy = seen["total_energy"].values
    drift = np.abs(energy - energy[:, :1]).max(-1)
    assert np.median(drift) < 1e-3
    assert drift.max() < 0.05  # the closest encounters
    np.testing.assert_allclose(seen["angular_momentum"].values, seen["angular_momentum"].values[:, :1] + np.zeros(101), rtol=1e-10)
    assert seen["centre_of_mass"].values.max() < 1e-10


def test_noiseless_step_is_reversible():
    system = make(sigma=0)
    x0 = states(system, 5)
    m, r, v = parts(system, system.simulate(x0, 5, SEED.repeat(5))[:, -1])
    m, r, v = parts(system, system.simulate(system.spec.pack(mass=m, position=r, velocity=-v), 5, SEED.repeat(5))[:, -1])
    np.testing.assert_allclose(system.spec.pack(mass=m, position=r, velocity=-v), x0, rtol=0, atol=1e-9)


def test_agrees_with_rebound():
    system = make(sigma=0, dt=2e-4)
    x0 = states(system, 3)
    x = system.simulate(x0, 20, SEED.repeat(3))
    for start, path in zip(x0, x, strict=True):
        sim = rebound.Simulation()
        sim.G, sim.softening, sim.integrator = 1.0, 0.1, "ias15"
        for mass, position, velocity in zip(*parts(system, start), strict=True):
            sim.add(m=mass, x=position[0], y=position[1], z=position[2], vx=velocity[0], vy=velocity[1], vz=velocity[2])
        for frame in (1, 10, 20):
            sim.integrate(frame * 0.1)
            there = np.array([[*p.xyz, *p.vxyz] for p in sim.particles])
            np.testing.assert_allclose(system.spec.dynamic(path[frame]), there, rtol=0, atol=2e-5)


# -- the noise ---------------------------------------------------------------------------------------------------------


def test_free_bodies_diffuse_as_brownian_velocities_do():
    """Without gravity v' - v ~ N(0, sigma^2 T) and x' - x - v T is the sum of kicks times the time that is left."""
    sigma, steps, dt, n = 0.3, 50, 2e-3, 4000
    system = make(gravitational_constant=1e-30, sigma=sigma, dt=dt, frame_dt=steps * dt)
    x0 = states(system, n)
    x = system.simulate(x0, 1, trajectory_seeds(0, "noise", n))
    (_, r0, v0), (_, r1, v1) = parts(system, x[:, 0]), parts(system, x[:, 1])
    left = np.arange(steps)[::-1] * dt
    dv, dr = (v1 - v0).ravel(), (r1 - r0 - v0 * steps * dt).ravel()
    expected = sigma**2 * dt * np.array([[steps, left.sum()], [left.sum(), (left**2).sum()]])
    white = np.linalg.solve(np.linalg.cholesky(expected), np.stack([dv, dr]))
    assert stats.kstest((white**2).sum(0), stats.chi2(2).cdf).pvalue > FALSE_FAILURE
    assert stats.kstest(white.ravel(), stats.norm.cdf).pvalue > FALSE_FAILURE


def test_kicks_differ_between_bodies_axes_frames_and_trajectories():
    system = make(gravitational_constant=1e-30)
    x = system.simulate(states(system, 3), 4, trajectory_seeds(0, "noise", 3))
    kicks = np.diff(system.spec.get(x, "velocity"), axis=1)
    assert len(np.unique(kicks)) == kicks.size


def test_energy_spread_over_the_training_horizon():
    system = make()
    x = system.simulate(states(system, 400), 100, trajectory_seeds(0, "train", 400))
    energy = system.observables(x)["total_energy"].values
    assert 1.2 < np.median(np.abs(energy[:, -1] - energy[:, 0])) < 1.65  # about 1.4; the standard error of the median is 0.06
    assert system.alive(x).all()


# -- seeds and threads ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="numba has one thread only")
def test_number_of_threads_changes_nothing():
    system = make()
    x0, seeds = states(system, 9), trajectory_seeds(3, "val", 9)
    one, two = (system.simulate(x0, 5, seeds, workers=workers) for workers in (1, 2))
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one, system.simulate(x0, 5, seeds))


def test_set_made_in_pieces_is_the_same_set():
    system = make()
    x0, seeds = states(system, 7), trajectory_seeds(3, "val", 7)
    whole = system.simulate(x0, 6, seeds)
    pieces = [system.simulate(x0[i:j], 6, trajectory_seeds(3, "val", j - i, start=i)) for i, j in ((0, 2), (2, 6), (6, 7))]
    np.testing.assert_array_equal(whole, np.concatenate(pieces))
    np.testing.assert_array_equal(whole[:, :3], system.simulate(x0, 2, seeds))


def test_another_seed_is_another_future():
    system = make()
    x0 = states(system, 1).repeat(2, axis=0)
    x = system.simulate(x0, 1, np.array([1, 2], np.uint64))
    assert (system.spec.get(x[0, 1], "velocity") != system.spec.get(x[1, 1], "velocity")).all()


# -- initial states ------------------------------------------------------------------------------------------------------


def uniform(values, low, high) -> bool:
    return bool(stats.kstest(np.ravel(values), stats.uniform(low, high - low).cdf).pvalue > FALSE_FAILURE)


def test_initial_states_follow_their_law():
    system = make()
    m, r, v = parts(system, states(system, 2000))
    star = 10.0
    np.testing.assert_array_equal(m[:, 0], star)
    outward, motion = r[:, 1:] - r[:, :1], v[:, 1:] - v[:, :1]  # seen from the star, as drawn
    distance, speed = np.linalg.norm(outward, axis=-1), np.linalg.norm(motion, axis=-1)
    assert uniform(np.log(m[:, 1:]), np.log(0.05), 0.0)
    assert uniform(distance, 1, 5)
    assert uniform(speed / np.sqrt(star / distance), 0.8, 1.1)
    np.testing.assert_allclose((outward * motion).sum(-1), 0, atol=1e-12)
    for direction in (outward / distance[..., None], motion / speed[..., None], np.cross(outward, motion) / (distance * speed)[..., None]):
        for axis in range(3):
            assert uniform(direction[..., axis], -1, 1)  # Archimedes: the height of a uniform point on the sphere is uniform


def test_initial_centre_of_mass_rests_at_the_origin():
    system = make(bodies=8)
    m, r, v = parts(system, states(system, 20))
    for vectors in (r, v):
        np.testing.assert_allclose((m[..., None] * vectors).sum(1), 0, atol=1e-12)


def test_initial_states_in_pieces_are_the_same_states():
    system, rng = make(), np.random.default_rng(5)
    pieces = [system.initial(k, rng) for k in (1, 3, 2)]
    np.testing.assert_array_equal(np.concatenate(pieces), states(system, 6, seed=5))


# -- observables and plausibility ----------------------------------------------------------------------------------------


def test_observables_are_what_they_say():
    system = make(gravitational_constant=2.0, softening=0.3)
    x = states(system, 6).reshape(2, 3, 5, 7) + 0.1
    seen = {name: o.values for name, o in system.observables(x).items()}
    for index in np.ndindex(2, 3):
        m, r, v = (a[index] for a in parts(system, x))
        kinetic, potential = slow_nbody.energy(m, r, v, 2.0, 0.3)
        distances = [np.linalg.norm(r[i] - r[j]) for i in range(5) for j in range(i)]
        expected = {
            "kinetic_energy": kinetic,
            "potential_energy": potential,
            "total_energy": kinetic + potential,
            "angular_momentum": np.linalg.norm(sum(m[i] * np.cross(r[i], v[i]) for i in range(5))),
            "furthest_body": max(np.linalg.norm(r[i]) for i in range(5)),
            "least_pair_distance": min(distances),
            "centre_of_mass": np.linalg.norm(sum(m[i] * r[i] for i in range(5)) / sum(m)),
        }
        assert {name: values[index] for name, values in seen.items()} == pytest.approx(expected, rel=1e-12)


def test_observables_do_not_see_rotations_and_relabelling():
    system = make()
    x = states(system, 4)[:, None]
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    moved = system.spec.act(EuclideanElement(rotation, np.zeros(3), np.array([3, 0, 4, 1, 2])), x)
    for before, after in zip(system.observables(x).values(), system.observables(moved).values(), strict=True):
        np.testing.assert_allclose(after.values, before.values, rtol=1e-10, atol=1e-12)


def with_energies(system: NBody, gains) -> np.ndarray:
    """One trajectory of two distant bodies whose total energy changes by `gains` from frame to frame."""
    kinetic = 100 + np.concatenate([[0.0], np.cumsum(gains)])
    velocity = np.zeros((len(kinetic), 2, 3))
    velocity[:, 1, 0] = np.sqrt(2 * kinetic)
    position = np.tile(np.array([[0.0, 0, 0], [1e6, 0, 0]]), (len(kinetic), 1, 1))
    return system.spec.pack(mass=np.ones((len(kinetic), 2)), position=position, velocity=velocity)


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ((19.9, 19.9, 19.9), (1, 1, 1, 1)),  # only a single step counts
        ((1.0, 20.1, 0.0), (1, 1, 0, 0)),
        ((20.1, -20.1, 0.0), (1, 0, 0, 0)),  # once dead stays dead
        ((-50.0, 5.0, 0.0), (1, 1, 1, 1)),  # losing energy is no crime
    ],
)
def test_a_jump_of_the_energy_is_death(gains, expected):
    system = make()
    assert system.alive(with_energies(system, gains)).tolist() == [bool(e) for e in expected]


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_what_is_not_finite_is_dead(bad):
    system = make()
    x = np.stack([with_energies(system, (1.0, 1.0, 1.0))] * 2)
    x[1, 2, 0, system.spec.slice("velocity")] = bad
    assert system.alive(x).tolist() == [[True] * 4, [True, True, False, False]]
    x[1, 0, 0, system.spec.slice("velocity")] = bad
    assert not system.alive(x)[1].any()


def test_the_limit_is_the_config_s():
    system = make(energy_jump=5)
    assert system.alive(with_energies(system, (4.9, 5.1))).tolist() == [True, True, False]


# -- config and errors ---------------------------------------------------------------------------------------------------


def test_defaults_are_those_of_the_data_sheet():
    config = NBodyConfig()
    sheet = {
        "gravitational_constant": 1.0,
        "softening": 0.1,
        "bodies": 5,
        "star_mass": 10.0,
        "planet_mass": (0.05, 1.0),
        "planet_distance": (1.0, 5.0),
        "speed_factor": (0.8, 1.1),
        "sigma": 0.1,
        "dt": 1e-3,
        "frame_dt": 0.1,
        "oracle_dt": None,
        "energy_jump": 20.0,
    }
    assert {name: getattr(config, name) for name in sheet} == sheet
    assert {name: (s.trajectories, s.steps, s.initial_states) for name, s in config.sets.items()} == {
        "train": (400, 100, None),
        "val": (100, 100, None),
        "test": (100, 100, None),
        "same_init": (2500, 100, 5),
        "long": (100, 1000, None),
    }


def test_config_travels_by_name_and_as_plain_data():
    config = SYSTEMS.parse("nbody").override({"sets.train.trajectories": 7, "sigma": 0.2})
    assert config.sets["train"].trajectories == 7
    assert isinstance(config, Config)
    assert SYSTEMS.parse(config.model_dump(mode="json")) == config


def test_preset_of_twenty_bodies():
    system = NBodyConfig.twenty_bodies().build()
    assert states(system, 2).shape == (2, 20, 7)
    assert (system.config.oracle_dt, system.oracle_stride) == (5e-3, 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dt": 0.03}, r"frame_dt: expected a whole number of integrator steps dt = 0\.03, found 0\.1"),
        ({"oracle_dt": 0.0015}, r"oracle_dt: expected a whole number of integrator steps"),
        ({"oracle_dt": 0.03}, r"oracle_dt: expected a whole fraction of frame_dt = 0\.1, found 0\.03"),
        ({"oracle_dt": 0.2}, r"oracle_dt: expected a whole fraction"),
        ({"planet_mass": (2.0, 1.0)}, r"planet_mass: expected \(low, high\) with low <= high"),
        ({"bodies": 1}, r"bodies: .*greater than or equal to 2"),
        ({"sigma": -0.1}, r"sigma: .*greater than or equal to 0"),
        ({"softening": 0}, r"softening: .*greater than 0"),
        ({"dt": float("nan")}, r"dt: "),
        ({"sigmaa": 0.1}, r"unknown key 'sigmaa': did you mean 'sigma'"),
        ({"sets": {"train": {"trajectories": 0, "steps": 1}}}, r"sets\.train\.trajectories: .*greater than 0"),
    ],
)
def test_contradictory_configs_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        NBodyConfig.parse(changes, where="system nbody")


def test_simulate_says_what_it_wants():
    system = make()
    x0 = states(system, 3)
    with pytest.raises(ShapeError, match=r"n integer seeds, found \(3, 5, 7\) and uint64 \(2,\)"):
        system.simulate(x0, 1, np.zeros(2, np.uint64))
    with pytest.raises(ShapeError, match="integer seeds"):
        system.simulate(x0, 1, np.zeros(3))
    with pytest.raises(ShapeError, match="NaN"):
        system.simulate(np.full_like(x0, np.nan), 1, np.zeros(3, np.uint64))
    with pytest.raises(ShapeError, match="channels mass 1, position 3, velocity 3"):
        system.simulate(x0[..., :6], 1, np.zeros(3, np.uint64))
