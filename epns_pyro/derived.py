"""Derived fields: velocities as differences of recorded positions, and values of earlier frames.

Recorded positions alone are not a complete state: the next position of a body depends on its velocity. With v_t = (x_t - x_{t-1}) / dt in
the state, x_{t+1} = x_t + v_{t+1} dt is exact, so a model forecasts only v (kick, then drift). Only backward differences are used: a
centred difference would use the future. Velocities of earlier steps extend the memory of the state.

A hidden velocity, or a position recorded with an error, is a different case: a model infers the state (see `epns_pyro.models.hidden`). The
difference then only stands in for the velocity where no model is used, e.g. for the scale of the field.

Only this module defines which fields are derived from which (`Field.differences`, `Field.lag_of`, `Field.hidden`), and how.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from epns_pyro.durations import along, duration
from epns_pyro.errors import ConfigError
from epns_pyro.geometry import Space
from epns_pyro.state import Array, Field, StateSpec

PATIENCE = 3  # frames: over a longer gap no difference stands in for a hidden velocity, and a forecast takes a missed body for gone


def difference(spec: StateSpec, field: Field, before: Array, after: Array, space: Space | None = None) -> Array:
    """Return the change of a field between two values (*batch, *site[, space]): in a periodic box, of a position to its nearest image.

    `space` is that of the states, `StateSpec.space_of`; it may be left out where not every trajectory has a box of its own.
    """
    return (space or spec.geometry).displacement(before, after) if field == spec.position else after - before


def recorded_space(spec: StateSpec, recorded: Mapping[str, np.ndarray]) -> Space:
    """Return the space of recorded fields (trajectory, time, *site[, space]) by name."""
    return spec.geometry if spec.box_field is None else spec.geometry.of(recorded[spec.box_field.name][:, :1, :1])


def has_hidden_states(spec: StateSpec) -> bool:
    """Say whether recordings of a spec are no states: a field is hidden, or recorded with an error."""
    return any(f.hidden or f.noise for f in spec.fields)


def as_differences(spec: StateSpec) -> StateSpec:
    """Return the spec in which the recording is taken for the state: no errors, and differences in place of hidden velocities."""
    return replace(spec, fields=tuple(replace(f, noise=0.0, hidden=False, differences=f.differences or f.hidden) for f in spec.fields))


def has_positions_alone(spec: StateSpec) -> bool:
    """Say whether states are made of positions recorded without error, with velocities that are their differences at even frames."""
    position = spec.position
    differenced = position is not None and any(f.differences and f.rate_of == position.name for f in spec.fields)
    return differenced and not has_hidden_states(spec) and spec.duration is None


def recorded_fields(spec: StateSpec) -> tuple[Field, ...]:
    """Return the fields that a recording must hold: all that are neither derived from others nor hidden."""
    return tuple(f for f in spec.fields if not (f.differences or f.lag_of or f.hidden))


def free_fields(spec: StateSpec) -> tuple[Field, ...]:
    """Return the dynamic fields that a model forecasts; the other dynamic fields of the next state are derived from these and the state."""
    determined = {f.rate_of for f in spec.fields if f.differences}
    return tuple(f for f in spec.dynamic_fields if not f.lag_of and f.name not in determined)


def velocity_fields(spec: StateSpec) -> list[str]:
    """Return the names of the vectors that a change can be linear in: all dynamic vectors except the position."""
    return [f.name for f in spec.dynamic_fields if f.is_vector and f != spec.position]


def judged_fields(spec: StateSpec) -> tuple[Field, ...]:
    """Return the dynamic fields on which forecasts are tested: all except values of earlier frames and hidden fields."""
    return tuple(f for f in spec.dynamic_fields if not (f.lag_of or f.hidden))


def with_hidden_velocity(spec: StateSpec, noise: float | str = 0.0, time_unit: str = "") -> StateSpec:
    """Return the spec in which positions are recorded with an error, and the velocity is inferred unless it is recorded.

    Parameters
    ----------
    noise : float or "learn"
        Standard deviation of the error of a position per axis, in its unit; 0: positions are exact.
    """
    position = spec.position
    if position is None:
        raise ConfigError(f"noise: expected one vector field that says where bodies are, found {', '.join(spec.names)}")
    fields = [replace(f, noise=noise) if f == position else f for f in spec.fields]
    if not any(f.rate_of == position.name for f in fields):
        fields.append(replace(_velocity(spec, position, time_unit), hidden=True))
    return replace(spec, fields=tuple(fields))


def with_history(spec: StateSpec, frames: int, time_unit: str = "") -> StateSpec:
    """Return the spec with the velocities of the last `frames` steps in the state, for recordings of positions.

    Raises
    ------
    ConfigError
        If not exactly one field is a position.
    """
    if frames < 1:
        raise ConfigError(f"history: expected at least 1 step, found {frames}")
    position, fields = spec.position, list(spec.fields)
    if position is None or sum(f.translates for f in spec.fields) > 1:
        raise ConfigError(f"history: expected one vector field that says where bodies are, found {', '.join(spec.names)}")
    velocity = next((f for f in fields if f.rate_of == position.name), None)
    if has_hidden_states(spec):
        raise ConfigError("history: a state that is inferred needs no earlier frames: leave out history, or what is hidden or has noise")
    if velocity is None:
        velocity = replace(_velocity(spec, position, time_unit), differences=True)
        fields.append(velocity)
    before = velocity.name
    for k in range(1, frames):
        lag = Field(f"{velocity.name}_{k}", velocity.irreps, lag_of=before, unit=velocity.unit)
        fields.append(lag)
        before = lag.name
    return replace(spec, fields=tuple(fields))


def lead_frames(spec: StateSpec) -> int:
    """Return how many frames at the start of a recording have no state: 1 where a velocity is a difference."""
    return int(any(f.differences for f in spec.fields))


def memory_frames(spec: StateSpec) -> int:
    """Return the number of earlier frames that the state of a frame depends on."""
    stand_in = PATIENCE if any(f.hidden for f in spec.fields) else 0
    return lead_frames(spec) + sum(1 for f in spec.fields if f.lag_of) + stand_in


def derive(spec: StateSpec, recorded: dict[str, np.ndarray], frame_dt: float, *, skip: int = 0) -> np.ndarray:
    """Build full states from recorded fields.

    Parameters
    ----------
    recorded : dict of str to numpy.ndarray
        (trajectory, time, *site[, space]) by name; static fields may have a time axis of length 1.
    frame_dt : float
        Duration of a step, where none is recorded.
    skip : int
        States to leave out at the start: frames that are read only to derive later ones.

    Returns
    -------
    numpy.ndarray, (trajectory, time - lead_frames - skip, *site, channel)
        A velocity before the first known one is set to the first known one. Where velocities are differences, a body is present from the
        second of two consecutive frames in which it was recorded. In place of a hidden velocity stands the difference from the last
        recorded position, or 0 if there is none within PATIENCE frames.
    """
    lead, values, space = lead_frames(spec), dict(recorded), recorded_space(spec, recorded)
    for field in spec.fields:
        if field.differences:
            position = recorded[field.rate_of]
            dt = recorded[spec.duration.name][:, :-1] if spec.duration else frame_dt
            values[field.name] = space.displacement(position[:, :-1], position[:, 1:]) / along(field, dt)
        if field.hidden:
            lasting = np.full((1, recorded[field.rate_of].shape[1], 1), frame_dt) if spec.duration is None else recorded[spec.duration.name]
            values[field.name] = _stand_in(space, recorded[field.rate_of], lasting)
    for field in recorded_fields(spec):
        if (field.dynamic or field.kind == "duration") and lead:
            values[field.name] = recorded[field.name][:, lead:]
    for field in spec.fields:
        if field.differences:
            missing = np.isnan(values[field.name])
            values |= {f.name: _blank(values[f.name], missing) for f in recorded_fields(spec) if f.dynamic}
    _add_lags(spec, values)
    return spec.pack(**{name: value[:, skip:] if value.shape[1] > 1 or not skip else value for name, value in values.items()})


def displaced(spec: StateSpec, x: np.ndarray, moves: np.ndarray, frame_dt: float) -> np.ndarray:
    """Return the states that `derive` builds from positions that were recorded elsewhere, at even frames.

    Parameters
    ----------
    x : numpy.ndarray, (trajectory, time, *site, channel)
        States, from the first of a trajectory on or with all earlier frames that the last of them remembers.
    moves : numpy.ndarray, (trajectory, time + 1, *site, space)
        What is added to the position of every frame, and of the frame before the first.
    """
    moving = spec.position
    values = {f.name: moves[:, 1:] if f == moving else np.zeros_like(spec.get(x, f.name)) for f in spec.fields}
    for field in spec.fields:
        if field.differences:
            change = np.diff(moves, axis=1) / frame_dt if spec[field.rate_of] == moving else values[field.name]
            values[field.name] = np.where(np.isnan(spec.get(x, field.name)), np.nan, change)
    _add_lags(spec, values)
    return spec.wrap(x + np.nan_to_num(spec.pack(**values)))


def complete(spec: StateSpec, x: Array, free: dict[str, Array], frame_dt: float) -> Array:
    """Return the dynamic channels of the next state, given the forecast fields.

    Parameters
    ----------
    x : (*batch, *site, channel)
        The present state.
    free : dict of str to array, (*batch, *site[, space])
        The `free_fields` of the next state.
    frame_dt : float
        Duration of the step, where the state does not say it.
    """
    rates = {f.rate_of: f.name for f in spec.fields if f.differences}
    parts, dt = {}, duration(spec, x, frame_dt)
    for field in spec.dynamic_fields:
        if field.name in free:
            parts[field.name] = free[field.name]
        elif field.name in rates:
            parts[field.name] = spec.get(x, field.name) + along(field, dt) * free[rates[field.name]]
        else:
            parts[field.name] = spec.get(x, field.lag_of)
    return spec.pack_dynamic(**parts)


def _velocity(spec: StateSpec, position: Field, time_unit: str) -> Field:
    """The rate of a position for which a recording has no field."""
    name = "velocity" if "velocity" not in spec else f"{position.name}_rate"
    unit = f"{position.unit}/{time_unit}" if position.unit and time_unit else ""
    return Field(name, "1o", rate_of=position.name, unit=unit)


def _stand_in(space: Space, position: np.ndarray, lasting: np.ndarray) -> np.ndarray:
    """What stands in for a hidden velocity: the difference to the last recorded position (trajectory, time, body, space), NaN with it."""
    velocity, clock = np.where(np.isnan(position), np.nan, 0.0), np.cumsum(lasting, axis=1) - lasting
    for gap in reversed(range(1, min(PATIENCE, position.shape[1] - 1) + 1)):
        elapsed = clock[:, gap:] - clock[:, :-gap]
        change = space.displacement(position[:, :-gap], position[:, gap:]) / elapsed[..., None]
        velocity[:, gap:] = np.where(np.isnan(change), velocity[:, gap:], change)
    return velocity


def _add_lags(spec: StateSpec, values: dict[str, np.ndarray]) -> None:
    """Add the values of earlier frames to those of fields (trajectory, time, ...); before the first known one, the first known one."""
    for field in _in_order(spec):
        now = values[field.lag_of]
        earlier = np.concatenate([now[:, :1], now[:, :-1]], axis=1)
        values[field.name] = np.where(np.isnan(earlier) | np.isnan(now), now, earlier)


def _in_order(spec: StateSpec) -> list[Field]:
    """Return lags so that each comes after the field whose earlier value it is."""
    left, done = [f for f in spec.fields if f.lag_of], {f.name for f in spec.fields if not f.lag_of}
    ordered = []
    while left:
        field = next(f for f in left if f.lag_of in done)
        left.remove(field)
        done.add(field.name)
        ordered.append(field)
    return ordered


def _blank(values: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Set values (..., body[, space]) to NaN for bodies whose velocity (..., body, space) is missing."""
    gone = np.asarray(missing.all(-1))
    gone = gone[..., None] if values.ndim == missing.ndim else gone
    return np.where(gone, np.nan, values)
