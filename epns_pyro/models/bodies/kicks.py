"""The noise of a step, and the error of a position, that a model starts from where velocities are hidden.

A velocity that is kicked at random all the time moves a position by the integral of its kicks: where kicks change a velocity by s in a
step of dt, the covariance is s^2 [[dt^2 / 3, dt / 2], [dt / 2, 1]]. With k = s dt, second differences of recorded positions with an error n
have

    variance 6 n^2 + (2 / 3) k^2 + a,    covariance with the next one -4 n^2 + k^2 / 6 + a,    with the one after n^2 + a

where a is of forces that change little in three frames. They tell the three apart. They hardly tell how the noise of positions and
velocities is correlated: the likelihood is nearly flat along this direction, so training starts from the correlation above.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from epns_pyro.context import DataContext
from epns_pyro.fields import LEARN

LEAST, MOST = 0.02, 0.98  # share of errors in the variance of second differences at the start


def error_share(context: DataContext, position: str) -> float:
    """Return the share of the variance of second differences of a position that is error, with a hidden velocity; 1 if it is not known."""
    field, size = context.spec[position], context.step_scales[position]
    if field.noise != LEARN:
        return min(6 * float(field.noise) ** 2 / size**2, MOST)
    if not context.second_difference_correlations:
        return 1.0
    one, two = context.second_difference_correlations
    return min(max(6 * (1 - 4 * one + 3 * two) / 25, LEAST), MOST)


def kick_share(context: DataContext, position: str) -> float:
    """Return k^2 as a share of this variance: without correlations, all that is no error are kicks."""
    error = error_share(context, position)
    if not context.second_difference_correlations:
        return 1.5 * (1 - error)
    one, two = context.second_difference_correlations
    return min(max(6 * (one - two) + 5 * error, 1.5 * (1 - MOST)), 1.5 * (1 - error))


def kicked_noise(context: DataContext) -> Tensor | None:
    """Return the covariance of the noise of a step, (dynamic field, dynamic field), in units of the step scales; None without kicks."""
    names = [f.name for f in context.spec.dynamic_fields]
    covariance, dt, found = torch.eye(len(names), dtype=torch.float64), context.frame_dt, False
    for field in context.spec.dynamic_fields:
        share = error_share(context, field.rate_of) if field.hidden else 1.0
        if share == 1.0:
            continue
        position, velocity, size = names.index(field.rate_of), names.index(field.name), context.step_scales[field.rate_of]
        kick = math.sqrt(kick_share(context, field.rate_of)) * size / dt
        ratio = kick * dt / size, kick / context.step_scales[field.name]  # what a kick does in a step, in units of the step scales
        covariance[position, position], covariance[velocity, velocity] = ratio[0] ** 2 / 3, ratio[1] ** 2
        covariance[position, velocity] = covariance[velocity, position] = ratio[0] * ratio[1] / 2
        found = True
    return covariance if found else None
