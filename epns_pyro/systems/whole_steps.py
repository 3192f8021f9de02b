"""Frames that are a whole number of a simulator's steps."""

from __future__ import annotations

import pydantic


def divides(step: float, span: float) -> bool:
    """Return whether a span of time is a whole number of steps."""
    count = round(span / step)
    return count >= 1 and abs(span - count * step) <= 1e-9 * span


def whole_steps(value: float | None, info: pydantic.ValidationInfo) -> float | None:
    """Refuse a span of time that is not a whole number of steps `dt`, a field before it: for `pydantic.field_validator`."""
    dt = info.data.get("dt")
    if value is not None and dt is not None and not divides(dt, value):
        raise ValueError(f"expected a whole number of integrator steps dt = {dt:g}, found {value:g} = {value / dt:g} dt")
    return value
