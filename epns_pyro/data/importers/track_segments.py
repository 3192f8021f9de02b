"""Cutting recordings of tracks into segments: each is a trajectory with its own body axis, NaN where a body is absent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from epns_pyro.data.importers.track_fields import POSITION, Quantities
from epns_pyro.data.importers.track_splits import Stretch
from epns_pyro.data.importers.track_spool import Groups, Spool
from epns_pyro.durations import steps_between
from epns_pyro.errors import DataError
from epns_pyro.state import StateSpec

FRAME, TRACK, FIRST_VALUE = 0, 1, 2  # columns of a row; the values follow
ONE_ROW = "of tracks with one row"
LEFT_OVER = "left over at the end of a recording, less than a segment"
REPEATED = "that are exact copies of another row"
SECOND = "with the id and frame of an earlier row"
NOT_KEPT = "of frames between the kept frames"
NO_STEP = "of segments in which no body is present in two consecutive frames"
REFUSE, FIRST = "refuse", "first"


@dataclass
class Recording:
    """The rows of one file on disk.

    Parameters
    ----------
    name, path
    spool : Spool
        Rows (frame, track, values).
    tracks : dict of str to int
        Numbers of the tracks by name.
    frames : numpy.ndarray
        Sorted frame numbers that occur.
    times : numpy.ndarray, optional
        Of the frames, by number, where the file has times.
    in_order : bool
        Whether the rows are in order of the frames.
    """

    name: str
    path: Path
    spool: Spool
    tracks: dict[str, int] = field(default_factory=dict)
    frames: np.ndarray = field(default_factory=lambda: np.zeros(0))
    times: np.ndarray | None = None
    in_order: bool = True

    def add(self, rows: np.ndarray) -> None:
        """Write rows to disk."""
        if not len(rows):
            return
        frame = rows[:, FRAME]
        self.in_order &= bool((np.diff(frame) >= 0).all()) and (not len(self.frames) or bool(frame[0] >= self.frames[-1]))
        self.frames = np.union1d(self.frames, frame)
        self.spool.append(rows)

    def spans(self, every: int) -> list[int]:
        """Return how many kept frames, every `every`-th, there are from the first row of each track to its last."""
        first, last = np.full(len(self.tracks), np.inf), np.full(len(self.tracks), -np.inf)
        for rows in self.spool.blocks():
            track = rows[:, TRACK].astype(np.int64)
            np.minimum.at(first, track, rows[:, FRAME])
            np.maximum.at(last, track, rows[:, FRAME])
        return ((last - first)[last >= first] // every + 1).astype(np.int64).tolist()

    def number_frames(self, path: Path, *, clocked: bool) -> None:
        """Number frames that were told apart by their times, in a new file at `path`; the times go to `times`.

        Frames that are not `clocked` have numbers.
        """
        if not clocked:
            self.frames = self.frames.astype(np.int64)
            return
        spool, self.times = Spool(path, self.spool.columns), self.frames
        for rows in self.spool.blocks():
            rows[:, FRAME] = np.searchsorted(self.times, rows[:, FRAME])
            spool.append(rows)
        self.spool.path.unlink(missing_ok=True)
        self.spool, self.frames = spool, np.arange(len(self.times))


class Cut:
    """One recording, cut: which rows belong to which segment.

    Kept frames are numbered 0, 1, 2, ... from the first frame of the recording, every `every` frame numbers. A segment begins in a frame
    with a body, so frames without bodies are skipped between two segments.
    """

    left_over = LEFT_OVER

    def __init__(self, recording: Recording, number: int, every: int, segment: int | None, dropped: Counter[str]) -> None:
        self.recording, self.number, self._every = recording, number, every
        self._first = int(recording.frames[0]) if len(recording.frames) else 0
        counts, unused = np.zeros(len(recording.tracks), dtype=np.int64), 0
        for rows in recording.spool.blocks():
            kept = self._kept(rows)
            unused += int(np.count_nonzero(~kept))
            counts += np.bincount(rows[kept, TRACK].astype(np.int64), minlength=len(counts))
        self._lone = counts == 1
        lone = int(self._lone.sum())
        dropped[NOT_KEPT] += unused
        dropped[ONE_ROW] += lone
        self._unused = unused + lone
        self.tracks = int((counts > 1).sum())
        self.frames = self._occupied()
        self.segment, self.stretches = self._plan(segment)

    def _plan(self, segment: int | None) -> tuple[int, list[Stretch]]:
        """Return the frames of a segment, by default all, and where segments are."""
        segment = segment or (int(self.frames[-1] - self.frames[0]) + 1 if len(self.frames) else 0)
        starts, at = [], 0
        while at < len(self.frames) and self.frames[at] + segment <= self.frames[-1] + 1:
            starts.append(int(self.frames[at]))
            at = int(np.searchsorted(self.frames, starts[-1] + segment))
        self._starts = np.array(starts, dtype=np.int64)
        return segment, [Stretch(self.number, start, start + segment) for start in starts]

    def _kept(self, rows: np.ndarray) -> np.ndarray:
        return (rows[:, FRAME].astype(np.int64) - self._first) % self._every == 0

    def _used(self, rows: np.ndarray) -> np.ndarray:
        return self._kept(rows) & ~self._lone[rows[:, TRACK].astype(np.int64)]

    def index(self, rows: np.ndarray) -> np.ndarray:
        """Return the numbers of the frames of rows (row,)."""
        return (rows[:, FRAME].astype(np.int64) - self._first) // self._every

    def frame(self, index: int) -> int:
        """Return the frame number in the file of a kept frame."""
        return self._first + index * self._every

    def durations(self, start: int, nominal: float) -> np.ndarray:
        """Return how long the steps of a stretch that starts in a kept frame last, (time,); nominal after the last frame of a recording."""
        if self.recording.times is None:
            return np.full(self.segment, nominal)
        kept = self.recording.times[self._first :: self._every]
        return steps_between(kept, nominal)[start : start + self.segment]

    def _occupied(self) -> np.ndarray:
        found = np.zeros(0, dtype=np.int64)
        for rows in self.recording.spool.blocks():
            found = np.union1d(found, self.index(rows[self._used(rows)]))
        return found

    def groups(self, path: Path, dropped: Counter[str]) -> Groups:
        """Sort the rows by segment into a file at `path`."""
        groups = self.recording.spool.grouped(path, self._numbers, len(self.stretches))
        dropped[self.left_over] += groups.left_out - self._unused
        return groups

    def _numbers(self, rows: np.ndarray) -> np.ndarray:
        """Return the segment of every row (row,); -1 if it is in none."""
        index, inside = self.index(rows), self._used(rows)
        number = np.searchsorted(self._starts, index, side="right") - 1
        inside &= number >= 0
        inside[inside] = index[inside] < self._starts[number[inside]] + self.segment
        return np.where(inside, number, -1)


@dataclass(frozen=True)
class Segment:
    """One segment of one recording in memory: rows without copies, with frame (row,) and body (row,) numbered from 0."""

    rows: np.ndarray
    frame: np.ndarray
    body: np.ndarray
    tracks: np.ndarray
    frames: int

    @property
    def bodies(self) -> int:
        return len(self.tracks)

    @property
    def has_step(self) -> bool:
        """Return whether any body is present in two consecutive frames."""
        there = np.zeros((self.frames, self.bodies), dtype=bool)
        there[self.frame, self.body] = True
        return bool((there[1:] & there[:-1]).any())

    def states(
        self, spec: StateSpec, quantities: Quantities, axes: int, bodies: int, where: str, pairs: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """Return states (time, body, channel) on a body axis of size `bodies`; of the axes in the rows, the spec uses the first ones.

        Absent bodies have NaN in their dynamic fields. Static fields of a body are the same in all frames. Unused places of the body axis
        have the static fields of the first body, so that no value is made up; `pairs` are (body, body), by name.
        """
        values = {name: matrix[None] for name, matrix in pairs.items()}
        values |= {POSITION: self._dynamic(self.rows[:, FIRST_VALUE : FIRST_VALUE + spec.space], bodies)}
        start = FIRST_VALUE + axes
        for quantity in quantities.all:
            columns = self.rows[:, start : start + len(quantity.columns)]
            start += len(quantity.columns)
            if spec[quantity.name].dynamic:
                dense = self._dynamic(columns, bodies)
                values[quantity.name] = dense if spec[quantity.name].is_vector else dense[..., 0]
            else:
                values[quantity.name] = self._static(columns[:, 0], bodies, f"{where}: {quantity.name}")
        if spec.box_field:  # filled in by who knows it
            values[spec.box_field.name] = np.zeros((1, 1, spec.space))
        return spec.pack(**values)

    def _dynamic(self, columns: np.ndarray, bodies: int) -> np.ndarray:
        dense = np.full((self.frames, bodies, columns.shape[1]), np.nan)
        dense[self.frame, self.body] = columns
        return dense

    def _static(self, column: np.ndarray, bodies: int, what: str) -> np.ndarray:
        first = np.zeros(self.bodies)
        first[self.body[::-1]] = column[::-1]
        if (changed := column != first[self.body]).any():
            row = int(np.argmax(changed))
            raise DataError(
                f"{what} of one body is {first[self.body[row]]:g} and {column[row]:g}: a static field must be constant; use --field for "
                "scalars that change"
            )
        return np.concatenate([first, np.full(bodies - self.bodies, first[0])])[None]


def read_segment(cut: Cut, groups: Groups, number: int, duplicates: str, dropped: Counter[str]) -> Segment:
    """Read a segment, drop copies of rows and count them.

    Raises
    ------
    DataError
        If an id has two positions in one frame, unless `duplicates` is "first": then the first row of a body in a frame is used.
    """
    rows = groups.read(number)
    frame = cut.index(rows) - cut.stretches[number].start
    tracks, body = np.unique(rows[:, TRACK].astype(np.int64), return_inverse=True)
    _, first, owner = np.unique(frame * max(len(tracks), 1) + body, return_index=True, return_inverse=True)
    if len(first) < len(rows):
        again = np.ones(len(rows), dtype=bool)
        again[first] = False
        other = again & (rows != rows[first[owner]]).any(1)
        if other.any() and duplicates == REFUSE:
            row = int(np.argmax(other))
            name = next(name for name, track in cut.recording.tracks.items() if track == tracks[body[row]])
            count = int(other.sum())
            raise DataError(
                f"{cut.recording.path}: id {name} occurs twice in frame {int(rows[row, FRAME])}, at different positions "
                f"({count} such row{'s' * (count > 1)} in this segment): an id names one body; --duplicates first keeps the first row"
            )
        dropped[SECOND] += int(other.sum())
        dropped[REPEATED] += int((again & ~other).sum())
        first = np.sort(first)
        rows, frame, body = rows[first], frame[first], body[first]
    return Segment(rows, frame, body, tracks, cut.segment)
