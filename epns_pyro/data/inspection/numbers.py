"""Inspectors of real and category fields."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from epns_pyro.data.inspection.findings import ERROR, WARNING, Inspector, Tally
from epns_pyro.data.layout import undeclared
from epns_pyro.data.presence import ABSENT_MEANS, allows_absence, presence_by_field
from epns_pyro.data.scales import field_changes
from epns_pyro.derived import recorded_space
from epns_pyro.state import Field, StateSpec


class NonFinite(Inspector):
    """NaN and infinite values, except NaN that marks an absent body."""

    def __init__(self, spec: StateSpec, field: Field) -> None:
        axes = ("trajectory", field.of) if field.of else ("trajectory", "frame", *spec.sites)
        self._spec, self._field, self._tally = spec, field, Tally(axes)
        self._can_be_absent = field.dynamic and allows_absence(spec)

    def look(self, arrays: dict[str, np.ndarray], first: int) -> None:
        wrong = ~np.isfinite(arrays[self._field.name])
        if self._can_be_absent:
            there = presence_by_field(self._spec, arrays)
            wrong &= there[..., None] if self._field.is_vector else there
        self._tally.add(wrong, first)

    def findings(self) -> Iterator[tuple[str, str]]:
        if self._tally.count:
            means = f"; {ABSENT_MEANS}" if self._can_be_absent else ""
            yield (
                ERROR,
                f"field {self._field.name!r}: {self._tally.count} values are NaN or infinite, the first in {self._tally.where}: "
                f"correct or leave out these trajectories{means}",
            )


class Constant(Inspector):
    """Fields, and axes of vectors, that have the same value everywhere."""

    def __init__(self, spec: StateSpec, field: Field) -> None:
        self._field = field
        self._low, self._high = np.full(spec.width(field), np.inf), np.full(spec.width(field), -np.inf)

    def look(self, arrays: dict[str, np.ndarray], first: int) -> None:
        table = arrays[self._field.name].reshape(-1, len(self._low))
        self._low = np.fmin(self._low, np.fmin.reduce(table, axis=0))  # ignores NaN of absent bodies
        self._high = np.fmax(self._high, np.fmax.reduce(table, axis=0))

    def findings(self) -> Iterator[tuple[str, str]]:
        same = self._low == self._high
        name = self._field.name
        if same.all():
            yield WARNING, f"field {name!r} is constant ({self._low[0]:.6g}): a model learns nothing from it"
        elif same.any():
            axes = ", ".join(map(str, np.flatnonzero(same)))
            yield WARNING, f"field {name!r} is constant along axis {axes}: is space {int((~same).sum())}-dimensional?"


class Still(Inspector):
    """Fields that are declared dynamic and never change in time."""

    def __init__(self, field: Field) -> None:
        self._field, self._moved, self._steps = field, False, 0

    def look(self, arrays: dict[str, np.ndarray], first: int) -> None:
        values = arrays[self._field.name]
        change = values[:, 1:] != values[:, :-1]
        known = np.isfinite(values[:, 1:]) & np.isfinite(values[:, :-1])
        self._moved |= bool((change & known).any())
        self._steps += int(known.sum())

    def findings(self) -> Iterator[tuple[str, str]]:
        if self._steps and not self._moved:
            yield (
                WARNING,
                f"field {self._field.name!r} never changes from frame to frame: are all frames the same one? If it is a constant of the "
                "bodies, declare it with dynamic: false",
            )


class OutOfRange(Inspector):
    """Categories that were not declared."""

    def __init__(self, field: Field) -> None:
        self._field, self._tally, self._example = field, Tally(("trajectory",)), 0

    def look(self, arrays: dict[str, np.ndarray], first: int) -> None:
        values = arrays[self._field.name]
        if (index := self._tally.add((values < 0) | (values >= self._field.size), first)) is not None:
            self._example = int(values[index])

    def findings(self) -> Iterator[tuple[str, str]]:
        if self._tally.count:
            field = self._field
            yield (
                ERROR,
                f"field {field.name!r}: {undeclared(field, self._example)}, {self._tally.count} times, the first in {self._tally.where}",
            )


class Rate(Inspector):
    """A velocity that is not the rate of change of its position: other units, another time step, or bodies in another order.

    Over one step the displacement should be dt (v + v') / 2. Slope and squared correlation of the two are computed for each trajectory, and
    their medians are tested, so that a few violent encounters do not matter. A body counts if it is present before and after the step.
    """

    def __init__(self, spec: StateSpec, field: Field, frame_dt: float) -> None:
        self._spec, self._field, self._frame_dt = spec, field, frame_dt
        self._slopes: list[float] = []
        self._correlations: list[float] = []

    def look(self, arrays: dict[str, np.ndarray], first: int) -> None:
        position, velocity = (arrays[name].astype(np.float64) for name in (self._field.rate_of, self._field.name))
        moved = field_changes(self._spec, self._spec[self._field.rate_of], position, recorded_space(self._spec, arrays)).reshape(
            len(position), -1
        )
        dt = _durations(self._spec, arrays, self._frame_dt)
        expected = (dt * (velocity[:, 1:] + velocity[:, :-1]) / 2).reshape(len(position), -1)
        known = np.isfinite(moved) & np.isfinite(expected)
        moved, expected = np.where(known, moved, 0.0), np.where(known, expected, 0.0)
        both, square = (moved * expected).sum(1), (expected**2).sum(1)
        with np.errstate(divide="ignore", invalid="ignore"):
            self._slopes += (both / square).tolist()
            self._correlations += (both**2 / square / (moved**2).sum(1)).tolist()

    def findings(self) -> Iterator[tuple[str, str]]:
        finite = np.isfinite(self._slopes) & np.isfinite(self._correlations)
        if not finite.any():
            return
        slope, correlation = (float(np.median(np.asarray(v)[finite])) for v in (self._slopes, self._correlations))
        name = self._field.name
        mismatch = f"field {name!r} does not match the change of {self._field.rate_of!r}"
        if correlation < 0.5:
            yield (
                WARNING,
                f"{mismatch}, of which it explains {correlation:.0%}: are frames and bodies in the same order in both, and frames so close "
                "that a velocity lasts from one to the next?",
            )
        elif not 0.8 < slope < 1.25:
            yield (
                WARNING,
                f"{mismatch}: in one step it moves by {slope:.3g} times {name} x frame_dt, expected 1: check the units and frame_dt",
            )


class ExactRate(Inspector):
    """A velocity that was computed from positions: it equals the difference of two of them, up to rounding.

    Then a state determines exactly where a body will be, or was, and the density of a model that learns this has no bound.
    """

    ROUNDING = 1e-9  # relative to a typical step; if coarser, the floating-point precision of the positions is used

    def __init__(self, spec: StateSpec, field: Field, frame_dt: float) -> None:
        self._spec, self._field, self._frame_dt = spec, field, frame_dt
        self._errors: dict[str, tuple[float, int]] = {}  # sum of squares and number, by kind of difference
        self._moved, self._steps, self._precision = 0.0, 0, 0.0

    def look(self, arrays: dict[str, np.ndarray], first: int) -> None:
        stored = [arrays[name] for name in (self._field.rate_of, self._field.name)]
        position, velocity = (array.astype(np.float64) for array in stored)
        position, velocity = (np.where(np.isfinite(array), array, np.nan) for array in (position, velocity))
        dt = _durations(self._spec, arrays, self._frame_dt)
        moved = field_changes(self._spec, self._spec[self._field.rate_of], position, recorded_space(self._spec, arrays))
        both = (dt[:, 1:] + dt[:, :-1]) / 2 if dt.size > 1 else dt
        for kind, error in (
            ("forward", moved - dt * velocity[:, :-1]),
            ("backward", moved - dt * velocity[:, 1:]),
            ("centred", (moved[:, 1:] + moved[:, :-1]) / 2 - both * velocity[:, 1:-1]),
        ):
            if known := int(np.isfinite(error).sum()):
                total, count = self._errors.get(kind, (0.0, 0))
                self._errors[kind] = (total + float(np.nansum(error**2)), count + known)
        self._moved += float(np.nansum(moved**2))
        self._steps += int(np.isfinite(moved).sum())
        coarsest = max(np.finfo(a.dtype).eps if a.dtype.kind == "f" else 0.0 for a in stored)
        self._precision = max(self._precision, coarsest * float(np.fmax.reduce(np.abs(position), axis=None, initial=0)))

    def findings(self) -> Iterator[tuple[str, str]]:
        if not self._moved:
            return
        step = np.sqrt(self._moved / self._steps)
        bound = max(self.ROUNDING * step, 4 * self._precision)
        exact = [kind for kind, (total, count) in self._errors.items() if np.sqrt(total / count) < bound]
        if exact and bound < 1e-2 * step:
            name, of = self._field.name, self._field.rate_of
            yield (
                WARNING,
                f"field {name!r} is exactly the {exact[0]} difference of {of!r}, so one follows from the other and the likelihood of a "
                f"model has no bound: declare it with differences: true (then it is derived, not modelled), or leave it out",
            )


def _durations(spec: StateSpec, arrays: dict[str, np.ndarray], frame_dt: float) -> np.ndarray:
    """Durations of steps, to go with changes of a vector (trajectory, time - 1, body, space)."""
    if spec.duration is None:
        return np.full((1, 1, 1, 1), frame_dt)
    return np.asarray(arrays[spec.duration.name][:, :-1, None, None], np.float64)
