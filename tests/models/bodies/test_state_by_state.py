"""Walks in compiled code are those in tensors, which are slow and obvious: same ends, same signs of how far they may be wrong."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from epns_pyro.context import DataContext
from epns_pyro.models.bodies.integrator import Integrator, IntegratorConfig
from epns_pyro.models.bodies.state_by_state import StateByState
from epns_pyro.state import Field, StateSpec

BODIES, BATCH, DT = 5, 40, 0.3
LAWS = ("plain", "screened", "over a mass", "some powers", "springs", "bounded", "bent")
SPACES = {"free": {}, "box": {"box": (2.0, 3.0, 4.0)}, "plane": {"space": 2}, "axes": {"rotations": "axes"}}


def integrator(law: str, *, inferred: bool, absences: bool = False, **space: object) -> Integrator:
    spec = StateSpec(
        (
            Field("mass", dynamic=False, scale=2.0),
            Field("position", "1o", translates=True, scale=1.3),
            Field("velocity", "1o", rate_of="position", differences=inferred, scale=0.7),
        ),
        **space,
    )
    about = DataContext(spec, DT, {"position": 0.03, "velocity": 0.3}, (BODIES,), absences=absences)
    torch.manual_seed(LAWS.index(law))
    made = (
        IntegratorConfig.parse({"velocity": "inferred" if inferred else "recorded", "network": "central", "steps": 5}).build(about).double()
    )
    network = made.network
    with torch.no_grad():
        for parameter in network.linear_parameters:
            parameter.copy_(torch.randn_like(parameter))
        if law == "screened":
            network.screening.fill_(0.8)
        if law == "over a mass":
            network.inertia[:, 0] = -1.0
        if law == "some powers":
            network.keep((0, 2))
        if law == "springs":
            network.exponents.zero_()
        if law == "bounded":
            network.log_largest.fill_(0.5)
        if law == "bent":
            network.exponents.add_(0.3 * torch.randn_like(network.exponents))
            network.bend[-1].weight.normal_()
    return made


def states(made: Integrator, seed: int = 0) -> Tensor:
    spec, generator = made.bodies.spec, torch.Generator().manual_seed(seed)
    position, velocity = torch.randn(2, BATCH // 8, 8, BODIES, spec.space, dtype=torch.float64, generator=generator)
    mass = 1 + torch.rand(BATCH // 8, 8, BODIES, dtype=torch.float64, generator=generator)
    return spec.pack(mass=mass, position=position, velocity=velocity)


def in_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StateByState, "under", lambda *_: None)


@torch.no_grad()
@pytest.mark.parametrize("refinements", [0, 2])
@pytest.mark.parametrize("inferred", [False, True], ids=["recorded", "inferred"])
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("law", LAWS)
def test_walks_are_those_in_tensors(law: str, space: dict, inferred: bool, refinements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = integrator(law, inferred=inferred, **space)
    made.refinements, x = refinements, states(made)
    memory = (made.bodies.spec.get(x, "velocity") / 3, torch.zeros(*x.shape[:-1], 4, dtype=torch.float64)) if inferred else ()
    used = []
    monkeypatch.setattr(StateByState, "walk", lambda walks, *args, walk=StateByState.walk: used.append(True) or walk(walks, *args))
    found = made(x, None, memory)
    assert used
    in_tensors(monkeypatch)
    expected = made(x, None, memory)
    assert expected.change.abs().max() > 0.1
    torch.testing.assert_close(found.change, expected.change, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(found.signs, expected.signs, rtol=1e-7, atol=1e-7)


@torch.no_grad()
def test_absent_bodies_act_on_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    made = integrator("plain", inferred=False, absences=True)
    made.refinements, x = 2, states(made)
    mask = torch.rand(x.shape[:-1], generator=torch.Generator().manual_seed(1)) < 0.7
    found = made(x, mask)
    in_tensors(monkeypatch)
    expected = made(x, mask)
    torch.testing.assert_close(found.change[mask], expected.change[mask], rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(found.signs[mask], expected.signs[mask], rtol=1e-7, atol=1e-7)


@torch.no_grad()
def test_every_state_has_the_box_and_the_masses_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of one state without a batch, in single precision."""
    made = integrator("over a mass", inferred=False)
    x = states(made)
    together = made(x).change
    torch.testing.assert_close(made(x[2, 3]).change, together[2, 3], rtol=0, atol=0)
    single = integrator("over a mass", inferred=False).float()(x.float()).change
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), together, rtol=1e-2, atol=1e-3)


@torch.no_grad()
def test_no_force_is_none() -> None:
    made = integrator("plain", inferred=False)
    made.network.keep(())
    made.network.bend[-1].weight.zero_()
    found = made(states(made))
    torch.testing.assert_close(found.change, torch.zeros_like(found.change), rtol=0, atol=1e-12)
    assert (found.log_max_kick == 0).all()


def test_gradients_go_through_tensors() -> None:
    made = integrator("plain", inferred=False)
    made(states(made)).change.square().sum().backward()
    assert made.network.linear.weight.grad is not None


def test_a_held_law_is_walked_in_compiled_code_in_training_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the states themselves are differentiated, it is not."""
    made = integrator("plain", inferred=True).requires_grad_(False)
    x = states(made)
    lead, doubt = made.bodies.spec.get(x, "velocity") / 3, torch.zeros(*x.shape[:-1], 4, dtype=torch.float64)
    found = made(x, None, (lead, doubt)).change
    with monkeypatch.context() as patch:
        in_tensors(patch)
        torch.testing.assert_close(found, made(x, None, (lead, doubt)).change, rtol=1e-7, atol=1e-7)
    assert StateByState.under(made, x.flatten(0, 1), None) is not None
    for differentiated in (lead, x):
        differentiated.requires_grad_()
        (gradient,) = torch.autograd.grad(made(x, None, (lead, doubt)).change.square().sum(), differentiated)
        assert gradient.abs().max() > 0


@torch.no_grad()
def test_other_laws_are_left_to_tensors() -> None:
    made = integrator("plain", inferred=False)
    x = states(made)[0]
    assert StateByState.under(made, x, None) is not None
    made.network.graph = made.network.graph.model_copy(update={"kind": "nearest", "neighbours": 2})
    assert StateByState.under(made, x, None) is None
    made.network = torch.nn.Linear(1, 1)
    assert StateByState.under(made, x, None) is None
