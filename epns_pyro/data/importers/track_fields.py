"""Fields that are imported from columns of a table of tracks, besides the positions: scalars, vectors, constants and categories."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from epns_pyro.data.importers.track_recording import LIKELIHOOD, TRACK
from epns_pyro.data.importers.track_rows import find_column
from epns_pyro.data.importers.track_tables import numbers
from epns_pyro.errors import ConfigError, DataError
from epns_pyro.geometry import SAME
from epns_pyro.state import Field, StateSpec

POSITION, VELOCITY = "position", "velocity"


@dataclass(frozen=True)
class Column:
    """A field that is read from one or more columns of a table.

    Parameters
    ----------
    name : str
        Name of the field.
    columns : tuple of str
        One for a scalar, one per axis for a vector.
    unit : str
    """

    name: str
    columns: tuple[str, ...]
    unit: str = ""

    @classmethod
    def parse(cls, text: str, *, vector: bool = False) -> Column:
        """Read NAME, NAME:UNIT, NAME=COLUMN:UNIT or, for a vector, NAME=COLUMN,COLUMN[,COLUMN]:UNIT.

        >>> Column.parse("brightness=MEAN_INTENSITY_CH1:counts")
        Column(name='brightness', columns=('MEAN_INTENSITY_CH1',), unit='counts')
        """
        rest, _, unit = text.partition(":")
        name, equals, columns = (part.strip() for part in rest.partition("="))
        found = tuple(column.strip() for column in columns.split(",")) if equals else (name,)
        if not name or not all(found) or (vector and len(found) not in (2, 3)) or (not vector and len(found) != 1):
            form = "NAME=COLUMN,COLUMN[,COLUMN][:UNIT]" if vector else "NAME[=COLUMN][:UNIT]"
            raise ConfigError(f"a {'vector' if vector else 'field'} is given as {form}, found {text!r}")
        return cls(name, found, unit.strip())


@dataclass(frozen=True)
class Quantities:
    """All fields that are read from a table, besides frame and track.

    Parameters
    ----------
    fields, statics, categories, vectors : tuple of Column
        Scalars that change, constant scalars, constant classes of a body, vectors that change.
    """

    fields: tuple[Column, ...] = ()
    statics: tuple[Column, ...] = ()
    categories: tuple[Column, ...] = ()
    vectors: tuple[Column, ...] = ()

    @property
    def scalars(self) -> tuple[Column, ...]:
        return (*self.fields, *self.statics)

    @property
    def all(self) -> tuple[Column, ...]:
        return (*self.vectors, *self.fields, *self.statics, *self.categories)

    def spec(self, axes: int, unit: str, time_unit: str, categories: dict[str, int]) -> StateSpec:
        """Return the specification of states with this number of axes; a vector called velocity is the rate of the position."""
        per_time = f"{unit}/{time_unit}" if unit and time_unit else ""
        vectors = [
            Field(v.name, "1o", unit=v.unit or per_time * (v.name == VELOCITY), rate_of=POSITION * (v.name == VELOCITY))
            for v in self.vectors
        ]
        return StateSpec(
            (
                Field(POSITION, "1o", translates=True, unit=unit),
                *vectors,
                *(Field(f.name, unit=f.unit) for f in self.fields),
                *(Field(f.name, dynamic=False, unit=f.unit) for f in self.statics),
                *(Field(f.name, dynamic=False, kind="category", size=max(categories[f.name], 1)) for f in self.categories),
            ),
            space=axes,
        )


def with_boxes(spec: StateSpec, boxes: Sequence[tuple[float, ...]]) -> StateSpec:
    """Return the spec of states of recordings in these periodic boxes: in one if they are all the same, else in one of their own."""
    if all(np.allclose(box, boxes[0], rtol=SAME, atol=0) for box in boxes):
        return replace(spec, box=boxes[0])
    field = Field("box" if "box" not in spec else "box_sides", "1o", dynamic=False, kind="box", unit=spec[POSITION].unit)
    return replace(spec, fields=(*spec.fields, field))


class Reader:
    """Turns chunks of detections into rows of numbers, and counts what it drops, by reason.

    A row is (frame, track, position, vectors, scalars, categories): (2 + channel,) float64. Tracks and categories are numbered in the
    order in which they appear.

    Parameters
    ----------
    quantities : Quantities
    likelihood : float, optional
        Detections with a smaller likelihood are dropped.
    scale : float
        Positions and velocities are multiplied by it.
    frame_dt : float, optional
        Time between two frame numbers. Times of tables that have times are whole multiples of it; without it they are taken as they are.
    times : bool
        Whether a frame is known by its time, not by a number.
    centre : tuple of float
        Positions are measured from here, after scaling; (): from zero.

    Attributes
    ----------
    clocked : bool
        Whether the first column of a row is a time.
    """

    def __init__(
        self,
        quantities: Quantities,
        *,
        likelihood: float | None,
        scale: float,
        frame_dt: float | None,
        times: bool = False,
        centre: tuple[float, ...] = (),
    ) -> None:
        self._quantities, self._likelihood, self._scale, self._frame_dt = quantities, likelihood, scale, frame_dt
        self._centre = np.array(centre or 0.0)
        self._times, self.clocked = times, False
        self.dropped: Counter[str] = Counter()
        self.categories: dict[str, dict[str, int]] = {c.name: {} for c in quantities.categories}
        self.rows = 0

    def read(self, path: Path, chunk: pd.DataFrame, axes: Sequence[str], tracks: dict[str, int]) -> np.ndarray:
        """Return the usable rows (row, 2 + channel) of a chunk; new tracks are added to `tracks`."""
        self.rows += len(chunk)
        frame = self._frames(path, chunk)
        track = number_names(chunk[TRACK], tracks)
        keep = self._without(~np.isnan(frame), np.ones(len(chunk), dtype=bool), "without a frame number")
        keep = self._without(track >= 0, keep, "without a track")
        if self._likelihood is not None and LIKELIHOOD in chunk:
            keep = self._without(~(chunk[LIKELIHOOD].to_numpy() < self._likelihood), keep, f"less likely than {self._likelihood:g}")
        position = chunk[list(axes)].to_numpy(np.float64) * self._scale - self._centre
        keep = self._without(~np.isnan(position).any(1), keep, "without a position")
        columns = [frame, track, *position.T]
        for quantity in self._quantities.all:
            for values in self._values(path, chunk, quantity):
                keep = self._without(~np.isnan(values), keep, f"without {quantity.name}")
                columns.append(values)
        return np.stack(columns, axis=1)[keep]

    def _values(self, path: Path, chunk: pd.DataFrame, quantity: Column) -> Iterable[np.ndarray]:
        names = [find_column(path, list(map(str, chunk.columns)), column) for column in quantity.columns]
        if quantity in self._quantities.categories:
            codes = number_names(chunk[names[0]], self.categories[quantity.name])
            return [np.where(codes < 0, np.nan, codes)]
        factor = self._scale if quantity in self._quantities.vectors and quantity.name == VELOCITY else 1.0
        return [numbers(path, chunk, name) * factor for name in names]

    def _without(self, good: np.ndarray, keep: np.ndarray, reason: str) -> np.ndarray:
        if count := int(np.count_nonzero(keep & ~good)):
            self.dropped[reason] += count
        return keep & good

    def _frames(self, path: Path, chunk: pd.DataFrame) -> np.ndarray:
        """Return the frame numbers of a chunk (row,), NaN where nothing stands."""
        name = "frame" if "frame" in chunk and not self._times else "time"
        given = chunk[name].to_numpy(np.float64)
        if name == "frame":
            frame, expected = given, "a whole number: give --columns time=NAME,... if it is a time"
        elif self._frame_dt is None:
            self.clocked = True
            return given
        else:
            frame, expected = given / self._frame_dt, f"a whole multiple of --frame-dt {self._frame_dt:g}"
        whole = np.round(frame)
        tolerance = 0.0 if name == "frame" else 0.05
        if (wrong := np.abs(frame - whole) > tolerance).any():
            row = int(np.argmax(wrong))
            raise DataError(f"{path}, {chunk.index.name or 'row'} {chunk.index[row]}: {name} is {given[row]:g}, expected {expected}")
        if (wrong := np.abs(whole) > 2**53).any():
            row = int(np.argmax(wrong))
            raise DataError(f"{path}, {chunk.index.name or 'row'} {chunk.index[row]}: {name} is {given[row]:g}: too large for a frame")
        return whole


def number_names(names: pd.Series, known: dict[str, int]) -> np.ndarray:
    """Return the numbers of names (row,), -1 where the cell is empty; new names get the next numbers. 7, 7.0 and "7" are one name."""
    codes, unique = pd.factorize(names)
    table = np.array([known.setdefault(_plain_name(name), len(known)) for name in unique] + [-1], dtype=np.int64)
    return table[codes]


def _plain_name(name: object) -> str:
    if isinstance(name, (float, np.floating)) and float(name).is_integer():
        return str(int(name))
    text = str(name).strip()
    return str(int(float(text))) if re.fullmatch(r"-?\d{1,15}(\.0+)?", text) else text


def natural_order(names: Iterable[str]) -> list[str]:
    """Sort names: integers by value, before words."""
    return sorted(names, key=lambda name: (0, int(name), "") if re.fullmatch(r"-?\d+", name) else (1, 0, name))
