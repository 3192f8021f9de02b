"""The systems of the N-body benchmark: their laws, what they conserve, how they start. False-failure rate of a statistical test: 1e-6."""

from __future__ import annotations

import numpy as np
import pytest
import slow_pairs
from scipy import stats

from epns_pyro.data import generate, open_store
from epns_pyro.errors import ConfigError
from epns_pyro.systems import SYSTEMS, ChargedConfig, GravityConfig, SetConfig, SpringsConfig

FALSE_FAILURE = 1e-6
CONFIGS = {"charged": ChargedConfig, "springs": SpringsConfig, "gravity": GravityConfig}
LAWS = {
    "charged": lambda system, x: lambda r: slow_pairs.charged(r, system.spec.get(x, "charge")),
    "springs": lambda system, x: lambda r: slow_pairs.springs(r, system.spec.get(x, "spring")),
    "gravity": lambda system, x: slow_pairs.gravity,
}


def make(name, **changes):
    return CONFIGS[name](**changes).build()


def run(system, n, steps, seed=0):
    x0 = system.initial(n, np.random.default_rng(seed))
    return system.simulate(x0, steps, np.arange(n, dtype=np.uint64))


@pytest.mark.parametrize("name", CONFIGS)
def test_it_walks_like_the_slow_reference(name):
    system = make(name, velocity="recorded")
    x = run(system, 2, 2)
    for path in x:
        law = LAWS[name](system, path[0])
        r, v = (system.spec.get(path[0], field) for field in ("position", "velocity"))
        for frame in path[1:]:
            r, v = slow_pairs.frame(r, v, law)
            np.testing.assert_allclose(system.spec.get(frame, "position"), r, rtol=0, atol=1e-9)
            np.testing.assert_allclose(system.spec.get(frame, "velocity"), v, rtol=0, atol=1e-8)


def test_accelerations_are_clipped_per_component():
    system = make("charged", velocity="recorded", bodies=2, frame_dt=1e-3)
    position = np.array([[[0.0, 0, 0], [0.01, 0.001, 0]]])  # at rest and 1e-2 apart: 1e4 without a bound
    x0 = system.spec.pack(charge=np.array([[1.0, 1.0]]), position=position, velocity=np.zeros((1, 2, 3)))
    velocity = system.spec.get(system.simulate(x0, 1, np.zeros(1, np.uint64)), "velocity")[0, 1]
    np.testing.assert_allclose(velocity, [[-0.1, -0.1, 0], [0.1, 0.1, 0]], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_energy_and_momentum_are_kept_without_noise(name):
    system = make(name, velocity="recorded")
    x = run(system, 50, 29)
    velocity = system.spec.get(x, "velocity")
    energy = 0.5 * (velocity**2).sum((-2, -1)) + system.potential_energy(x)
    drift = np.abs(energy - energy[:, :1]).max(-1)
    assert np.median(drift) < {"charged": 1e-3, "springs": 1e-7, "gravity": 1e-2}[name]
    momentum = velocity.sum(-2)
    kept = np.abs(momentum - momentum[:, :1]).max((-2, -1)) < 1e-9
    assert kept.all() if name != "charged" else kept.mean() > 0.5  # clipping is no law between pairs
    if name == "gravity":
        assert np.abs(momentum).max() < 1e-9


@pytest.mark.parametrize("name", CONFIGS)
def test_kicks_raise_the_kinetic_energy_as_they_should(name):
    """Without forces, in effect: d<E>/dt = (d/2) sum sigma^2; momentum is a sum of kicks alone, whatever the forces."""
    noise, steps, n = 0.3, 4, 400
    system = make(name, velocity="recorded", noise=noise, bodies=4, **({"clip": 1e-9} if name == "charged" else {}))
    x = run(system, n, steps)
    momentum = system.spec.get(x, "velocity").sum(-2)
    change = (momentum[:, -1] - momentum[:, 0]).ravel()
    expected = noise**2 * 4 * steps * system.frame_dt
    low, high = stats.chi2.ppf([FALSE_FAILURE / 2, 1 - FALSE_FAILURE / 2], len(change)) / len(change)
    assert low < (change**2).mean() / expected < high


def test_the_first_frame_is_when_the_protocol_says():
    """Charged particles and springs are first seen at t = 0.1, with the pulls of a frame behind them; gravity at t = 0."""
    for name, seen in (("springs", 0.1), ("charged", 0.1), ("gravity", 0.0)):
        system = make(name, velocity="recorded")
        drawn = system.spec.pack(**system.draw(np.random.default_rng(7)))
        law = LAWS[name](system, drawn)
        r, v = (system.spec.get(drawn, field) for field in ("position", "velocity"))
        r, v = slow_pairs.frame(r, v, law) if seen else (r, v)
        first = system.initial(1, np.random.default_rng(7))[0]
        np.testing.assert_allclose(system.spec.get(first, "position"), r, rtol=0, atol=1e-9)
        np.testing.assert_allclose(system.spec.get(first, "velocity"), v, rtol=0, atol=1e-8)


def test_initial_states_are_those_of_the_protocol():
    n = 400
    spread = {"charged": 1.0, "springs": 0.5, "gravity": 1.0}
    for name, scale in spread.items():
        system, rng = make(name), np.random.default_rng(1)
        drawn = [system.draw(rng) for _ in range(n)]
        position = np.stack([d["position"] for d in drawn]).ravel()
        assert stats.kstest(position / scale, "norm").pvalue > FALSE_FAILURE
        velocity = np.stack([d["velocity"] for d in drawn])
        if name == "gravity":
            np.testing.assert_allclose(velocity.mean(1), 0, atol=1e-12)
            assert stats.kstest(velocity.ravel() / np.sqrt(0.9), "norm").pvalue > FALSE_FAILURE  # a tenth went with the mean
        else:
            np.testing.assert_allclose(np.linalg.norm(velocity, axis=-1), 0.5, rtol=1e-12)
            height = velocity[..., 2].ravel() / 0.5  # uniform, as on a sphere
            assert stats.kstest(height, stats.uniform(-1, 2).cdf).pvalue > FALSE_FAILURE
    charges = np.stack([make("charged").draw(np.random.default_rng(i))["charge"] for i in range(n)])
    assert set(np.unique(charges)) == {-1.0, 1.0}
    assert stats.binomtest(int((charges > 0).sum()), charges.size).pvalue > FALSE_FAILURE
    joined = np.stack([make("springs").draw(np.random.default_rng(i))["spring"] for i in range(n)])
    np.testing.assert_array_equal(joined, joined.swapaxes(1, 2))
    assert not joined[:, range(5), range(5)].any()
    assert stats.binomtest(int(joined.sum() / 2), n * 10).pvalue > FALSE_FAILURE


@pytest.mark.parametrize("name", CONFIGS)
def test_a_store_holds_positions_alone_and_gives_differences(name, tmp_path):
    sets = {split: SetConfig(trajectories=3, steps=5) for split in ("train", "val", "test")}
    config = CONFIGS[name](sets=sets)
    generate(config, tmp_path / "store.zarr")
    store = open_store(tmp_path / "store.zarr")
    assert "velocity" not in store.dataset("train")
    assert "position" in store.dataset("train")
    x, truth = store.read("test"), CONFIGS[name](sets=sets, velocity="recorded")
    generate(truth, tmp_path / "truth.zarr")
    whole = open_store(tmp_path / "truth.zarr").read("test")
    position = store.spec.get(whole, "position")
    np.testing.assert_allclose(store.spec.get(x, "position"), position[:, 1:])
    np.testing.assert_allclose(store.spec.get(x, "velocity"), np.diff(position, axis=1) / 0.1)
    assert store.system.forecast_frame == 8  # the tenth frame of the recording


def test_a_frame_is_a_whole_number_of_steps():
    for name in CONFIGS:
        with pytest.raises(ConfigError, match="whole number of integrator steps"):
            SYSTEMS.parse({"name": name, "frame_dt": 0.1005})
