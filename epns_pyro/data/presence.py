"""Absent bodies in data: which values may be NaN, and which bodies are present. `epns_pyro.presence` defines the rule."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from epns_pyro.errors import DataError
from epns_pyro.presence import allows_absence, presence, presence_dynamic
from epns_pyro.state import StateSpec

__all__ = ["ABSENT_MEANS", "allows_absence", "check_presence", "presence", "presence_by_field", "presence_dynamic"]

ABSENT_MEANS = "a body is absent only where all of its dynamic fields are NaN"


def presence_by_field(spec: StateSpec, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return which bodies are present: booleans (*batch, body), from fields by name (*batch, body[, space]).

    Only the given dynamic fields are used.
    """
    given = [f for f in spec.dynamic_fields if f.name in arrays]
    missing = [np.isnan(arrays[f.name]).all(-1) if f.is_vector else np.isnan(arrays[f.name]) for f in given]
    return ~np.logical_and.reduce(np.broadcast_arrays(*missing))


def check_presence(spec: StateSpec, x: np.ndarray) -> None:
    """Raise DataError unless every value of x (*batch, body, channel) is finite, except dynamic fields of absent bodies.

    The message names the first field with a value that is not finite.
    """
    finite = np.isfinite(x)
    if finite.all():
        return
    absent = ~presence(spec, x) if allows_absence(spec) else np.zeros(x.shape[:-1], dtype=bool)
    for field in spec.fields:
        wrong = ~finite[..., spec.slice(field.name)].all(-1)
        if field.dynamic:
            wrong &= ~absent
        if wrong.any():
            why = f" ({ABSENT_MEANS})" if field.dynamic and allows_absence(spec) else ""
            raise DataError(f"field {field.name!r} holds NaN or infinite values: epns-pyro data info says where{why}")
