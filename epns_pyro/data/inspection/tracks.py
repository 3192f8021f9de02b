"""Statistics of bodies that enter and leave: bodies per frame, lengths of tracks, and gaps in tracks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from epns_pyro.data.presence import allows_absence, presence
from epns_pyro.data.stores import Store


@dataclass(frozen=True)
class TrackSummary:
    """Statistics of the tracks of a set. A track is one body in one trajectory; three numbers are minimum, median and maximum.

    Parameters
    ----------
    bodies_per_frame : tuple of int
        Number of bodies present in a frame.
    track_frames : tuple of int
        Number of frames in which a body is present.
    tracks : int
    entries, exits : int
        Tracks that begin after the first, or end before the last frame of their trajectory.
    gaps, gap_frames, longest_gap : int
        Gaps in tracks (absent, but present before and after), their total number of frames, and the frames of the longest.
    steps : int
        Pairs of consecutive frames in which a body is present: the data that a model learns from.
    typical_step, largest_step : float
        Root mean square and largest displacement over such a pair, in the unit of the position; 0 without a position.
    """

    bodies_per_frame: tuple[int, int, int]
    track_frames: tuple[int, int, int]
    tracks: int
    entries: int
    exits: int
    gaps: int
    gap_frames: int
    longest_gap: int
    steps: int
    typical_step: float
    largest_step: float


def summarise_tracks(store: Store, split: str) -> TrackSummary | None:
    """Compute the statistics of a set, a few chunks at a time; None where every body is in every frame.

    Raises
    ------
    DataError
        If the set cannot be read.
    """
    if not allows_absence(store.spec):
        return None
    counts = _Counts(store.steps(split) + 1, store.sites(split)[0])
    position = next((f.name for f in store.spec.fields if f.translates), None)
    for block in store.blocks(split):
        x = store.read(split, block)
        counts.add(presence(store.spec, x), store.spec.get(x, position) if position else None)
    return None if counts.complete else counts.summary()


def track_lines(store: Store) -> Iterator[str]:
    """Describe the tracks of every set in a few lines; nothing for sets whose bodies are always present."""
    unit = next((f.unit for f in store.spec.fields if f.translates), "")
    length = f" {unit}" if unit else ""
    for split in store.splits:
        if (found := summarise_tracks(store, split)) is None:
            continue
        bodies, frames = found.bodies_per_frame, found.track_frames
        yield (
            f"{split}: {bodies[0]} to {bodies[2]} bodies in a frame, median {bodies[1]}; "
            f"{found.tracks:,} tracks of {frames[0]} to {frames[2]} frames, median {frames[1]}; "
            f"{found.entries:,} begin and {found.exits:,} end within their trajectory"
        )
        if found.gaps:
            yield f"{split}: {found.gaps:,} gaps in tracks, {found.gap_frames:,} frames, the longest {found.longest_gap}"
        if found.largest_step:
            speed = f" ({found.typical_step / store.frame_dt:.4g}{length}/{store.time_unit})" if store.time_unit else ""
            yield (
                f"{split}: {found.steps:,} steps of a body, typically {found.typical_step:.4g}{length} long{speed}, "
                f"the longest {found.largest_step:.4g}"
            )


class _Counts:
    """Sums over blocks of trajectories, in memory that does not grow with their number."""

    def __init__(self, frames: int, bodies: int) -> None:
        self._per_frame, self._per_track = np.zeros(bodies + 1, dtype=np.int64), np.zeros(frames + 1, dtype=np.int64)
        self._entries = self._exits = self._gaps = self._gap_frames = self._longest = self._steps = 0
        self._squares = self._largest = 0.0
        self.complete = True

    def add(self, there: np.ndarray, position: np.ndarray | None) -> None:
        """Add a block: which bodies are present (trajectory, time, body), and where (trajectory, time, body, space)."""
        self.complete &= bool(there.all())
        self._per_frame += np.bincount(there.sum(-1).ravel(), minlength=len(self._per_frame))
        self._per_track += np.bincount(there.sum(1).ravel(), minlength=len(self._per_track))
        self._entries += int((there.any(1) & ~there[:, 0]).sum())
        self._exits += int((there.any(1) & ~there[:, -1]).sum())
        came, stays = np.logical_or.accumulate(there, axis=1), np.logical_or.accumulate(there[:, ::-1], axis=1)[:, ::-1]
        self._add_gaps(came & stays & ~there)
        steps = there[:, 1:] & there[:, :-1]
        self._steps += int(steps.sum())
        if position is not None and steps.any():
            squared = (np.diff(position, axis=1)[steps].astype(np.float64) ** 2).sum(-1)
            self._squares += float(squared.sum())
            self._largest = max(self._largest, float(np.sqrt(squared.max())))

    def _add_gaps(self, hole: np.ndarray) -> None:
        length = np.zeros((len(hole), hole.shape[2]), dtype=np.int64)
        for frame in range(hole.shape[1]):
            self._gaps += int((hole[:, frame] & (length == 0)).sum())
            length = np.where(hole[:, frame], length + 1, 0)
            self._longest = max(self._longest, int(length.max(initial=0)))
        self._gap_frames += int(hole.sum())

    def summary(self) -> TrackSummary:
        tracks = self._per_track.copy()
        tracks[0] = 0  # places on the body axis that no body uses
        return TrackSummary(
            bodies_per_frame=_range(self._per_frame),
            track_frames=_range(tracks),
            tracks=int(tracks.sum()),
            entries=self._entries,
            exits=self._exits,
            gaps=self._gaps,
            gap_frames=self._gap_frames,
            longest_gap=self._longest,
            steps=self._steps,
            typical_step=float(np.sqrt(self._squares / max(self._steps, 1))),
            largest_step=self._largest,
        )


def _range(histogram: np.ndarray) -> tuple[int, int, int]:
    """Return minimum, median and maximum of the numbers that a histogram (number,) counts; zeros if it is empty."""
    found = np.flatnonzero(histogram)
    if not len(found):
        return 0, 0, 0
    median = int(np.searchsorted(np.cumsum(histogram), (histogram.sum() + 1) // 2))
    return int(found[0]), median, int(found[-1])
