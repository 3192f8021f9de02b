"""Fitting the equation of motion before training: it finds the law that made the data, and leaves all else alone."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch
import xarray as xr
import yaml
from charges import charged

from epns_pyro.data import Windows, generate, open_store
from epns_pyro.errors import ConfigError
from epns_pyro.models.symplectic.transition import SymplecticConfig
from epns_pyro.systems import ChargedConfig, GravityConfig, NBodyConfig, SetConfig, SpringsConfig
from epns_pyro.training.bounds import _highest, fit_bounds
from epns_pyro.training.equations import IntegratorEquation, PotentialEquation, independent
from epns_pyro.training.fittable import DEFAULT_WINDOWS, hold, require_integrator, windows_to_fit
from epns_pyro.training.least_squares import solve
from epns_pyro.training.motion import fit_law, fit_motion
from epns_pyro.training.presets import preset
from epns_pyro.training.run import RunFolder
from epns_pyro.training.trainer import Hardware, Trainer

SETS = {"train": SetConfig(trajectories=60, steps=5), "val": SetConfig(trajectories=2, steps=5)}
SYSTEMS = {
    "springs": SpringsConfig(sets=SETS),
    "gravity": GravityConfig(sets=SETS, bodies=4),
    "charged": ChargedConfig(sets=SETS, bodies=3),
}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Fit the law of a system once for all tests: name -> store, context, transition and fit."""

    @functools.cache
    def of(name):
        store = generate(SYSTEMS[name], tmp_path_factory.mktemp(name) / "store.zarr")
        context = store.context()
        torch.manual_seed(0)
        transition = preset(name).model.build(context)
        return store, context, transition, fit_law(transition, store, context, 120, seed=0)

    return of


@pytest.mark.parametrize(("name", "relative"), [("springs", 1e-5), ("gravity", 1e-3)])
def test_the_law_is_found_where_bodies_are(name, relative, fitted):
    store, context, transition, fit = fitted(name)
    spec, x = context.spec, torch.as_tensor(store.read("val")[:, 0])
    bodies, integrator = transition.bodies, copy.deepcopy(transition.integrator).double()
    force = integrator.network(bodies.positions(x), bodies.features(x)).vectors[..., 0, :] * integrator.vectors["velocity"] / 0.1
    r = spec.get(x, "position").numpy()
    way, weights = r[:, None] - r[:, :, None], store.system.weights(x.numpy())
    distance = np.sqrt((way**2).sum(-1) + store.system.force.softening**2)
    truth = -(weights[..., None] * way / distance[..., None] ** store.system.force.power).sum(2)
    error = np.linalg.norm(force.detach().numpy() - truth, axis=-1) / np.linalg.norm(truth, axis=-1).mean()
    assert np.median(error) < relative
    assert fit.scale < relative


def test_forces_of_bodies_that_meet_are_found(fitted):
    """Softening shows in encounters alone, which are few: windows are chosen for them, and a law of nature is fitted before all else."""
    store, context, transition, _ = fitted("gravity")
    spec = context.spec
    for distance in (0.03, 0.1, 0.3):
        place = torch.tensor([[0.0, 0.0, 0.0], [distance, 0.0, 0.0], [50.0, 0.0, 0.0], [0.0, 60.0, 0.0]])
        pull = transition.integrator.acceleration(spec.pack(position=place, velocity=torch.zeros_like(place)))[0, 0]
        truth = distance / (distance**2 + store.system.force.softening**2) ** 1.5
        assert abs(float(pull) / truth - 1) < 0.02


@pytest.mark.slow
def test_the_law_of_bodies_that_meet_within_a_long_frame_is_found(tmp_path):
    """Mean forces of such frames are softer than the force, and a fit that starts from them alone stays soft."""
    sets = {"train": SetConfig(trajectories=600, steps=1), "val": SetConfig(trajectories=2, steps=1)}
    config = ChargedConfig(sets=sets, bodies=4, velocity="recorded", frame_dt=1.0)
    store = generate(config, tmp_path / "store.zarr")
    context, chosen = store.context(), preset("charged", data=store)
    assert chosen.training.horizon.end == 1
    torch.manual_seed(0)
    transition = chosen.model.build(context)
    fit_motion(transition, store, context, 60, seed=0)
    network, spec = transition.integrator.network, context.spec
    assert network.log_lengths[0].exp() * spec["position"].scale < 0.01
    assert transition.law.powers == pytest.approx((-2.0,))
    for distance in (0.1, 1.0):
        place = torch.tensor([[0.0, 0.0, 0.0], [distance, 0.0, 0.0], [500.0, 0.0, 0.0], [0.0, 600.0, 0.0]])
        state = spec.pack(charge=torch.ones(4), position=place, velocity=torch.zeros_like(place))
        assert abs(float(transition.integrator.acceleration(state)[0, 0].detach()) * -(distance**2) - 1) < 0.02


def test_a_law_is_found_where_positions_and_velocities_are_recorded(tmp_path):
    """Then positions are not kicked: they follow from velocities."""
    rng, dt, stiffness = np.random.default_rng(0), 0.1, 1.5
    position, velocity = rng.normal(size=(2, 80, 3, 2))
    frames = []
    for _ in range(4):
        frames.append((position, velocity))
        for _ in range(50):
            velocity = velocity - 3 * stiffness * dt / 50 * (position - position.mean(1, keepdims=True))
            position = position + dt / 50 * velocity
    names, dims = ("position", "velocity"), ("trajectory", "time", "body", "space")
    data = {name: (dims, np.stack(values, 1)) for name, values in zip(names, zip(*frames, strict=True), strict=True)}
    for split, some in {"train": slice(0, 70), "val": slice(70, 80)}.items():
        xr.Dataset(data).isel(trajectory=some).to_zarr(tmp_path / "x.zarr", group=split, mode="a", consolidated=False)
    fields = [{"name": "position", "irreps": "1o", "translates": True}, {"name": "velocity", "irreps": "1o", "rate_of": "position"}]
    (tmp_path / "x.zarr.yaml").write_text(yaml.safe_dump({"fields": fields, "space": 2, "frame_dt": dt}))
    store = open_store(tmp_path / "x.zarr")
    config = preset("particles", "pairs", store.system.config)
    torch.manual_seed(0)
    transition = config.model.build(store.context())
    assert config.model.integrator.velocity == "recorded"
    assert fit_law(transition, store, store.context(), 60, seed=0).scale < 1e-2
    x = torch.as_tensor(store.read("val")[:, 0])
    found = transition.integrator.double().acceleration(x.double()).detach().numpy()
    r = store.spec.get(x, "position").numpy()
    np.testing.assert_allclose(found, -3 * stiffness * (r - r.mean(1, keepdims=True)), atol=0.2)


def test_the_law_of_recorded_bodies_is_found_from_positions_alone(tmp_path):
    """Springs between bodies of different masses: the same force both ways, but not the same acceleration."""
    rng, dt, steps = np.random.default_rng(0), 0.3, 10
    position, velocity = rng.normal(size=(2, 60, 3, 2))
    mass, frames = np.exp(rng.uniform(-0.7, 0.7, (60, 3))), []
    for _ in range(6):
        frames.append(position)
        for _ in range(steps):
            middle = position + dt / steps / 2 * velocity
            velocity = velocity - dt / steps * 3 * (middle - middle.mean(1, keepdims=True)) / mass[..., None]
            position = middle + dt / steps / 2 * velocity
    data = {"position": (("trajectory", "time", "body", "space"), np.stack(frames, 1)), "mass": (("trajectory", "body"), mass)}
    xr.Dataset(data).to_zarr(tmp_path / "x.zarr", consolidated=False)
    fields = [{"name": "mass", "irreps": "0e", "dynamic": False}, {"name": "position", "irreps": "1o", "translates": True}]
    (tmp_path / "x.zarr.yaml").write_text(yaml.safe_dump({"fields": fields, "space": 2, "frame_dt": dt, "history": 1}))
    store = open_store(tmp_path / "x.zarr")
    config = preset("particles", "pairs", store.system.config).override(
        {"model.integrator.refinements": 0, "model.integrator.iterations": 3}
    )
    torch.manual_seed(0)
    transition = config.model.build(store.context())
    assert config.model.integrator.velocity == "inferred"
    assert (
        fit_law(transition, store, store.context(), 20, seed=0).scale < 3e-3
    )  # products of attributes and their logarithms come near 1 / m


@pytest.mark.parametrize(("family", "held"), [("springs", True), ("nbody", False)])
def test_a_fitted_law_is_trained_on_where_velocities_are_recorded(tmp_path, celestial, family, held):
    store = celestial if family == "nbody" else generate(SYSTEMS["springs"], tmp_path / "store.zarr")
    transition = preset(family).model.build(store.context())
    hold(transition)
    assert {p.requires_grad for p in transition.integrator.network.parameters()} == {not held}


@pytest.mark.slow
def test_what_no_law_foresees_does_not_spoil_it(fitted):
    """Charged particles pass each other closer than a frame can tell; the bulk is right all the same."""
    assert fitted("charged")[3].scale < 1e-3


def test_a_fit_changes_the_law_alone_and_keeps_the_precision(tmp_path):
    store = generate(SYSTEMS["springs"], tmp_path / "store.zarr")
    torch.manual_seed(0)
    transition = preset("springs").model.build(store.context())
    before = {key: value.clone() for key, value in transition.state_dict().items()}
    fit_law(transition, store, store.context(), 40, seed=0)
    for key, value in transition.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[key]) or key.startswith("integrator.network"), key
    assert not torch.equal(transition.integrator.network.linear.weight, before["integrator.network.linear.weight"])


def test_what_cannot_be_fitted_is_said(tmp_path):
    context = generate(SYSTEMS["springs"], tmp_path / "store.zarr").context()
    for changes, message in (
        ({"model.integrator": None}, "has no equation of motion to fit"),
        ({"model.integrator.network": "pairwise"}, "the law has .* parameters, at most 1000 can be fitted"),
    ):
        with pytest.raises(ConfigError, match=message):
            require_integrator(preset("springs").override(changes).model.build(context))


def test_a_bound_on_components_is_found(tmp_path):
    """The simulator of charged particles bounds every component of an acceleration, which few frames tell of."""
    sets = {"train": SetConfig(trajectories=150, steps=6), "val": SetConfig(trajectories=2, steps=5)}
    store = generate(ChargedConfig(sets=sets, bodies=3, clip=5.0), tmp_path / "store.zarr")
    context = store.context()
    transition = charged(context, refinements=1, iterations=8)
    fit_bounds(transition, store, context, 20, seed=1)
    network = transition.integrator.network
    bound = network.log_largest.exp() * context.step_scales["velocity"] / context.frame_dt
    assert network.signature.axes
    assert bound.item() == pytest.approx(5.0, rel=0.01)


@pytest.mark.parametrize("peak", [1.234, None])
def test_where_a_function_is_highest_and_the_largest_such_number(peak):
    """None: it is flat at large numbers, as the likelihood is of a bound that no force comes near."""
    found = _highest(lambda at: min(at - 2, 0) if peak is None else -10 * abs(at - peak), 0.0, 8.0)
    assert found == (8.0 if peak is None else pytest.approx(peak, abs=0.01))


def test_the_highest_of_several_peaks_is_found():
    """Bodies that swing around each other make peaks of this width."""
    found = _highest(lambda at: np.cos(2 * np.pi * (at - 5.37) / 0.15) - abs(at - 5.37), 0.0, 8.0)
    assert found == pytest.approx(5.37, abs=0.01)


def test_of_parameters_that_do_the_same_one_is_moved(tmp_path):
    store = generate(SYSTEMS["charged"], tmp_path / "store.zarr")
    context = store.context()
    transition = charged(context, refinements=0, iterations=1).double()
    drawn = IntegratorEquation.draw(store, context, 10, 0)
    with torch.no_grad():
        equation = IntegratorEquation(transition, context, drawn.x0, drawn.path[:, 0])
        forces = equation.derivatives(equation.simple)
        chosen, through = independent(forces), equation.slopes(equation.simple)
    explained = forces[:, chosen] @ torch.linalg.lstsq(forces[:, chosen], forces).solution
    assert chosen.sum() < len(chosen) / 2  # charges are 1 or -1: q and asinh(10 q) are the same, and so are q_i q_j in four ways
    assert (explained - forces).norm() < 1e-4 * forces.norm()
    assert torch.equal(through.norm(dim=0) > 0, chosen)


def test_parameters_of_which_nothing_is_known_stay():
    """A body that is alone has no force of pairs."""
    errors = torch.randn(20, 3, dtype=torch.float64)
    step = solve(torch.zeros(60, 4, dtype=torch.float64), torch.ones(20, dtype=torch.float64), errors, 1e-9)
    assert torch.equal(step, torch.zeros(4, dtype=torch.float64))


# -- potentials ----------------------------------------------------------------------------------------------------------------

CELESTIAL_SETS = {"train": SetConfig(trajectories=60, steps=30), "val": SetConfig(trajectories=10, steps=30)}


@pytest.fixture(scope="module")
def celestial(tmp_path_factory):
    return generate(NBodyConfig(sets=CELESTIAL_SETS), tmp_path_factory.mktemp("celestial") / "store.zarr")


def gravity(store, x):
    """Accelerations of the true law, one body at a time."""
    config, r, mass = store.system.config, store.spec.get(x, "position"), store.spec.get(x, "mass")
    way = r[:, None] - r[:, :, None]
    return config.gravitational_constant * (
        mass[:, None, :, None] * way / ((way**2).sum(-1, keepdims=True) + config.softening**2) ** 1.5
    ).sum(2)


def potential(context, **settings):
    torch.manual_seed(0)
    return SymplecticConfig.parse(settings).build(context)


def test_a_potential_and_the_size_of_its_noise_are_found(celestial):
    """Before any training the likelihood is near that of the true process: the data have noise, friction is learned to be none."""
    context = celestial.context()
    transition = potential(context, friction=True)
    fit_law(transition, celestial, context, 100, seed=0)
    assert transition.log_sigma.dtype == torch.float32
    x, x_next = (torch.as_tensor(celestial.read("val")[:, frames]).flatten(0, 1) for frames in (slice(0, -1), slice(1, None)))
    x, x_next, transition = x.double(), x_next.double(), transition.double()
    acceleration, truth = transition.acceleration(x).detach().numpy(), gravity(celestial, x.numpy())
    error, size = np.linalg.norm(acceleration - truth, axis=-1), np.linalg.norm(truth, axis=-1)
    assert np.median(error / size) < 0.05
    assert float(transition.sigma(x).median()) == pytest.approx(celestial.system.config.sigma, rel=0.15)
    step = transition.at(x)
    law, value = step.observe(step.emission(step.prior.mean), x_next)
    oracle = celestial.system.transition_log_prob(x.numpy(), x_next.numpy())
    assert np.median(oracle - law.log_prob(value).detach().numpy()) < 3.0
    assert all(p.requires_grad for p in transition.parameters())  # it is trained on


def test_starts_are_chosen_where_bodies_are_close(celestial):
    context = celestial.context()

    def closest(x0):
        q = context.spec.get(x0, "position")
        return (torch.cdist(q, q) + 1e9 * torch.eye(5)).flatten(1).amin(1)

    chosen = closest(PotentialEquation.draw(celestial, context, 200, 0).x0)
    drawn = closest(Windows(celestial, "train", 1, 200, seed=0, context=context, dtype=torch.float64).draw().x0)
    assert chosen.median() < drawn.quantile(0.25)
    assert chosen.quantile(0.75) > drawn.median()  # far ones are there too


def test_few_data_leave_out_the_powers_that_they_do_not_ask_for(tmp_path):
    """The sum of four powers follows ten noisy trajectories as well, and is wrong where bodies come closer than they did in these."""
    sets = {"train": SetConfig(trajectories=10, steps=40), "val": SetConfig(trajectories=2, steps=5)}
    store = generate(NBodyConfig(sets=sets), tmp_path / "x.zarr")
    torch.manual_seed(0)
    transition = preset("nbody").model.build(store.context())
    fit_law(transition, store, store.context(), 400, seed=0)
    network = transition.integrator.network
    assert network.linear.weight.abs().sum(-1).ne(0).tolist() == [False, False, False, True]  # gravity, and nothing else
    place, mass = torch.zeros(5, 3), torch.full((5,), 0.3)
    mass[0], place[1, 0], place[2:] = 10.0, 0.3, 40.0 * torch.randn(3, 3)
    pull = -transition.integrator.acceleration(store.spec.pack(mass=mass, position=place, velocity=torch.zeros(5, 3)))[1, 0]
    truth = 10.0 * 0.3 / (0.3**2 + store.system.config.softening**2) ** 1.5
    assert 0.8 < pull.item() / truth < 1.25

    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)  # a power that was left out stays so in training
    x = torch.as_tensor(store.read("val")[:, 0], dtype=torch.float32)
    transition.integrator.acceleration(x).square().sum().backward()
    optimizer.step()
    assert network.linear.weight.abs().sum(-1).ne(0).tolist() == [False, False, False, True]


def test_a_law_of_two_powers_keeps_both(tmp_path):
    """A spring and a repulsion like that of charges, with the same strengths for all pairs."""
    rng, dt, steps = np.random.default_rng(0), 0.1, 20
    position, velocity, frames = rng.normal(size=(80, 3, 3)), 0.3 * rng.normal(size=(80, 3, 3)), []
    for _ in range(4):
        frames.append((position, velocity))
        for _ in range(steps):
            way = position[:, :, None] - position[:, None]
            distance = np.linalg.norm(way, axis=-1, keepdims=True) + 1e-9
            velocity = velocity + dt / steps * (way * (1 / distance**3 * (distance > 1e-6) - 0.5)).sum(2)
            position = position + dt / steps * velocity
    names, dims = ("position", "velocity"), ("trajectory", "time", "body", "space")
    data = {name: (dims, np.stack(values, 1)) for name, values in zip(names, zip(*frames, strict=True), strict=True)}
    xr.Dataset(data).to_zarr(tmp_path / "x.zarr", consolidated=False)
    fields = [{"name": "position", "irreps": "1o", "translates": True}, {"name": "velocity", "irreps": "1o", "rate_of": "position"}]
    (tmp_path / "x.zarr.yaml").write_text(yaml.safe_dump({"fields": fields, "space": 3, "frame_dt": dt}))
    store = open_store(tmp_path / "x.zarr")
    torch.manual_seed(0)
    transition = preset("particles", "pairs", store.system.config).model.build(store.context())
    assert fit_law(transition, store, store.context(), 200, seed=0).scale < 0.02
    network = transition.integrator.network
    powers = network.exponents[network.linear.weight.abs().sum(-1).ne(0)].sum(-1)
    np.testing.assert_allclose(sorted(powers.tolist()), [-3.0, 0.0], atol=0.1)


def test_laws_of_nature_are_fitted_unless_settings_say_otherwise(celestial):
    context = celestial.context()
    assert windows_to_fit(potential(context), None) == DEFAULT_WINDOWS
    assert windows_to_fit(potential(context), 0) == 0
    assert windows_to_fit(potential(context, potential="network"), None) == 0
    for changes, windows in (
        ({}, DEFAULT_WINDOWS),
        ({"model.integrator": None}, 0),
        ({"model.integrator.network": "pairwise"}, 0),
        ({"model.integrator.network": "central"}, DEFAULT_WINDOWS),
    ):
        assert windows_to_fit(preset("nbody").override(changes).model.build(context), None) == windows
    with pytest.raises(ConfigError, match="only a pair potential can be fitted"):
        windows_to_fit(potential(context, potential="network"), 10)


def test_training_starts_from_the_fit(celestial, tmp_path):
    changes = {"model": "symplectic", "training.steps": 1, "training.batch": 4, "training.learning_rate": 1e-6}
    changes["training.validation_transitions"] = 100
    found = {}
    for windows in (0, 40):
        config = preset("nbody", data=celestial.system.config).override(changes | {"training.motion_windows": windows})
        folder = RunFolder(tmp_path / str(windows))
        folder.create(config)
        found[windows] = Trainer(config, celestial, folder, Hardware("cpu")).fit().log_likelihood
    assert found[40] > found[0] + 30
