"""Fit an equation of motion before training: a law of few numbers is found by a second-order method in seconds.

Three stages, each from the result of the last, on fixed windows of one step in double precision:

1. linear regression of the changes of velocity on forces, for the parameters in which these are linear;
2. Levenberg and Marquardt's method on all parameters of the law, for the same changes: differences of positions are mean forces about the
   time between, to second order in the frame;
3. the same for the errors of the integrator itself, with the derivatives of stage 2, which differ in second order only.

Errors are those of Student's t per body, with a scale s that falls as the law becomes right: what no law foresees, as after an encounter
that the frame is too long for, counts for little. log p = -d log s - (nu + d) / 2 log(1 + |e|^2 / (nu s^2)) + const.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from epns_pyro.context import DataContext
from epns_pyro.data import Store, Windows
from epns_pyro.errors import ConfigError
from epns_pyro.models import Transition
from epns_pyro.models.bodies.integrator import Integrator
from epns_pyro.models.bodies.particles import ParticleTransition

logger = logging.getLogger(__name__)

TAIL = 2.0  # nu
LARGEST_LAW = 1000  # parameters: the method solves systems of so many equations
DIFFERENCE = 1e-6  # of a parameter, for derivatives
SMALL = 0.03  # typical changes: errors are relative to what was observed, but for changes smaller than this
FARTHEST = 0.5  # that a parameter moves in one iteration
UNSEEN = 1e-8  # parameters of which data say less than this share of what they say of the best known stay where they are


class Fit(NamedTuple):
    """Typical error of the fitted law, relative to what was observed, and the mean log density of errors per body, on the windows."""

    scale: float
    log_density: float


def require_integrator(transition: Transition) -> Integrator:
    """Return the integrator of a transition, whose law can be fitted.

    Raises
    ------
    ConfigError
        If it has no equation of motion, or one of too many parameters.
    """
    integrator = transition.integrator if isinstance(transition, ParticleTransition) else None
    if integrator is None:
        raise ConfigError("training.motion_windows: the model has no equation of motion to fit: set it to 0")
    count = sum(p.numel() for p in integrator.network.parameters())
    if count > LARGEST_LAW:
        raise ConfigError(
            f"training.motion_windows: the law has {count} parameters, at most {LARGEST_LAW} can be fitted: "
            "set it to 0, or use model.integrator.network=central"
        )
    return integrator


def fit_law(transition: Transition, store: Store, context: DataContext, windows: int, *, seed: int) -> Fit:
    """Fit the equation of motion to random windows of the training set of a store."""
    integrator, drawn = (
        require_integrator(transition),
        Windows(store, "train", 1, windows, seed=seed, context=context, dtype=torch.float64).draw(),
    )
    device = next(transition.parameters()).device
    return fit_motion(integrator, context, drawn.x0.to(device), drawn.path.to(device))


def fit_motion(integrator: Integrator, context: DataContext, x0: Tensor, path: Tensor, *, iterations: int = 30) -> Fit:
    """Fit the law of an integrator to windows.

    Parameters
    ----------
    context : DataContext
    x0 : Tensor, (batch, body, channel)
    path : Tensor, (batch, 1, body, channel)
        Bodies that are absent, NaN, count for nothing.
    iterations : int
        Of stage 2 and of stage 3.
    """
    dtype = next(integrator.parameters()).dtype
    integrator.double()
    with torch.no_grad():
        problem = _Problem(integrator, context, x0.double(), path[:, 0].double())
        _regress(problem)
        _descend(problem, problem.forces, iterations)
        fit = _descend(problem, problem.changes, iterations)
    integrator.to(dtype)
    logger.info("equation of motion: typical errors of %.2g, relative to the change of a frame", fit.scale)
    return fit


class _Problem:
    """Observed changes in one step, in typical changes, (row, channel), and what the law says of them; a row is a body that is there."""

    def __init__(self, integrator: Integrator, context: DataContext, before: Tensor, after: Tensor) -> None:
        bodies = self._bodies = integrator.bodies
        self._integrator, self.network = integrator, integrator.network
        self._x, self._there = bodies.present(before)
        following, stays = bodies.present(after)
        both = before.new_ones(before.shape[:-1], dtype=torch.bool)
        for there in (self._there, stays):
            both = both if there is None else both & there
        self._rows, self._unit = both, bodies.per_channel(before.new_tensor([context.step_scales[f.name] for f in bodies.free.fields]))
        change = bodies.to_free(bodies.spec.dynamic(bodies.next_to(self._x, following))) - bodies.to_free(bodies.persistence(self._x))
        self.target = (change / self._unit)[both]
        self.size = SMALL + self.target.norm(dim=-1, keepdim=True)
        self._positions, self._features = bodies.positions(self._x), bodies.features(self._x, self._there)

    def forces(self) -> Tensor:
        """Forces at the present positions, in units of the observed size: (row, channel)."""
        out = self.network(self._positions, self._features)
        return self._bodies.join(out.vectors, out.scalars)[self._rows] / self.size

    def changes(self) -> Tensor:
        """Changes over a step of the integrator, likewise."""
        return (self._integrator(self._x, self._there).change / self._unit)[self._rows] / self.size

    def derivatives(self, parameters: list[nn.Parameter]) -> Tensor:
        """Derivatives of the forces: (row * channel, parameter)."""
        here, columns = self.forces(), []
        for parameter in parameters:
            flat = parameter.view(-1)
            for i in range(len(flat)):
                value = flat[i].clone()
                step = DIFFERENCE * max(1.0, abs(float(value)))
                flat[i] = value + step
                columns.append(((self.forces() - here) / step).flatten())
                flat[i] = value
        return torch.stack(columns, -1)


def _regress(problem: _Problem) -> None:
    """Set the parameters in which forces are linear, with the rest of the last layers zero."""
    linear = list(problem.network.linear_parameters)
    if not linear:
        return
    for parameter in [p for layer in problem.network.last_layers for p in layer.parameters()] + linear:
        parameter.zero_()
    columns = problem.derivatives(linear)
    solution = columns.new_zeros(columns.shape[-1])
    for _ in range(10):
        errors = problem.target / problem.size - (columns @ solution).view_as(problem.target)
        weights, _ = _weigh(errors)
        solution = solution + _solve(columns, weights, errors, damping=1e-9)
    _move(linear, solution)


def _descend(problem: _Problem, predict: Callable[[], Tensor], iterations: int) -> Fit:
    """Minimise minus the log density of errors by Levenberg and Marquardt's method."""
    parameters = list(problem.network.parameters())
    target = problem.target / problem.size
    errors, damping = target - predict(), 1e-3
    weights, best = _weigh(errors)
    columns = None
    for _ in range(iterations):
        columns = problem.derivatives(parameters) if columns is None else columns
        step = _solve(columns, weights, errors, damping).clamp(-FARTHEST, FARTHEST)
        _move(parameters, step)
        tried = target - predict()
        tried_weights, fit = _weigh(tried)
        if tried.isfinite().all() and fit.log_density > best.log_density:
            gained = fit.log_density - best.log_density
            errors, weights, best, columns, damping = tried, tried_weights, fit, None, damping / 5
            logger.debug("damping %.1g, typical error %.3g, log density %.4f", damping, fit.scale, fit.log_density)
            if gained < 1e-4:
                break
        else:
            _move(parameters, -step)
            damping *= 5
            if damping > 1e4:
                break
    return best


def _weigh(errors: Tensor) -> tuple[Tensor, Fit]:
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
    size = (gram.diagonal() + UNSEEN * gram.diagonal().max()).sqrt()
    gram = gram / size / size[:, None]
    gram.diagonal().add_(damping + 1e-12)
    return torch.linalg.solve(gram, right / size) / size


def _move(parameters: list[nn.Parameter], step: Tensor) -> None:
    for parameter, part in zip(parameters, step.split([p.numel() for p in parameters]), strict=True):
        parameter.add_(part.view_as(parameter))
