"""The contract of absence: bodies that are not there change nothing for the others, in every transition and on every graph."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from worlds import DT, WORLDS, at_order_one

from epns_pyro.context import DataContext
from epns_pyro.inference.elbo import Objective, elbo_step, log_density, path_bounds
from epns_pyro.inference.rollout import rollout_blocks
from epns_pyro.models import TRANSITIONS, EPNSGuide, EPNSModel, Feedback, Transition

BODIES, ABSENT, STEPS, BATCH = 5, 2, 3, 2
GRAPHS = {
    "dense": {},
    "complete": {"dense": False},
    "nearest": {"kind": "nearest", "neighbours": 2},
    "radius": {"kind": "radius", "radius": 1.5},
}
FUSION = {"name": "fusion", "width": 16, "channels": 4, "lmax": 2, "layers": 1}
MODELS = {
    **{f"vector {name}": {"name": "particles", "backbone": {"name": "vector", "graph": graph}} for name, graph in GRAPHS.items()},
    "frames": {"name": "particles", "backbone": "frames"},
    "tensor-product": {"name": "particles", "backbone": {"name": "tensor-product", "hidden": "8x0e + 4x1o", "lmax": 1}},
    "fusion": {"name": "particles", "backbone": FUSION, "integrator": {"network": FUSION | {"forces": "potential"}}},
    "shared latents": {"name": "particles", "latents": "shared", "linear_path": False},
    "diagonal": {"name": "particles", "emission": "diagonal", "integrator": None},
    "history": {"name": "particles", "history": {"frames": 3}},
    "neural-sde": {"name": "neural-sde"},
    "symplectic": {"name": "symplectic", "steps": 3},
    "symplectic, free flight": {"name": "symplectic", "steps": 3, "noise": {"name": "covariance", "grade": "free-flight"}},
    "symplectic, kicks": {"name": "symplectic", "steps": 3, "noise": "kicks"},
}


def build(model: dict, world: str = "celestial") -> Transition:
    spec = WORLDS[world]
    scales = {f.name: 0.3 for f in spec.dynamic_fields}
    context = DataContext(spec, DT, scales, (BODIES,), absences=True)
    return at_order_one(model, context)


def states(spec, bodies: int = BODIES) -> tuple[Tensor, Tensor, Tensor]:
    """x0, path and noise of latents of bodies that are all there."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, STEPS + 1, bodies, spec.channels, dtype=torch.float64, generator=g)
    x[:, 1:] = x[:, :1] + 0.3 * x[:, 1:]
    static = [spec.slice(f.name) for f in spec.static_fields]
    for channels in static:
        x[..., channels] = x[:, :1, :, channels].abs() + 0.1
    return x[:, 0], x[:, 1:], x


def padded(spec, x: Tensor, order: Tensor) -> Tensor:
    """The same states with absent bodies among those that are there: order (body,) says where each goes."""
    wide = x.new_full((*x.shape[:-2], len(order), x.shape[-1]), torch.nan)
    for field in spec.static_fields:
        wide[..., spec.slice(field.name)] = 7.0
    wide[..., order[: x.shape[-2]], :] = x
    return wide


@pytest.fixture(params=MODELS, ids=str)
def transition(request) -> Transition:
    return build(MODELS[request.param])


ORDER = torch.tensor([4, 0, 6, 2, 5, 1, 3])  # seven places, five bodies


def test_absent_bodies_change_nothing(transition):
    """Adding and permuting absent bodies leaves log p of the model, the guide and the bounds as they are."""
    spec = transition.spec
    x0, path, _ = states(spec)
    latents = transition.at(x0).prior.event_shape
    per_body = latents[0] == BODIES
    z = torch.randn(BATCH, STEPS, *latents, dtype=torch.float64)
    wide0, wide = padded(spec, x0, ORDER), padded(spec, path, ORDER)
    wide_z = z.new_zeros(BATCH, STEPS, len(ORDER), latents[1]) if per_body else z
    if per_body:
        wide_z[:, :, ORDER[:BODIES]] = z
    with torch.no_grad():
        plain, other = log_density(transition, x0, path, z), log_density(transition, wide0, wide, wide_z)
        torch.testing.assert_close(other, plain, rtol=1e-9, atol=0)
        here = elbo_step(transition.at(x0), path[:, 0], torch.zeros_like)
        there = elbo_step(transition.at(wide0), wide[:, 0], torch.zeros_like)
    torch.testing.assert_close(there.log_likelihood, here.log_likelihood, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(there.kl.sum((-2, -1)), here.kl.sum((-2, -1)), rtol=1e-9, atol=1e-9)
    assert here.kl.sum() > 0 or not latents[1] or "neural" in type(transition).__name__.lower()


def test_a_body_is_scored_where_it_is_there_before_and_after(transition):
    """A body that leaves is not scored on its last step; one that enters is scored from its second frame on."""
    spec = transition.spec
    x0, path, _ = states(spec)
    gone, come = path.clone(), path.clone()
    x_late = x0.clone()
    dynamic = torch.cat([torch.arange(spec.channels)[spec.slice(f.name)] for f in spec.dynamic_fields])
    gone[:, 1:, 0, dynamic] = torch.nan  # leaves after the first step
    x_late[:, 0, dynamic] = torch.nan
    come[:, :1, 0, dynamic] = torch.nan  # enters at the second frame
    with torch.no_grad():
        for start, way, scored in ((x0, gone, [5, 4, 4]), (x_late, come, [4, 4, 5])):
            carry = transition.start(start)
            for t in range(STEPS):
                step = transition.step(carry)
                law, value = step.observe(step.emission(step.prior.sample()), way[:, t])
                assert value.isfinite().all()
                per_body = law.base_dist.log_prob(value)
                per_body = per_body if per_body.dim() == 2 else per_body.sum(-1)
                assert ((per_body != 0).sum(-1) == scored[t]).all()
                carry = step.advance(spec.dynamic(way[:, t]), way[:, t])
            assert path_bounds(transition, start, way, num_samples=2).iwae.isfinite().all()
            for feedback in (Feedback.TEACHER, Feedback.PUSHFORWARD):
                assert Objective(transition, feedback)(start, way).loss.isfinite()


def test_gradients_are_finite_with_bodies_that_come_and_go(transition):
    x0, path, _ = states(transition.spec)
    path[:, 1, 0], x0[:, 1] = torch.nan, torch.nan
    for field in transition.spec.static_fields:
        channels = transition.spec.slice(field.name)
        path[..., channels] = x0[:, None, :, channels] = 1.0
    loss = Objective(transition, Feedback.PUSHFORWARD)(x0, path).loss
    loss.backward()
    gradients = [p.grad for p in transition.parameters() if p.grad is not None]
    assert gradients
    assert all(g.isfinite().all() for g in gradients)


def test_futures_keep_the_bodies_of_the_initial_state(transition):
    spec = transition.spec
    wide0 = padded(spec, states(spec)[0], ORDER)
    (block,) = rollout_blocks(transition, wide0, steps=3, members=4, seed=0)
    absent = torch.from_numpy(block.states).isnan().any(-1)
    expected = torch.ones(len(ORDER), dtype=torch.bool)
    expected[ORDER[:BODIES]] = False
    assert (absent == expected).all()


def test_stock_pyro_sees_the_same(transition):
    """log p and log q of a trace are those of the unpadded states."""
    import pyro
    from pyro import poutine

    spec = transition.spec
    x0, path, _ = states(spec)
    wide0, wide = padded(spec, x0, ORDER), padded(spec, path, ORDER)
    with torch.no_grad():
        trace = poutine.trace(EPNSGuide(transition)).get_trace(x0, path)
        data = {f"z_{t}": trace.nodes[f"z_{t}"]["value"] for t in range(1, STEPS + 1)}
        wide_data = {}
        for name, value in data.items():
            wide_data[name] = value
            if value.shape[-2] == BODIES:
                wide_data[name] = value.new_zeros(BATCH, len(ORDER), value.shape[-1])
                wide_data[name][:, ORDER[:BODIES]] = value
        for program in (EPNSModel(transition), EPNSGuide(transition)):
            plain = poutine.trace(pyro.condition(program, data)).get_trace(x0, path).log_prob_sum()
            other = poutine.trace(pyro.condition(program, wide_data)).get_trace(wide0, wide).log_prob_sum()
            torch.testing.assert_close(other, plain, rtol=1e-9, atol=0)


def test_data_without_absences_cost_nothing_more():
    sparse, full = build(MODELS["diagonal"]), TRANSITIONS.parse(MODELS["diagonal"])
    context = replace(DataContext(sparse.spec, DT, {f.name: 0.3 for f in sparse.spec.dynamic_fields}, (BODIES,)), absences=False)
    dense = full.build(context).double()
    dense.load_state_dict(sparse.state_dict())
    x0, path, _ = states(sparse.spec)
    assert dense.at(x0).mask is None
    with torch.no_grad():
        here, there = (elbo_step(t.at(x0), path[:, 0], torch.zeros_like) for t in (dense, sparse))
    torch.testing.assert_close(here.log_likelihood, there.log_likelihood, rtol=1e-12, atol=0)
