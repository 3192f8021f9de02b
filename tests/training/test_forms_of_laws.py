"""What laws of nature have beside powers of the distance: a mass that they are divided by, and screening."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
import yaml

from epns_pyro.backbones import BACKBONES
from epns_pyro.backbones.bodies.base import Features, Signature
from epns_pyro.backbones.bodies.laws import PLAIN, Form
from epns_pyro.data import Store, open_store
from epns_pyro.errors import ConfigError
from epns_pyro.models.transition import LawOfNature
from epns_pyro.simulator import Simulator
from epns_pyro.training.equations import IntegratorEquation
from epns_pyro.training.least_squares import idle_terms
from epns_pyro.training.motion import _weaken, fit_law
from epns_pyro.training.presets import preset

DT, STEPS, BODIES = 0.1, 200, 3


def recorded(folder: Path, acceleration, *, attributes: dict[str, np.ndarray], frames: int = 4) -> Store:
    """A recording of positions and velocities of bodies that accelerate so, from their positions (trajectory, body, space)."""
    count = len(next(iter(attributes.values())))
    rng = np.random.default_rng(0)
    position, velocity = rng.normal(size=(2, count, BODIES, 3))
    kept = []
    for _ in range(frames):
        kept.append((position, velocity))
        for _ in range(STEPS):
            middle = position + DT / STEPS / 2 * velocity
            velocity = velocity + DT / STEPS * acceleration(middle)
            position = middle + DT / STEPS / 2 * velocity
    dims = ("trajectory", "time", "body", "space")
    data = {name: (dims, np.stack(v, 1)) for name, v in zip(("position", "velocity"), zip(*kept, strict=True), strict=True)}
    data |= {name: (("trajectory", "body"), values) for name, values in attributes.items()}
    xr.Dataset(data).to_zarr(folder / "x.zarr", consolidated=False)
    fields = [{"name": "position", "irreps": "1o", "translates": True}, {"name": "velocity", "irreps": "1o", "rate_of": "position"}]
    fields += [{"name": name, "irreps": "0e", "dynamic": False} | classes(values) for name, values in attributes.items()]
    (folder / "x.zarr.yaml").write_text(yaml.safe_dump({"fields": fields, "space": 3, "frame_dt": DT}))
    return open_store(folder / "x.zarr")


def classes(values: np.ndarray) -> dict[str, object]:
    return {"kind": "category", "size": int(values.max()) + 1} if values.dtype.kind == "i" else {}


def pairs(position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ways from one body to another (trajectory, body, body, space), and their lengths, infinite from a body to itself."""
    way = position[:, :, None] - position[:, None]
    return way, np.linalg.norm(way, axis=-1) + np.diag(np.full(BODIES, np.inf))


def fitted(store: Store, windows: int):
    torch.manual_seed(0)
    transition = preset("particles", "pairs", store.system.config).model.build(store.context())
    fit = fit_law(transition, store, store.context(), windows, seed=0)
    return transition.integrator.network, fit


def test_forces_over_a_mass_are_found_exactly(tmp_path):
    """Springs with a rest length between bodies of different masses."""
    mass = np.random.default_rng(1).uniform(0.5, 2.0, (100, BODIES))

    def acceleration(position):
        way, distance = pairs(position)
        return -(way * (1 - 1 / distance)[..., None]).sum(2) / mass[..., None]

    network, fit = fitted(recorded(tmp_path, acceleration, attributes={"mass": mass}), 60)
    np.testing.assert_allclose(network.inertia.detach(), [[-1.0, 0.0]], atol=5e-3)
    assert fit.scale < 1e-4


def test_screened_charges_are_found_with_their_length(tmp_path):
    charge, length = np.random.default_rng(1).choice([-1.0, 1.0], (100, BODIES)), 0.8

    def acceleration(position):
        way, distance = pairs(position)
        pull = np.exp(-distance / length) * (1 / distance**2 + 1 / (length * distance)) / distance
        return (way * (charge[:, :, None] * charge[:, None] * np.where(np.isfinite(distance), pull, 0))[..., None]).sum(2)

    store = recorded(tmp_path, acceleration, attributes={"charge": charge})
    network, _ = fitted(store, 120)
    assert network.screening.item() == pytest.approx(store.context().spec["position"].scale / length, rel=0.01)
    assert network.inertia.eq(0).all()  # the size of all charges is the same: they are no masses


def test_the_mass_of_those_that_pull_is_none_of_the_one_that_is_pulled(tmp_path):
    mass = np.random.default_rng(1).uniform(0.5, 2.0, (100, BODIES))

    def acceleration(position):
        way, distance = pairs(position)
        return -(way * (mass[:, None] / (distance**2 + 0.1) ** 1.5)[..., None]).sum(2)

    network, _ = fitted(recorded(tmp_path, acceleration, attributes={"mass": mass}), 60)
    assert network.inertia.eq(0).all()
    assert network.screening.eq(0).all()


def test_species_have_forces_of_their_own(tmp_path):
    """Springs of three strengths: between two of one kind, two of the other, and one of each."""
    species = np.random.default_rng(1).integers(0, 2, (100, BODIES))
    stiffness = np.array([[1.0, -0.3], [-0.3, 2.0]])

    def acceleration(position):
        return -(pairs(position)[0] * stiffness[species[:, :, None], species[:, None]][..., None]).sum(2)

    _, fit = fitted(recorded(tmp_path, acceleration, attributes={"species": species}), 60)
    assert fit.scale < 1e-3


def test_a_law_whose_steps_grow_without_end_is_weakened(tmp_path):
    store = recorded(tmp_path, lambda position: -position, attributes={"mass": np.ones((20, BODIES))})
    transition = preset("particles", "pairs", store.system.config).model.build(store.context()).double()
    batch = IntegratorEquation.draw(store, store.context(), 10, seed=0)
    with torch.no_grad():
        equation = IntegratorEquation(transition, store.context(), batch.x0, batch.path[:, 0])
        for parameter in equation.linear:
            parameter.fill_(1e60)
        equation.module.log_largest.fill_(1e3)  # nothing bounds it
        assert not equation.changes().abs().max() < 1e12
        _weaken(equation)
        assert equation.changes().abs().max() < 1e12


def test_a_body_alone_has_no_law_and_no_error(tmp_path):
    rng = np.random.default_rng(0)
    dims = ("trajectory", "time", "body", "space")
    velocity = rng.normal(size=(20, 6, 1, 3))
    xr.Dataset({"position": (dims, DT * velocity.cumsum(1)), "velocity": (dims, velocity)}).to_zarr(tmp_path / "x.zarr", consolidated=False)
    fields = [{"name": "position", "irreps": "1o", "translates": True}, {"name": "velocity", "irreps": "1o", "rate_of": "position"}]
    (tmp_path / "x.zarr.yaml").write_text(yaml.safe_dump({"fields": fields, "space": 3, "frame_dt": DT}))
    network, _ = fitted(open_store(tmp_path / "x.zarr"), 20)
    assert all(parameter.isfinite().all() for parameter in network.parameters())


@pytest.fixture
def network():
    torch.manual_seed(0)
    return BACKBONES.parse({"name": "central"}).build(Signature(2, 0, 0, 1, 3, 4)).double()


def state(scalars: torch.Tensor) -> tuple[torch.Tensor, Features]:
    torch.manual_seed(1)
    return torch.randn(5, 4, 3, dtype=torch.float64), Features(scalars.double(), torch.zeros(5, 4, 0, 3, dtype=torch.float64))


def test_inertia_and_screening_are_what_the_formula_says(network):
    positions, features = state(torch.rand(5, 4, 2) + 0.5)
    plain = network(positions, features).vectors
    network.inertia.data[0, 1] = -2.0
    torch.testing.assert_close(network(positions, features).vectors, plain / features.scalars[..., 1, None, None] ** 2, rtol=1e-5, atol=0)

    network.inertia.data.zero_()
    network.screening.data.fill_(0.7)
    pair = positions[:, :2]
    two = Features(features.scalars[:, :2], features.vectors[:, :2])
    distance = (pair[:, 0] - pair[:, 1]).norm(dim=-1)[:, None, None, None]
    screened = network(pair, two).vectors
    network.screening.data.zero_()
    torch.testing.assert_close(screened, network(pair, two).vectors * (-0.7 * distance).exp(), rtol=1e-6, atol=0)


def test_training_departs_from_neither(network):
    positions, features = state(torch.rand(5, 4, 2) + 0.5)
    network(positions, features).vectors.square().sum().backward()
    assert network.inertia.grad.eq(0).all()
    assert network.screening.grad.eq(0).all()


def test_weights_from_before_they_were_known_load(network):
    positions, features = state(torch.rand(5, 4, 2) + 0.5)
    before, weights = network(positions, features).vectors, network.state_dict()
    del weights["inertia"], weights["screening"]
    network.inertia.data.fill_(3.0)
    network.load_state_dict(weights)
    torch.testing.assert_close(network(positions, features).vectors, before, rtol=0, atol=0)


def test_every_start_has_the_form_that_was_asked_for(network):
    for form in (PLAIN, Form(1), Form(None, True), Form(0, True)):
        for _ in network.starts(form):
            want = [0.0, 0.0]
            if form.inertia is not None:
                want[form.inertia] = -1.0
            assert network.inertia.tolist() == [want]
            assert bool(network.screening.gt(0).all()) == form.screened


def test_idle_terms_are_those_that_least_squares_can_spare():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 4, generator=generator, dtype=torch.float64)
    x[:, 3] = 2 * x[:, 0]  # says the same as the first
    y = 3 * x[:, 0] + 0.5 * x[:, 2] + torch.randn(500, generator=generator, dtype=torch.float64)
    values = torch.linalg.lstsq(x, y, driver="gelsd").solution
    idle = idle_terms(x.mT @ x, values, math.log(500) / 2)
    assert idle.zeroed[1]
    assert idle.zeroed[[0, 3]].sum() == 1  # one of the two that say the same
    assert not idle.zeroed[2]
    left = ~idle.zeroed
    torch.testing.assert_close(idle.values[left], torch.linalg.lstsq(x[:, left], y).solution, rtol=1e-4, atol=1e-6)

    x[:, 1] = 0.0  # a power that is switched off: it stays as it is
    off = idle_terms(x.mT @ x, values, math.log(500) / 2)
    assert not off.zeroed[1]
    assert off.values[1] == values[1]


def test_a_fitted_law_is_read_in_words(network):
    """Of the first output, in units of the data; with freedom it is no law of nature."""
    with torch.no_grad():
        network.keep((3,))
        network.bend[-1].weight.zero_()
        network.inertia[0, 1] = -1.001
        network.screening.fill_(0.5)
    read = network.read(0)
    assert read.powers == pytest.approx((-2.0,))
    assert read.screening == 0.5
    assert read.inertia == {1: pytest.approx(-1.001)}
    words = str(LawOfNature(read.powers, read.screening, {"mass": -1.001}, "nm"))
    assert words == "forces go as r^-2, and fall off as exp(-r / 2 nm); accelerations are forces over mass"
    assert "times charge^0.5" in str(LawOfNature((1.0, -2.0), 0.0, {"charge": 0.5}))
    network.exponents.data[3, 2] = 0.1
    assert network.read(0) is None


def test_forces_are_read_times_the_mass_of_the_body_that_is_moved(tmp_path):
    mass = np.random.default_rng(1).uniform(0.5, 2.0, (100, BODIES))
    store = recorded(tmp_path, lambda position: -pairs(position)[0].sum(2) / mass[..., None], attributes={"mass": mass})
    config, context = preset("particles", "pairs", store.system.config), store.context()
    torch.manual_seed(0)
    transition = config.model.build(context)
    fit_law(transition, store, context, 40, seed=0)
    sim = Simulator(transition.double(), store.system, context, config, store=str(tmp_path / "x.zarr"))
    x = store.read("test")
    force, acceleration = (sim.pair_law(x, times=times, bins=4) for times in ("mass", ""))
    assert force.law == "forces go as r^1; accelerations are forces over mass"
    np.testing.assert_allclose(force.learned.sel(quantile=0.5)[0], -force.distance, rtol=0.05)
    ends = {"quantile": [0.05, 0.95]}
    width = [float(abs(one.learned.sel(ends).diff("quantile")).mean()) for one in (force, acceleration)]
    assert width[0] < 0.7 * width[1]
    with pytest.raises(ConfigError, match="times='weight' names no static scalar"):
        sim.pair_law(x, times="weight")
