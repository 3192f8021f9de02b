"""The noise of a step, and the error of a position, that a model starts from where velocities are hidden.

A velocity that is kicked at random all the time moves a position by the integral of its kicks: where kicks change a velocity by s in a
step of dt, the covariance is s^2 [[dt^2 / 3, dt / 2], [dt / 2, 1]]. Recorded positions with an error n have second differences with

    variance 6 n^2 + (2 / 3) s^2 dt^2,    covariance with the next one -4 n^2 + (1 / 6) s^2 dt^2

which tell the two apart. They hardly tell how the noise of positions and velocities is correlated, and the likelihood is nearly flat along
this direction: training stays near the correlation that it starts from, so it starts from this one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from epns_pyro.context import DataContext
from epns_pyro.fields import LEARN

LEAST, MOST = 0.02, 0.98  # share of errors in second differences at the start


def error_share(context: DataContext, position: str) -> float:
    """Return the share of the variance of second differences of a position that is error, not motion, with a hidden velocity."""
    field, size = context.spec[position], context.step_scales[position]
    if field.noise != LEARN:
        return min(6 * float(field.noise) ** 2 / size**2, MOST)
    correlation = context.second_difference_correlation
    return 1.0 if correlation is None else min(max((1 / 4 - correlation) / (11 / 12), LEAST), MOST)


def kicked_noise(context: DataContext) -> Tensor | None:
    """Return the covariance of the noise of a step, (dynamic field, dynamic field), in units of the step scales; None without kicks."""
    names = [f.name for f in context.spec.dynamic_fields]
    covariance, dt, found = torch.eye(len(names), dtype=torch.float64), context.frame_dt, False
    for field in context.spec.dynamic_fields:
        share = error_share(context, field.rate_of) if field.hidden else 1.0
        if share == 1.0:
            continue
        position, velocity, size = names.index(field.rate_of), names.index(field.name), context.step_scales[field.rate_of]
        kick = math.sqrt(1.5 * (1 - share)) * size / dt
        ratio = kick * dt / size, kick / context.step_scales[field.name]  # what a kick does in a step, in units of the step scales
        covariance[position, position], covariance[velocity, velocity] = ratio[0] ** 2 / 3, ratio[1] ** 2
        covariance[position, velocity] = covariance[velocity, position] = ratio[0] * ratio[1] / 2
        found = True
    return covariance if found else None
