"""Tables of tracks with one row per detection: known headers, or columns that the user names."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import final

import pandas as pd

from epns_pyro.data.importers.track_recording import AXES, FRAME, LIKELIHOOD, ROLES, TIME, TRACK, Tracks
from epns_pyro.data.importers.track_tables import TextTable, interval, numbers, parquet_chunks, parquet_file
from epns_pyro.errors import ConfigError, DataError, nearest


@dataclass(frozen=True)
class Assignment:
    """Meaning of the columns of a table: the names of all columns after renaming, and those that are used."""

    layout: str
    names: tuple[str, ...]
    roles: dict[str, str]


@dataclass(frozen=True)
class Header:
    """A known header, in lower case: column of the frame, possible columns of the track, the axes."""

    layout: str
    frame: str
    tracks: tuple[str, ...]
    axes: tuple[str, ...]

    def roles(self, names: tuple[str, ...]) -> dict[str, str] | None:
        """Return the columns by role, or None if this is a different header."""
        lower = {name.lower(): name for name in reversed(names)}
        track = next((t for t in self.tracks if t in lower), None)
        if track is None or not {self.frame, *self.axes[:2]} <= lower.keys():
            return None
        found = {FRAME: lower[self.frame], TRACK: lower[track]}
        found |= {axis: lower[column] for axis, column in zip(AXES, self.axes, strict=True) if column in lower}
        return found | ({LIKELIHOOD: lower[LIKELIHOOD]} if LIKELIHOOD in lower else {})


TIMES = "position_t"  # column of TrackMate, in lower case
TRACK_NAMES = ("track_id", "trackid", "track", "id")
HEADERS = (
    Header("TrackMate", "frame", ("track_id",), ("position_x", "position_y", "position_z")),
    Header("trackpy", "frame", ("particle",), AXES),
    Header("napari", "t", TRACK_NAMES, AXES),
    Header("table", "frame", TRACK_NAMES, AXES),
)


def assign(path: Path, names: tuple[str, ...], has_header: bool, columns: str | None) -> Assignment:
    """Determine the meaning of the columns, from the user or from the header."""
    if columns is None:
        for header in HEADERS:
            if has_header and (roles := header.roles(names)):
                return Assignment(header.layout, names, roles)
        seen = f"the header {','.join(names)[:120]} is not known" if has_header else f"there is no header above its {len(names)} columns"
        raise DataError(f"{path}: {seen}: say what the columns are, e.g. --columns frame,id,x,y (- skips one), or frame=NAME,id=NAME,...")
    entries = [entry.strip() for entry in columns.split(",")]
    if any("=" in entry for entry in entries):
        roles = _by_name(path, names, entries)
    else:
        names, roles = _in_order(path, names, has_header, entries)
    if missing := [role for role in ("x", "y") if role not in roles] + [FRAME] * (FRAME not in roles and TIME not in roles):
        raise ConfigError(f"--columns {columns}: does not name the column of {missing[0]}: expected frame (or time), x and y")
    return Assignment("table", names, roles)


def timed(path: Path, assignment: Assignment, column: str) -> Assignment:
    """Say that a column holds the times of frames, in place of frame numbers."""
    roles = {role: name for role, name in assignment.roles.items() if role != FRAME}
    return replace(assignment, roles=roles | {TIME: find_column(path, assignment.names, column)})


def _by_name(path: Path, names: tuple[str, ...], entries: Sequence[str]) -> dict[str, str]:
    """Read pairs ROLE=COLUMN; a word alone is the role of the column of that name."""
    roles: dict[str, str] = {}
    for entry in entries:
        role, _, column = entry.partition("=") if "=" in entry else (entry, "", entry)
        if role in roles:
            raise ConfigError(f"--columns: {role!r} is given twice")
        if role not in ROLES:
            raise ConfigError(f"--columns: unknown role {role!r}: {nearest(role, ROLES)}")
        roles[role] = find_column(path, names, column)
    return roles


def _in_order(path: Path, names: tuple[str, ...], has_header: bool, entries: list[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Read a plain list: names of columns if the header has all of them, otherwise the roles of the columns in order."""
    words = [entry for entry in entries if entry != "-"]
    if not all(entries):
        raise ConfigError("--columns: expected words like frame,id,x,y or pairs like frame=t,id=cell,x=X,y=Y, found '' among others")
    if twice := [word for i, word in enumerate(words) if word in words[:i]]:
        raise ConfigError(f"--columns: {twice[0]!r} is given twice")
    if has_header and set(words) <= set(names):
        return names, {word: word for word in words if word in ROLES}
    if has_header and (elsewhere := [w for w in words if w in names and names.index(w) != entries.index(w)]):
        missing = next(word for word in words if word not in names)
        raise DataError(
            f"{path}: has a column {elsewhere[0]!r}, but not in that place, and none called {missing!r}: "
            f"{nearest(missing, names)}; give pairs, e.g. {missing}=NAME"
        )
    if len(entries) > len(names):
        raise DataError(f"{path}: has {len(names)} columns ({','.join(names)[:80]}), --columns names {len(entries)}")
    skipped = [f"({name})" for name in names]
    renamed = tuple(entries[i] if i < len(entries) and entries[i] != "-" else skipped[i] for i in range(len(names)))
    return renamed, {word: word for word in words if word in ROLES}


def find_column(path: Path, names: Sequence[str], column: str) -> str:
    """Return the name of a column that the user gave by name, in upper or lower case, or by number from 1."""
    if column in names:
        return column
    if close := [name for name in names if name.lower() == column.lower()]:
        return close[0]
    if column.isdecimal() and 1 <= int(column) <= len(names):
        return names[int(column) - 1]
    raise DataError(f"{path}: has no column {column!r}: {nearest(column, names)}")


class _Long(Tracks):
    """A table with one row per detection."""

    def __init__(self, path: Path, assignment: Assignment, declared: bool) -> None:
        self.roles = assignment.roles
        rest = tuple(name for name in assignment.names if name not in self.roles.values())
        super().__init__(path, rest, tuple(axis for axis in AXES if axis in self.roles))
        self.layout, self.declared = assignment.layout, declared  # type: ignore[misc]

    @abstractmethod
    def raw(self) -> Iterator[pd.DataFrame]:
        """Yield the columns as they are in the file."""

    def chunks(self) -> Iterator[pd.DataFrame]:
        for chunk in self.raw():
            found = {role: numbers(self.path, chunk, column) for role, column in self.roles.items() if role != TRACK}
            track = chunk[self.roles[TRACK]] if TRACK in self.roles else "1"
            tidy = chunk[list(self.columns)].assign(**found, **{TRACK: track})
            tidy.index.name = chunk.index.name
            tidy.attrs = chunk.attrs
            yield tidy


@final
class TextTracks(_Long):
    """A text table with one row per detection."""

    def __init__(self, table: TextTable, assignment: Assignment, declared: bool) -> None:
        super().__init__(table.path, assignment, declared)
        self._names, self._table = list(assignment.names), table
        if self.layout == "TrackMate":
            self._skip_explanations()

    def _skip_explanations(self) -> None:
        """Skip the rows below a TrackMate header that describe the columns: names, short names and units."""
        frame, x = (self._table.names.index(self.roles[role]) for role in (FRAME, "x"))
        head = [row for row in self._table.head[1:] if len(row) == len(self._table.names)]
        words = list(takewhile(lambda row: not re.fullmatch(r"-?\d+(\.0*)?", row[frame]), head[:3]))
        self._table = replace(self._table, skip=self._table.skip + len(words))
        self.unit = _unit(words, x)
        if TIMES in (lower := [name.lower() for name in self._table.names]):
            column, rows = lower.index(TIMES), head[len(words) :]
            self.frame_dt = interval([(row[frame], row[column]) for row in rows])
            self.time_unit = _unit(words, column) if self.frame_dt else ""

    def raw(self) -> Iterator[pd.DataFrame]:
        for chunk in self._table.chunks():
            chunk.columns = self._names
            yield chunk


def _unit(words: Sequence[Sequence[str]], column: int) -> str:
    """Return the unit of a column that a TrackMate header gives in brackets; "" if it gives none."""
    units = [found[1] for row in words if (found := re.fullmatch(r"\((.+)\)", row[column]))]
    return units[0] if units else ""


@final
class ParquetTracks(_Long):
    """A Parquet table with one row per detection."""

    def __init__(self, path: Path, assignment: Assignment, declared: bool) -> None:
        super().__init__(path, assignment, declared)
        wanted = {*self.columns, *self.roles.values()}
        in_file = parquet_file(path).schema_arrow.names
        self._names = {there: here for there, here in zip(in_file, assignment.names, strict=True) if here in wanted}

    def raw(self) -> Iterator[pd.DataFrame]:
        for chunk in parquet_chunks(self.path, list(self._names)):
            chunk.columns = list(self._names.values())
            yield chunk
