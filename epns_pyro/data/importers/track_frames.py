"""Tables of tracks with one row per frame: idtracker's arrays and tables, DeepLabCut's body parts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import final

import numpy as np
import pandas as pd

from epns_pyro.data.importers import track_tables
from epns_pyro.data.importers.npy import load_dictionary, load_npy, load_npz
from epns_pyro.data.importers.track_recording import AXES, FRAME, LIKELIHOOD, TRACK, Tracks
from epns_pyro.data.importers.track_tables import LINE, TextTable, interval, numbers
from epns_pyro.errors import DataError


def is_wide(names: tuple[str, ...]) -> bool:
    """Return whether a header is x1, y1, x2, y2, ..., optionally after a time: the layout of idtracker and idtracker.ai."""
    lower = [name.lower() for name in names]
    return {"x1", "y1"} <= set(lower) and all(re.fullmatch(r"[xyz]\d+|probid\d+", name) for name in lower[1:])


@final
class WideTracks(Tracks):
    """Columns x1, y1, x2, y2, ...: one row per frame."""

    layout = "idtracker"

    def __init__(self, table: TextTable) -> None:
        self._table = table
        columns = {name.lower(): name for name in table.names}
        self._numbers = sorted({int(name[1:]) for name in columns if re.fullmatch(r"x\d+", name)})
        super().__init__(table.path, (), tuple(axis for axis in AXES if f"{axis}1" in columns))
        if missing := [f"{a}{n}" for n in self._numbers for a in self.axes if f"{a}{n}" not in columns]:
            raise DataError(f"{table.path}: has no column {missing[0]!r}: every animal needs {' and '.join(self.axes)}")
        self._columns = columns
        clock = table.names[0]
        if not re.fullmatch(rf"[xyz]\d+|probid\d+|{FRAME}", clock.lower()):
            times = [row[0].replace(table.decimal, ".") for row in table.head if len(row) == len(table.names)]
            self.frame_dt = interval([(str(frame), time) for frame, time in enumerate(times[table.has_header :])])
            self.time_unit = "s" if self.frame_dt and re.match("sec|s$", clock.lower()) else ""

    def chunks(self) -> Iterator[pd.DataFrame]:
        for chunk in self._table.chunks():
            frame = chunk[self._columns[FRAME]] if FRAME in self._columns else chunk.index - (self._table.skip + 1)
            parts = [
                pd.DataFrame({FRAME: frame, TRACK: n} | {a: numbers(self.path, chunk, self._columns[f"{a}{n}"]) for a in self.axes})
                for n in self._numbers
            ]
            yield _stacked(parts, chunk)


@final
class DeepLabCut(Tracks):
    """A header of several lines (scorer, individuals, bodyparts, coords), then one row per frame; every body part is a track."""

    layout = "DeepLabCut"

    def __init__(self, table: TextTable) -> None:
        rows = {row[0].lower(): row[1:] for row in table.head[:4] if not _is_whole(row[0])}
        if "bodyparts" not in rows or "coords" not in rows:
            raise DataError(f"{table.path}: a header of DeepLabCut has rows scorer, bodyparts and coords, found {', '.join(rows)}")
        owners = rows.get("individuals", ("",) * len(rows["coords"]))
        if not len(owners) == len(rows["bodyparts"]) == len(rows["coords"]) == len(table.names) - 1:
            raise DataError(f"{table.path}: the {len(rows)} lines of its header have different numbers of columns")
        keys = tuple(zip(owners, rows["bodyparts"], rows["coords"], strict=True))
        if len(set(keys)) < len(keys) or not {"x", "y"} <= set(rows["coords"]):
            raise DataError(
                f"{table.path}: every body part needs one column x and one y below its name, found {', '.join(rows['coords'])[:80]}"
            )
        self._table = replace(table, names=(FRAME, *("\t".join(key) for key in keys)), skip=table.skip - 1 + len(rows))
        self._parts = list(dict.fromkeys(key[:2] for key in keys))
        axes = tuple(axis for axis in AXES if axis in rows["coords"])
        several = len({part for _, part in self._parts}) > 1
        super().__init__(table.path, ("bodypart",) if several else (), axes)

    def chunks(self) -> Iterator[pd.DataFrame]:
        for chunk in self._table.chunks():
            frame = numbers(self.path, chunk, FRAME)
            parts = []
            for owner, part in self._parts:
                found = {c: "\t".join((owner, part, c)) for c in (*self.axes, LIKELIHOOD)}
                values: dict[str, np.ndarray | str] = {
                    c: numbers(self.path, chunk, name) for c, name in found.items() if name in chunk.columns
                }
                values |= {TRACK: "/".join(filter(None, (owner, part))), "bodypart": part}
                parts.append(pd.DataFrame({FRAME: frame} | values, index=chunk.index))
            yield _stacked(parts, chunk)


def _is_whole(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def _stacked(parts: list[pd.DataFrame], chunk: pd.DataFrame) -> pd.DataFrame:
    stacked = pd.concat(parts).sort_index(kind="stable")
    stacked.index.name = LINE
    stacked.attrs = chunk.attrs
    return stacked


@final
class ArrayTracks(Tracks):
    """An array (frame, animal, axis), NaN where an animal was not seen: a .npy file, or `trajectories` in a .npz file or a dictionary."""

    layout = "idtracker"

    def __init__(self, path: Path) -> None:
        try:
            array = load_npz(path, "trajectories") if path.suffix.lower() == ".npz" else load_npy(path)
        except DataError as error:
            if path.suffix.lower() != ".npy" or not any(word in str(error) for word in ("Python objects", "Object arrays", "pickled")):
                raise
            array = self._saved_by_idtracker(path)
        if array.ndim != 3 or array.shape[-1] not in (2, 3):
            raise DataError(f"{path}: expected numbers (frame, animal, 2 or 3 axes), found {array.dtype} {array.shape}")
        self._array = array
        super().__init__(path, (), AXES[: array.shape[-1]])

    def _saved_by_idtracker(self, path: Path) -> np.ndarray:
        """Return the positions that idtracker.ai saved in a dictionary, and keep its time between frames."""
        session = load_dictionary(path)
        array, rate = session.get("trajectories"), session.get("frames_per_second")
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
            raise DataError(
                f"{path}: expected a dictionary of idtracker.ai with 'trajectories', found {', '.join(map(str, session))[:200]}"
            )
        if isinstance(rate, Real) and 0 < float(rate) < np.inf:
            self.frame_dt, self.time_unit = 1.0 / float(rate), "s"
        return array

    def chunks(self) -> Iterator[pd.DataFrame]:
        frames, animals, _ = self._array.shape
        rows = max(1, track_tables.CHUNK_ROWS // max(animals, 1))
        for start in range(0, frames, rows):
            block = np.asarray(self._array[start : start + rows], dtype=np.float64)
            if np.isinf(block).any():
                raise DataError(f"{self.path}: holds infinite positions: use NaN where an animal was not seen")
            frame = np.repeat(np.arange(start, start + len(block)), animals)
            table = pd.DataFrame(block.reshape(-1, block.shape[-1]), columns=list(self.axes), index=pd.Index(frame, name=FRAME))
            yield table.assign(**{FRAME: frame, TRACK: np.tile(np.arange(1, animals + 1), len(block))})
