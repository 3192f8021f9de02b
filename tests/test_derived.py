"""Velocities that are differences, and earlier frames in the state: against arithmetic by hand, and through store, model and futures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

from epns_pyro.data import open_store
from epns_pyro.derived import (
    as_differences,
    complete,
    derive,
    displaced,
    free_fields,
    has_hidden_states,
    judged_fields,
    lead_frames,
    memory_frames,
    recorded_fields,
    with_history,
)
from epns_pyro.errors import ConfigError
from epns_pyro.inference.elbo import elbo_step, log_density
from epns_pyro.models.bodies.particles import ParticlesConfig
from epns_pyro.state import Field, StateSpec

ALONE = StateSpec((Field("mass", dynamic=False), Field("position", "1o", translates=True, unit="m")), space=2)
DT = 0.4


@pytest.fixture
def path() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    position = np.cumsum(rng.normal(size=(2, 9, 3, 2)), axis=1)
    return {"mass": rng.random((2, 1, 3)), "position": position}


def test_a_history_of_three_steps_has_the_velocities_of_three_steps(path):
    spec = with_history(ALONE, 3)
    assert spec.names == ("mass", "position", "velocity", "velocity_1", "velocity_2")
    assert [f.name for f in free_fields(spec)] == ["velocity"]
    assert [f.name for f in recorded_fields(spec)] == ["mass", "position"]
    assert (lead_frames(spec), memory_frames(spec)) == (1, 3)
    x = derive(spec, path, DT)
    steps = np.diff(path["position"], axis=1) / DT
    np.testing.assert_allclose(spec.get(x, "position"), path["position"][:, 1:])
    np.testing.assert_allclose(spec.get(x, "velocity"), steps)
    np.testing.assert_allclose(spec.get(x, "velocity_1")[:, 1:], steps[:, :-1])
    np.testing.assert_allclose(spec.get(x, "velocity_2")[:, 2:], steps[:, :-2])
    np.testing.assert_allclose(spec.get(x, "velocity_2")[:, 0], steps[:, 0])  # the earliest that is known


def test_displaced_states_are_those_of_displaced_recordings(path):
    """With a body that appears, is missed for a frame, and leaves."""
    spec = with_history(ALONE, 3)
    path["position"][0, :2, 0] = path["position"][0, 5, 1] = path["position"][1, 7:, 2] = np.nan
    moves = np.random.default_rng(1).normal(size=path["position"].shape)
    moved = derive(spec, path | {"position": path["position"] + moves}, DT)
    np.testing.assert_allclose(displaced(spec, derive(spec, path, DT), moves, DT), moved)
    part = displaced(spec, derive(spec, path, DT)[:, 2:], moves[:, 2:], DT)
    np.testing.assert_allclose(part[:, 2:], moved[:, 4:])  # whose earlier frames are there


def test_the_next_state_follows_from_the_predicted_velocity(path):
    """complete(x_t, v_{t+1}) is x_{t+1} of the recording, to rounding, for arrays and tensors."""
    spec = with_history(ALONE, 3)
    x = derive(spec, path, DT)
    for convert in (np.asarray, torch.as_tensor):
        now, after = convert(x[:, 2:-1]), convert(x[:, 3:])
        y = complete(spec, now, {"velocity": spec.get(after, "velocity")}, DT)
        np.testing.assert_allclose(np.asarray(spec.advance(now, y)), np.asarray(after), atol=1e-12)


def test_a_body_is_there_from_its_second_frame_on(path):
    spec = with_history(ALONE, 2)
    path["position"][0, :2, 1] = np.nan  # enters at frame 2
    path["position"][1, 4, 2] = np.nan  # is missed at frame 4
    there = ~np.isnan(spec.get(derive(spec, path, DT), "position")).any(-1)
    expected = np.ones_like(there)
    expected[0, :2, 1] = False  # states of frames 1 and 2
    expected[1, 3:5, 2] = False  # states of frames 4 and 5
    np.testing.assert_array_equal(there, expected)
    x = derive(spec, path, DT)
    np.testing.assert_array_equal(np.isnan(spec.get(x, "velocity_1")).any(-1), ~there)


@pytest.mark.parametrize("start", [0, 1, 3, 5])
def test_any_part_of_a_trajectory_is_read_as_the_whole_is(path, start, tmp_path):
    store = write(path, tmp_path, history=4)
    whole = store.read("train")
    np.testing.assert_array_equal(store.read("train", start=start, stop=start + 2), whole[:, start : start + 2])
    assert store.steps("train") == 7


def write(path, folder, history: int):
    data = {"mass": (("trajectory", "body"), path["mass"][:, 0]), "position": (("trajectory", "time", "body", "space"), path["position"])}
    xr.Dataset(data).to_zarr(folder / "x.zarr", consolidated=False)
    (folder / "x.zarr.yaml").write_text(
        f"frame_dt: {DT}\nspace: 2\nhistory: {history}\nsplit: {{val: 0, test: 0}}\nfields:\n  - {{name: mass, dynamic: false}}\n"
        "  - {name: position, irreps: 1o, translates: true}\n"
    )
    return open_store(folder / "x.zarr")


@pytest.mark.parametrize("emission", ["coupled", "diagonal"])
def test_a_model_predicts_velocities_and_positions_follow(path, emission, tmp_path):
    """Futures satisfy x' = x + v' dt and carry their velocities along; only the velocity has a likelihood."""
    store = write(path, tmp_path, history=3)
    transition = ParticlesConfig(emission=emission).build(store.context()).double()
    x, spec = torch.as_tensor(store.read("train")), store.spec
    step = transition.at(x[:, 0])
    future = step.advance(step.emission(step.prior.sample()).sample()).x
    moved = spec.get(x[:, 0], "position") + DT * spec.get(future, "velocity")
    torch.testing.assert_close(spec.get(future, "position"), moved)
    torch.testing.assert_close(spec.get(future, "velocity_1"), spec.get(x[:, 0], "velocity"))
    torch.testing.assert_close(spec.get(future, "velocity_2"), spec.get(x[:, 0], "velocity_1"))
    law, value = step.observe(step.emission(step.prior.mean), x[:, 1])
    elsewhere = value.clone()
    elsewhere[..., spec.slice("position", among_dynamic=True)] += 1.0
    torch.testing.assert_close(law.log_prob(value), law.log_prob(elsewhere))
    assert (law.log_prob(value + 1.0) != law.log_prob(value)).all()


def test_before_training_a_model_is_persistence_with_the_noise_of_the_data(path, tmp_path):
    store = write(path, tmp_path, history=3)
    torch.manual_seed(0)
    transition = ParticlesConfig().build(store.context()).double()
    x, spec = torch.as_tensor(store.read("train")), store.spec
    bound = elbo_step(transition.at(x[:, :-1].flatten(0, 1)), x[:, 1:].flatten(0, 1))
    scale = store.context().step_scales["velocity"]
    change = spec.get(x[:, 1:], "velocity") - spec.get(x[:, :-1], "velocity")
    persistence = torch.distributions.Normal(0.0, scale).log_prob(change).sum((-2, -1)).mean()
    elbo = (bound.log_likelihood - bound.kl.sum((-2, -1))).mean()
    assert abs(float(elbo - persistence)) < 0.5, (float(elbo), float(persistence))


def test_the_density_is_equivariant_with_a_history(path, tmp_path):
    from epns_pyro.symmetry import Euclidean, density_invariance_error

    store = write(path, tmp_path, history=3)
    transition = ParticlesConfig().build(store.context()).double()
    with torch.no_grad():
        for parameter in transition.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    x = torch.as_tensor(store.read("train"))[:, :4]
    z = torch.randn(2, 3, *transition.at(x[:, 0]).prior.event_shape, dtype=torch.float64)
    density = lambda x0, path, z: log_density(transition, x0, path, z)  # noqa: E731
    assert density_invariance_error(density, store.spec, x[:, 0], x[:, 1:], z, Euclidean(2), samples=4).maximum < 1e-9


def test_a_history_needs_one_position():
    with pytest.raises(ConfigError, match="one vector field that says"):
        with_history(StateSpec((Field("spin", "1e"),)), 2)
    with pytest.raises(ConfigError, match="rate_of"):
        Field("velocity", "1o", differences=True)


# -- hidden states -----------------------------------------------------------------------------------------------------------


HIDDEN = StateSpec(
    (Field("position", "1o", translates=True, noise="learn"), Field("velocity", "1o", rate_of="position", hidden=True)), space=2
)


def test_a_past_difference_stands_in_for_a_hidden_velocity() -> None:
    position = np.arange(12.0).reshape(1, 6, 1, 2) ** 2
    position[0, [2, 3]] = np.nan
    x = derive(HIDDEN, {"position": position}, 0.5)
    velocity = HIDDEN.get(x, "velocity")[0, :, 0]
    p = position[0, :, 0]
    np.testing.assert_allclose(velocity[0], 0.0)
    np.testing.assert_allclose(velocity[1], (p[1] - p[0]) / 0.5)
    assert np.isnan(velocity[[2, 3]]).all()
    np.testing.assert_allclose(velocity[4], (p[4] - p[1]) / 1.5)
    np.testing.assert_allclose(derive(HIDDEN, {"position": position}, 0.5, skip=4), x[:, 4:])


def test_hidden_fields_are_neither_recorded_nor_judged() -> None:
    assert [f.name for f in recorded_fields(HIDDEN)] == ["position"]
    assert [f.name for f in judged_fields(HIDDEN)] == ["position"]
    assert has_hidden_states(HIDDEN)
    plain = as_differences(HIDDEN)
    assert not has_hidden_states(plain)
    assert [f.name for f in free_fields(plain)] == ["velocity"]
    assert StateSpec.from_json(HIDDEN.to_json()) == HIDDEN


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ([{"name": "x", "irreps": "1o", "noise": -1.0}], "noise is a standard deviation"),
        ([{"name": "x", "irreps": "1o", "noise": "guess"}], "or 'learn', found 'guess'"),
        ([{"name": "x", "irreps": "1o", "noise": True}], "expected a number or a word"),
        ([{"name": "x", "irreps": "1o", "hidden": True}], "only the rate of a recorded field can be hidden"),
        ([{"name": "m", "dynamic": False, "noise": 0.1}, {"name": "x", "irreps": "1o"}], "only a real dynamic field"),
        (
            [{"name": "x", "irreps": "1o", "noise": 0.1}, {"name": "v", "irreps": "1o", "rate_of": "x", "differences": True}],
            "declare the velocity hidden",
        ),
    ],
)
def test_what_cannot_be_hidden_is_refused(fields: list[dict], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        StateSpec.from_dict({"fields": fields})


def test_a_history_of_an_inferred_state_is_refused() -> None:
    with pytest.raises(ConfigError, match="leave out history"):
        with_history(HIDDEN, 4)
