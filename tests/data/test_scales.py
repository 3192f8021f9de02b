"""Scales: against direct formulas, and what must not matter to them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ortho_group
from toy_systems import WALKERS, WalkersConfig

from epns_pyro.data import open_store
from epns_pyro.data.writing import Identity, StoreWriter
from epns_pyro.errors import DataError
from epns_pyro.state import Field, StateSpec

pytestmark = pytest.mark.filterwarnings("error")


def store_of(path, spec, frame_dt=0.25, **sets):
    config = {"name": "recorded", "spec": {}, "frame_dt": frame_dt}
    writer = StoreWriter(path, Identity(config, spec, frame_dt))
    for name, x in sets.items():
        writer.split(name, len(x), x.shape[1], x.shape[2:-1]).append(x)
    writer.finish()
    return open_store(path)


def random_states(rng, n=7, frames=5, bodies=3):
    shape = (n, frames, bodies)
    return WALKERS.pack(
        mass=rng.uniform(1, 3, (n, 1, bodies)),
        position=rng.standard_normal((*shape, 2)) + 50,
        velocity=2 * rng.standard_normal((*shape, 2)) + 1,
    )


def test_scales_are_standard_deviations(tmp_path, rng):
    x = random_states(rng)
    context = store_of(tmp_path / "a", WALKERS, train=x).context()
    mass, position, velocity = (WALKERS.get(x, name) for name in WALKERS.names)
    centred = position - position.mean(2, keepdims=True)
    spread = velocity - velocity.mean((0, 1, 2))
    surprise = position[:, 1:] - position[:, :-1] - 0.25 * velocity[:, :-1]
    change = velocity[:, 1:] - velocity[:, :-1]
    expected = {"mass": mass.std(), "position": np.sqrt((centred**2).mean()), "velocity": np.sqrt((spread**2).mean())}
    for name, scale in expected.items():
        np.testing.assert_allclose(context.spec[name].scale, scale, rtol=1e-12)
    assert set(context.step_scales) == {"position", "velocity"}
    np.testing.assert_allclose(context.step_scales["position"], np.sqrt((surprise**2).mean()), rtol=1e-12)
    np.testing.assert_allclose(context.step_scales["velocity"], np.sqrt((change**2).mean()), rtol=1e-12)
    assert context.sites == (3,)
    assert context.frame_dt == 0.25


def test_moving_and_turning_the_data_changes_nothing(tmp_path, rng):
    x = random_states(rng)
    mass, position, velocity = (WALKERS.get(x, name) for name in WALKERS.names)
    turn = ortho_group.rvs(2, random_state=1)
    moved = WALKERS.pack(mass=mass, position=position @ turn.T + [1e4, -3e3], velocity=velocity @ turn.T)
    before = store_of(tmp_path / "a", WALKERS, train=x).context()
    after = store_of(tmp_path / "b", WALKERS, train=moved).context()
    for name in WALKERS.names:
        np.testing.assert_allclose(after.spec[name].scale, before.spec[name].scale, rtol=1e-9)
    for name in before.step_scales:
        np.testing.assert_allclose(after.step_scales[name], before.step_scales[name], rtol=1e-9)


def test_only_the_training_set_counts(tmp_path, rng):
    x = random_states(rng)
    alone = store_of(tmp_path / "a", WALKERS, train=x).context()
    among = store_of(tmp_path / "b", WALKERS, train=x, val=1e6 * x, test=-1e6 * x).context()
    assert alone == among


def test_a_constant_counts_by_its_size(tmp_path, rng):
    spec = StateSpec((Field("mass", dynamic=False), Field("charge", dynamic=False), Field("x"), Field("still")))
    shape = (5, 4, 2)
    x = spec.pack(mass=np.full(shape, 0.1), charge=np.zeros(shape), x=rng.standard_normal(shape), still=np.full(shape, -7.0))
    context = store_of(tmp_path / "a", spec, train=x).context()
    assert context.spec["mass"].scale == pytest.approx(0.1)
    assert context.spec["charge"].scale == 1.0
    assert context.spec["still"].scale == pytest.approx(7.0)
    assert context.step_scales["still"] == pytest.approx(7.0)


def test_a_change_that_is_predicted_exactly_counts_whole(walkers):
    """The walkers' positions move by v dt to the last bit, so the surprise is rounding."""
    position = WALKERS.get(walkers.read("train"), "position")
    expected = np.sqrt((np.diff(position, axis=1) ** 2).mean())
    assert walkers.context().step_scales["position"] == pytest.approx(expected)


def test_labels_have_no_scales(stripes):
    context = stripes.context()
    assert context.step_scales == {}
    assert context.sites == (6, 8)
    assert all(field.scale == 1.0 for field in context.spec.fields)


def test_a_store_without_a_training_set_or_with_nan_says_so(tmp_path, rng):
    x = random_states(rng)
    with pytest.raises(DataError, match="has no set 'train'"):
        store_of(tmp_path / "a", WALKERS, val=x).context()
    x[3, 1, 0, WALKERS.slice("velocity")] = np.nan
    with pytest.raises(DataError, match="set 'train': field 'velocity' holds NaN or infinite values"):
        store_of(tmp_path / "b", WALKERS, train=x).context()
    x[..., WALKERS.slice("position")] = x[..., WALKERS.slice("velocity")] = np.nan
    with pytest.raises(DataError, match="set 'train' holds no body in any frame"):
        store_of(tmp_path / "c", WALKERS, train=x).context()


def test_absent_bodies_have_no_say(tmp_path, rng):
    """Bodies that are absent throughout, or for a while, change no scale; a step counts where both of its ends are there."""
    x = random_states(rng)
    dynamic = [WALKERS.slice(name) for name in ("position", "velocity")]
    padded = np.concatenate([x, x[:, :, :2]], axis=2)
    for channels in dynamic:
        padded[:, :, 3:, channels] = np.nan
    plain, more = (store_of(tmp_path / name, WALKERS, train=states).context() for name, states in (("a", x), ("b", padded)))
    for name in WALKERS.names:
        np.testing.assert_allclose(more.spec[name].scale, plain.spec[name].scale, rtol=1e-12)
    assert more.step_scales == pytest.approx(plain.step_scales, rel=1e-12)

    for channels in dynamic:
        x[:, 2, 1, channels] = np.nan
    context = store_of(tmp_path / "c", WALKERS, train=x).context()
    position, velocity = (WALKERS.get(x, name) for name in ("position", "velocity"))
    centred = position - np.nanmean(position, axis=2, keepdims=True)
    np.testing.assert_allclose(context.spec["position"].scale, np.sqrt(np.nanmean(centred**2)), rtol=1e-12)
    np.testing.assert_allclose(context.step_scales["velocity"], np.sqrt(np.nanmean(np.diff(velocity, axis=1) ** 2)), rtol=1e-12)


def test_the_scale_of_the_kicks_is_found(walkers):
    """11 x 8 x 2 x 2 kicks: the relative standard error of their size is 4%, so 12% fails by chance one time in 370; the seed is fixed."""
    assert walkers.context().step_scales["velocity"] == pytest.approx(WalkersConfig().kick, rel=0.12)
