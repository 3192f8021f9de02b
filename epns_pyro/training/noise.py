"""Fit the noise about a fitted equation of motion before training: how far that is wrong, by what it says of a frame.

The motion stays as it is, so what it says of windows is worked out once; then the network of the noise is all that is left, and hundreds of
steps on all windows at once take seconds. Where bodies meet, errors are larger by orders of magnitude. From batches of few windows, in
which few bodies meet, this is learnt slowly, and until then every body is at times thrown about like one that meets another.
"""

from __future__ import annotations

import logging
from typing import NamedTuple, cast

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from epns_pyro.context import DataContext
from epns_pyro.data import Store, Windows
from epns_pyro.models import Transition
from epns_pyro.models.bodies.mixture import MixtureConfig, ScaleMixture
from epns_pyro.models.bodies.particles import ParticleTransition
from epns_pyro.models.transition import Carry

logger = logging.getLogger(__name__)

ITERATIONS, LEARNING_RATE = 500, 3e-2
FRAMES = 10  # steps of a window: where a velocity is carried along it becomes better known than at the start
UNSEEN = 30.0  # nats
PER_WINDOW = 2  # windows, per window that the law is fitted to
MOST_ROWS = 40_000  # steps of bodies in all windows: more take minutes, and say no more of a law of few numbers


class _Frames(NamedTuple):
    """What the equation of motion says of recorded frames, and what came of them: (window, frame, body, ...)."""

    inputs: Tensor  # what the noise may depend on
    foreseen: Tensor
    reached: Tensor
    units: Tensor
    there: Tensor  # before and after the frame


def fit_noise(transition: Transition, store: Store, context: DataContext, windows: int, *, seed: int) -> float:
    """Fit the noise of the first guess, and what stays of it, to random windows of the training set, around where the motion leads.

    Returns
    -------
    float
        Mean log density per body and step, nats.
    """
    transition = cast(ParticleTransition, transition)
    dtype, device = next(transition.parameters()).dtype, next(transition.parameters()).device
    transition.double()  # in single precision, rounding would be the noise of bodies that meet no other
    length = min(FRAMES, store.steps("train"))
    windows = min(PER_WINDOW * windows, max(1, MOST_ROWS // (length * context.sites[0])))
    drawn = Windows(store, "train", length, windows, seed=seed, context=context, dtype=torch.float64).draw()
    x0, path = drawn.x0.to(device), drawn.path.to(device)
    with torch.no_grad():
        size = transition.block_size
        blocks = zip(transition.carries(x0, path).split(size), path.flatten(0, 1).split(size), strict=True)
        parts = (torch.cat(part) for part in zip(*(_frames(transition, *block) for block in blocks), strict=True))
        frames = _Frames(*(part.unflatten(0, path.shape[:2]) for part in parts))
    parameters = [*transition.guess_scalars.parameters(), *(transition.echo.parameters() if transition.echo else ())]
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, ITERATIONS)
    value = torch.zeros(())
    for _ in range(ITERATIONS):
        value = _law(transition, frames).log_prob(frames.reached)[frames.there].mean()
        optimizer.zero_grad(set_to_none=True)
        (-value).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    _leave_out_unseen(transition, frames)
    transition.to(dtype)
    density = float(value.detach())
    logger.info("noise about the equation of motion: log density %.3f per body", density)
    if echo := transition.echo:
        shares = ", ".join(f"{a:.2f} + {b:.2f} log s" for a, b in zip(echo.raw.tolist(), echo.slope.tolist(), strict=True))
        logger.info("what stays of a miss in the next frame: tanh of %s", shares)
    return density


def _law(transition: ParticleTransition, frames: _Frames) -> TorchDistribution:
    """The law of every body in every frame, given the frames before it."""
    config, spec, echo = transition.config, transition.bodies.free, transition.echo
    noise = transition.guess_scalars(frames.inputs)[..., len(transition.bodies.dynamic_scalars) :]
    means = frames.foreseen
    if echo:
        law = config.emission.build(spec, torch.zeros_like(means), noise.detach(), frames.units)
        means = means + echo.along(frames.reached - means, config.emission.usual_scale(law), frames.there)
    return config.emission.build(spec, means, noise, frames.units).base_dist


@torch.no_grad()
def _leave_out_unseen(transition: ParticleTransition, frames: _Frames) -> None:
    """Give widths of a mixture that less than one row was drawn with no weight; one that a later batch needs comes back.

    The fit leaves them the weight of about one row in all. A draw of the widest is an accident, which a long forecast would meet often.
    """
    emission, spec, network = transition.config.emission, transition.bodies.free, transition.guess_scalars
    if not isinstance(emission, MixtureConfig):
        return
    drawn = cast(ScaleMixture, _law(transition, frames)).shares(frames.reached)[frames.there].sum(0)
    bias = cast(nn.Linear, network[-1]).bias[len(transition.bodies.dynamic_scalars) :][emission.weights_at(spec)]
    bias[drawn < 1] -= UNSEEN
    logger.info("rows drawn with each width of the noise: %s", ", ".join(f"{count:.3g}" for count in drawn.tolist()))


def _frames(transition: ParticleTransition, carry: Carry, following: Tensor) -> tuple[Tensor, ...]:
    """Return the parts of `_Frames`, along a flat batch."""
    step = transition.step(carry)
    bodies = transition.bodies
    after, stays = bodies.present(following)
    there = step.x.new_ones(step.x.shape[:-1], dtype=torch.bool)
    for mask in (step.mask, stays):
        there = there if mask is None else there & mask
    reached = bodies.to_free(bodies.spec.dynamic(bodies.next_to(step.x, after)))
    units = bodies.step_units(step.x, transition.step_scales).expand(*there.shape, -1)
    return step.noise_inputs, step.foreseen, torch.where(there[..., None], reached, step.foreseen), units, there
