"""The network of fusion blocks: its symmetry with weights of order one, its reach, its potential, and what it can tell apart."""

from __future__ import annotations

import pytest
import torch
from e3nn import o3

from epns_pyro.backbones import Features, Signature
from epns_pyro.backbones.bodies.fusion import FusionConfig, harmonics, within
from epns_pyro.backbones.bodies.fusion_blocks import CartesianBlock, SphericalBlock
from epns_pyro.errors import ConfigError
from epns_pyro.models.bodies.particles import ParticlesConfig
from epns_pyro.systems import NBodyConfig
from epns_pyro.testing import check_backbone, check_transition

DOUBLE = {"dtype": torch.float64}
SMALL = {"width": 16, "channels": 4}
VARIANTS = {
    "vectors": {},
    "pairs": {"legs": 1},
    "quadrupoles": {"lmax": 2},
    "quadrupoles, two legs, one layer": {"lmax": 2, "legs": 2, "layers": 1},
    "potential": {"forces": "potential"},
    "potential, quadrupoles, one layer": {"forces": "potential", "lmax": 2, "layers": 1},
    "reach": {"reach": 1.5},
    "potential, reach": {"forces": "potential", "reach": 1.5},
}


def build(space=3, bodies_see=(2, 2), makes=(3, 2), seed=0, **settings):
    """A network whose every weight is of order one."""
    torch.manual_seed(seed)
    network = FusionConfig.parse(SMALL | settings).build(Signature(*bodies_see, *makes, space=space)).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network


def states(*batch, bodies=5, space=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    r, v, s = (torch.randn(*batch, bodies, *shape, **DOUBLE, generator=generator) for shape in ((space,), (2, space), (2,)))
    return r, Features(s, v)


@pytest.mark.parametrize("space", [1, 2, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_contract_holds(variant, space):
    check_backbone(FusionConfig.parse(SMALL | VARIANTS[variant]), space=space)


@pytest.mark.parametrize("space", [2, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_of_order_one_keep_the_symmetry(variant, space):
    """From raw positions and velocities to 1e-12 of the output, for rotations and reflections, shifts and other names."""
    network = build(space, **VARIANTS[variant])
    r, features = states(4, space=space)
    here = network(r, features)
    turn = torch.linalg.qr(torch.randn(space, space, **DOUBLE, generator=torch.Generator().manual_seed(2))).Q
    mirror = torch.diag(torch.tensor([-1.0] + [1.0] * (space - 1), **DOUBLE))
    order = torch.tensor([3, 1, 4, 0, 2])
    for rotation in (turn, turn @ mirror):
        moved = (r @ rotation.T + 3.0)[:, order]
        there = network(moved, Features(features.scalars[:, order], (features.vectors @ rotation.T)[:, order]))
        for found, expected in ((there.scalars, here.scalars[:, order]), (there.vectors, (here.vectors @ rotation.T)[:, order])):
            assert (found - expected).abs().max() < 1e-12 * expected.abs().max().clamp(min=1)


def test_a_model_of_fusion_blocks_keeps_the_contract_of_a_transition():
    """As the network of h and as an equation of motion, from raw states, untrained and after steps of training."""
    config = ParticlesConfig.parse(
        {
            "width": 8,
            "latent": 3,
            "hidden_vectors": 3,
            "backbone": {"name": "fusion", **SMALL, "lmax": 2, "layers": 1},
            "integrator": {"steps": 2, "network": {"name": "fusion", **SMALL, "layers": 1, "forces": "potential"}},
        }
    )
    check_transition(config, NBodyConfig(dt=0.01, bodies=4).build())


def test_harmonics_are_those_of_e3nn():
    vectors = torch.randn(20, 3, **DOUBLE)
    theirs = o3.spherical_harmonics([0, 1, 2], vectors, normalize=False, normalization="component")
    torch.testing.assert_close(torch.cat(harmonics(vectors, 2), -1), theirs, rtol=1e-12, atol=1e-12)
    flat = torch.nn.functional.pad(vectors[:, :2], (0, 1))
    torch.testing.assert_close(harmonics(vectors[:, :2], 2)[2], harmonics(flat, 2)[2], rtol=0, atol=0)


def test_vectors_alone_take_the_fast_form():
    assert isinstance(build(lmax=1).layers[0].block, CartesianBlock)
    assert isinstance(build(lmax=2).layers[0].block, SphericalBlock)


def test_both_forms_make_the_same_network(monkeypatch):
    fast = build()
    monkeypatch.setattr("epns_pyro.backbones.bodies.fusion.CartesianBlock", SphericalBlock)
    slow = build(seed=1)
    assert isinstance(slow.layers[0].block, SphericalBlock)
    slow.load_state_dict(fast.state_dict())
    x = states(3)
    for found, expected in zip(vars(fast(*x)).values(), vars(slow(*x)).values(), strict=True):
        if expected is not None:
            assert (found - expected).abs().max() < 1e-12 * expected.abs().max()


# -- what is told apart ------------------------------------------------------------------------------------------------------


def test_the_angle_between_two_neighbours_takes_two_legs():
    """A body with two neighbours at distance one, 60 or 100 degrees apart: one layer, its scalars."""
    angles = torch.deg2rad(torch.tensor([60.0, 100.0], **DOUBLE))
    zero, one = torch.zeros_like(angles), torch.ones_like(angles)
    second = torch.stack([angles.cos(), angles.sin(), zero], -1)
    r = torch.stack([torch.zeros(2, 3, **DOUBLE), torch.stack([one, zero, zero], -1), second], 1)
    nothing = Features(torch.zeros(2, 3, 0, **DOUBLE), torch.zeros(2, 3, 0, 3, **DOUBLE))
    for settings, told in (({"legs": 1, "lmax": 2}, False), ({"legs": 2}, True), ({"legs": 3}, True), ({"legs": 2, "lmax": 2}, True)):
        out = build(bodies_see=(0, 0), makes=(3, 0), layers=1, **settings)(r, nothing).scalars[:, 0]
        assert ((out[0] - out[1]).abs().max() > 1e-3) == told, settings
        assert told or (out[0] - out[1]).abs().max() < 1e-13


def test_one_leg_is_a_sum_over_pairs():
    """With one leg and one layer a body's legs, and so its first fused vector, are the sum of what each neighbour alone gives."""
    network = build(bodies_see=(2, 2), legs=1, lmax=1, layers=1, makes=(0, 2))
    r, features = states(bodies=4)

    def fused(*chosen):
        some = list(chosen)
        with torch.no_grad():
            found = []
            hook = network.layers[0].block.register_forward_hook(lambda *args: found.append(args[-1]["1o"]))
            network(r[some], Features(features.scalars[some], features.vectors[some]))
            hook.remove()
        return found[0][0]

    alone = fused(0)
    parts = [fused(0, j) - alone for j in (1, 2, 3)]
    torch.testing.assert_close(fused(0, 1, 2, 3), alone + sum(parts), rtol=1e-12, atol=1e-12)


# -- reach -------------------------------------------------------------------------------------------------------------------


def test_neighbours_vanish_at_the_reach_with_two_derivatives():
    at = torch.tensor([1.5], **DOUBLE, requires_grad=True)
    for point in (at, at * (1 - 1e-9)):
        value = within(point, 1.5)
        (slope,) = torch.autograd.grad(value.sum(), at, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), at, create_graph=True, materialize_grads=True)
        assert max(value.abs().item(), slope.abs().item(), bend.abs().item()) < 1e-7

    network = build(bodies_see=(0, 0), reach=1.5, layers=1)
    nothing = Features(torch.zeros(2, 0, **DOUBLE), torch.zeros(2, 0, 3, **DOUBLE))

    def along(distance):
        return network(torch.stack([torch.zeros(3, **DOUBLE), distance * torch.tensor([1.0, 0, 0], **DOUBLE)]), nothing)

    alone, beyond, near = along(torch.tensor(9.0)), along(torch.tensor(1.5)), along(torch.tensor(1.2))
    torch.testing.assert_close(beyond.scalars, alone.scalars, rtol=0, atol=1e-14)
    assert (near.scalars - alone.scalars).abs().max() > 1e-3
    step = 1e-3
    values = torch.stack([along(torch.tensor(1.5 + k * step, **DOUBLE)).scalars[0] for k in (-1, 0, 1)])
    assert (values - values[1]).abs().max() < 1e-6  # of third order in the step, where a jump in slope would be 1e-3


def test_edges_beyond_the_reach_are_not_needed():
    whole, cut = build(reach=1.5), build(reach=1.5, graph={"kind": "radius", "radius": 1.5})
    x = states(3, bodies=7)
    for name in ("scalars", "vectors"):
        torch.testing.assert_close(getattr(cut(*x), name), getattr(whole(*x), name), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("settings", [{}, {"lmax": 2, "forces": "potential"}])
def test_a_periodic_box_has_no_borders(settings):
    """A body may be given by any of its images, and a neighbour across the border is near."""
    torch.manual_seed(0)
    network = FusionConfig.parse(SMALL | settings).build(Signature(2, 2, 3, 2, box=(2.0, 3.0, 4.0))).double()
    r, features = states(3)
    moved = r + torch.tensor([2.0, -3.0, 4.0], **DOUBLE) * torch.randint(-1, 2, r.shape)
    for name in ("scalars", "vectors"):
        torch.testing.assert_close(getattr(network(moved, features), name), getattr(network(r, features), name), rtol=1e-9, atol=1e-10)


# -- settings ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"legs": 4}, "legs: input should be less than or equal to 3, found 4"),
        ({"lmax": 3}, "lmax: input should be less than or equal to 2, found 3"),
        (
            {"reach": 2.0, "graph": {"kind": "radius", "radius": 1.5}},
            "reach: expected at most the radius of the graph, 1.5, found 2: forces would jump",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ConfigError) as error:
        FusionConfig.parse(settings)
    assert message in str(error.value)
