"""Presence of bodies: a body is absent from a frame in which all of its dynamic fields are NaN.

Pedestrians enter and leave, cells are born, a detector misses an animal. The body axis of a trajectory has a place for every body that
ever occurs, and NaN marks its absence. Static fields are always finite, also in unused places. Only this module
defines the rule.
"""

from __future__ import annotations

import numpy as np
import torch

from epns_pyro.errors import ShapeError
from epns_pyro.state import Array, StateSpec


def allows_absence(spec: StateSpec) -> bool:
    """Return whether bodies of a spec can be absent: particles on one site axis whose dynamic fields are all real."""
    return len(spec.sites) == 1 and all(f.kind == "real" for f in spec.dynamic_fields)


def presence(spec: StateSpec, x: Array) -> Array:
    """Return which bodies of full states x (*batch, body, channel) are present: booleans (*batch, body); time is a batch dimension."""
    return presence_dynamic(spec.dynamic(x))


def presence_dynamic(y: Array) -> Array:
    """Return which bodies are present, given the dynamic channels y (*batch, body, dynamic channel): booleans (*batch, body)."""
    return ~(torch if isinstance(y, torch.Tensor) else np).isnan(y).all(-1)


def missing(spec: StateSpec, x: Array) -> Array:
    """Return states (*batch, body, channel) of which nothing is known but static fields: NaN in all dynamic channels."""
    return spec.advance(x, spec.dynamic(x) * np.nan)


def check_past(spec: StateSpec, past: Array, x0: Array | None = None) -> None:
    """Raise ShapeError unless `past` are states, known or not: (batch, time, *site, channel) that go with x0, or (time, *site, channel)."""
    check_states(spec, past, absences=True, what="the past")
    if x0 is None:
        if past.ndim != len(spec.sites) + 2:
            raise ShapeError(f"the past: expected (time, {', '.join(spec.sites)}, channel), found {tuple(past.shape)}")
    elif past.ndim != x0.ndim + 1 or past.shape[:1] + past.shape[2:] != x0.shape:
        raise ShapeError(f"the past: expected (batch, time, ...) to go with initial states {tuple(x0.shape)}, found {tuple(past.shape)}")


def check_states(spec: StateSpec, x: Array, *, absences: bool, what: str, leading: tuple[str, ...] | None = None) -> None:
    """Raise ShapeError unless states (*batch, *site, channel) are none empty and finite, but for absent bodies where they are allowed.

    `leading`: names of the batch axes, where there have to be as many.
    """
    spec.check_shape(x, what=what)
    if not all(x.shape) or (leading is not None and x.ndim != len(leading) + len(spec.sites) + 1):
        axes = (*(("*batch",) if leading is None else leading), *spec.sites, "channel")
        raise ShapeError(f"{what}: expected ({', '.join(axes)}), none empty; found {tuple(x.shape)}")
    if not allows_absence(spec):
        return spec.check(x, what=what)
    there = presence(spec, x)
    if not absences and not there.all():
        raise ShapeError(f"{what}: bodies are absent (NaN), but the training data of this model have no absent bodies: leave them out")
    spec.check((torch if isinstance(x, torch.Tensor) else np).where(there[..., None], x, 0.0), what=what)


def as_states(x: object, *, what: str) -> torch.Tensor:
    """Return an array of any kind as a tensor; ShapeError says how to make one of what is none."""
    if hasattr(x, "dims"):  # of xarray
        raise ShapeError(f"{what}: expected an array, found {type(x).__name__}: use .values, or spec.pack(...) of its fields")
    return x if isinstance(x, torch.Tensor) else torch.as_tensor(np.ascontiguousarray(x))
