"""Fit an equation of motion before training: a law of few numbers is found by a second-order method in seconds.

Stages, each from the result of the last, on fixed windows of one step in double precision:

1. linear regression of the changes of velocity on forces, for the parameters in which these are linear, from several places; with one
   power of the distance or two, where all of them say no more than chance would;
2. Levenberg and Marquardt's method on the parameters of a law of nature, for the errors of the model's own steps: a difference over frames
   is not the force at a place, and a law with all freedom would bend to be right about that;
3. the same on all parameters, with derivatives of forces at a place, which hardly differ. A law of nature that is nearly as good is kept:
   it also holds where the data do not lead.

A law without a simple part is fitted to the changes on all parameters, and then to the errors of steps.

Errors are those of Student's t per body, with a scale s that falls as the law becomes right: what no law foresees, as after an encounter
that the frame is too long for, counts for little. log p = -d log s - (nu + d) / 2 log(1 + |e|^2 / (nu s^2)) + const.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor, nn

from epns_pyro.context import DataContext
from epns_pyro.data import Store
from epns_pyro.models import Transition
from epns_pyro.training.equations import Equation, equation_type

logger = logging.getLogger(__name__)

TAIL = 2.0  # nu
FARTHEST = 0.5  # that a parameter moves in one iteration
TRIAL, WORTH = 6, 0.3  # iterations, and nats per body that all freedom has to gain in them over a law of nature
FEW_POWERS = 2  # of the distance, that a law is tried with before all
ENOUGH = 0.02  # nats per body: with exact derivatives, an iteration that gains less is the last
UNSEEN = 1e-8  # parameters of which data say less than this share of what they say of the best known stay where they are


Predict = Callable[[], Tensor]  # (row, channel)
Slopes = Callable[[list[nn.Parameter]], Tensor]  # (row * channel, parameter)


class Fit(NamedTuple):
    """Typical error of the fitted law, relative to what was observed, and the mean log density of errors per body, on the windows."""

    scale: float
    log_density: float


def fit_law(transition: Transition, store: Store, context: DataContext, windows: int, *, seed: int) -> Fit:
    """Fit the equation of motion of a transition to windows of the training set of a store.

    Raises
    ------
    ConfigError
        If it has none that can be fitted.
    """
    kind = equation_type(transition)
    drawn = kind.draw(store, context, windows, seed)
    device, dtype = (getattr(next(transition.parameters()), name) for name in ("device", "dtype"))
    x0, following = drawn.x0.to(device), drawn.path[:, 0].to(device)
    transition.double()
    with torch.no_grad():
        equation = kind(transition, context, x0, following)
        usual = len(x0) - len(x0) // 2  # encounters come last
        first = kind(transition, context, x0[:usual], following[:usual]) if equation.simple else None
        fit = fit_equation(equation, first=first)
    transition.to(dtype)
    return fit


def fit_equation(equation: Equation, *, first: Equation | None = None, iterations: int = 30) -> Fit:
    """Fit a law to its windows; bodies that are absent, NaN, count for nothing.

    Parameters
    ----------
    equation : Equation
        In float64, without gradients.
    first : Equation, optional
        The same, on those of its windows that are not chosen for their encounters, from which a simple law is found.
    iterations : int
        Of stage 2 and of stage 3.
    """
    if not equation.simple:
        _start(equation)
        _descend(equation, equation.forces, equation.derivatives, equation.parameters, iterations)
        fit = _descend(equation, equation.changes, equation.derivatives, equation.parameters, iterations)
    else:
        simple = _fit_simple(equation, first, iterations)
        before = _state(equation)
        fit = _descend(equation, equation.changes, equation.derivatives, equation.parameters, TRIAL)
        logger.info("law of nature: log density %.3f per body; with some freedom %.3f", simple.log_density, fit.log_density)
        if fit.log_density < simple.log_density + WORTH:
            equation.module.load_state_dict(before)
            fit = simple
        else:
            fit = _descend(equation, equation.changes, equation.derivatives, equation.parameters, iterations)
    equation.settle()
    logger.info("equation of motion: typical errors of %.2g, relative to the change of a frame", fit.scale)
    return fit


def _fit_simple(equation: Equation, first: Equation | None, iterations: int) -> Fit:
    """Fit a law of nature: with one power of the distance or two, if all of them together say no more than so many numbers say by chance.

    A sum of powers that cancel each other follows any law where there are data, and none where bodies come closer than they did.
    """

    def descend(choices: list[tuple[int, ...]]) -> Fit:
        start = equation if first is None else first
        _start(start, choices)
        equation.keep(start.kept)
        if first is not None:
            _descend(first, first.changes, first.slopes, first.simple, iterations, enough=ENOUGH)
        return _descend(equation, equation.changes, equation.slopes, equation.simple, iterations, enough=ENOUGH)

    everything = tuple(range(equation.powers))
    full = descend([everything])
    before = _state(equation)
    rows, each = len(equation.target), sum(p.numel() for p in equation.linear) / max(1, equation.powers)
    for count in range(1, min(FEW_POWERS, equation.powers - 1) + 1):
        fit = descend(list(combinations(everything, count)))
        by_chance = (equation.powers - count) * each * math.log(rows) / (2 * rows)  # Schwarz's criterion
        logger.info("powers %s: log density %.3f per body; with all %.3f", equation.kept, fit.log_density, full.log_density)
        if fit.log_density > full.log_density - by_chance:
            return fit
    for each_equation in filter(None, (equation, first)):
        each_equation.keep(everything)
    equation.module.load_state_dict(before)
    return full


def _start(equation: Equation, choices: Collection[tuple[int, ...]] = ((),)) -> None:
    """Set the law to the best of its starts, with the best of some choices of powers: by linear regression from each."""
    starts: list[tuple[float, tuple[int, ...], dict[str, Tensor]]] = []
    for kept in choices:
        equation.keep(kept)
        for _ in equation.starts():
            _regress(equation)
            density = weigh(equation.target - equation.forces())[1].log_density
            starts.append((density, kept, _state(equation)))
    _, kept, state = max(starts, key=lambda start: start[0])
    equation.keep(kept)
    equation.module.load_state_dict(state)


def _state(equation: Equation) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in equation.module.state_dict().items()}


def _regress(equation: Equation) -> None:
    """Set the parameters in which forces are linear."""
    linear = equation.linear
    if not linear:
        return
    for parameter in equation.silent + linear:
        parameter.zero_()
    columns = equation.derivatives(linear)
    solution = columns.new_zeros(columns.shape[-1])
    for _ in range(10):
        errors = equation.target - (columns @ solution).view_as(equation.target)
        weights, _ = weigh(errors)
        solution = solution + _solve(columns, weights, errors, damping=1e-9)
    _move(linear, solution)


def _descend(
    equation: Equation, predict: Predict, slopes: Slopes, parameters: list[nn.Parameter], iterations: int, *, enough: float = 0.0
) -> Fit:
    """Minimise minus the log density of errors by Levenberg and Marquardt's method."""
    target = equation.target
    errors, damping = target - predict(), 1e-3
    weights, best = weigh(errors)
    columns = None
    for _ in range(iterations):
        columns = slopes(parameters) if columns is None else columns
        step = _solve(columns, weights, errors, damping).clamp(-FARTHEST, FARTHEST)
        _move(parameters, step)
        tried = target - predict()
        tried_weights, fit = weigh(tried)
        if tried.isfinite().all() and fit.log_density > best.log_density:
            gained = fit.log_density - best.log_density
            errors, weights, best, columns, damping = tried, tried_weights, fit, None, damping / 5
            logger.debug("damping %.1g, typical error %.3g, log density %.4f", damping, fit.scale, fit.log_density)
            if gained < max(enough, equation.enough):
                break
        else:
            _move(parameters, -step)
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


def _solve(columns: Tensor, weights: Tensor, errors: Tensor, damping: float) -> Tensor:
    """Solve (J' W J + damping diag(J' W J)) step = J' W e."""
    per_row = weights.repeat_interleave(errors.shape[-1])[:, None]
    gram, right = columns.mT @ (per_row * columns), (columns * per_row).mT @ errors.flatten()
    size = (gram.diagonal() + UNSEEN * gram.diagonal().max()).sqrt().clamp_min(torch.finfo(gram.dtype).tiny)  # nothing may be known
    gram = gram / size / size[:, None]
    gram.diagonal().add_(damping + 1e-12)
    return torch.linalg.solve(gram, right / size) / size


def _move(parameters: list[nn.Parameter], step: Tensor) -> None:
    for parameter, part in zip(parameters, step.split([p.numel() for p in parameters]), strict=True):
        parameter.add_(part.view_as(parameter))
