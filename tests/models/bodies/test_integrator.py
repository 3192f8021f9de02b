"""The integrator behind the first guess: its law of motion, its order, what it conserves, and what it leaves alone."""

from __future__ import annotations

import pytest
import slow_bodies
import torch
from torch import Tensor
from worlds import DT, WORLDS, context, particles, trajectories

from epns_pyro.backbones import Backbone, Features
from epns_pyro.context import DataContext
from epns_pyro.models.bodies.integrator import Integrator, IntegratorConfig, Motion


class Spring(Backbone):
    """a = -k x for the first vector that goes out, in the units of the network."""

    equivariant = True

    def __init__(self, integrator: Integrator, stiffness: float) -> None:
        super().__init__(integrator.network.signature)
        spec, dt = integrator.bodies.spec, integrator.bodies.frame_dt
        self.strength = stiffness * spec["position"].scale * dt / integrator.vectors["velocity"]

    def evaluate(self, positions: Tensor, features: Features) -> Features:
        return Features(features.scalars[..., :0], -self.strength * positions[..., None, :])


def on_springs(about: DataContext, steps: int, stiffness: float) -> Integrator:
    integrator = Integrator(IntegratorConfig(steps=steps), about)
    integrator.network = Spring(integrator, stiffness)
    return integrator


def exact(about: DataContext, x: Tensor, stiffness: float) -> Tensor:
    """The state after one frame of x'' = -k x."""
    spec, omega = about.spec, torch.tensor(stiffness, dtype=torch.float64).sqrt()
    r, v, turn = spec.get(x, "position"), spec.get(x, "velocity"), omega * about.frame_dt
    return spec.pack_dynamic(position=r * turn.cos() + v / omega * turn.sin(), velocity=v * turn.cos() - r * omega * turn.sin())


def errors(steps: tuple[int, ...], stiffness: float) -> list[float]:
    about = context("celestial")
    x, _ = trajectories(about)
    found = []
    for count in steps:
        integrator = on_springs(about, count, stiffness)
        end = integrator.bodies.persistence(x) + integrator(x)[0]
        found.append(float((end - exact(about, x, stiffness)).abs().max()))
    return found


def test_it_follows_a_known_law_with_an_error_of_second_order() -> None:
    stiffness = 400.0  # two radians per frame
    coarse, fine, finest = errors((8, 16, 64), stiffness)
    assert 3.8 < coarse / fine < 4.2
    assert 15 < fine / finest < 17
    assert finest < 0.01


def test_energy_does_not_drift_over_many_frames() -> None:
    """At 1 radian per step it errs by less than a factor of two, and no more after a thousand frames than after one."""
    about, stiffness = context("celestial"), 400.0
    integrator, spec = on_springs(about, 2, stiffness), about.spec
    x, _ = trajectories(about)

    def energy(x: Tensor) -> Tensor:
        return (spec.get(x, "velocity").square() + stiffness * spec.get(x, "position").square()).sum((-2, -1))

    start, seen = energy(x), []
    for _ in range(1000):
        x = spec.advance(x, integrator.bodies.persistence(x) + integrator(x)[0])
        seen.append(energy(x) / start)
    ratio = torch.stack(seen)
    assert ratio.min() > 0.5
    assert ratio.max() < 2.0
    torch.testing.assert_close(ratio[:500].mean(0), ratio[500:].mean(0), rtol=0.02, atol=0)


@pytest.mark.parametrize("world", WORLDS)
def test_only_fields_without_a_rate_are_kicked(world: str) -> None:
    """A body's position goes where its velocity carries it, so momentum and position stay those of one equation of motion."""
    about = context(world)
    integrator, (x, _) = particles(about, integrator={"steps": 1}).integrator, trajectories(about)
    spec, change = about.spec, integrator(x)[0]
    kicked = {f.name for f in spec.dynamic_fields} - ({"position"} if "velocity" in spec else set())
    assert integrator.vectors.keys() | integrator.scalars.keys() == kicked
    for name in kicked:
        assert spec.get_dynamic(change, name).abs().max() > 1e-4
    if "velocity" in spec:  # one kick in the middle of the frame carries the position for the other half
        carried = DT / 2 * spec.get_dynamic(change, "velocity")
        torch.testing.assert_close(spec.get_dynamic(change, "position"), carried, rtol=1e-9, atol=1e-12)


def test_forces_between_pairs_conserve_momentum_where_the_network_does() -> None:
    """With masses alike and nothing said about single bodies, what i does to j is what j does to i, reversed."""
    about = context("celestial")
    integrator, (x, _) = particles(about).integrator, trajectories(about)
    integrator.network.alone = None
    spec = about.spec
    x = spec.pack(mass=torch.ones_like(spec.get(x, "mass")), position=spec.get(x, "position"), velocity=spec.get(x, "velocity"))
    change = spec.get_dynamic(integrator(x)[0], "velocity")
    assert change.abs().max() > 1e-3
    torch.testing.assert_close(change.sum(-2), torch.zeros_like(change[:, 0]), rtol=0, atol=1e-12)


def test_strain_tells_of_an_encounter_within_the_frame() -> None:
    """A body that passes a spring's centre feels little on the way; one that starts far from it is pulled hard at once."""
    about = context("celestial", bodies=2)
    integrator, spec = on_springs(about, 8, 25.0), about.spec
    position = torch.tensor([[0.1, 0.0, 0.0], [40.0, 0.0, 0.0]], dtype=torch.float64)
    zero = torch.zeros_like(position)
    log_max_kick = integrator(spec.pack(mass=zero[..., 0], position=position, velocity=zero)[None]).log_max_kick
    pull = 25.0 * position[:, 0] * DT / integrator.vectors["velocity"]  # the strongest kick is near the start
    torch.testing.assert_close(log_max_kick[0, :, 0], (1 + pull.square()).log() / 2, rtol=0.01, atol=0)


@pytest.mark.parametrize("absences", [False, True])
def test_frames_of_strong_forces_are_walked_again_in_shorter_steps(absences: bool) -> None:
    """One state of two has them, and its frame is then that of four times as many steps; the other's stays as it was, bit for bit."""
    about = context("celestial")
    (x, _), stiff = trajectories(about, batch=2), 400.0
    mask = torch.ones(x.shape[:-1], dtype=torch.bool)
    mask[:, -1] = not absences
    spec = about.spec
    near = {f.name: spec.get(x, f.name).clone() for f in spec.fields}
    near["position"][1] *= 100.0

    def motion(steps: int, refinements: int) -> Motion:
        integrator = Integrator(IntegratorConfig(steps=steps, refinements=refinements, tolerance=20.0), about)
        integrator.network = Spring(integrator, stiff)
        return integrator(spec.pack(**near), mask if absences else None)

    coarse, refined, fine = motion(8, 0), motion(8, 1), motion(32, 0)
    torch.testing.assert_close(refined.change[0], coarse.change[0], rtol=0, atol=0)
    torch.testing.assert_close(refined.change[1], fine.change[1], rtol=1e-12, atol=1e-12)
    assert (coarse.change[1] - fine.change[1]).abs().max() > 1e-2
    assert refined.signs.shape[-1] == coarse.signs.shape[-1] + 1
    assert refined.signs[1, :, -1].min() > refined.signs[0, :, -1].max() - 2.0


@pytest.mark.parametrize("world", ["celestial", "still plane"])
def test_before_training_bodies_that_nearly_meet_are_not_thrown_about(world: str) -> None:
    """Steps of a first-order law go where the last one led: were its first guess wild there, so would be every later one."""
    about = context(world)
    spec, (x, _) = about.spec, trajectories(about, batch=50)
    x = spec.pack(**{f.name: spec.get(x, f.name) * (0.02 if f.name == "position" else 1.0) for f in spec.fields})
    for seed in range(10):
        torch.manual_seed(seed)
        change = Integrator(IntegratorConfig(), about).double()(x).change
        for f in spec.dynamic_fields:
            assert spec.get_dynamic(change, f.name).abs().max() < 2 * about.step_scales[f.name]


def test_a_transition_can_do_without() -> None:
    about = context("celestial")
    (x0, path), without, within = trajectories(about), particles(about, integrator=None), particles(about)
    assert without.integrator is None
    h, more = without.at(x0).h, within.at(x0).h
    assert more.shape[-1] - h.shape[-1] == about.spec.dynamic_channels + within.integrator.fields
    assert without.at(x0).emission(without.at(x0).prior.sample()).log_prob(about.spec.dynamic(path[:, 0])).isfinite().all()


@pytest.mark.parametrize("absences", [False, True])
@pytest.mark.parametrize("network", ["pairwise", "central", "vector"])
@pytest.mark.parametrize("world", WORLDS)
def test_a_motion_and_its_gradient_are_those_of_whole_states_at_every_step(world: str, network: str, absences: bool) -> None:
    about = context(world)
    integrator, (x, _) = particles(about, integrator={"steps": 3, "network": {"name": network}}).integrator, trajectories(about)
    mask = torch.arange(4).expand(3, 4) != torch.tensor([[0], [3], [5]]) if absences else None
    found = []
    for move in (integrator, lambda *state: slow_bodies.motion(integrator, *state)):
        integrator.zero_grad()
        made = move(x, mask)
        (made.change.sin().sum() + made.log_max_kick.sum()).backward()
        gradients = torch.cat([p.grad.flatten() for p in integrator.parameters() if p.grad is not None])
        found.append((made.change, made.log_max_kick, gradients))
    for here, there in zip(*found, strict=True):
        assert there.abs().max() > 1e-6
        torch.testing.assert_close(here, there, rtol=1e-9, atol=1e-12)
