"""Fit what bounds the forces of an equation of motion, on the windows in which it says that they are strongest.

In other windows nothing tells of a bound, nor do derivatives, so it is searched. Windows are chosen by their present state: a choice by
what came of it would prefer the noise that agrees with the force.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from epns_pyro.backbones.bodies.laws import Law
from epns_pyro.context import DataContext
from epns_pyro.data import Store, Windows
from epns_pyro.models import Transition
from epns_pyro.training.equations import IntegratorEquation, affordable
from epns_pyro.training.fittable import require_integrator
from epns_pyro.training.least_squares import SMALL_SHARE, said, weigh

logger = logging.getLogger(__name__)

STRONG = 20  # of so many windows that with the strongest forces is used
BLOCK = 1000  # windows that are integrated at a time
FARTHER = 2.0  # logarithm of a bound over that before training, up to which it is searched
CANDIDATES = 13  # of a first scan
CLOSER = 27  # of a second one, between the neighbours of its best
PRECISION = 0.003  # of the logarithm of a bound
GOLDEN = (5**0.5 - 1) / 2
GAIN = 0.01  # nats per body: a bound that gains less is none


@torch.no_grad()
def fit_bounds(transition: Transition, store: Store, context: DataContext, windows: int, *, seed: int) -> bool:
    """Fit the bounds of the forces of an integrator to so many windows with the strongest forces, and return whether there are any.

    What frames start from is inferred anew with every bound that is tried: kept, it would fit the bound that it was inferred with.
    """
    integrator = require_integrator(transition)
    bounds = integrator.network.bounds if isinstance(integrator.network, Law) else ()
    if not bounds:
        return False
    like = next(transition.parameters())
    device, dtype = like.device, like.dtype
    transition.double()
    windows = affordable(windows, context)
    drawn = Windows(store, "train", 1, STRONG * windows, seed=seed, context=context, dtype=torch.float64).draw()
    x0, following = drawn.x0.to(device), drawn.path[:, 0].to(device)
    strengths = [integrator(*integrator.bodies.present(x)).log_max_kick.flatten(1).nan_to_num().amax(1) for x in x0.split(BLOCK)]
    strongest = torch.cat(strengths).argsort(descending=True)[:windows]
    equation = IntegratorEquation(transition, context, x0[strongest], following[strongest])
    bounded = False
    for bound in bounds:

        def density(logarithm: float, bound: nn.Parameter = bound) -> float:
            bound.fill_(logarithm)
            equation.start()
            return weigh(equation.target - equation.changes())[1].log_density

        highest = float(bound.max()) + FARTHER
        found = _highest(density, 0.0, highest)
        if found < highest:
            without, there = density(highest), density(found)
            found = found if there - without > SMALL_SHARE * said(equation.target, there) else highest
        bound.fill_(found)
        bounded = bounded or found < highest
        logger.info("equation of motion: largest force %.3g typical changes per frame", math.exp(float(bound.max())))
    transition.to(dtype)
    return bounded


def _highest(function: Callable[[float], float], low: float, high: float) -> float:
    """Return where a function of one number, flat at large ones, is highest, the largest such number.

    Two scans, then golden sections: paths of bodies that meet more than once depend so much on a bound that there are many peaks.
    """
    left, right = low, high
    for candidates in (CANDIDATES, CLOSER):
        grid = np.linspace(right, left, candidates)
        values = np.array([function(at) for at in grid])
        best = int(np.argmax(values > values.max() - GAIN))
        if grid[best] == high:
            return high
        left, right = float(grid[min(best + 1, candidates - 1)]), float(grid[max(best - 1, 0)])
    near = [right - GOLDEN * (right - left), left + GOLDEN * (right - left)]
    found = [function(at) for at in near]
    while right - left > PRECISION:
        if found[1] > found[0] - GAIN:
            left, near, found = near[0], near[1:], found[1:]
            near.append(left + GOLDEN * (right - left))
            found.append(function(near[1]))
        else:
            right, near, found = near[1], near[:1], found[:1]
            near.insert(0, right - GOLDEN * (right - left))
            found.insert(0, function(near[0]))
    return (left + right) / 2
