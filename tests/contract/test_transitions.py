"""The contract of every registered transition, on every system that suits it. A new one is tested by being registered.

The simulator is an equivariant distribution, log p(g x, g z | g x_0) = log p(x, z | x_0), from raw states, through stock Pyro.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from pyro.distributions import Independent
from torch import Tensor

from epns_pyro.backbones import BACKBONES, Features, Signature
from epns_pyro.backbones.bodies.base import safe_norm
from epns_pyro.context import DataContext
from epns_pyro.errors import ConfigError
from epns_pyro.models import TRANSITIONS, EPNSGuide, EPNSModel, Transition
from epns_pyro.models.bodies.particles import ParticleTransition
from epns_pyro.models.transition import Carry, Step
from epns_pyro.state import Field, StateSpec
from epns_pyro.symmetry import Euclidean, GroupElement, equivariance_error
from epns_pyro.systems import CellsConfig, NBodyConfig, RecordedConfig, System
from epns_pyro.testing import ContractError, check_transition, far_groups, invariance_error, log_density, train_a_little

STEPS, BATCH, TOLERANCE = 2, 2, 1e-9
POSITION, VELOCITY = Field("position", "1o", translates=True), Field("velocity", "1o", rate_of="position")


def recorded(*fields: Field, space: int) -> System:
    return RecordedConfig(spec=asdict(StateSpec(fields, space=space)), frame_dt=0.1).build()


SYSTEMS = {
    "nbody": NBodyConfig(dt=0.01).build(),
    "warm plane": recorded(POSITION, VELOCITY, Field("temperature"), space=2),
    "no velocities": recorded(Field("charge", dynamic=False), POSITION, Field("push", "1o", dynamic=False), space=3),
    "cells 40 x 40": CellsConfig.small().build(),
    "cells 72 x 50": CellsConfig.small().override({"lattice": (72, 50)}).build(),
    "cells, periodic": CellsConfig.small().override({"boundary": "periodic"}).build(),
}
EQUIVARIANT = [name for name in BACKBONES.names if BACKBONES[name]().build(Signature(1, 1, 1, 1)).equivariant]


def backbone(name: str) -> dict:
    return {"name": name} | {key: value for key, value in {"width": 8, "layers": 2}.items() if key in BACKBONES[name].model_fields}


# Small settings for quick tests, and further settings that have to keep the promise as well; a transition without an entry is tested
# with its defaults.
SMALL = {
    "particles": {"width": 8, "latent": 3, "hidden_vectors": 3, "backbone": backbone("vector")},
    "neural-sde": {"substeps": 2, "backbone": backbone("vector")},
    "symplectic": {"steps": 3},
    "cells": {"latent": 3, "prior_width": 8, "network": {"name": "windows", "width": 8, "depth": 1, "window": 9}},
}
VARIANTS = {
    "particles": [
        *({"backbone": backbone(name), "emission": emission} for name in EQUIVARIANT for emission in ("coupled", "diagonal")),
        {"latents": "shared", "linear_path": False, "emission": "diagonal"},
        {"history": {"frames": 3, "network": {"name": "estag", "width": 8, "vectors": 4, "layers": 1}}},
        {"backbone": backbone("vector") | {"graph": {"kind": "nearest", "neighbours": 2}}, "emission": "diagonal"},
    ],
    "neural-sde": [{"backbone": backbone(name)} for name in EQUIVARIANT],
    "symplectic": [
        {},
        *({"noise": {"name": "covariance", "grade": grade}} for grade in ("free-flight", "system")),
        *({"noise": {"name": "kicks", "nodes": nodes}, "friction": True} for nodes in (1, 2, 3)),
        {"potential": {"name": "network", "network": backbone("pairwise")}},
        {"potential": {"name": "network", "network": backbone("vector")}, "noise": "kicks"},
    ],
    "cells": [{}, {"sweeps": 2, "interlacing": 4}],
}


# -- states and transitions ------------------------------------------------------------------------------------------------


def trajectories(system: System) -> Tensor:
    """(batch, time, *site, channel), float64 or whole numbers: simulated, or random where nobody knows the law."""
    rng = np.random.default_rng(0)
    if system.can_simulate:
        x = system.simulate(system.initial(BATCH, rng), STEPS, np.arange(BATCH, dtype=np.uint64))
    else:
        x = rng.standard_normal((BATCH, 1, 4, system.spec.channels)) + 0.1 * rng.standard_normal(
            (BATCH, STEPS + 1, 4, system.spec.channels)
        )
    x = torch.as_tensor(x)
    return x.double() if x.dtype.is_floating_point else x.long()


def context(system: System) -> DataContext:
    spec, scales = system.spec, {"mass": 4.0, "position": 2.0, "velocity": 1.5, "temperature": 0.7}
    real = [f.name for f in spec.fields if f.kind == "real"]
    steps = {"position": 0.1, "velocity": 0.3, "temperature": 0.2}
    return DataContext(
        spec.with_scales({name: scales[name] for name in real if name in scales}),
        system.frame_dt,
        {f.name: steps[f.name] for f in spec.dynamic_fields if f.name in real},
        tuple(trajectories(system).shape[2:-1]),
    )


def build(name: str, system: str, changes: dict | None = None, seed: int = 0) -> Transition:
    torch.manual_seed(seed)
    return TRANSITIONS[name].parse(SMALL.get(name, {}) | (changes or {})).build(context(SYSTEMS[system])).double()


def suited(name: str, system: str) -> list[dict]:
    """The settings with which a transition can be built for a system."""
    found = []
    for changes in VARIANTS.get(name, [{}]):
        with contextlib.suppress(ConfigError):
            build(name, system, changes)
            found.append(changes)
    return found


SUITED = {(name, system): found for name in TRANSITIONS.names for system in SYSTEMS if (found := suited(name, system))}
EACH = [pytest.param(*pair, found[0], id="-".join(pair)) for pair, found in SUITED.items()]
FIRST = {name: next(pair for pair in SUITED if pair[0] == name) for name in TRANSITIONS.names}
ALL = EACH + [pytest.param(*pair, c, id=f"{pair[0]} {n}") for pair in FIRST.values() for n, c in enumerate(SUITED[pair]) if n]


# -- the promise -----------------------------------------------------------------------------------------------------------


def test_every_transition_suits_a_system():
    assert {name for name, _ in SUITED} == set(TRANSITIONS.names)
    assert {system for _, system in SUITED} == set(SYSTEMS)


@pytest.mark.parametrize(("name", "system", "changes"), ALL)
def test_the_contract_holds(name, system, changes):
    """Invariance of model and guide, fresh and trained, shapes, batches, gradients and weights that travel."""
    config = TRANSITIONS[name].parse(SMALL.get(name, {}) | (changes or {}))
    check_transition(config, SYSTEMS[system], context=context(SYSTEMS[system]), x=trajectories(SYSTEMS[system]).numpy())


@pytest.mark.parametrize(("name", "system", "changes"), EACH)
def test_each_piece_is_equivariant(name, system, changes):
    transition, x = build(name, system, changes), trajectories(SYSTEMS[system])
    train_a_little(transition, x)
    spec, x_next = transition.spec, x[:, 1]

    def prior(x: Tensor) -> Tensor:
        law = transition.at(x).prior.base_dist
        return torch.stack([law.loc, law.scale])

    def posterior(pair: Tensor) -> Tensor:
        law = transition.at(pair[0]).posterior(pair[1]).base_dist
        return torch.stack([law.loc, law.scale])

    def move(g: GroupElement, law: Tensor) -> Tensor:
        """A location moves as latents do, a scale is invariant."""
        loc, scale = law
        return torch.stack([g.act_latent(loc, transition.latent_fields), g.act_latent(scale)])

    def mean(x: Tensor) -> Tensor:
        step = transition.at(x)
        return step.emission(step.prior.mean).mean

    for group in far_groups(SYSTEMS[system]):
        for function, argument in ((prior, x[:, 0]), (posterior, torch.stack([x[:, 0], x_next]))):
            assert equivariance_error(function, argument, group, act_in=spec.act, act_out=move, samples=3).maximum <= TOLERANCE
        if all(f.kind == "real" for f in spec.dynamic_fields):
            found = equivariance_error(mean, x[:, 0], group, act_in=spec.act, act_out=spec.act_dynamic, samples=3)
            assert found.maximum <= TOLERANCE


# -- the testers are tested ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone_name", [name for name in BACKBONES.names if name not in EQUIVARIANT])
def test_networks_that_promise_nothing_are_seen(backbone_name):
    transition, system = build("particles", "nbody", {"backbone": backbone(backbone_name)}), SYSTEMS["nbody"]
    for program in (EPNSModel, EPNSGuide):
        assert invariance_error(log_density(program(transition)), transition, system.symmetry, trajectories(system)) > 1e-6


def with_hidden(step: Step, change: Callable[[Features], Features]) -> Step:
    """Let the laws of a step of particles see another h."""
    step.hidden = change(step.hidden)
    return step


class VelocitySlice(ParticleTransition):
    """EPNS.md, section 5: h has read the relative speed from two of three components."""

    def step(self, carry: Carry) -> Step:
        velocity = self.spec.get(carry.x, "velocity")[..., :2]
        speed = safe_norm(velocity[..., :, None, :] - velocity[..., None, :, :]).sum(-1)
        return with_hidden(super().step(carry), lambda hidden: replace(hidden, scalars=hidden.scalars + 1e-3 * speed[..., None]))


class WrongParity(ParticleTransition):
    """A cross product, which is a pseudovector, taken for a vector."""

    def step(self, carry: Carry) -> Step:
        position = self.bodies.positions(carry.x)
        cross = torch.linalg.cross(position - position.mean(-2, keepdim=True), self.spec.get(carry.x, "velocity"))
        return with_hidden(super().step(carry), lambda hidden: replace(hidden, vectors=hidden.vectors + 1e-3 * cross[..., None, :]))


class SigmaPerAxis(ParticleTransition):
    """A sigma of its own for every axis of space."""

    def step(self, carry: Carry) -> Step:
        def emission(z: Tensor) -> Independent:
            law = made(z)
            law.base_dist.scale = law.base_dist.scale * torch.linspace(1, 1.01, 6, dtype=z.dtype)
            return law

        step = super().step(carry)
        made, step.emission = step.emission, emission
        return step


class LatentsOutOfOrder(ParticleTransition):
    """Latents that do not follow their bodies."""

    def step(self, carry: Carry) -> Step:
        step = super().step(carry)
        made = step.emission
        step.emission = lambda z: made(z.flip(-2))
        return step


class FrozenFeatures(ParticleTransition):
    """The published check: features of the state before it was turned, used again after. It must not make anything pass."""

    def step(self, carry: Carry) -> Step:
        step = super().step(carry)
        self.first = getattr(self, "first", step.hidden)
        return with_hidden(step, lambda hidden: self.first)


@pytest.mark.parametrize("trained", [False, True], ids=["untrained", "trained"])
@pytest.mark.parametrize("defective", [VelocitySlice, WrongParity, SigmaPerAxis, LatentsOutOfOrder, FrozenFeatures])
def test_a_planted_defect_turns_the_check_red(defective, trained):
    sound = build("particles", "nbody", {"emission": "diagonal"})
    system, x = SYSTEMS["nbody"], trajectories(SYSTEMS["nbody"])
    if trained:
        train_a_little(sound, x)
    broken = defective(sound.config, context(system)).double()
    broken.load_state_dict(sound.state_dict())
    assert invariance_error(log_density(EPNSModel(sound)), sound, system.symmetry, x) <= TOLERANCE
    assert invariance_error(log_density(EPNSModel(broken)), broken, system.symmetry, x) > 100 * TOLERANCE


@pytest.mark.parametrize("defective", [VelocitySlice, SigmaPerAxis, LatentsOutOfOrder])
def test_the_shipped_check_names_the_broken_promise(defective, monkeypatch):
    config, system = TRANSITIONS["particles"].parse(SMALL["particles"] | {"emission": "diagonal"}), SYSTEMS["nbody"]
    monkeypatch.setattr(type(config), "build", lambda self, context: defective(self, context))
    with pytest.raises(ContractError, match="the density of the model is invariant to 1e-09 with fresh weights: found"):
        check_transition(config, system, context=context(system), x=trajectories(system).numpy())


def test_a_defect_of_parity_is_seen_in_the_mirror_only():
    """Rotations cannot tell: half of the elements of the group have to be reflections."""

    class Rotations(Euclidean):
        def random(self, x, rng):
            g = super().random(x, rng)
            return replace(g, rotation=g.rotation * np.sign(np.linalg.det(g.rotation)))

    broken, x = WrongParity(build("particles", "nbody").config, context(SYSTEMS["nbody"])).double(), trajectories(SYSTEMS["nbody"])
    assert invariance_error(log_density(EPNSModel(broken)), broken, Rotations(3), x) <= TOLERANCE
    assert invariance_error(log_density(EPNSModel(broken)), broken, Euclidean(3), x) > 100 * TOLERANCE


def test_a_guide_with_a_defect_is_seen():
    class Slanted(ParticleTransition):
        def step(self, carry: Carry) -> Step:
            def posterior(x_next: Tensor) -> Independent:
                law = made(x_next)
                law.base_dist.loc = law.base_dist.loc + 1e-3 * self.spec.get(x_next, "position").sum(-1, keepdim=True)
                return law

            step = super().step(carry)
            made, step.posterior = step.posterior, posterior
            return step

    broken = Slanted(build("particles", "nbody").config, context(SYSTEMS["nbody"])).double()
    system, x = SYSTEMS["nbody"], trajectories(SYSTEMS["nbody"])
    assert invariance_error(log_density(EPNSGuide(broken)), broken, system.symmetry, x) > 100 * TOLERANCE
    assert invariance_error(log_density(EPNSModel(broken)), broken, system.symmetry, x) <= TOLERANCE
