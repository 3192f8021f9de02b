"""Fit an equation of motion before training: a law of few numbers is found by a second-order method in seconds.

Stages, each from the result of the last, on fixed windows of one step in double precision:

1. linear regression of the changes of velocity on forces, for the parameters in which these are linear, from several places; over a
   mass, where a scalar of bodies does for one; with one power of the distance or two, where all of them say no more than chance would;
   with forces that are screened, too, where they do say more;
2. Levenberg and Marquardt's method on the parameters of a law of nature, for the errors of the model's own steps: a difference over frames
   is not the force at a place, and a law with all freedom would bend to be right about that; terms that say no more than chance are left
   out;
3. the same on all parameters, with derivatives of forces at a place, which hardly differ. A law of nature that is nearly as good is kept:
   it also holds where the data do not lead;
4. what bounds forces is searched; where they are bounded, 2 and 3 once more.

A law without a simple part is fitted to the changes on all parameters, and then to the errors of steps.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection
from itertools import combinations

import torch
from torch import Tensor

from epns_pyro.backbones.bodies.laws import PLAIN, Form
from epns_pyro.context import DataContext
from epns_pyro.data import Store
from epns_pyro.models import Transition
from epns_pyro.models.bodies.particles import ParticleTransition
from epns_pyro.training.bounds import fit_bounds
from epns_pyro.training.equations import Equation, equation_type
from epns_pyro.training.least_squares import ENOUGH, SMALL_SHARE, Fit, descend, idle_terms, move, regress, said, weigh

logger = logging.getLogger(__name__)

BLURRED = 2  # errors of mean forces over those of steps, from which frames are long for what happens in them
ITERATIONS = 30  # at most, of each descent
TRIAL, WORTH = 6, 0.3  # iterations of what may not be kept, and nats per body that all freedom has to gain in them over a law of nature
BOUNDED = 1e12  # typical changes: squares of more overflow
WEAKENED = 10  # times at most, by a factor of ten each; then there is no law
POLISH = 20  # iterations on forces, for screened forces, before starts are compared
FEW_POWERS = 2  # of the distance, that a law is tried with before all
WORTH_A_FORM = 0.2  # nats per body that a law with inertia has to gain over one without, and the share of what that one says


def fit_motion(transition: Transition, store: Store, context: DataContext, windows: int, *, seed: int) -> Fit:
    """Fit the equation of motion of a transition, and what bounds its forces, to windows of the training set of a store.

    Raises
    ------
    ConfigError
        If it has none that can be fitted.
    """
    fit = fit_law(transition, store, context, windows, seed=seed)
    if isinstance(transition, ParticleTransition) and fit_bounds(transition, store, context, windows, seed=seed + 1):
        fit = fit_law(transition, store, context, windows, seed=seed, onward=True)  # without what stood in for the bound
    return fit


def fit_law(transition: Transition, store: Store, context: DataContext, windows: int, *, seed: int, onward: bool = False) -> Fit:
    """Fit the equation of motion of a transition to windows of the training set of a store; `onward`, from the law that it has.

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
        if onward:
            fit = _fit_on(equation)
        else:
            usual = len(x0) - len(x0) // 2  # encounters come last
            first = kind(transition, context, x0[:usual], following[:usual]) if equation.simple else None
            fit = fit_equation(equation, first=first)
    transition.to(dtype)
    return fit


def fit_equation(equation: Equation, *, first: Equation | None = None, iterations: int = ITERATIONS) -> Fit:
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
    if equation.simple:
        with equation.coarse():
            _fit_simple(equation, first, iterations)
    else:
        _start(equation)
        descend(equation, equation.forces, equation.derivatives, equation.parameters, iterations)
    return _fit_on(equation, iterations)


def _fit_on(equation: Equation, iterations: int = ITERATIONS) -> Fit:
    """Fit a law from where it is: a law of nature, and then all freedom, where that is worth it."""
    if not equation.simple:
        fit = descend(equation, equation.changes, equation.derivatives, equation.parameters, iterations)
    else:
        simple = _without_idle_terms(equation, _descend_simple(equation, iterations), iterations)
        before, equation.left_out = _state(equation), {}
        fit = descend(equation, equation.changes, equation.derivatives, equation.parameters, TRIAL)
        logger.info("law of nature: log density %.3f per body; with some freedom %.3f", simple.log_density, fit.log_density)
        if fit.log_density - simple.log_density < max(WORTH, SMALL_SHARE * said(equation.target, simple.log_density)):
            equation.module.load_state_dict(before)
            fit = simple
        else:
            fit = descend(equation, equation.changes, equation.derivatives, equation.parameters, iterations)
    equation.settle()
    logger.info("equation of motion: typical errors of %.2g, relative to the change of a frame", fit.scale)
    return fit


def _fit_simple(equation: Equation, first: Equation | None, iterations: int) -> Fit:
    """Fit a law of nature: with one power of the distance or two, if all of them together say no more than so many numbers say by chance.

    A sum of powers that cancel each other follows any law where there are data, and none where bodies come closer than they did. Where so
    few do not say all, they are tried once more, with forces that are screened.
    """
    everything = tuple(range(equation.powers))
    rows, each = len(equation.target), sum(p.numel() for p in equation.linear) / max(1, equation.powers)
    start = equation if first is None else first

    def follow() -> Fit:
        equation.keep(start.kept)
        _weaken(start)
        fit = _harder(start, _descend_simple(start, iterations), iterations)
        if start is equation:
            return fit
        _weaken(equation)
        return _descend_simple(equation, iterations)

    def few(full: Fit, form: Form) -> Fit | None:
        """A law of as few powers as say all, or None, with the law as it was."""
        before = _state(equation)
        for count in range(1, min(FEW_POWERS, equation.powers - 1) + 1):
            _start(start, list(combinations(everything, count)), form)
            fit = follow()
            by_chance = (equation.powers - count) * each * math.log(rows) / (2 * rows)  # Schwarz's criterion
            logger.info("powers %s: log density %.3f per body; with all %.3f", equation.kept, fit.log_density, full.log_density)
            if full.log_density - fit.log_density < max(by_chance, SMALL_SHARE * said(equation.target, full.log_density)):
                return fit
        for each_equation in filter(None, (first, equation)):
            each_equation.keep(everything)
        equation.module.load_state_dict(before)
        return None

    form = _start_form(start)
    full = follow()
    return few(full, form) or few(full, form._replace(screened=True)) or full


def _descend_simple(equation: Equation, iterations: int) -> Fit:
    return descend(equation, equation.changes, equation.slopes, equation.simple, iterations, enough=ENOUGH)


def _harder(equation: Equation, fit: Fit, iterations: int) -> Fit:
    """Fit a law once more, from a start without softening, and keep the better.

    Where bodies meet within a frame, its mean force is softer than the force, and so is the law that regression starts from.
    """
    before, mean = _state(equation), weigh(equation.target - equation.forces())[1]
    logger.info("typical errors of mean forces %.2g, of steps %.2g", mean.scale, fit.scale)
    if mean.scale < BLURRED * fit.scale or not equation.unsoften():
        return fit
    harder = _descend_simple(equation, TRIAL)
    logger.info("with softening: log density %.3f per body; from a start without %.3f", fit.log_density, harder.log_density)
    if harder.log_density > fit.log_density:
        return _descend_simple(equation, iterations)
    equation.module.load_state_dict(before)
    return fit


def _start_form(equation: Equation) -> Form:
    """Set the law, without screening, to the start that linear regression finds best, and return its form: with inertia if that says more.

    Without noise what is left of a good law is an error of regression, which any form makes a little smaller: the gain has to be large
    beside what the law without inertia says, too.
    """
    everything = tuple(range(equation.powers))
    plain = _start(equation, [everything])
    best, form, state = plain + WORTH_A_FORM * max(1.0, said(equation.target, plain)), PLAIN, _state(equation)
    for size in equation.sizes:
        inert = _start(equation, [everything], Form(size))
        logger.info("over a power of scalar %d: log density %.3f per body; without inertia %.3f", size, inert, plain)
        if inert > best:
            best, form, state = inert, Form(size), _state(equation)
    equation.module.load_state_dict(state)
    return form


def _weaken(equation: Equation) -> None:
    """Weaken a law until its steps stay bounded: with one that is right on average a step may grow without end along the way."""
    for left in reversed(range(WEAKENED)):
        if _is_bounded(equation):
            return
        for parameter in equation.linear:
            parameter.mul_(0.1 if left else 0.0)


def _is_bounded(equation: Equation) -> bool:
    return bool((equation.changes().abs() < BOUNDED).all())


def _start(equation: Equation, choices: Collection[tuple[int, ...]] = ((),), form: Form = PLAIN) -> float:
    """Set a law of some form to the best of its starts, with the best of some choices of powers: by linear regression from each.

    Returns its log density.
    """
    starts: list[tuple[float, tuple[int, ...], dict[str, Tensor]]] = []
    for kept in choices:
        equation.keep(kept)
        for _ in equation.starts(form):
            regress(equation)
            if form.screened:  # how much depends on the rest of the law
                descend(equation, equation.forces, equation.derivatives, equation.simple, POLISH, enough=ENOUGH)
            density = weigh(equation.target - equation.forces())[1].log_density
            starts.append((density, kept, _state(equation)))
    density, kept, state = max(starts, key=lambda start: start[0])
    equation.keep(kept)
    equation.module.load_state_dict(state)
    return density


def _without_idle_terms(equation: Equation, fit: Fit, iterations: int) -> Fit:
    """Leave out, one after the other, the terms of a law of nature that say the least, while that costs less than they say by chance.

    What is left has to say as much once it is fitted anew; else all terms stay.
    """
    before, errors = _state(equation), equation.target - equation.changes()
    weights, _ = weigh(errors)
    columns, values = equation.derivatives(equation.linear), torch.cat([p.flatten() for p in equation.linear])
    per_row = weights.repeat_interleave(errors.shape[-1])[:, None]
    idle = idle_terms((columns * per_row).mT @ columns, values, math.log(len(errors)) / 2)
    if not idle.zeroed.any():
        return fit
    move(equation.linear, idle.values - values)
    equation.left_out = dict(zip(equation.linear, idle.zeroed.cpu().split([p.numel() for p in equation.linear]), strict=True))
    tried = fit._replace(log_density=-math.inf)
    if _is_bounded(equation):
        tried = _descend_simple(equation, iterations)
    count, by_chance = int(idle.zeroed.sum()), int(idle.zeroed.sum()) * math.log(len(errors)) / (2 * len(errors))
    logger.info("without %d terms: log density %.3f per body; with them %.3f", count, tried.log_density, fit.log_density)
    if tried.log_density > fit.log_density - by_chance:
        return tried
    equation.left_out = {}
    equation.module.load_state_dict(before)
    return fit


def _state(equation: Equation) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in equation.module.state_dict().items()}
