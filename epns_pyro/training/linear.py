"""Start from the linear autoregression that least squares find, and not from persistence."""

from __future__ import annotations

from itertools import islice
from typing import TypeGuard, cast

import numpy as np
import torch

from epns_pyro.context import DataContext
from epns_pyro.data import Store, Windows
from epns_pyro.data.linear import fit_linear
from epns_pyro.models import Transition
from epns_pyro.models.bodies.autoregression import Autoregression
from epns_pyro.models.bodies.particles import ParticleTransition

BATCH, BATCHES = 64, 32  # windows of one step
LEAST = 3.0  # of the smallest noise of an emission: from there training can go on in both directions


def starts_linear(transition: Transition) -> TypeGuard[ParticleTransition]:
    """Say whether the first guess of a transition has a linear part."""
    return isinstance(transition, ParticleTransition) and transition.autoregression is not None


@torch.no_grad()
def start_from_linear(transition: Transition, store: Store, context: DataContext, *, jitter: float, seed: int) -> None:
    """Set the linear part of the first guess, and the noise about it, to those of windows of the training set as training sees them.

    Parameters
    ----------
    transition : Transition
        Nothing is done with one that has no linear part.
    store : Store
    context : DataContext
    jitter : float
        As in `Windows`: with errors earlier steps count for more, and the last one for less.
    seed : int
    """
    if not starts_linear(transition):
        return
    first_frame = min(store.system.forecast_frame, store.steps("train") - 1)  # from there on all velocities are those of steps
    windows = Windows(store, "train", 1, BATCH, seed=seed, first_frame=first_frame, context=context, dtype=torch.float64, jitter=jitter)
    drawn = [(x0.cpu().numpy(), path[:, 0].cpu().numpy()) for x0, path in islice(windows, BATCHES)]
    bodies, linear = transition.bodies, fit_linear(lambda: drawn, context)
    if not linear.weights:  # nothing has moved
        return
    weights = np.stack([linear.weights[field.name] for field in bodies.dynamic_vectors])
    cast(Autoregression, transition.autoregression).weights.copy_(torch.from_numpy(weights))
    narrower = torch.tensor([linear.scales[name] / context.step_scales[name] for name in bodies.free.names])
    least = LEAST * transition.config.emission.minimum
    bias = cast(torch.nn.Linear, transition.guess_scalars[-1]).bias
    first = len(bodies.dynamic_scalars)  # the numbers of an emission begin with the scales of fields
    bias[first : first + len(narrower)] += narrower.clamp_min(least).log().to(bias)
