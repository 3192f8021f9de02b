"""Potentials: forces and curvatures are derivatives, laws of nature are within reach, and symmetries hold from raw states."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from phase_space import about, follow_gravity, states, symplectic

from epns_pyro.state import Field

KINDS = {
    "pair": {"potential": "pair"},
    "pair, copies": {"potential": {"name": "pair", "copies": 2}},
    "pairwise": {"potential": {"name": "network", "network": {"name": "pairwise", "width": 8}}},
    "vector": {"potential": {"name": "network", "network": {"name": "vector", "width": 8, "vectors": 4, "layers": 2}}},
}
# where space is special: a fixed centre, an axis, a periodic box
PLACES = {"free": {}, "axis": {"rotations": "axis"}, "box": {"box": (3.0, 3.0, 3.0)}, "centre": {}}


def context(place: str, bodies: int = 4):
    made = about(bodies)
    spec = replace(made.spec, **PLACES[place])
    if place == "centre":
        spec = replace(spec, fields=tuple(replace(f, translates=False) for f in spec.fields))
    return replace(made, spec=spec)


def landscape(settings: dict, place: str = "free", bodies: int = 4, size: float = 0.5):
    made = context(place, bodies)
    transition, x = symplectic(made, size=size, **settings), states(made)
    return transition, x, transition.potential.at(x)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_forces_and_curvatures_are_derivatives_of_the_energy(kind, place):
    transition, x, field = landscape(KINDS[kind], place)
    q = transition.spec.get(x, "position")
    by_autograd = torch.autograd.functional.jacobian(field.energy, q)
    torch.testing.assert_close(field.forces(q), -by_autograd, rtol=1e-9, atol=1e-11)
    twice = torch.autograd.functional.hessian(field.energy, q)
    torch.testing.assert_close(field.curvature(q), twice, rtol=1e-8, atol=1e-9)
    own = torch.stack([twice[i, :, i] for i in range(len(q))])
    torch.testing.assert_close(field.own_curvature(q), own, rtol=1e-8, atol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(field.forces(q), -by_autograd, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(field.curvature(q), twice, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_positions_gives_what_each_gives_alone(kind):
    transition, x, field = landscape(KINDS[kind])
    q = transition.spec.get(x, "position") + torch.randn(2, 3, 4, 3, dtype=torch.float64)
    for function in (field.energy, field.forces, field.curvature, field.own_curvature):
        torch.testing.assert_close(function(q)[1, 2], function(q[1, 2]), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_energy_is_the_same_after_rotation_reflection_translation_and_permutation(kind):
    transition, x, field = landscape(KINDS[kind], size=1.0)
    q = transition.spec.get(x, "position")
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    for mirror in (1.0, -1.0):
        order = torch.randperm(4)
        moved = transition.potential.at(x[order])
        there = mirror * q[order] @ turn.T + 10.0
        torch.testing.assert_close(moved.energy(there), field.energy(q), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(moved.forces(there), mirror * field.forces(q)[order] @ turn.T, rtol=1e-11, atol=1e-12)


def test_pairs_keep_momentum_and_angular_momentum():
    transition, x, field = landscape(KINDS["pair"], size=1.0)
    q = transition.spec.get(x, "position")
    forces = field.forces(q)
    assert float(forces.sum(0).abs().max()) < 1e-14 * float(forces.abs().max())
    assert float(torch.linalg.cross(q, forces).sum(0).abs().max()) < 1e-13 * float(forces.abs().max())


def test_softened_gravity_is_within_reach_exactly():
    made = about(3, scales={"position": 1.3, "mass": 4.0})
    transition, x = follow_gravity(symplectic(made), 1.7, 0.4), states(made)
    q, mass = transition.spec.get(x, "position"), transition.spec.get(x, "mass")
    way = q[None, :] - q[:, None]
    squared = way.square().sum(-1) + 0.4**2
    wanted = (1.7 * mass[None, :, None] * way / squared[..., None] ** 1.5).sum(1)
    found = transition.potential.at(x).forces(q) / transition.potential.masses(x)[:, None]
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    energy = transition.potential.at(x).energy(q) * 4.0  # in masses of the data
    pairs = torch.triu_indices(3, 3, 1)
    torch.testing.assert_close(energy, (-1.7 * mass[pairs[0]] * mass[pairs[1]] / squared[pairs[0], pairs[1]].sqrt()).sum())


def test_attributes_of_pairs_and_missing_bodies_count():
    made = about(4)
    spring = Field("spring", kind="pair", size=4, dynamic=False)
    made = replace(made, spec=replace(made.spec, fields=(spring, *made.spec.fields)))
    transition, x = symplectic(made), states(made)
    bonds = torch.zeros(4, 4, dtype=torch.float64)
    bonds[0, 1] = bonds[1, 0] = 1.0
    x[..., made.spec.slice("spring")] = bonds
    q = made.spec.get(x, "position")
    with torch.no_grad():
        for parameter in transition.potential.parameters():
            parameter.zero_()
        transition.potential.pair[0] = 1.0
        transition.potential.radial.exponents[0, 0] = 2.0
    forces = transition.potential.at(x).forces(q)
    assert float(forces[2:].abs().max()) == 0.0  # only the first two are joined
    torch.testing.assert_close(forces[0], -forces[1])
    assert float(torch.linalg.cross(forces[0], q[0] - q[1]).abs().max()) < 1e-12
    mask = torch.tensor([True, False, True, True])
    assert float(transition.potential.at(x, mask).forces(q).abs().max()) == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_missing_bodies_act_on_nobody(kind):
    transition, x, _ = landscape(KINDS[kind])
    q = transition.spec.get(x, "position")
    mask = torch.tensor([True, True, False, True])
    left = transition.potential.at(x[mask])
    forces = transition.potential.at(x, mask).forces(q)
    torch.testing.assert_close(forces[mask], left.forces(q[mask]), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_before_training_there_is_no_force(kind):
    from epns_pyro.models.symplectic.transition import SymplecticConfig

    made = context("axis")
    transition, x = SymplecticConfig.parse(KINDS[kind]).build(made).double(), states(made)
    assert float(transition.potential.at(x).forces(made.spec.get(x, "position")).abs().max()) == 0.0
    assert math.isclose(float(transition.potential.at(x).energy(made.spec.get(x, "position"))), 0.0, abs_tol=1e-12)
