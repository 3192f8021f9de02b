"""Inspectors of values far from all others: fill values, "not seen" written as 0, and jumps across a periodic box."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from epns_pyro.data.inspection.findings import ERROR, WARNING, Inspector, Tally
from epns_pyro.data.precision import check_magnitude, limits
from epns_pyro.errors import DataError
from epns_pyro.state import Field, StateSpec

BY_BODY = ("trajectory", "frame")
_BINS_PER_DOUBLING = 4
_LOWEST, _HIGHEST = -40, 1100  # powers of two


class LogHistogram:
    """Counts positive numbers by size, in four bins per doubling; keeps where the first of each bin was."""

    def __init__(self, axes: tuple[str, ...]) -> None:
        self._axes = axes
        self.counts = np.zeros((_HIGHEST - _LOWEST) * _BINS_PER_DOUBLING, dtype=np.int64)
        self._first: dict[int, str] = {}

    def add(self, sizes: np.ndarray, first: int) -> None:
        """Count sizes (trajectory, time, ...) of trajectories first, first + 1, ...; NaN and zero are ignored."""
        with np.errstate(invalid="ignore", divide="ignore"):
            known = np.isfinite(sizes) & (sizes > 0)
            bins = np.floor((np.log2(np.where(known, sizes, 1.0)) - _LOWEST) * _BINS_PER_DOUBLING).astype(np.int64)
        bins = np.clip(bins, 0, len(self.counts) - 1)
        self.counts += np.bincount(bins[known], minlength=len(self.counts))
        for new in set(np.unique(bins[known]).tolist()) - self._first.keys():
            tally = Tally(self._axes)
            tally.add(known & (bins == new), first)
            self._first[new] = tally.where

    def bin(self, size: float) -> int:
        """Return the number of the bin that contains a size."""
        return int(np.clip(np.floor((np.log2(size) - _LOWEST) * _BINS_PER_DOUBLING), 0, len(self.counts) - 1))

    def between(self, low: float, high: float) -> int:
        """Count the sizes from low to high, up to the width of a bin."""
        return int(self.counts[self.bin(low) : self.bin(high) + 1].sum()) if high > 0 and low > 0 else 0

    def first(self, start: int) -> str:
        """Describe where the first number was in the first non-empty bin from `start` on."""
        return self._first[int(start + np.flatnonzero(self.counts[start:])[0])]


class Outliers(Inspector):
    """Values far outside the range of the others.

    A value is an outlier if it is more than 20 interquartile ranges from the median (both of the first block of trajectories), if no other
    value lies between it and a tenth of its distance, and if at most a tenth of all values are so far out. For a tail 1 - F(x) ~ x^-a, the
    largest of n values is ten times the next with probability 10^-a: false alarms occur in 1 of 1,000 sets for Student's t with 3 degrees
    of freedom, and never for lighter tails (Normal, Laplace, ...).
    """

    FAR, RATIO, MOST = 20.0, 10.0, 0.1

    def __init__(self, spec: StateSpec, field: Field) -> None:
        axes = ("trajectory", field.of) if field.of else ("trajectory", "frame", *spec.sites)
        self._field, self._histogram, self._beyond = field, LogHistogram(axes), Tally(axes)
        self._centre, self._unit, self._largest = np.zeros(1), 0.0, 0.0

    def look(self, arrays: dict[str, np.ndarray], first: int) -> None:
        values = arrays[self._field.name].astype(np.float64)
        values = values if self._field.is_vector else values[..., None]
        magnitude = np.where(np.isfinite(values), np.abs(values), 0.0)
        self._beyond.add(np.asarray((magnitude > limits(self._field)[1]).any(-1)), first)
        self._largest = max(self._largest, float(magnitude.max(initial=0.0)))
        table = values[np.isfinite(values).all(-1)]
        if not self._unit and len(table):
            low, self._centre, high = np.quantile(table, (0.25, 0.5, 0.75), axis=0)
            self._unit = float(np.max(high - low))
        if self._unit:
            with np.errstate(over="ignore"):
                self._histogram.add(np.abs(values - self._centre).max(-1) / self._unit, first)

    def findings(self) -> Iterator[tuple[str, str]]:
        name = self._field.name
        try:
            check_magnitude(self._field, np.asarray(self._largest))
        except DataError as error:
            yield ERROR, f"{error} ({self._beyond.count} values, the first in {self._beyond.where}); write unknown values as NaN"
            return
        counts = self._histogram.counts
        filled, gap = np.flatnonzero(counts), int(np.ceil(np.log2(self.RATIO) * _BINS_PER_DOUBLING))
        far = filled[1:][(np.diff(filled) > gap) & (filled[1:] > self._histogram.bin(self.FAR))]
        if not far.size:
            return
        number, nearest, least = int(counts[far[0] :].sum()), filled[filled < far[0]][-1], far[0]
        if number > self.MOST * counts.sum():
            return
        inside, outside = (2 ** (one / _BINS_PER_DOUBLING + _LOWEST) * self._unit for one in (nearest + 1, least))
        yield (
            WARNING,
            f"field {name!r}: {number} of {counts.sum()} values lie far outside the rest: at least {outside:.3g} from the median, while no "
            f"other is beyond {inside:.3g}, the first in {self._histogram.first(least)}: if they mean 'not known', write NaN",
        )


class Wrapped(Inspector):
    """Positions that jump from one side of a periodic box to the other.

    Reported if, on an axis with extent L, at least 3 steps are longer than 3 L / 4, these are ten times as many as steps from 2 L / 5 to
    3 L / 5, and at least a tenth of the positions is in the middle half of the box. Without wrapping, long steps are rarer than short ones.
    """

    FEWEST, FACTOR, MIDDLE, SAMPLE = 3, 10, 0.1, 20_000

    def __init__(self, spec: StateSpec, field: Field) -> None:
        axes = ("trajectory", "frame", *spec.sites)
        self._field = field
        self._steps = [LogHistogram(axes) for _ in range(spec.space)]
        self._low, self._high = np.full(spec.space, np.inf), np.full(spec.space, -np.inf)
        self._sample = np.zeros((0, spec.space))

    def look(self, arrays: dict[str, np.ndarray], first: int) -> None:
        position = arrays[self._field.name].astype(np.float64)
        steps = np.abs(np.diff(position, axis=1, prepend=position[:, :1]))
        for axis, histogram in enumerate(self._steps):
            histogram.add(np.take(steps, axis, -1), first)
        table = position.reshape(-1, position.shape[-1])
        self._low = np.fmin(self._low, np.fmin.reduce(table, axis=0))
        self._high = np.fmax(self._high, np.fmax.reduce(table, axis=0))
        some = table[:: 1 + len(table) // 1000]
        self._sample = np.concatenate([self._sample, some[np.isfinite(some).all(-1)]])[-self.SAMPLE :]

    def findings(self) -> Iterator[tuple[str, str]]:
        for axis, histogram in enumerate(self._steps):
            low, side = self._low[axis], self._high[axis] - self._low[axis]
            if not (np.isfinite(side) and side > 0 and len(self._sample)):
                continue
            long, middling = histogram.between(0.75 * side, 1.1 * side), histogram.between(0.4 * side, 0.6 * side)
            place = (np.take(self._sample, axis, -1) - low) / side
            inside = np.mean((place > 0.25) & (place < 0.75))
            if long >= self.FEWEST and long > self.FACTOR * middling and inside > self.MIDDLE:
                yield (
                    WARNING,
                    f"field {self._field.name!r}: {long} steps along axis {axis} are nearly as long as the data are wide, the first to "
                    f"{histogram.first(histogram.bin(0.75 * side))}: do positions wrap around a box of side {side:.4g}? "
                    "Declare `box: [...]`, or undo these jumps",
                )
