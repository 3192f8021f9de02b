"""What is linear in the velocities of a state: persistence and autoregression, fitted to a training set by least squares.

persistence       x' = x + v dt for fields with a rate, x' = x for the others
autoregression    v' = sum_k c_k v_k over the velocities in the state (with a history: of the last frames), the same c for all axes
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from epns_pyro.context import DataContext
from epns_pyro.derived import difference, free_fields, velocity_fields
from epns_pyro.durations import along, drift, noise_power, relative
from epns_pyro.presence import presence
from epns_pyro.state import Field, StateSpec

if TYPE_CHECKING:
    from epns_pyro.data.stores import Store

FITTED_ON = 200  # trajectories
Pair = tuple[np.ndarray, np.ndarray]


class LinearLaw(NamedTuple):
    """The change of every forecast vector beyond persistence is linear in the velocities of the state.

    Parameters
    ----------
    weights : dict of str to numpy.ndarray, (velocity,)
        By vector; empty if the state holds no velocity.
    scales : dict of str to float
        Standard deviations of the residuals of all forecast fields, in a nominal step.
    """

    weights: dict[str, np.ndarray]
    scales: dict[str, float]

    def mean(self, context: DataContext, x: np.ndarray, field: Field) -> np.ndarray:
        """Return a field (*batch, body[, space]) one step after states x (*batch, body, channel)."""
        persistent = persisting(context, x, field)
        if field.name not in self.weights:
            return persistent
        weights = self.weights[field.name]
        return persistent + np.einsum("...kd,k->...d", _by_body(context.spec, x)[..., : len(weights), :], weights)


def fit_linear(transitions: Callable[[], Iterable[Pair]], context: DataContext, *, order: int | None = None) -> LinearLaw:
    """Fit a linear law by least squares.

    Parameters
    ----------
    transitions : callable
        Returns the transitions, in parts that fit in memory; it is called twice.
    context : DataContext
    order : int, optional
        Velocities to use; by default all in the state.
    """
    spec, fields = context.spec, free_fields(context.spec)
    count = len(velocity_fields(spec)[:order])
    gram = np.zeros((count, count))
    moments = {f.name: np.zeros(count) for f in fields if f.is_vector}
    for x, after in transitions():
        both = presence(spec, x) & presence(spec, after)
        if count:
            seen = _rows(spec, x, both)[:count]
            gram += seen @ seen.T
            for name in moments:
                left = difference(spec, spec[name], persisting(context, x, spec[name]), spec.get(after, name), spec.space_of(x))
                moments[name] += seen @ left[both].ravel()
    ridge = 1e-9 * np.trace(gram) / max(count, 1) * np.eye(count)
    weights = {name: np.linalg.solve(gram + ridge, moment) for name, moment in moments.items() if count and gram.any()}
    squares, n = dict.fromkeys((f.name for f in fields), 0.0), 0
    draft = LinearLaw(weights, dict.fromkeys(squares, 1.0))
    for x, after in transitions():
        both = presence(spec, x) & presence(spec, after)
        n += int(both.sum())
        for f in fields:
            left = difference(spec, f, draft.mean(context, x, f), spec.get(after, f.name), spec.space_of(x))
            left = (left / lasting(spec, x, f, 1.0))[both]
            squares[f.name] += float((left**2).sum()) / spec.width(f)
    floor = {name: 1e-9 * context.step_scales[name] for name in squares}
    return draft._replace(scales={name: max(float(np.sqrt(total / max(n, 1))), floor[name]) for name, total in squares.items()})


def persisting(context: DataContext, x: np.ndarray, field: Field) -> np.ndarray:
    """Return a field (*batch, body[, space]) one step later if nothing happens: x + v dt, or x where the field has no rate."""
    return context.spec.get(x, field.name) + drift(context.spec, field, x, context.frame_dt)


def lasting(spec: StateSpec, x: np.ndarray, field: Field, scale: float) -> np.ndarray | float:
    """Return the standard deviation of the noise of a field in the steps from states x, given that in a nominal step."""
    ratio = relative(spec, x)
    return scale if ratio is None else along(field, scale * ratio ** noise_power(spec, field))


def _by_body(spec: StateSpec, x: np.ndarray) -> np.ndarray:
    return np.stack([spec.get(x, name) for name in velocity_fields(spec)], -2)


def _rows(spec: StateSpec, x: np.ndarray, both: np.ndarray) -> np.ndarray:
    """Return velocities of the bodies that are True in `both` (row, body), as regressors: (velocity, body * space)."""
    return np.moveaxis(_by_body(spec, x)[both], -2, 0).reshape(len(velocity_fields(spec)), -1)


def recorded_transitions(store: Store) -> Iterator[Pair]:
    """Yield states and next states, (row, body, channel), of the training set of a store, by blocks of trajectories."""
    left = FITTED_ON
    for block in store.blocks("train"):
        if left <= 0:
            return
        x = store.read("train", block[:left], start=store.system.forecast_frame).astype(np.float64)
        left -= len(x)
        yield x[:, :-1].reshape(-1, *x.shape[2:]), x[:, 1:].reshape(-1, *x.shape[2:])
