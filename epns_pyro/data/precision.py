"""Limits of single precision in training: which values fit, including their squares, and what to do about others."""

from __future__ import annotations

import numpy as np

from epns_pyro.errors import DataError
from epns_pyro.state import Field, StateSpec

# Single precision holds 1e-38 to 3e38. Forecast values and vectors are squared; a static scalar is only divided by its scale.
PREDICTED, STATIC = (1e-15, 1e15), (1e-36, 1e36)


def limits(field: Field) -> tuple[float, float]:
    """Return the smallest scale and the largest magnitude that a real field may have in training."""
    return PREDICTED if field.dynamic or field.is_vector else STATIC


def check_precision(spec: StateSpec, x: np.ndarray) -> None:
    """Raise DataError if a real field of x (*batch, *site, channel) is too large; NaN and infinite values are ignored."""
    if x.dtype.kind != "f":
        return
    for field in spec.fields:
        if field.kind == "real":
            check_magnitude(field, spec.get(x, field.name))


def check_magnitude(field: Field, values: np.ndarray) -> None:
    """Raise DataError if one of the values of a real field is too large; NaN and infinite values are ignored."""
    magnitude = np.abs(values)
    largest = float(np.max(magnitude, where=np.isfinite(magnitude), initial=0.0))
    if largest > limits(field)[1]:
        raise DataError(_does_not_fit(field, f"holds values up to {largest:.3g}"))


def check_scale(field: Field, scale: float, what: str) -> None:
    """Raise DataError if the scale of a field, or of its change in a step, is too small or too large; `what` names it in the message."""
    low, high = limits(field)
    if not low <= scale <= high:
        raise DataError(_does_not_fit(field, f"{what} {scale:.3g}"))


def _does_not_fit(field: Field, found: str) -> str:
    low, high = limits(field)
    unit = f" instead of {field.unit}" if field.unit else ""
    return (
        f"field {field.name!r} {found}, and training in single precision needs {low:g} to {high:g}: "
        f"choose another unit{unit}, so that typical values are near 1, or correct the values"
    )
