"""The contract of space: boxes, fixed centres and reduced symmetries, from raw states, in every model that can work there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from worlds import at_order_one

from epns_pyro.context import DataContext
from epns_pyro.errors import ConfigError
from epns_pyro.geometry import Space
from epns_pyro.inference.elbo import log_density
from epns_pyro.inference.rollout import rollout_blocks
from epns_pyro.models import Transition
from epns_pyro.state import Field, StateSpec
from epns_pyro.symmetry import Euclidean, density_invariance_error

POSITION, VELOCITY = Field("position", "1o", translates=True), Field("velocity", "1o", rate_of="position")
BOX = (4.0, 6.0)
BODIES, BATCH, STEPS = 4, 2, 3
GRAPHS = [{}, {"dense": False}, {"kind": "nearest", "neighbours": 2}, {"kind": "radius", "radius": 0.9}]


def build(spec: StateSpec, bodies: int = BODIES, **model) -> Transition:
    context = DataContext(spec, 0.1, {f.name: 0.3 for f in spec.dynamic_fields}, (bodies,))
    return at_order_one({"name": "particles"} | model, context)


def states(spec: StateSpec, bodies: int = BODIES) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, 1, bodies, spec.channels, dtype=torch.float64, generator=g)
    x = x + 0.2 * torch.randn(BATCH, STEPS + 1, bodies, spec.channels, dtype=torch.float64, generator=g).cumsum(1)
    if spec.box:
        x[..., spec.slice("position")] = spec.geometry.wrap(3 * x[..., spec.slice("position")])
    return x[:, 0], x[:, 1:]


def density(transition: Transition, x0: Tensor, path: Tensor) -> Tensor:
    torch.manual_seed(3)
    z = torch.randn(BATCH, STEPS, *transition.at(x0).prior.event_shape, dtype=torch.float64)
    with torch.no_grad():
        return log_density(transition, x0, path, z)


# -- boxes -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [(POSITION, VELOCITY), (POSITION,)], ids=["velocities", "positions"])
@pytest.mark.parametrize("graph", GRAPHS, ids=str)
def test_a_torus_has_no_origin(graph, fields):
    """Any shift of all positions, and whole sides added to any of them, change nothing."""
    spec = StateSpec(fields, space=2, box=BOX)
    transition, (x0, path) = build(spec, backbone={"name": "vector", "graph": graph}), states(spec)
    plain = density(transition, x0, path)
    shift = torch.zeros(spec.channels, dtype=torch.float64)
    shift[spec.slice("position")] = torch.tensor([1.7, -3.1], dtype=torch.float64)
    sides = torch.zeros(BATCH, 1, BODIES, spec.channels, dtype=torch.float64)
    sides[..., spec.slice("position")] = torch.randint(-2, 3, (BATCH, 1, BODIES, 2)) * torch.tensor(BOX, dtype=torch.float64)

    def moved(x: Tensor) -> Tensor:
        x = x + shift
        x[..., spec.slice("position")] = spec.geometry.wrap(x[..., spec.slice("position")])
        return x

    torch.testing.assert_close(density(transition, moved(x0), moved(path)), plain, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(density(transition, x0 + sides[:, 0], path), plain, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(density(transition, x0, path + sides), plain, rtol=1e-9, atol=1e-9)


def test_two_bodies_attract_each_other_across_the_seam():
    """Bodies at both ends of a box see each other as two in the middle do; far apart within the box they do not."""
    spec = StateSpec((POSITION, VELOCITY), space=2, box=(10.0, 10.0))
    transition = build(spec, bodies=2, backbone={"name": "vector", "graph": {"kind": "radius", "radius": 0.5}})

    def change(left: float, right: float) -> Tensor:
        x = spec.pack(position=torch.tensor([[left, 5.0], [right, 5.0]], dtype=torch.float64), velocity=torch.zeros(2, 2).double())
        step = transition.at(x[None])
        y = step.emission(torch.zeros_like(step.prior.mean)).mean
        return spec.get_dynamic(y, "position")[0] - spec.get(x, "position")

    torch.testing.assert_close(change(9.8, 0.2), change(4.8, 5.2), rtol=1e-9, atol=1e-9)
    assert (change(9.8, 0.2) - change(2.0, 7.0)).abs().max() > 1e-3


def test_a_box_agrees_with_explicit_replicas():
    """With a finite radius a body in a box feels what it feels among copies of all others in the boxes around."""
    side, radius = 6.0, 0.6
    scale = side / np.sqrt(12)
    position = replace(POSITION, scale=scale)
    inside = StateSpec((position,), space=2, box=(side, side))
    graph = {"kind": "radius", "radius": radius}
    model = {"backbone": {"name": "vector", "layers": 1, "graph": graph}, "integrator": None, "latents": "per-body"}
    boxed = build(inside, **model)
    free = build(StateSpec((position,), space=2), **model)
    free.load_state_dict(boxed.state_dict())
    x, _ = states(inside)
    copies = torch.cat([x + side * torch.tensor([i, j], dtype=torch.float64) for i in (0, -1, 1) for j in (0, -1, 1)], 1)
    with torch.no_grad():
        here, there = boxed.at(x).h, free.at(copies).h[:, :BODIES]
    torch.testing.assert_close(here, there, rtol=1e-9, atol=1e-9)


def test_futures_stay_in_the_box():
    spec = StateSpec((POSITION, VELOCITY), space=2, box=BOX)
    (block,) = rollout_blocks(build(spec).double(), states(spec)[0], steps=20, members=3, seed=0)
    place = spec.get(block.states, "position")[:, :, 1:]
    assert (place >= 0).all()
    assert (place <= np.asarray(BOX)).all()


@pytest.mark.parametrize("backbone", ["frames", "message-passing", "mlp"])
def test_networks_that_read_coordinates_refuse_a_box(backbone):
    with pytest.raises(ConfigError, match="periodic box"):
        build(StateSpec((POSITION,), space=2, box=BOX), backbone=backbone)


# -- symmetries ------------------------------------------------------------------------------------------------------------

SYMMETRIES = {
    "E(3)": StateSpec((POSITION, VELOCITY)),
    "SE(2)": StateSpec((POSITION, VELOCITY), space=2, rotations="proper"),
    "SE(3)": StateSpec((POSITION, VELOCITY), rotations="proper"),
    "axis": StateSpec((POSITION, VELOCITY), rotations="axis"),
    "axes": StateSpec((POSITION, VELOCITY), rotations="axes"),
    "tilted axis": StateSpec((POSITION, VELOCITY), rotations="axis", axis=(1.0, 2.0, -0.5)),
    "translations": StateSpec((POSITION, VELOCITY), space=2, rotations="none"),
    "fixed centre": StateSpec((replace(POSITION, translates=False), VELOCITY), space=2),
    "none": StateSpec((replace(POSITION, translates=False),), space=2, rotations="none"),
    "square box": StateSpec((POSITION, VELOCITY), space=2, box=(5.0, 5.0)),
}


@pytest.mark.parametrize("name", SYMMETRIES)
def test_the_density_has_the_declared_symmetry_and_no_more(name):
    """Exact under the group that the spec declares; broken under E(d) where the declared group is smaller."""
    spec = SYMMETRIES[name]
    transition, (x0, path) = build(spec), states(spec)
    z = torch.randn(BATCH, STEPS, *transition.at(x0).prior.event_shape, dtype=torch.float64)

    def error(group: Euclidean) -> float:
        with torch.no_grad():
            return density_invariance_error(lambda a, b, c: log_density(transition, a, b, c), spec, x0, path, z, group, samples=6).maximum

    assert error(Euclidean.of(spec)) < 1e-9, Euclidean.of(spec).description
    if name not in ("E(3)", "axes", "square box", "fixed centre"):  # what a fixed centre changes is tested below
        assert error(Euclidean(spec.space)) > 1e-6


def test_a_bead_in_a_trap_feels_the_centre():
    """One body, no other: the law depends on where it is from the centre."""
    spec = SYMMETRIES["fixed centre"]
    transition = build(spec, bodies=1)
    x = torch.zeros(2, 1, spec.channels, dtype=torch.float64)
    x[1, 0, spec.slice("position")] = torch.tensor([1.0, 0.5], dtype=torch.float64)
    step = transition.at(x)
    y = step.emission(torch.zeros_like(step.prior.mean)).mean - spec.dynamic(x)
    assert (y[0] - y[1]).abs().max() > 1e-3


# -- the value ---------------------------------------------------------------------------------------------------------------


def test_displacements_are_the_shortest_and_alike_for_arrays_and_tensors():
    space = Space(2, BOX)
    rng = np.random.default_rng(0)
    a, b = rng.uniform(-10, 10, (2, 100, 2))
    images = np.stack([b + np.array([i, j]) * BOX - a for i in range(-7, 8) for j in range(-5, 6)])
    shortest = images[np.linalg.norm(images, axis=-1).argmin(0), np.arange(100)]
    np.testing.assert_allclose(space.displacement(a, b), shortest, atol=1e-12)
    np.testing.assert_allclose(space.displacement(torch.as_tensor(a), torch.as_tensor(b)).numpy(), shortest, atol=1e-12)
    np.testing.assert_allclose(space.displacement(a, space.nearest(b, a)), shortest, atol=1e-12)
    assert (space.wrap(a) >= 0).all()
    assert (space.wrap(a) <= BOX).all()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"box": (1.0,)}, "expected 2 numbers, one side per axis"),
        ({"box": (1.0, -1.0)}, "have to be positive"),
        ({"rotations": "some"}, "is not one of"),
        ({"axis": (0.0, 1.0)}, "goes with rotations about it"),
        ({"rotations": "axis", "axis": (0.0, 0.0)}, "found zero"),
    ],
)
def test_what_is_no_space_is_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        Space(2, **settings)
