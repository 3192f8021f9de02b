"""How long steps last: one number for all of them, or a channel of the state where frames are uneven.

The duration in a state is that of the step which begins there. It is given, never predicted: a recording says it, a forecast keeps that of
its initial state or follows a schedule. Where frames are even no state has it, and everything here is a plain number.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from epns_pyro.errors import ConfigError
from epns_pyro.fields import Field
from epns_pyro.state import Array, StateSpec

UNEVEN = 1e-3  # frames whose durations differ by less than this share are even
KICKED, CARRIED = 0.5, 1.5  # noise of a field grows with this power of the duration: of a random walk, and of what a random walk carries


def duration(spec: StateSpec, x: Array, frame_dt: float) -> Array | float:
    """Return how long the step from states x (*batch, *site, channel) lasts: (*batch, *site), or the frame_dt of even frames."""
    return frame_dt if spec.duration is None else spec.get(x, spec.duration.name)


def along(field: Field, dt: Array | float) -> Array | float:
    """Shape durations (*batch, *site) to go with values of a field (*batch, *site[, space])."""
    return dt[..., None] if field.is_vector and not isinstance(dt, float) else dt


def relative(spec: StateSpec, x: Array) -> Array | None:
    """Return durations of steps from states x in nominal ones, (*batch, *site); None where all frames are even."""
    return None if spec.duration is None else spec.get(x, spec.duration.name) / spec.duration.scale


def drift(spec: StateSpec, field: Field, x: Array, frame_dt: float) -> Array | float:
    """Return v dt in the steps from states x of a field that has a rate v: (*batch, *site[, space]); 0 of one that has none."""
    rate = next((f.name for f in spec.fields if f.rate_of == field.name), None)
    return along(field, duration(spec, x, frame_dt)) * spec.get(x, rate) if rate else 0.0


def noise_power(spec: StateSpec, field: Field) -> float:
    """Return the power of the duration that the noise of a field, a standard deviation, grows with before anything is learnt.

    White noise makes a random walk of what it kicks, sqrt(dt), and dt^1.5 of what has that as its rate.
    """
    carried = any(f.rate_of == field.name and f.dynamic and not f.differences for f in spec.fields)
    return CARRIED if carried else KICKED


def with_durations(spec: StateSpec, x: Array, like: Array) -> Array:
    """Return states x with the durations of other states (*batch, *site, channel); x itself where all frames are even."""
    if spec.duration is None:
        return x
    place, shape = spec.slice(spec.duration.name), (*x.shape[:-1], 1)
    value = like[..., place]
    return _replaced(x, place, value.expand(shape) if isinstance(x, torch.Tensor) else np.broadcast_to(value, shape))


def with_duration(spec: StateSpec, frame_dt: float) -> StateSpec:
    """Return the spec of states that say how long their step lasts, nominally frame_dt."""
    if spec.duration is None:
        name = "duration" if "duration" not in spec else "step_duration"
        return replace(spec, fields=(*spec.fields, Field(name, dynamic=False, kind="duration", scale=frame_dt)))
    return replace(spec, fields=tuple(replace(f, scale=frame_dt) if f.kind == "duration" else f for f in spec.fields))


def require_even(spec: StateSpec, model: str) -> None:
    """Raise ConfigError if steps are of different durations: `model` knows one."""
    if spec.duration is not None:
        raise ConfigError(f"model {model!r} is for even frames, and these last different times: use 'particles', or resample the recording")


def nominal(spec: StateSpec, x: Array, dt: float | None = None) -> Array:
    """Return states x (*batch, *site, channel) from which steps of nominal duration, or of dt, go on."""
    if spec.duration is None:
        return x
    ones = torch.ones_like(x[..., :1]) if isinstance(x, torch.Tensor) else np.ones_like(x[..., :1])
    return _replaced(x, spec.slice(spec.duration.name), (dt or spec.duration.scale) * ones)


def are_uneven(times: np.ndarray) -> bool:
    """Say whether times (*batch, time) are those of uneven frames."""
    steps = np.diff(times, axis=-1)
    return bool(steps.size and np.ptp(steps) > UNEVEN * np.median(steps))


def steps_between(times: np.ndarray, nominal: float) -> np.ndarray:
    """Return the durations of the steps that begin in frames at times (*batch, time), the same shape; the nominal one after the last."""
    last = np.full((*times.shape[:-1], 1), nominal)
    return np.concatenate([np.diff(times, axis=-1), last], axis=-1)


def _replaced(x: Array, place: slice, value: Array) -> Array:
    """Return states x (*batch, *site, channel) with other values in the channels of `place`."""
    parts: list[Any] = [x[..., : place.start], value, x[..., place.stop :]]  # all of torch or all of NumPy
    return torch.cat(parts, -1) if isinstance(x, torch.Tensor) else np.concatenate(parts, -1)
