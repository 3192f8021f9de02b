"""Velocities inferred from positions: exact for the true law, carried along, and shorter steps where two bodies meet."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor
from worlds import DT, context

from epns_pyro.backbones import Features
from epns_pyro.backbones.bodies.central import CentralNetwork
from epns_pyro.context import DataContext
from epns_pyro.errors import ConfigError
from epns_pyro.inference.elbo import log_density
from epns_pyro.models.bodies.inferred import InferredIntegrator
from epns_pyro.models.bodies.integrator import IntegratorConfig
from epns_pyro.models.bodies.particles import ParticlesConfig, ParticleTransition
from epns_pyro.models.normal import unmasked
from epns_pyro.state import Field, StateSpec
from epns_pyro.symmetry import Euclidean, density_invariance_error

BODIES, STEPS = 4, 400
SPEC = StateSpec(
    (
        Field("charge", dynamic=False),
        Field("position", "1o", translates=True, scale=1.3),
        Field("velocity", "1o", rate_of="position", differences=True, scale=0.7),
    )
)
ABOUT = DataContext(SPEC, DT, {"position": 0.03, "velocity": 0.3}, (BODIES,))


def force(position: Tensor) -> Tensor:
    """Softened gravity of unit masses."""
    way = position[..., None, :, :] - position[..., :, None, :]
    return (way / (way.square().sum(-1, keepdim=True) + 0.01) ** 1.5).sum(-2)


def recording(frames: int, batch: int = 6, seed: int = 0, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """States of positions alone under gravity (batch, time, body, channel), and the velocities at their times."""
    generator = torch.Generator().manual_seed(seed)
    r, v = spread * torch.randn(2, batch, BODIES, 3, dtype=torch.float64, generator=generator).unbind(0)[0], None
    v = torch.randn(batch, BODIES, 3, dtype=torch.float64, generator=generator)
    h, places, velocities = DT / STEPS, [r], [v]
    for _ in range(frames):
        for _ in range(STEPS):
            v = v + h / 2 * force(r)
            r = r + h * v
            v = v + h / 2 * force(r)
        places.append(r)
        velocities.append(v)
    place = torch.stack(places, 1)
    charge = torch.ones(batch, 1, BODIES, dtype=torch.float64)
    x = SPEC.pack(charge=charge, position=place[:, 1:], velocity=place.diff(dim=1) / DT)
    return x, torch.stack(velocities[1:], 1)


def with_gravity(**settings: object) -> InferredIntegrator:
    """An integrator whose central network is made to be gravity."""
    integrator = IntegratorConfig.parse({"velocity": "inferred", "network": "central"} | settings).build(ABOUT).double()
    make_gravity(integrator)
    return integrator


@torch.no_grad()
def make_gravity(integrator: InferredIntegrator) -> None:
    network, scale = integrator.network, SPEC["position"].scale
    for parameter in network.parameters():
        parameter.zero_()
    network.log_largest.fill_(20.0)
    network.exponents[0, 0] = -3.0
    network.log_lengths.fill_(np.log(0.1 / scale))
    network.linear.weight[0, 0] = DT / integrator.vectors["velocity"] / scale**2  # in typical changes per frame


def test_a_central_network_can_be_a_law_of_nature_exactly() -> None:
    integrator = with_gravity()
    x, _ = recording(1)
    place = SPEC.get(x[:, 0], "position")
    bodies = integrator.bodies
    out = integrator.network(bodies.positions(x[:, 0]), bodies.features(x[:, 0])).vectors[..., 0, :]
    torch.testing.assert_close(out * integrator.vectors["velocity"] / DT, force(place), rtol=1e-9, atol=1e-9)


def test_the_velocity_is_that_of_the_true_law_with_an_error_of_second_order() -> None:
    x, velocity = recording(1, spread=2.0)
    mean = SPEC.get(x[:, 0], "velocity")
    errors = []
    for steps in (10, 20):
        lead, _ = with_gravity(steps=steps, iterations=30).start(x[:, 0])
        errors.append(float((mean + lead - velocity[:, 0]).detach().abs().max()))
    assert errors[0] < 0.002 < 0.1 < float((mean - velocity[:, 0]).abs().max())
    assert 3.5 < errors[0] / errors[1] < 4.5


def test_backward_from_the_inferred_velocity_the_frame_before_is_met() -> None:
    x, _ = recording(1)
    integrator, mean = with_gravity(iterations=12), SPEC.get(x[:, 0], "velocity")
    lead, _ = integrator.start(x[:, 0])
    moved = integrator._walk_from(x[:, 0], None, mean + lead, -1)[0]
    torch.testing.assert_close(moved, -DT * mean, rtol=0, atol=1e-12)


def test_forecasts_of_the_true_law_stay_with_the_truth() -> None:
    """Velocity carried along; a difference that is half a frame late is a hundred times worse."""
    x, _ = recording(15, spread=2.0)
    position, missed = SPEC.get(x, "position"), {}
    for velocity in ("inferred", "recorded"):
        integrator = IntegratorConfig.parse({"velocity": velocity, "network": "central", "iterations": 30, "steps": 40}).build(ABOUT)
        make_gravity(integrator.double())
        state = x[:, 0]
        memory = integrator.start(state)
        for _ in range(14):
            motion = integrator(state, None, memory)
            mean = SPEC.get(state, "velocity") + motion.change
            y = SPEC.pack_dynamic(position=SPEC.get(state, "position") + DT * mean, velocity=mean)
            memory, state = integrator.remember(state, motion, y), SPEC.advance(state, y)
        missed[velocity] = float((SPEC.get(state, "position") - position[:, 14]).norm(dim=-1).median().detach())
    assert missed["inferred"] < 1e-3
    assert missed["inferred"] < 0.01 * missed["recorded"]


def test_only_frames_with_an_encounter_are_walked_again() -> None:
    x, _ = recording(1)
    far, near = x[:, 0].clone(), x[:, 0].clone()
    far[..., SPEC.slice("position")] *= 10
    near[0, 1, SPEC.slice("position")] = near[0, 0, SPEC.slice("position")] + 0.02
    states = torch.cat([far, near[:1]])
    coarse, refined, fine = (with_gravity(steps=steps, refinements=r, tolerance=0.05) for steps, r in ((8, 0), (8, 1), (32, 0)))
    memory = (torch.zeros_like(SPEC.get(states, "velocity")), torch.zeros(len(states), BODIES, 4, dtype=torch.float64))
    a, b, c = (integrator(states, None, memory).change for integrator in (coarse, refined, fine))
    torch.testing.assert_close(b[:-1], a[:-1], rtol=0, atol=0)
    torch.testing.assert_close(b[-1], c[-1], rtol=1e-12, atol=1e-12)
    assert (a[-1] - c[-1]).abs().max() > 1e-3


def transition(**settings: object) -> ParticleTransition:
    torch.manual_seed(0)
    small = {"width": 8, "latent": 3, "hidden_vectors": 3, "backbone": {"name": "vector", "width": 8, "vectors": 4, "layers": 1}}
    integrator = {"velocity": "inferred", "refinements": 1, "steps": 4, "network": "central"}
    made = ParticlesConfig.parse(small | {"integrator": integrator, "guess_unit": "noise"} | settings).build(ABOUT).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


@pytest.mark.parametrize("echo", [False, True])
def test_carries_along_a_path_are_those_of_step_after_step(echo: bool) -> None:
    model, (x, _) = transition(echo=echo), recording(6)
    carries = model.carries(x[:, 0], x[:, 1:]).map(lambda part: part.unflatten(0, (len(x), 5)))
    carry, seen = model.start(x[:, 0]), model.follow(x)
    for t in range(5):
        torch.testing.assert_close(carries.x[:, t], carry.x, rtol=0, atol=0)
        torch.testing.assert_close(carries.memory[0][:, t], carry.memory[0], rtol=1e-12, atol=1e-12)
        for whole, part in zip(seen.memory, carry.memory, strict=True):
            torch.testing.assert_close(whole[:, t], part, rtol=1e-12, atol=1e-12)
        carry = model.step(carry).advance(SPEC.dynamic(x[:, t + 1]), x[:, t + 1])


@pytest.mark.parametrize("echo", [False, True])
def test_the_density_has_the_symmetry_and_no_body_sees_an_absent_one(echo: bool) -> None:
    model, (x, _) = transition(echo=echo), recording(4)
    z = torch.randn(len(x), 3, BODIES, 3, dtype=torch.float64)

    def density(x0: Tensor, path: Tensor, z: Tensor) -> Tensor:
        return log_density(model, x0, path, z)

    assert density_invariance_error(density, SPEC, x[:, 0], x[:, 1:], z, Euclidean()).maximum < 1e-9
    assert model.start(x[:, 0]).memory[0].abs().max() > 1e-3


def test_what_is_learned_gets_a_gradient_through_the_velocity() -> None:
    integrator, (x, _) = with_gravity(iterations=8), recording(1, spread=2.0)
    lead, _ = integrator.start(x[:, 0])
    lead.square().sum().backward()
    weight = integrator.network.linear.weight
    found, h = float(weight.grad[0, 0]), 1e-5
    sums = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[0, 0] += sign * h
            sums.append(float(integrator.start(x[:, 0])[0].square().sum()))
            weight[0, 0] -= sign * h
    assert found == pytest.approx((sums[0] - sums[1]) / (2 * h), rel=0.15)  # that of the last iteration alone


def test_in_units_of_the_noise_the_guess_shrinks_with_it() -> None:
    x, _ = recording(2)
    means = {}
    for unit in ("change", "noise"):
        model = transition(guess_unit=unit)
        with torch.no_grad():
            model.guess_scalars[-1].weight.zero_()
            model.guess_scalars[-1].bias.fill_(-7.0)
        step = model.at(x[:, 0])
        drift = model.bodies.to_free(model.bodies.persistence(step.x)) + step.motion.change
        means[unit] = float((unmasked(step._guess).mean - drift).abs().max())
    assert means["noise"] < 0.01 * means["change"]


def test_recorded_velocities_are_not_inferred() -> None:
    with pytest.raises(ConfigError, match="velocity 'inferred' is for recordings of positions alone"):
        IntegratorConfig(velocity="inferred").build(context("celestial"))


def test_an_absent_body_has_no_lead_and_pulls_nobody() -> None:
    integrator, (x, _) = with_gravity(), recording(1)
    mask = torch.ones(len(x), BODIES, dtype=torch.bool)
    mask[:, -1] = False
    lead, _ = integrator.start(x[:, 0], mask)
    alone = DataContext(SPEC, DT, ABOUT.step_scales, (BODIES - 1,))
    other = IntegratorConfig.parse({"velocity": "inferred", "network": "central"}).build(alone).double()
    make_gravity(other)
    torch.testing.assert_close(lead[:, :-1], other.start(x[:, 0, :-1])[0], rtol=1e-9, atol=1e-12)
    assert not lead[:, -1].any()
    assert isinstance(integrator.network, CentralNetwork)
    assert Features(x[..., :1], x[..., None, :3]).pairs is None


def test_doubt_is_where_bodies_met_in_the_frame_before() -> None:
    integrator, (x, _) = with_gravity(), recording(1, spread=3.0)
    near = x[:, 0].clone()
    near[0, 1, SPEC.slice("position")] = near[0, 0, SPEC.slice("position")] + 0.02
    lead, doubt = integrator.start(near)
    assert doubt[0, :2, 0].min() > 3 * doubt[1:, :, 0].max()
    assert doubt[0, :2, 1].min() > doubt[1:, :, 1].max()
    torch.testing.assert_close(integrator(near, None, (lead, doubt)).signs[..., -4:], doubt)


def swinging(phase: float) -> tuple[Tensor, Tensor]:
    """Two unit masses that swing around each other 0.15 apart, one turn in 1.6 frames, and two that are far: state and velocities."""
    apart, softened = 0.15, 0.15**2 + 0.01
    speed = apart / 2 * np.sqrt(2 / softened**1.5)
    turned = torch.tensor([np.cos(phase), np.sin(phase), 0.0]), torch.tensor([-np.sin(phase), np.cos(phase), 0.0])
    place = torch.tensor([[0.0] * 3, [0.0] * 3, [9.0, 0, 0], [0, 9.0, 0]], dtype=torch.float64)
    velocity = torch.zeros(4, 3, dtype=torch.float64)
    for body, side in ((0, 0.5), (1, -0.5)):
        place[body] = side * apart * turned[0]
        velocity[body] = 2 * side * speed * turned[1]
    return place, velocity


@torch.no_grad()
def test_a_velocity_that_is_carried_along_fits_the_place_that_was_reached() -> None:
    """Bodies that swing around each other are found at another phase than foreseen: the velocity there is not that of the foreseen one."""
    integrator = with_gravity(steps=160, iterations=20)
    speed = float(swinging(0.0)[1].norm(dim=-1).max())
    pace = 2 * speed / 0.15  # turns of so many radians per time
    states = [swinging(pace * DT * t) for t in (-1, 0)] + [swinging(pace * DT + 0.1)]
    charge = torch.ones(BODIES, dtype=torch.float64)
    x, y = (SPEC.pack(charge=charge, position=after[0], velocity=(after[0] - before[0]) / DT) for before, after in pairwise(states))
    lead, doubt = integrator.start(x)
    assert not doubt[..., 3].any()
    torch.testing.assert_close(SPEC.get(x, "velocity") + lead, states[1][1], rtol=0, atol=0.02 * speed)
    motion = integrator(x, None, (lead, doubt))
    kept = SPEC.get(y, "velocity") + motion.memory[0]
    lead, doubt = integrator.remember(x, motion, SPEC.dynamic(y))
    found = SPEC.get(y, "velocity") + lead
    assert doubt[..., 3].all()
    back = integrator._walk_from(y, None, found, -1)[0]
    torch.testing.assert_close(back, SPEC.get(x, "position") - SPEC.get(y, "position"), rtol=0, atol=1e-9)
    assert (integrator._walk_from(y, None, kept, -1)[0] - back).abs().max() > 1e-3
    foreseen = SPEC.get(x, "velocity") + motion.change
    as_foreseen = SPEC.pack_dynamic(position=SPEC.get(x, "position") + DT * foreseen, velocity=foreseen)
    torch.testing.assert_close(integrator.remember(x, motion, as_foreseen)[0], motion.memory[0], rtol=0, atol=1e-9)


@torch.no_grad()
def test_the_error_from_the_length_of_the_steps_is_known() -> None:
    """In proportion to the square of the steps, and of the size that shorter steps show; never taken for much smaller."""
    x, velocity = recording(1, batch=40)
    state, ends, found = x[:, 0], {}, {}
    for steps in (20, 40, 640):
        _, ends[steps], found[steps] = with_gravity(steps=steps)._walk_from(state, None, velocity[:, 0], 1)
    unit = ABOUT.step_scales["velocity"]
    actual = (ends[20] - ends[640]).norm(dim=-1) / unit
    usual = actual > 1e-6
    assert usual.float().mean() > 0.5
    assert 3.5 < float((found[20].error / found[40].error).median()) < 4.5
    ratio = (found[20].error / actual)[usual]
    assert 0.3 < float(ratio.median()) < 3
    assert float(ratio.quantile(0.02)) > 0.1
