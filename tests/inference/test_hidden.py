"""The bound of recordings against a Kalman filter, and against stock Pyro; symmetry; inference of the last state."""

from __future__ import annotations

from collections.abc import Callable

import kicked
import numpy as np
import pytest
import torch
from kicked import Kicked
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor

from epns_pyro.context import DataContext
from epns_pyro.inference.hidden import HiddenObjective, bound_parts, infer_last, recording_bounds
from epns_pyro.models.bodies.particles import ParticlesConfig
from epns_pyro.models.building import build
from epns_pyro.models.hidden.programs import HiddenGuide, HiddenModel
from epns_pyro.models.normal import unmasked
from epns_pyro.models.transition import Transition
from epns_pyro.state import Field, StateSpec
from epns_pyro.symmetry import Euclidean

MODEL = ParticlesConfig.parse(
    {
        "backbone": {"name": "vector", "width": 8, "vectors": 4, "layers": 1},
        "width": 8,
        "hidden_vectors": 3,
        "latent": 3,
        "emission": "coupled",
    }
)


def particles(noise: float | str, *, seed: int = 0) -> Transition:
    """A transition of three bodies with weights of order one."""
    torch.manual_seed(seed)
    spec = StateSpec(
        (
            Field("mass", dynamic=False),
            Field("position", "1o", translates=True, noise=noise),
            Field("velocity", "1o", rate_of="position", hidden=True),
        ),
        space=2,
    )
    transition = build(MODEL, DataContext(spec, 0.1, {"position": 0.1, "velocity": 0.3}, (3,), absences=True)).double()
    with torch.no_grad():
        for parameter in transition.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return transition


def recording(batch: int = 4, frames: int = 6, missing: float = 0.2) -> Tensor:
    torch.manual_seed(5)
    mass = (0.5 + torch.rand(batch, 1, 3, 1)).expand(batch, frames, 3, 1)
    y = (0.2 * torch.randn(batch, frames, 3, 2)).cumsum(1)
    gone = torch.rand(batch, frames, 3, 1) < missing
    return torch.cat([mass, torch.where(gone, torch.nan, y), torch.where(gone, torch.nan, 0 * y)], -1).double()


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_the_bound_is_the_evidence_where_the_law_is_linear(noise: float, missing: float) -> None:
    """A masked detection equals integrating it out."""
    y = kicked.simulate(noise, 6, 8, np.random.default_rng(0), missing=missing)
    exact, _ = kicked.evidence(y, noise)
    transition, x = Kicked(noise), torch.tensor(y)
    bounds = recording_bounds(transition, x[:, 0], x[:, 1:], num_samples=3)
    np.testing.assert_allclose(bounds.elbo, exact, rtol=1e-9)
    np.testing.assert_allclose(bounds.iwae, exact, rtol=1e-9)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_frames_may_be_uneven(noise: float) -> None:
    rng = np.random.default_rng(0)
    y = kicked.simulate(noise, 6, 8, rng, missing=0.3, durations=kicked.DT * rng.choice([0.5, 1.0, 3.0], 8))
    exact, _ = kicked.evidence(y, noise)
    transition, x = Kicked(noise, uneven=True), torch.tensor(y)
    bounds = recording_bounds(transition, x[:, 0], x[:, 1:], num_samples=3)
    np.testing.assert_allclose(bounds.elbo, exact, rtol=1e-9)
    np.testing.assert_allclose(bounds.iwae, exact, rtol=1e-9)


def test_a_wrong_linear_law_costs_nats_that_importance_weights_give_back() -> None:
    y = kicked.simulate(0.3, 20, 8, np.random.default_rng(0))
    exact, _ = kicked.evidence(y, 0.3)
    x = torch.tensor(y)
    torch.manual_seed(0)
    bounds = recording_bounds(Kicked(0.3, exact=False), x[:, 0], x[:, 1:], num_samples=400)
    elbo, iwae = (float(part.mean()) for part in (bounds.elbo, bounds.iwae))
    assert elbo < iwae - 0.01
    assert exact.mean() - 0.3 * (exact.mean() - elbo) < iwae < exact.mean() + 0.02


@pytest.mark.parametrize("noise", [0.0, "learn", 0.02])
def test_the_objective_equals_stock_pyro(noise: float | str) -> None:
    transition, x = particles(noise), recording()
    model, guide = HiddenModel(transition), HiddenGuide(transition)
    torch.manual_seed(1)
    seen = poutine.trace(guide).get_trace(x[:, 0], x[:, 1:])
    drawn = noise_of(transition, x, {name: site["value"] for name, site in seen.nodes.items() if site["type"] == "sample"})
    loss = HiddenObjective(transition)(x[:, 0], x[:, 1:], noise=drawn).loss * len(x) * (x.shape[1] - 1)
    loss.backward()
    ours = {name: p.grad.clone() for name, p in transition.named_parameters() if p.grad is not None}
    transition.zero_grad()

    torch.manual_seed(1)
    theirs = TraceMeanField_ELBO().differentiable_loss(model, guide, x[:, 0], x[:, 1:])
    theirs.backward()
    assert float(loss.detach()) == pytest.approx(float(theirs.detach()), rel=1e-10)
    for name, p in transition.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(ours[name], p.grad, rtol=1e-7, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}")
    assert sum(name.startswith("recorded_by") and float(gradient.norm()) > 0 for name, gradient in ours.items()) >= 3


def noise_of(transition: Transition, x: Tensor, sites: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    """The noise that makes the draws of a guide, in the order that the objective asks for it."""
    read = transition.recording
    frames = read.read(x)
    law = read.infer(transition, frames)
    entry = read.by_field(sites["x_0"])
    steps = x.shape[1]
    first = frames.evidence.first[..., None, None]
    states = [torch.where(first[:, t], entry, read.by_field(sites[f"x_{t}"]) if t else entry) for t in range(steps)]
    after = [*states[1:], None]
    solved = [torch.linalg.solve_triangular(law.factor[:, t], states[t] - law.at(t, after[t]), upper=False).detach() for t in range(steps)]
    full = read.state(frames, slice(None), law.path(torch.stack(solved, 1)))
    posterior = unmasked(transition.step(transition.carries(full[:, 0], full[:, 1:])).posterior(full[:, 1:].flatten(0, 1)))
    z = torch.stack([sites[f"z_{t}"] for t in range(1, steps)], 1).flatten(0, 1)
    return replayed((torch.stack(solved, 1), ((z - posterior.loc) / posterior.scale).detach()))


def replayed(noise: tuple[Tensor, ...]) -> Callable[[Tensor], Tensor]:
    """Give noise out in order."""
    draws = iter(noise)
    return lambda like: next(draws)


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_turned_and_moved_recordings_have_turned_states_and_the_same_bound(noise: float) -> None:
    transition, x = particles(noise), recording()
    spec, rng = transition.spec, np.random.default_rng(0)
    plain = StateSpec(tuple(Field(name, "1o") for name in ("position", "velocity")), space=2)
    e, z = torch.randn(*x.shape[:3], 2, 2, dtype=x.dtype), torch.randn(x.shape[0] * (x.shape[1] - 1), 3, 3, dtype=x.dtype)
    for _ in range(3):
        g = Euclidean(space=2).random(x, rng)
        moved, turned = spec.act(g, x), g.act(plain, plain.fields, e.flatten(-2)).unflatten(-1, (2, 2))
        before, after = infer_path(transition, x), infer_path(transition, moved)
        torch.testing.assert_close(spec.act(g, before), after, rtol=1e-9, atol=1e-9, equal_nan=True)
        scores = [
            bound_parts(transition, one[:, 0], one[:, 1:], replayed(noise))
            for one, noise in ((x, (e, z)), (moved, (turned, g.act_latent(z))))
        ]
        torch.testing.assert_close(scores[0][0], scores[1][0], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(scores[0][1].sum((1, 2)), scores[1][1].sum((1, 2)), rtol=1e-9, atol=1e-9)


def infer_path(transition: Transition, x: Tensor) -> Tensor:
    read = transition.recording
    frames = read.read(x)
    return read.state(frames, slice(None), read.infer(transition, frames).path())


def test_forecasts_of_predictive_go_on_from_the_frames_seen() -> None:
    transition, x = particles(0.02), recording(missing=0.0)
    seen = x.shape[1]
    draws = Predictive(HiddenModel(transition), guide=HiddenGuide(transition), num_samples=7, parallel=True)(
        x[:, 0], x[:, 1:], horizon=seen + 2
    )
    assert draws[f"y_{seen + 2}"].shape == (7, 4, 3, 2)
    assert draws["x_0"].shape == (7, 4, 3, 4)
    assert f"y_{seen + 3}" not in draws
    assert float(Trace_ELBO()(HiddenModel(transition), HiddenGuide(transition))(x[:, 0], x[:, 1:])) > 0


def test_the_last_state_is_drawn_from_its_exact_law() -> None:
    noise = 0.3
    y = kicked.simulate(noise, 3, 8, np.random.default_rng(2))
    _, velocity = kicked.evidence(y, noise)
    torch.manual_seed(0)
    for exact in (True, False):  # what the guide gets wrong, the weights put right
        last = infer_last(Kicked(noise, exact=exact), torch.tensor(y), 2000)
        drawn = Kicked(noise).spec.get(last, "velocity")
        error = (drawn.mean(0) - torch.tensor(velocity)) / drawn.std(0)
        assert float(error.abs().max()) < 0.15
