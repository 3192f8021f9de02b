"""Cutting every track of a recording by itself: trajectories of one body, for bodies that do not influence each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from epns_pyro.data.importers.track_segments import TRACK, Cut, Recording
from epns_pyro.data.importers.track_splits import Stretch


class SingleCut(Cut):
    """One recording, cut track by track.

    A segment begins where its track has `row` detections in a row. The frames after the end of a track are frames without the body, so that
    short tracks are kept. Memory holds one byte for every frame between the first and the last of every track.
    """

    def __init__(self, recording: Recording, number: int, every: int, segment: int | None, dropped: Counter[str], row: int) -> None:
        self._row = row
        self.left_over = f"in no segment: fewer than {row} detections of a track in a row"
        super().__init__(recording, number, every, segment, dropped)

    def _plan(self, segment: int | None) -> tuple[int, list[Stretch]]:
        count = len(self.recording.tracks)
        first, last = np.full(count, np.iinfo(np.int64).max), np.full(count, -1)
        for track, index in self._detections():
            np.minimum.at(first, track, index)
            np.maximum.at(last, track, index)
        span = np.where(last < 0, 0, last - first + 1)
        self._origin, self._end = first, np.cumsum(span)  # the frames of all tracks in one line, track after track
        self._begin = self._end - span
        there = np.zeros(int(span.sum()), dtype=bool)
        for track, index in self._detections():
            there[self._place(track, index)] = True
        segment = segment or int(span.max(initial=0))
        starts = self._first_frames(there, segment)
        tracks = np.searchsorted(self._end, starts, side="right")
        frames = first[tracks] + starts - self._begin[tracks]
        order = np.lexsort((tracks, frames))
        self._starts, self._stops = starts, np.minimum(starts + segment, self._end[tracks])
        self._rank = np.argsort(order)
        return segment, [Stretch(self.number, int(frames[i]), int(frames[i]) + segment, int(tracks[i])) for i in order]

    def _detections(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield track (row,) and frame (row,) of the rows that can be used."""
        for rows in self.recording.spool.blocks():
            used = rows[self._used(rows)]
            yield used[:, TRACK].astype(np.int64), self.index(used)

    def _place(self, track: np.ndarray, index: np.ndarray) -> np.ndarray:
        return self._begin[track] + index - self._origin[track]

    def _first_frames(self, there: np.ndarray, segment: int) -> np.ndarray:
        """Return where segments begin, in the line of all frames."""
        run = np.convolve(there, np.ones(self._row, dtype=np.int64))[self._row - 1 :] if len(there) else there
        possible = np.flatnonzero(run == self._row)
        possible = possible[possible + self._row <= self._end[np.searchsorted(self._end, possible, side="right")]]
        starts, at = [], 0
        while at < len(possible):
            starts.append(int(possible[at]))
            track = np.searchsorted(self._end, starts[-1], side="right")
            at = int(np.searchsorted(possible, min(starts[-1] + segment, int(self._end[track]))))
        return np.array(starts, dtype=np.int64)

    def _numbers(self, rows: np.ndarray) -> np.ndarray:
        numbers = np.full(len(rows), -1)
        used = np.flatnonzero(self._used(rows))
        place = self._place(rows[used, TRACK].astype(np.int64), self.index(rows[used]))
        segment = np.searchsorted(self._starts, place, side="right") - 1
        inside = segment >= 0
        inside[inside] = place[inside] < self._stops[segment[inside]]
        numbers[used[inside]] = self._rank[segment[inside]]
        return numbers
