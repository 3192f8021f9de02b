"""The contract of boxes per trajectory: in a batch every trajectory is what it is in a box that all share, in every model and graph."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from worlds import at_order_one

from epns_pyro.context import DataContext
from epns_pyro.errors import ConfigError
from epns_pyro.inference.elbo import log_density
from epns_pyro.inference.rollout import rollout_blocks
from epns_pyro.models import Transition
from epns_pyro.state import Field, StateSpec
from epns_pyro.symmetry import Euclidean, density_invariance_error

POSITION, VELOCITY = Field("position", "1o", translates=True), Field("velocity", "1o", rate_of="position")
SIDES = Field("box", "1o", dynamic=False, kind="box")
OWN = StateSpec((POSITION, VELOCITY, SIDES))
BOXES = ((4.0, 6.0, 5.0), (3.0, 2.5, 3.5), (5.0, 5.0, 5.0))
BODIES, STEPS = 5, 3
GRAPHS = [{}, {"dense": False}, {"kind": "nearest", "neighbours": 2}, {"kind": "radius", "radius": 0.9}]
MODELS = [{"backbone": {"name": "vector", "graph": graph}} for graph in GRAPHS] + [
    {"backbone": "tensor-product"},
    {"backbone": "pairwise"},
    {"backbone": {"name": "fusion"}},
    {"integrator": {"network": "central"}},
    {"history": {"frames": 3}},
]


def build(spec: StateSpec, **model) -> Transition:
    context = DataContext(spec, 0.1, {f.name: 0.3 for f in spec.dynamic_fields}, (BODIES,), absences=True)
    return at_order_one({"name": "particles"} | model, context)


def states(*, absent: bool = False) -> Tensor:
    """Trajectories, (trajectory, time, body, channel), one per box."""
    g = torch.Generator().manual_seed(1)
    sides = torch.tensor(BOXES, dtype=torch.float64)[:, None, None]
    start = torch.rand(len(BOXES), 1, BODIES, 3, dtype=torch.float64, generator=g) * sides
    velocity, steps = (torch.randn(len(BOXES), STEPS + 1, BODIES, 3, dtype=torch.float64, generator=g) for _ in range(2))
    x = OWN.wrap(OWN.pack(position=start + 0.2 * steps.cumsum(1), velocity=velocity, box=sides.expand(-1, STEPS + 1, -1, -1)))
    if absent:
        x[1, :, 0, :6] = torch.nan  # the first body, which is no place to look for the box
        x[0, 2:, 3, :6] = torch.nan
    return x


def density(transition: Transition, x: Tensor) -> Tensor:
    torch.manual_seed(3)
    z = torch.randn(STEPS, *transition.at(x[:1, 0]).prior.event_shape, dtype=torch.float64).expand(len(x), -1, -1, -1)
    with torch.no_grad():
        return log_density(transition, x[:, 0], x[:, 1:], z)


@pytest.mark.parametrize("absent", [False, True], ids=["whole", "absent"])
@pytest.mark.parametrize("model", MODELS, ids=str)
def test_every_trajectory_is_as_in_a_box_that_all_share(model, absent):
    own, x = build(OWN, **model), states(absent=absent)
    found = density(own, x)
    assert found.isfinite().all()
    for i, box in enumerate(BOXES):
        shared = replace(OWN, fields=(POSITION, VELOCITY), box=box)
        alone = build(shared, **model)
        alone.load_state_dict(own.state_dict())
        torch.testing.assert_close(density(alone, x[i : i + 1, ..., :6])[0], found[i], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("graph", GRAPHS, ids=str)
def test_a_torus_has_no_origin(graph):
    """Any shift of all positions, and whole sides added to any of them, change nothing."""
    transition, x = build(OWN, backbone={"name": "vector", "graph": graph}), states()
    shifted, sided = x.clone(), x.clone()
    shifted[..., OWN.slice("position")] += torch.tensor([1.7, -3.1, 0.4], dtype=torch.float64)
    sided[..., OWN.slice("position")] += torch.randint(-2, 3, (len(BOXES), 1, BODIES, 3)) * OWN.get(x, "box")
    plain = density(transition, x)
    torch.testing.assert_close(density(transition, OWN.wrap(shifted)), plain, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(density(transition, sided), plain, rtol=1e-9, atol=1e-9)


def test_every_trajectory_agrees_with_explicit_replicas_of_its_own():
    """With a finite radius a body in a box feels what it feels among copies of all others in the boxes around."""
    graph = {"kind": "radius", "radius": 1.2}
    model = {"backbone": {"name": "vector", "layers": 1, "graph": graph}, "integrator": None}
    boxed, x = build(OWN, **model), states()[:, 0]
    free = build(StateSpec((POSITION, VELOCITY)), **model)
    free.load_state_dict(boxed.state_dict())
    with torch.no_grad():
        here = boxed.at(x).h
        for i, box in enumerate(BOXES):
            shifts = torch.tensor(list(itertools.product((0.0, -1.0, 1.0), repeat=3)), dtype=torch.float64) * torch.tensor(box)
            copies = [torch.cat([x[i, :, :3] + shift, x[i, :, 3:6]], -1) for shift in shifts]
            there = free.at(torch.cat(copies)[None]).h[0, :BODIES]
            torch.testing.assert_close(here[i], there, rtol=1e-9, atol=1e-9)


def test_the_box_turns_with_the_bodies():
    """Axes of different lengths may be exchanged if the box is: then every signed permutation is a symmetry."""
    transition, x = build(OWN), states()
    z = torch.randn(len(x), STEPS, *transition.at(x[:, 0]).prior.event_shape, dtype=torch.float64)

    def log_prob(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        with torch.no_grad():
            return log_density(transition, a, b, c)

    group = Euclidean.of(OWN)
    found = density_invariance_error(log_prob, OWN, x[:, 0], x[:, 1:], z, group, samples=8)
    assert found.maximum < 1e-9, group.description
    turns = [group.random(x[0].numpy(), np.random.default_rng(seed)).rotation for seed in range(8)]
    assert any(abs(turn[0, 1]) == 1 for turn in turns)


def test_futures_stay_in_the_box_of_their_trajectory():
    (block,) = rollout_blocks(build(OWN), states()[:, 0], steps=20, members=3, seed=0)
    place, sides = OWN.get(block.states, "position")[:, :, 1:], np.asarray(BOXES)[:, None, None]
    assert (place >= 0).all()
    assert (place <= sides).all()
    assert (place.max((0, 2, 3)) > 0.5 * np.asarray(BOXES)).all()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"fields": (POSITION, VELOCITY, SIDES), "box": (3.0, 3.0, 3.0)}, "found both"),
        ({"fields": (POSITION, SIDES, replace(SIDES, name="other"))}, "a trajectory has one box"),
    ],
)
def test_two_boxes_are_refused(spec, words):
    with pytest.raises(ConfigError, match=words):
        _ = StateSpec(**spec).geometry


def test_a_box_that_changes_in_time_is_refused():
    with pytest.raises(ConfigError, match="the box of a trajectory is constant"):
        replace(SIDES, dynamic=True)
