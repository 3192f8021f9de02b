"""A window of frames as the state: what is remembered, what is not known, and that all ways to go along a path agree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive
from torch import Tensor
from worlds import DT, POSITION, STEP_SCALES, VELOCITY, context, particles, trajectories

from epns_pyro.context import DataContext
from epns_pyro.errors import ConfigError
from epns_pyro.inference.elbo import Objective, log_density, path_bounds
from epns_pyro.inference.rollout import rollout_blocks, stream_seed
from epns_pyro.models import EPNSGuide, EPNSModel, Feedback
from epns_pyro.models.bodies.fields import shortened
from epns_pyro.models.bodies.history import LARGEST, known_since
from epns_pyro.models.bodies.particles import ParticlesConfig, ParticleTransition
from epns_pyro.presence import missing
from epns_pyro.state import Field, StateSpec
from epns_pyro.symmetry import Euclidean

FRAMES, BATCH, STEPS, BODIES, LATENT = 4, 3, 6, 4, 3
NETWORK = {"name": "estag", "width": 8, "vectors": 4, "layers": 1}


def remembering(about: DataContext, frames: int = FRAMES, **settings: object) -> ParticleTransition:
    return particles(about, history={"frames": frames, "network": NETWORK, "scalars": 5, "vectors": 3}, **settings)


def cut(about: DataContext, at: int = FRAMES) -> tuple[Tensor, Tensor, Tensor]:
    """Past, present and future of paths that are longer than a window: (batch, time, ...), (batch, ...), (batch, time, ...)."""
    x0, path = trajectories(about, BATCH, at + STEPS)
    x = torch.cat([x0[:, None], path], 1)
    return x[:, :at], x[:, at], x[:, at + 1 :]


def latents(steps: int = STEPS) -> Tensor:
    return torch.randn(BATCH, steps, BODIES, LATENT, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


# -- a window of one frame -------------------------------------------------------------------------------------------------


def test_a_window_of_one_frame_is_the_model_without_history() -> None:
    """The same weights from the same seed, no memory, and the numbers that were there before there was a history."""
    about = context("positions alone")
    x0, path = trajectories(about, steps=3)
    transition, explicit = particles(about), particles(about, history={"frames": 1})
    assert transition.history is None
    assert not any("history" in name for name in transition.state_dict())
    assert transition.start(x0).memory == ()
    assert transition.earlier_frames == 0
    found = [log_density(one, x0, path, latents(3)).tolist() for one in (transition, explicit)]
    assert found[0] == found[1]
    np.testing.assert_allclose(found[0], [26.753060094206642, 42.503755679211764, 43.16650788385938], rtol=1e-12)


# -- what is remembered ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", ["celestial", "still plane", "warm plane", "driven"])
def test_exactly_the_frames_of_the_window_matter(world: str) -> None:
    about = context(world)
    transition, (past, x0, path) = remembering(about), cut(about)

    def density(past: Tensor | None) -> Tensor:
        return log_density(transition, x0, path[:, :1], latents(1), past)

    plain = density(past)
    assert torch.equal(density(past[:, 1:]), plain)  # the fourth frame back is beyond a window of four
    for back in (1, 2, 3):
        other = past.clone()
        for f in about.spec.dynamic_fields:
            other[:, -back, :, about.spec.slice(f.name)] += 0.5 * STEP_SCALES[f.name]
        assert (density(other) - plain).abs().min() > 1e-6
    assert (density(None) - plain).abs().min() > 1e-6


def test_nothing_known_is_no_past() -> None:
    about = context("celestial")
    transition, (past, x0, path) = remembering(about), cut(about)
    nothing = missing(about.spec, past)
    assert torch.equal(log_density(transition, x0, path, latents(), nothing), log_density(transition, x0, path, latents()))
    assert torch.equal(nothing[..., about.spec.slice("mass")], past[..., about.spec.slice("mass")])


def test_a_gap_ends_what_is_known() -> None:
    present = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 1, 1], [1, 1, 0]], dtype=torch.bool)
    assert known_since(present).tolist() == [[False, True, False], [False, True, False], [True, True, False], [True, True, False]]


@pytest.mark.parametrize("inferred", [False, True], ids=["recorded", "inferred"])
def test_all_ways_along_a_path_agree(inferred: bool) -> None:
    """Step by step, all at once, through Pyro and through the bounds; with a past, with a part of it, and without any."""
    about = with_differences() if inferred else context("celestial")
    integrator = {"steps": 2, "network": {"name": "pairwise", "width": 8}} | ({"velocity": "inferred"} if inferred else {})
    transition, (past, x0, path), z = remembering(about, integrator=integrator), cut(about), latents()
    partly = torch.cat([missing(about.spec, past[:, :2]), past[:, 2:]], 1)
    for before in (None, past, past[:, 2:], partly):
        reference = log_density(transition, x0, path, z, before)
        carries = transition.carries(x0, path, before)
        step = transition.step(carries)
        law, value = step.observe(step.emission(z.flatten(0, 1)), path.flatten(0, 1))
        at_once = (step.prior.log_prob(z.flatten(0, 1)) + law.log_prob(value)).unflatten(0, (BATCH, STEPS)).sum(1)
        torch.testing.assert_close(at_once, reference, rtol=1e-11, atol=1e-11)
        data = {f"z_{t + 1}": z[:, t] for t in range(STEPS)}
        trace = poutine.trace(pyro.condition(EPNSModel(transition), data)).get_trace(x0, path, past=before)
        trace.compute_log_prob()
        torch.testing.assert_close(trace.log_prob_sum(), reference.sum(), rtol=1e-11, atol=1e-11)
        torch.manual_seed(1)
        bounds = path_bounds(transition, x0, path, num_samples=1, past=before)
        torch.manual_seed(1)
        noise = torch.randn(BATCH * STEPS, BODIES, LATENT, dtype=torch.float64).unflatten(0, (BATCH, STEPS)).movedim(1, 0)
        draws = iter(noise)
        loss = Objective(transition, Feedback.TEACHER)(x0, path, past=before, noise=lambda like, draws=draws: next(draws))
        assert -loss.loss.item() == pytest.approx(bounds.elbo.mean().item() / STEPS, rel=1e-9)
    torch.testing.assert_close(
        log_density(transition, x0, path, z, partly), log_density(transition, x0, path, z, past[:, 2:]), rtol=1e-12, atol=0
    )


def with_differences() -> DataContext:
    spec = StateSpec((POSITION, replace(VELOCITY, differences=True)), space=2)
    return DataContext(spec.with_scales({"position": 2.0, "velocity": 1.5}), DT, {"position": 0.03, "velocity": 0.3}, (BODIES,))


def test_forecasts_start_from_the_past() -> None:
    """Predictive, the guide's program and rollouts use the same windows, one step ahead and further."""
    about = context("celestial")
    transition, (past, x0, path) = remembering(about), cut(about)
    h = transition.step(transition.started(x0, past)).h
    model, guide = EPNSModel(transition), EPNSGuide(transition)
    sites = Predictive(model, guide=guide, num_samples=2, parallel=True)(x0, horizon=2, past=past)
    torch.testing.assert_close(sites["h_1"].squeeze()[0], h)
    second = transition.step(transition.started(about.spec.advance(x0, sites["x_1"][1]), torch.cat([past, x0[:, None]], 1)))
    torch.testing.assert_close(sites["h_2"].squeeze()[1], second.h)
    trace = poutine.trace(guide).get_trace(x0, path, past=past)
    carry = transition.started(torch.cat([x0[:, None], path], 1)[:, 2], torch.cat([past, x0[:, None], path], 1)[:, : FRAMES + 2])
    expected = transition.step(carry).posterior(path[:, 2])
    torch.testing.assert_close(trace.nodes["z_3"]["fn"].base_dist.loc, expected.base_dist.loc)

    (block,) = rollout_blocks(transition, x0, steps=3, members=2, seed=0, past=past)
    states = torch.from_numpy(block.states)
    window, x = torch.cat([past, x0[:, None]], 1).expand(2, -1, -1, -1, -1).flatten(0, 1), x0.expand(2, *x0.shape).flatten(0, 1)
    torch.manual_seed(stream_seed(0, 0))
    for t in range(1, 4):
        step = transition.step(transition.started(x, window[:, :-1]))
        x = step.advance(step.emission(step.prior.sample()).sample()).x
        torch.testing.assert_close(x.unflatten(0, (2, BATCH)), states[:, :, t], rtol=1e-9, atol=1e-9)
        window = torch.cat([window, x[:, None]], 1)


def test_a_pushed_forward_mean_enters_the_window() -> None:
    about = context("celestial")
    transition, (past, x0, path) = remembering(about), cut(about)
    step = transition.step(transition.started(x0, past))
    mean = step.emission(step.prior.mean).mean.detach()
    following = step.advance(mean, path[:, 0])
    (earlier,), *_ = transition.split(following)
    assert torch.equal(earlier[:, -1], x0)
    assert torch.equal(earlier[:, :-1], past[:, -FRAMES + 2 :])
    assert torch.equal(about.spec.dynamic(following.x), mean)
    loss = Objective(transition, Feedback.PUSHFORWARD)(x0, path, past=past).loss
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in transition.parameters())


# -- what a window says ----------------------------------------------------------------------------------------------------


def test_before_training_a_model_with_history_is_persistence() -> None:
    about = context("celestial")
    torch.manual_seed(0)
    transition = ParticlesConfig.parse({"history": {"frames": FRAMES}, "integrator": None}).build(about).double()
    past, x0, _ = cut(about)
    step = transition.step(transition.started(x0, past))
    mean = step.emission(torch.zeros_like(step.prior.mean)).mean
    left = mean - transition.bodies.persistence(x0)
    for f in about.spec.dynamic_fields:
        assert about.spec.get_dynamic(left, f.name).abs().max() < 1e-2 * STEP_SCALES[f.name]


def test_every_linear_autoregression_is_within_reach() -> None:
    """Weights of their own for each number of frames known; the unit is a typical change."""
    spec = StateSpec((POSITION,), space=2)
    about = DataContext(spec.with_scales({"position": 2.0}), DT, {"position": 0.05}, (BODIES,))
    transition = remembering(about)
    weights = torch.randn(FRAMES, FRAMES - 1, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        for parameter in transition.parameters():
            parameter.zero_()
        transition.history.vector_weights[:, 0] = weights
    x = 0.05 * torch.randn(1, FRAMES, BODIES, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).cumsum(1)
    for known in range(1, FRAMES + 1):
        step = transition.step(transition.started(x[:, -1], x[:, -known:-1]))
        mean = step.emission(torch.zeros_like(step.prior.mean)).mean
        moves = 0.05 * shortened(x[:, -known:].diff(dim=1) / 0.05, LARGEST)
        expected = x[:, -1] + torch.einsum("btij,t->bij", moves, weights[known - 1, FRAMES - known :])
        torch.testing.assert_close(mean, expected, rtol=0, atol=1e-7)


def test_a_jump_does_not_throw_a_body_away() -> None:
    about = context("celestial")
    transition, (past, x0, _) = remembering(about), cut(about)
    past[:, -1, 0, about.spec.slice("position")] += 1e6
    trend = transition.step(transition.started(x0, past)).past.trend
    units = {name: STEP_SCALES[name] * 200 for name in ("position", "velocity")}
    for name, largest in units.items():
        assert transition.bodies.free.get(trend, name).abs().max() < largest


# -- symmetry --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", ["celestial", "line", "still plane", "positions alone", "warm plane", "driven"])
def test_the_density_given_a_past_is_invariant(world: str) -> None:
    """log p(g x, z | g past) = log p(x, z | past), raw states, weights of order one, windows short and whole."""
    about = context(world)
    spec, (past, x0, path), z = about.spec, cut(about), latents()
    transition = remembering(about)
    partly = torch.cat([missing(spec, past[:, :3]), past[:, 3:]], 1)
    group, rng = Euclidean(spec.space, translation_scale=1e3), np.random.default_rng(0)
    for before in (past, partly):
        plain = log_density(transition, x0, path, z, before)
        for _ in range(3):
            g = group.random(x0, rng)
            found = log_density(transition, spec.act(g, x0), spec.act(g, path), g.act_latent(z), spec.act(g, before))
            torch.testing.assert_close(found, plain, rtol=1e-9, atol=1e-9)


def test_windows_go_on_across_the_sides_of_a_box() -> None:
    spec = StateSpec((POSITION, VELOCITY), space=2, box=(4.0, 6.0))
    about = DataContext(spec, DT, {"position": 0.02, "velocity": 0.3}, (BODIES,))
    transition, (past, x0, path), z = remembering(about), cut(about), latents()
    plain = log_density(transition, x0, path, z, past)
    sides = torch.zeros(BATCH, FRAMES, BODIES, spec.channels, dtype=torch.float64)
    sides[..., spec.slice("position")] = torch.randint(-2, 3, (BATCH, FRAMES, BODIES, 2)) * torch.tensor([4.0, 6.0]).double()
    torch.testing.assert_close(log_density(transition, x0, path, z, past + sides), plain, rtol=1e-9, atol=1e-9)


# -- what cannot be --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ((POSITION, replace(VELOCITY, hidden=True)), "hidden states are inferred"),
        ((POSITION, VELOCITY, Field("duration", kind="duration", dynamic=False)), "needs even frames"),
    ],
)
def test_what_a_window_cannot_hold_is_refused(fields: tuple[Field, ...], words: str) -> None:
    about = DataContext(StateSpec(fields), DT, {"position": 0.1, "velocity": 0.1}, (2,))
    with pytest.raises(ConfigError, match=words) as found:
        ParticlesConfig.parse({"history": {"frames": 2}}).build(about)
    assert "\n" not in str(found.value)
    assert "model.history.frames" in str(found.value)


def test_a_past_of_another_shape_is_refused() -> None:
    about = context("celestial")
    past, x0, path = cut(about)
    with pytest.raises(Exception, match="past: expected"):
        EPNSModel(remembering(about))(x0, path, past=past[:, :, :2])


def test_blocks_of_windows_are_as_large_as_memory_allows() -> None:
    """Twice the frames, half the windows at a time."""
    sizes = {
        frames: ParticlesConfig.parse({"history": {"frames": frames}}).build(context("celestial", 30)).block_size for frames in (1, 8, 16)
    }
    assert sizes[16] == pytest.approx(sizes[8] / 2, abs=1)
    assert sizes[8] < sizes[1]
