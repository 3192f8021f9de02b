"""Least squares with errors of Student's t, linear and not: for equations of motion.

Errors are those of Student's t per body, with a scale s that falls as the law becomes right: what no law foresees, as after an encounter
that the frame is too long for, counts for little. log p = -d log s - (nu + d) / 2 log(1 + |e|^2 / (nu s^2)) + const.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from epns_pyro.training.equations import Equation

logger = logging.getLogger(__name__)

TAIL = 2.0  # nu
FARTHEST = 0.5  # that a parameter moves in one iteration
RIDGE = 1e-10  # of the information on a number: what says the same as others can be told apart by no data
REWEIGHTED = 100  # times at most, in a linear regression
UNSEEN = 1e-8  # parameters of which data say less than this share of what they say of the best known stay where they are
SMALL_SHARE = 0.05  # of what a law says: without noise, as much may be said of errors of integration
ENOUGH = 0.02  # nats per body: with exact derivatives, an iteration that gains less is the last

Predict = Callable[[], Tensor]  # (row, channel)
Slopes = Callable[[list[nn.Parameter]], Tensor]  # (row * channel, parameter)


class Fit(NamedTuple):
    """Typical error of the fitted law, relative to what was observed, and the mean log density of errors per body, on the windows."""

    scale: float
    log_density: float


def regress(equation: Equation) -> None:
    """Set the parameters in which forces are linear."""
    linear = equation.linear
    if not linear:
        return
    for parameter in equation.silent + linear:
        parameter.zero_()
    columns = equation.derivatives(linear)
    solution = columns.new_zeros(columns.shape[-1])
    best = -math.inf
    for _ in range(REWEIGHTED):
        errors = equation.target - (columns @ solution).view_as(equation.target)
        weights, fit = weigh(errors)
        if fit.log_density < best + ENOUGH:
            break
        solution, best = solution + solve(columns, weights, errors, damping=1e-9), fit.log_density
    move(linear, solution)


def descend(
    equation: Equation, predict: Predict, slopes: Slopes, parameters: list[nn.Parameter], iterations: int, *, enough: float = 0.0
) -> Fit:
    """Minimise minus the log density of errors by Levenberg and Marquardt's method."""
    target = equation.target
    errors, damping = target - predict(), 1e-3
    weights, best = weigh(errors)
    columns = None
    for _ in range(iterations):
        columns = slopes(parameters) if columns is None else columns
        step = solve(columns, weights, errors, damping).clamp(-FARTHEST, FARTHEST)
        if not step.isfinite().all():  # errors are larger than numbers can be: the law stays as it is
            break
        move(parameters, step)
        tried = target - predict()
        tried_weights, fit = weigh(tried)
        if tried.isfinite().all() and fit.log_density > best.log_density:
            gained = fit.log_density - best.log_density
            errors, weights, best, columns, damping = tried, tried_weights, fit, None, damping / 5
            logger.debug("damping %.1g, typical error %.3g, log density %.4f", damping, fit.scale, fit.log_density)
            if gained < max(enough, equation.enough):
                break
        else:
            move(parameters, -step)
            damping *= 5
            if damping > 1e4:
                break
    return best


def weigh(errors: Tensor) -> tuple[Tensor, Fit]:
    """Return the weight of every row of errors (row, channel) and the fit, with the most likely scale: expectation maximisation."""
    d, squared = errors.shape[-1], errors.square().sum(-1)
    variance = squared.nanmedian().clamp_min(1e-30) / d
    for _ in range(20):
        weights = (TAIL + d) / (TAIL + squared / variance)
        variance = (weights * squared).mean().clamp_min(1e-30) / d
    density = -0.5 * d * variance.log() - (TAIL + d) / 2 * torch.log1p(squared / (TAIL * variance)).mean()
    return weights / variance, Fit(float(variance.sqrt()), float(density))


def said(target: Tensor, log_density: float) -> float:
    """Return what a law of this log density says of targets (row, channel): nats per row over no law."""
    return log_density - weigh(target)[1].log_density


def solve(columns: Tensor, weights: Tensor, errors: Tensor, damping: float) -> Tensor:
    """Solve (J' W J + damping diag(J' W J)) step = J' W e."""
    per_row = weights.repeat_interleave(errors.shape[-1])[:, None]
    gram, right = columns.mT @ (per_row * columns), (columns * per_row).mT @ errors.flatten()
    size = (gram.diagonal() + UNSEEN * gram.diagonal().max()).sqrt().clamp_min(torch.finfo(gram.dtype).tiny)  # nothing may be known
    gram = gram / size / size[:, None]
    gram.diagonal().add_(damping + 1e-12)
    return torch.linalg.solve(gram, right / size) / size


def move(parameters: list[nn.Parameter], step: Tensor) -> None:
    for parameter, part in zip(parameters, step.split([p.numel() for p in parameters]), strict=True):
        parameter.add_(part.view_as(parameter))


class Idle(NamedTuple):
    """Numbers of a law, of which some are zero, and which these are: (number,)."""

    values: Tensor
    zeroed: Tensor


def idle_terms(information: Tensor, values: Tensor, worth: float) -> Idle:
    """Return a law without the terms that cost less than `worth` nats each, the cheapest first, all others moved to make up for them.

    Parameters
    ----------
    information : Tensor, (number, number)
        Minus the second derivative of the log likelihood by the numbers that the terms are multiples of; of one that is switched off, zero.
    values : Tensor, (number,)
    worth : float

    Notes
    -----
    Without number k the highest likelihood is lower by v_k^2 / (2 C_kk), where C is the inverse of the information, and there all are moved
    by -C_k v_k / C_kk: what a number says that others can say costs nothing.
    """
    left = (information.diagonal() > 0).nonzero()[:, 0]
    values, zeroed = values.clone(), torch.zeros(len(values), dtype=torch.bool, device=values.device)
    size = information.diagonal()[left].sqrt()
    scaled = information[left][:, left] / size / size[:, None]
    scaled.diagonal().add_(RIDGE)
    covariance = torch.linalg.inv(scaled) / size / size[:, None]
    while len(left):
        cost = values[left].square() / (2 * covariance.diagonal())
        k = int(cost.argmin())
        if not cost[k] < worth:
            break
        values[left] -= covariance[:, k] * (values[left[k]] / covariance[k, k])
        values[left[k]], zeroed[left[k]] = 0.0, True
        rest = torch.arange(len(left), device=left.device) != k
        covariance = (covariance - covariance[:, k, None] * covariance[k] / covariance[k, k])[rest][:, rest]
        left = left[rest]
    return Idle(values, zeroed)
