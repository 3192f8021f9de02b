"""References for particles without a network: linear in the state, with Normal noise of one standard deviation per field.

persistence       x' = x + v dt for fields with a rate, x' = x for the others
autoregression    v' = sum_k c_k v_k over the velocities in the state (with a history: of the last frames), the same c for all axes

A model that beats the second has learnt interactions between bodies, or noise that is not Normal.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np

from epns_pyro.context import DataContext
from epns_pyro.data import Store
from epns_pyro.derived import complete, difference, free_fields
from epns_pyro.durations import along, drift, noise_power, relative, with_durations
from epns_pyro.evaluation.forecasters import Forecaster
from epns_pyro.presence import presence
from epns_pyro.state import Field, StateSpec

FITTED_ON = 200  # trajectories


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
        spec, fields = context.spec, free_fields(context.spec)
        count = len(_velocities(spec)[:order])
        gram = np.zeros((count, count))
        moments = {f.name: np.zeros(count) for f in fields if f.is_vector}
        for x, after, both in _transitions(store):
            if count:
                seen = _rows(spec, x, both)[:count]
                gram += seen @ seen.T
                for name in moments:
                    left = difference(spec, spec[name], persisting(context, x, spec[name]), spec.get(after, name), spec.space_of(x))
                    moments[name] += seen @ left[both].ravel()
        ridge = 1e-9 * np.trace(gram) / max(count, 1) * np.eye(count)
        weights = {name: np.linalg.solve(gram + ridge, moment) for name, moment in moments.items() if count and gram.any()}
        squares, n = dict.fromkeys((f.name for f in fields), 0.0), 0
        draft = cls(context, weights, dict.fromkeys(squares, 1.0))
        for x, after, both in _transitions(store):
            mean, _ = draft.law(x)
            n += int(both.sum())
            for f in fields:
                left = difference(spec, f, mean[f.name], spec.get(after, f.name), spec.space_of(x))
                left = (left / lasting(spec, x, f, 1.0))[both]
                squares[f.name] += float((left**2).sum()) / spec.width(f)
        floor = {name: 1e-9 * context.step_scales[name] for name in squares}
        return replace(draft, scales={name: max(float(np.sqrt(total / max(n, 1))), floor[name]) for name, total in squares.items()})

    def law(self, x: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        spec, mean = self.context.spec, {}
        for f in free_fields(spec):
            mean[f.name] = persisting(self.context, x, f)
            if f.name in self.weights:
                mean[f.name] = mean[f.name] + np.einsum(
                    "...kd,k->...d", _by_body(spec, x)[..., : len(self.weights[f.name]), :], self.weights[f.name]
                )
        return mean, {name: lasting(spec, x, spec[name], scale) for name, scale in self.scales.items()}


def persisting(context: DataContext, x: np.ndarray, field: Field) -> np.ndarray:
    """Return a field (*batch, body[, space]) one step later if nothing happens: x + v dt, or x where the field has no rate."""
    return context.spec.get(x, field.name) + drift(context.spec, field, x, context.frame_dt)


def lasting(spec: StateSpec, x: np.ndarray, field: Field, scale: float) -> np.ndarray | float:
    """Return the standard deviation of the noise of a field in the steps from states x, given that in a nominal step."""
    ratio = relative(spec, x)
    return scale if ratio is None else along(field, scale * ratio ** noise_power(spec, field))


def scheduled(spec: StateSpec, x: np.ndarray, following: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Return next states with what was recorded of them: durations, bodies that leave, and bodies that enter, where they were seen."""
    stays = presence(spec, x) & presence(spec, seen)
    return with_durations(spec, np.where(stays[..., None], following, seen), seen)


def _velocities(spec: StateSpec) -> list[str]:
    """Return the names of the vectors that a change can depend on: all dynamic vectors except the position."""
    return [f.name for f in spec.dynamic_fields if f.is_vector and f != spec.position]


def _by_body(spec: StateSpec, x: np.ndarray) -> np.ndarray:
    return np.stack([spec.get(x, name) for name in _velocities(spec)], -2)


def _rows(spec: StateSpec, x: np.ndarray, both: np.ndarray) -> np.ndarray:
    """Return velocities of the bodies that are True in `both` (row, body), as regressors: (velocity, body * space)."""
    return np.moveaxis(_by_body(spec, x)[both], -2, 0).reshape(len(_velocities(spec)), -1)


def _transitions(store: Store) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield blocks of the training set: states, next states (row, body, channel), and which bodies are present in both (row, body)."""
    spec, left = store.spec, FITTED_ON
    for block in store.blocks("train"):
        if left <= 0:
            return
        x = store.read("train", block[:left], start=store.system.forecast_frame).astype(np.float64)
        left -= len(x)
        before, after = (part.reshape(-1, *part.shape[2:]) for part in (x[:, :-1], x[:, 1:]))
        yield before, after, presence(spec, before) & presence(spec, after)
