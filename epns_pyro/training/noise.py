"""Fit the noise about a fitted equation of motion before training: how far that is wrong, by what it says of a frame.

The motion stays as it is, so what it says of windows is worked out once; then the network of the noise is all that is left, and hundreds of
steps on all windows at once take seconds. Where bodies meet, errors are larger by orders of magnitude. From batches of few windows, in
which few bodies meet, this is learnt slowly, and until then every body is at times thrown about like one that meets another.
"""

from __future__ import annotations

import logging
from typing import cast

import torch
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


def fit_noise(transition: Transition, store: Store, context: DataContext, windows: int, *, seed: int) -> float:
    """Fit the noise of the first guess to random windows of the training set, around where the equation of motion leads.

    Returns
    -------
    float
        Mean log density per body and step, nats.
    """
    transition = cast(ParticleTransition, transition)
    dtype, device = next(transition.parameters()).dtype, next(transition.parameters()).device
    transition.double()  # in single precision, rounding would be the noise of bodies that meet no other
    length = min(FRAMES, store.steps("train"))
    drawn = Windows(store, "train", length, PER_WINDOW * windows, seed=seed, context=context, dtype=torch.float64).draw()
    x0, path = drawn.x0.to(device), drawn.path.to(device)
    with torch.no_grad():
        size = transition.block_size
        blocks = zip(transition.carries(x0, path).split(size), path.flatten(0, 1).split(size), strict=True)
        inputs, means, targets, units = (torch.cat(parts) for parts in zip(*(_rows(transition, *block) for block in blocks), strict=True))
    network, scalars = transition.guess_scalars, len(transition.bodies.dynamic_scalars)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, ITERATIONS)
    value = torch.zeros(())
    for _ in range(ITERATIONS):
        noise = network(inputs)[..., scalars:]
        value = transition.config.emission.build(transition.bodies.free, means, noise, units).log_prob(targets).mean()
        optimizer.zero_grad(set_to_none=True)
        (-value).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    _leave_out_unseen(transition, inputs, means, targets, units)
    transition.to(dtype)
    density = float(value.detach())
    logger.info("noise about the equation of motion: log density %.3f per body", density)
    return density


@torch.no_grad()
def _leave_out_unseen(transition: ParticleTransition, inputs: Tensor, means: Tensor, targets: Tensor, units: Tensor) -> None:
    """Give widths of a mixture that less than one row was drawn with no weight; one that a later batch needs comes back.

    The fit leaves them the weight of about one row in all. A draw of the widest is an accident, which a long forecast would meet often.
    """
    emission, spec, network = transition.config.emission, transition.bodies.free, transition.guess_scalars
    if not isinstance(emission, MixtureConfig):
        return
    scalars = len(transition.bodies.dynamic_scalars)
    law = emission.build(spec, means, network(inputs)[..., scalars:], units)
    drawn = cast(ScaleMixture, law.base_dist).shares(targets).flatten(0, -2).sum(0)
    bias = cast(nn.Linear, network[-1]).bias[scalars:][emission.weights_at(spec)]
    bias[drawn < 1] -= UNSEEN
    logger.info("rows drawn with each width of the noise: %s", ", ".join(f"{count:.3g}" for count in drawn.tolist()))


def _rows(transition: ParticleTransition, carry: Carry, following: Tensor) -> tuple[Tensor, ...]:
    """Return what the noise may depend on, where the motion leads, where bodies went and the units, (row, 1, ...), one row per body."""
    step = transition.step(carry)
    bodies = transition.bodies
    after, stays = bodies.present(following)
    both = step.x.new_ones(step.x.shape[:-1], dtype=torch.bool)
    for there in (step.mask, stays):
        both = both if there is None else both & there
    target = bodies.to_free(bodies.spec.dynamic(bodies.next_to(step.x, after)))
    units = bodies.step_units(step.x, transition.step_scales).expand(*both.shape, -1)
    return tuple(part[both][:, None] for part in (step.noise_inputs, step.foreseen, target, units))
