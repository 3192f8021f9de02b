"""References for particles without a network: linear in the state, with Normal noise of one standard deviation per field.

Their laws are in `epns_pyro.data.linear`. A model that beats the autoregression has learnt interactions between bodies, or noise that is
not Normal.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np

from epns_pyro.context import DataContext
from epns_pyro.data import Store
from epns_pyro.data.linear import LinearLaw, fit_linear, lasting, persisting, recorded_transitions
from epns_pyro.derived import complete, difference, free_fields
from epns_pyro.durations import with_durations
from epns_pyro.evaluation.forecasters import Forecaster
from epns_pyro.presence import presence
from epns_pyro.state import StateSpec


class LinearForecaster(Forecaster):
    """x' ~ Normal(mean(x), scale) for the forecast fields; all other fields follow from them."""

    context: DataContext
    has_density: ClassVar[bool] = True

    @abstractmethod
    def law(self, x: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return means (*batch, body[, space]) and standard deviations, numbers or (*batch, body[, 1]), of the forecast fields, by name."""

    def sample(self, x0: np.ndarray, steps: int, members: int, seed: int, *, schedule: np.ndarray | None = None) -> np.ndarray:
        rng, spec = np.random.default_rng(seed), self.context.spec
        x0 = x0 if x0.ndim == 2 + len(spec.sites) else x0[:, -1]  # of the frames given, where states are hidden, only the last
        x = np.broadcast_to(x0, (members, *x0.shape)).astype(np.float64)
        path = [x]
        for t in range(steps):
            mean, scale = self.law(x)
            drawn = {name: mean[name] + scale[name] * rng.standard_normal(mean[name].shape) for name in mean}
            following = spec.wrap(spec.advance(x, complete(spec, x, drawn, self.context.frame_dt)))
            x = following if schedule is None else scheduled(spec, x, following, schedule[:, t])
            path.append(x)
        return np.stack(path, axis=2)

    def log_prob(self, x: np.ndarray, x_next: np.ndarray) -> np.ndarray:
        """Return log p(x' | x) of full states (*batch, body, channel), of the bodies present before and after: nats, (*batch,)."""
        spec, total = self.context.spec, np.zeros(x.shape[:-1])
        mean, scale = self.law(x)
        both = presence(spec, x) & presence(spec, x_next)
        for name in mean:
            z = difference(spec, spec[name], mean[name], spec.get(x_next, name), spec.space_of(x)) / scale[name]
            terms = -0.5 * z**2 - np.log(scale[name]) - 0.5 * np.log(2 * np.pi)
            total += terms.sum(-1) if spec[name].is_vector else terms
        return np.where(both, total, 0.0).sum(-1)


@dataclass(frozen=True)
class Persistence(LinearForecaster):
    """x' = x + v dt + fitted Normal noise for fields with a rate, x' = x + noise for the others.

    The standard deviations are those of the training set, one per field: `DataContext.step_scales`.
    """

    context: DataContext
    label: ClassVar[str] = "persistence with fitted noise"

    def law(self, x: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        spec = self.context.spec
        return {f.name: persisting(self.context, x, f) for f in free_fields(spec)}, {
            f.name: lasting(spec, x, f, self.context.step_scales[f.name]) for f in free_fields(spec)
        }


@dataclass(frozen=True)
class Autoregression(LinearForecaster):
    """The change of every vector beyond persistence is a linear combination of the velocities in the state, plus Normal noise.

    Parameters
    ----------
    context : DataContext
    weights : dict of str to numpy.ndarray
        For every forecast vector one weight per velocity, fitted to the training set by least squares; empty for scalars.
    scales : dict of str to float
        Standard deviations of the residuals.
    """

    context: DataContext
    weights: dict[str, np.ndarray]
    scales: dict[str, float]
    label: ClassVar[str] = "linear autoregression"

    @classmethod
    def fit(cls, store: Store, context: DataContext, *, order: int | None = None) -> Self:
        """Fit to the training set of a store; `order` is the number of velocities to use, by default all velocities in the state."""
        return cls(context, *fit_linear(partial(recorded_transitions, store), context, order=order))

    def law(self, x: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        spec, linear = self.context.spec, LinearLaw(self.weights, self.scales)
        mean = {f.name: linear.mean(self.context, x, f) for f in free_fields(spec)}
        return mean, {name: lasting(spec, x, spec[name], scale) for name, scale in self.scales.items()}


def scheduled(spec: StateSpec, x: np.ndarray, following: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Return next states with what was recorded of them: durations, bodies that leave, and bodies that enter, where they were seen."""
    stays = presence(spec, x) & presence(spec, seen)
    return with_durations(spec, np.where(stays[..., None], following, seen), seen)
