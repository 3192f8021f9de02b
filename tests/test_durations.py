"""Uneven frames: the duration of a step is an input of its law, and where frames are even nothing of it is there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from relaxing import make_store, paths

from epns_pyro.backbones import Backbone, Features
from epns_pyro.conditioning.filtering import filter_states, smooth_paths
from epns_pyro.conditioning.observations import Observations
from epns_pyro.context import DataContext
from epns_pyro.data import Windows, open_store, to_dataset
from epns_pyro.data.inspection.check import check
from epns_pyro.data.inspection.motion import duration_lines
from epns_pyro.data.strides import Strides
from epns_pyro.derived import complete, derive, with_history
from epns_pyro.durations import are_uneven, noise_power, steps_between, with_duration, with_durations
from epns_pyro.errors import ConfigError
from epns_pyro.evaluation.linear_forecasters import Autoregression, Persistence
from epns_pyro.models.bodies.emissions import CoupledConfig
from epns_pyro.models.bodies.particles import ParticlesConfig
from epns_pyro.models.epns import EPNSGuide, EPNSModel
from epns_pyro.state import Field, StateSpec

MOVING = StateSpec((Field("position", "1o", translates=True), Field("velocity", "1o", rate_of="position"), Field("heat")), space=2)
TIMED = with_duration(MOVING, 0.5)
SCALES = {"position": 0.3, "velocity": 0.2, "heat": 0.1}
SMALL = {"backbone": {"name": "vector", "width": 8, "vectors": 4, "layers": 1}, "width": 8, "hidden_vectors": 3, "latent": 2}


def transition(spec: StateSpec = TIMED, **settings):
    torch.manual_seed(0)
    scales = {f.name: SCALES[f.name] for f in spec.dynamic_fields}
    config = ParticlesConfig.parse(SMALL | {"emission": "diagonal", "linear_path": False} | settings)
    return config.build(DataContext(spec, 0.5, scales, (3,))).double()


def state(duration: float = 0.5, spec: StateSpec = TIMED) -> torch.Tensor:
    rng = np.random.default_rng(1)
    more = {"duration": np.full((4, 3), duration)} if spec.duration else {}
    values = {"position": rng.normal(size=(4, 3, 2)), "velocity": rng.normal(size=(4, 3, 2)), "heat": rng.normal(size=(4, 3))}
    return torch.from_numpy(spec.pack(**values, **more))


def test_a_duration_is_the_nominal_one_where_none_is_given():
    x = TIMED.pack(position=np.zeros((3, 2)), velocity=np.zeros((3, 2)), heat=np.zeros(3))
    np.testing.assert_array_equal(TIMED.get(x, "duration"), 0.5)
    assert MOVING.duration is None


@pytest.mark.parametrize("entry", [{"dynamic": True}, {"dynamic": False, "irreps": "1o"}])
def test_a_duration_is_a_scalar_that_is_given(entry):
    with pytest.raises(ConfigError, match="a duration is a scalar that is given"):
        Field("duration", kind="duration", **entry)


@pytest.mark.parametrize("ratio", [0.2, 1.0, 2.0, 5.0])
def test_before_training_variances_grow_with_the_duration_and_the_way_with_the_velocity(ratio):
    """Of an untrained law without a network: mean x + v t, variance of a random walk t, of what it carries t^3."""
    model = transition(integrator=None)
    with torch.no_grad():
        for layer in (model.guess_vectors, model.guess_scalars[-1], model.prior_net[-1]):
            layer.weight.zero_()
        for parameter in model.decoder.parameters():
            parameter.zero_()
    laws = []
    for duration in (0.5, 0.5 * ratio):
        step = model.at(state(duration))
        laws.append(step.emission(torch.zeros(4, 3, 2, dtype=torch.float64)))
    x = state()
    torch.testing.assert_close(
        TIMED.get_dynamic(laws[1].mean, "position"), TIMED.get(x, "position") + 0.5 * ratio * TIMED.get(x, "velocity")
    )
    for name, power in (("position", 3), ("velocity", 1), ("heat", 1)):
        one, other = (TIMED.get_dynamic(law.base_dist.variance, name) for law in laws)
        torch.testing.assert_close(other, ratio**power * one)


@pytest.mark.parametrize("duration", [1.0, 2.0, 5.0])
def test_coupled_noise_has_the_covariance_of_an_integrated_random_walk_at_every_duration(duration):
    """dv = s dW, dx = v dt: covariance s^2 [[t^3 / 3, t^2 / 2], [t^2 / 2, t]]; learnt at one duration it is right at all others."""
    spec = with_duration(StateSpec((Field("position", "1o", translates=True), Field("velocity", "1o", rate_of="position")), space=2), 1.0)
    emission, unit = CoupledConfig(maximum=1e6, minimum=1e-6), torch.ones(2, dtype=torch.float64)
    nominal = torch.linalg.cholesky(torch.tensor([[1 / 3, 1 / 2], [1 / 2, 1.0]], dtype=torch.float64))
    diagonal = nominal.diagonal()
    noise = torch.cat([diagonal.log(), nominal[1:, 0] / diagonal[1:]]).expand(1, 1, -1)
    scales = unit * duration ** torch.tensor([noise_power(spec, f) for f in spec.dynamic_fields])
    law = emission.build(spec, torch.zeros(1, 1, 4, dtype=torch.float64), noise, scales.expand(1, 1, 2)).base_dist
    covariance = law.factor @ law.factor.mT
    expected = torch.tensor([[duration**3 / 3, duration**2 / 2], [duration**2 / 2, duration]], dtype=torch.float64)
    torch.testing.assert_close(covariance[0, 0], expected, rtol=1e-5, atol=0)


def test_an_equation_of_motion_is_integrated_for_as_long_as_the_step_lasts():
    """Bodies that fly freely arrive at x + v t; those that are pushed take up twice the speed in twice the time."""
    model = transition()
    with torch.no_grad():
        for parameter in model.integrator.parameters():
            parameter.zero_()
    assert model.integrator(state(2.0)).change.abs().max() < 1e-14

    class Constant(Backbone):
        equivariant = False

        def evaluate(self, positions, features):
            s, shape = self.signature, positions.shape[:-1]
            return Features(positions.new_ones(*shape, s.out_scalars), positions.new_ones(*shape, s.out_vectors, 2))

    model.integrator.network = Constant(model.integrator.network.signature)
    once, twice = (TIMED.get_dynamic(model.integrator(state(0.5 * k)).change, "velocity") for k in (1, 2))
    torch.testing.assert_close(twice, 2 * once)


def test_networks_read_durations_and_the_density_does_too():
    model = transition(emission="mixture", linear_path=True)
    x0, path = state(), state()[:, None]
    seen = [model.bodies.features(state(0.5 * k)).scalars for k in (1, 2)]
    changed = (seen[0] != seen[1]).any(0).any(0)
    assert changed.sum() == 1
    torch.testing.assert_close(seen[1][..., changed] - seen[0][..., changed], torch.full((4, 3, 1), np.log(2.0)).double())
    assert EPNSModel(model)(x0, path).shape == x0.shape


def test_a_path_says_how_long_its_steps_last_and_a_forecast_keeps_the_first_or_follows_a_schedule():
    model, path = transition(), torch.stack([state(0.7), state(0.9)], 1)
    assert torch.equal(TIMED.get(EPNSModel(model)(state(0.5), path), "duration"), torch.full((4, 3), 0.9, dtype=torch.float64))
    assert torch.equal(TIMED.get(EPNSModel(model)(state(0.6), horizon=2), "duration"), torch.full((4, 3), 0.6, dtype=torch.float64))
    scheduled = EPNSModel(model)
    scheduled.schedule = path
    assert torch.equal(TIMED.get(scheduled(state(0.5), horizon=2), "duration"), torch.full((4, 3), 0.9, dtype=torch.float64))
    EPNSGuide(model)(state(0.5), path)


def test_states_of_uneven_frames_follow_from_positions_and_durations():
    """With v = dx / t over the step before, x' = x + v' t holds exactly, whatever the durations."""
    spec = with_duration(with_history(StateSpec((Field("position", "1o", translates=True),), space=2), 2), 1.0)
    rng = np.random.default_rng(0)
    position, dt = rng.normal(size=(2, 6, 3, 2)).cumsum(1), rng.uniform(0.2, 4.0, (2, 6, 1))
    x = derive(spec, {"position": position, "duration": dt}, 1.0)
    np.testing.assert_allclose(spec.get(x, "velocity"), np.diff(position, axis=1) / dt[:, :-1, :, None])
    np.testing.assert_allclose(spec.get(x, "duration"), np.broadcast_to(dt[:, 1:], (2, 5, 3)))
    following = complete(spec, x[:, :-1], {"velocity": spec.get(x[:, 1:], "velocity")}, 1.0)
    np.testing.assert_allclose(following, spec.dynamic(x[:, 1:]))


def test_times_become_durations():
    assert are_uneven(np.array([0.0, 1.0, 2.5]))
    assert not are_uneven(np.array([0.0, 1.0, 2.0]))
    np.testing.assert_allclose(steps_between(np.array([0.0, 1.0, 2.5]), 1.2), [1.0, 1.5, 1.2])
    assert with_durations(MOVING, state(spec=MOVING), state(spec=MOVING)) is not None


# -- stores --------------------------------------------------------------------------------------------------------------


def test_an_uneven_coordinate_of_time_is_found_and_any_part_is_read_as_the_whole(tmp_path):
    import xarray as xr

    time = np.array([0.0, 0.2, 0.5, 0.7, 1.4, 1.5])
    x = paths(10, np.diff(time), 0)
    data = xr.Dataset({"position": (("trajectory", "time", "body", "space"), x)}, coords={"time": time})
    data.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    (tmp_path / "a.nc.yaml").write_text("fields: [{name: position, irreps: 1o}]\nspace: 2\n")
    store = open_store(tmp_path / "a.nc")
    whole = store.read("train")
    np.testing.assert_allclose(store.spec.get(whole, "duration")[0, :, 0], [0.2, 0.3, 0.2, 0.7, 0.1, 0.2])
    np.testing.assert_array_equal(store.read("train", 0, start=1, stop=3), whole[:1, 1:3])
    assert store.frame_dt == pytest.approx(0.2)
    assert "a step lasts 0.1 to 0.7" in next(duration_lines(store))
    assert not [found for found in check(store) if found.level == "error"]


def test_durations_of_every_trajectory_are_kept_in_a_store(tmp_path):
    store = make_store(tmp_path / "a.zarr", steps=12, uneven=True)
    durations = store.spec.get(store.read("val"), "duration")
    assert set(np.unique(durations.round(6))) == {0.1, 0.2, 0.6}
    assert store.spec.get(store.read("val", stop=1), "duration").std() > 0
    context = store.context()
    ratio = context.step_scales["position"] / np.sqrt(2 * 0.5 * 0.2)
    assert 0.85 < ratio < 1.05  # of a nominal step, whatever the others are


@pytest.mark.parametrize("differ", [True, False])
def test_futures_say_when_they_are_where_durations_differ_among_trajectories(differ, tmp_path):
    store = make_store(tmp_path / "a.zarr", steps=12, uneven=True)
    rows = [0, 1 if differ else 0]
    x = store.read("val")[rows]
    durations = store.spec.get(x, "duration")[:, :-1, 0]
    futures = to_dataset(store.spec, x[None], ("sample", "trajectory", "time"), frame_dt=0.2)
    after = np.cumsum(durations, axis=1)
    assert (after[0] != after[1]).any() == differ
    if differ:
        assert futures["elapsed"].dims == ("trajectory", "time")
        np.testing.assert_allclose(futures["elapsed"][:, 1:], after)
        np.testing.assert_allclose(futures["time"], 0.2 * np.arange(x.shape[1]))
    else:
        assert "elapsed" not in futures.coords
        np.testing.assert_allclose(futures["time"][1:], after[0])


@pytest.mark.parametrize("history", [0, 3])
def test_a_window_at_a_stride_is_what_a_recording_at_that_stride_would_be(history, tmp_path):
    store = make_store(tmp_path / "a.zarr", steps=30, sizes={"train": 3, "val": 2}).timed()
    spec = with_history(store.spec, history) if history else store.spec
    position = store.spec.get(store.read("train"), "position")
    strides = Strides(spec, 0.2, (4,))
    rng = np.random.default_rng(0)
    dense = derive(spec, {"position": position, "duration": np.full((3, 31, 1), 0.2)}, 0.2)
    lost = 31 - dense.shape[1]
    numbers = strides.frames(rng, 3, 2, 0, dense.shape[1])
    x = strides.states(torch.from_numpy(dense[np.arange(3)[:, None], numbers]), torch.from_numpy(dense), numbers).numpy()
    for row, frames in enumerate(numbers):
        sparse = derive(spec, {"position": position[row : row + 1, frames + lost], "duration": np.full((1, len(frames), 1), 0.8)}, 0.8)
        np.testing.assert_allclose(x[row], sparse[0, -3:], atol=1e-12)


def test_windows_of_several_strides_say_how_long_their_steps_last(tmp_path):
    store = make_store(tmp_path / "a.zarr", steps=20, sizes={"train": 5, "val": 2}).timed()
    windows = Windows(store, "train", 1, 400, strides=(1, 2, 5))
    x0, _ = windows.draw()
    found, counts = np.unique(store.spec.get(x0, "duration").numpy().round(4), return_counts=True)
    np.testing.assert_allclose(found, [0.2, 0.4, 1.0])
    assert (np.abs(counts - 400 / 3) < 5 * np.sqrt(400 / 4)).all()
    with pytest.raises(ConfigError, match="a window at stride 30 takes 31 frames"):
        Windows(store, "train", 1, 4, strides=(1, 30))


def test_references_know_how_long_a_step_lasts(tmp_path):
    store = make_store(tmp_path / "a.zarr", steps=40, uneven=True)
    context, x = store.context(), store.read("test")
    for reference in (Persistence(context), Autoregression.fit(store, context)):
        _, scale = reference.law(x[:, 0])
        variance = scale["position"][..., 0] ** 2 * 0.2 / store.spec.get(x[:, 0], "duration")
        np.testing.assert_allclose(variance, context.step_scales["position"] ** 2, rtol=0.2)
        futures = reference.sample(x[:, 0], 5, 3, 0, schedule=x[:, 1:6])
        np.testing.assert_array_equal(store.spec.get(futures[0], "duration"), store.spec.get(x[:, :6], "duration"))


@pytest.mark.parametrize("smoothing", [False, True])
def test_observations_count_nominal_steps_whatever_the_first_one_lasted(smoothing):
    moves, context = transition(), DataContext(TIMED, 0.5, SCALES, (3,))
    seen = np.full((4, 3, 2), np.nan)
    seen[3] = TIMED.get(state()[0].numpy(), "position")
    observations = Observations.from_fields(TIMED, {"position": seen}, {"position": 0.1})
    settings = {"particles": 100, "seed": 0} | ({"end": None, "steps": None, "sweeps": 1} if smoothing else {})
    ask = smooth_paths if smoothing else filter_states
    nominal, long = (ask(moves, context, state(duration)[0], observations, **settings) for duration in (0.5, 5.0))
    np.testing.assert_array_equal(long["time"], [0.0, 0.5, 1.0, 1.5])
    np.testing.assert_array_equal(long["position"], nominal["position"])
    np.testing.assert_array_equal(long["log_evidence"], nominal["log_evidence"])


def test_smoothing_says_that_a_mixture_is_no_normal_law():
    context, observations = DataContext(TIMED, 0.5, SCALES, (3,)), Observations(np.full((3, 3, 5), np.nan), np.ones((3, 3, 5)))
    with pytest.raises(ConfigError, match=r"smoothing and bridges need a Normal emission.* filter, or train with --set model.emission"):
        smooth_paths(
            transition(emission="mixture"), context, state()[0], observations, end=None, steps=None, particles=100, seed=0, sweeps=1
        )
