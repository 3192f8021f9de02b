"""Import of label images: segmented and tracked cells, from zarr arrays or TIFF files."""

from __future__ import annotations

import collections
import math
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np

from epns_pyro.data.description import Split
from epns_pyro.data.files import reading
from epns_pyro.data.importers import track_splits
from epns_pyro.data.importers.cell_types import Types, read_types, table_of_types
from epns_pyro.data.importers.label_names import names_of, numbered
from epns_pyro.data.importers.lineage import Lineage, find_lineage
from epns_pyro.data.importers.movies import Movie, View, find_movies, is_zarr, open_node
from epns_pyro.data.importers.track_splits import Stretch
from epns_pyro.data.inspection.labels import EmptyFrames
from epns_pyro.data.stores import Store, open_store
from epns_pyro.data.writing import Identity, Progress, StoreWriter, new_directory
from epns_pyro.errors import DataError
from epns_pyro.later import later
from epns_pyro.lineage import AGES, has_lineage
from epns_pyro.state import StateSpec
from epns_pyro.systems import RecordedCellsConfig, System
from epns_pyro.systems.lattice import MOST_LABELS

if TYPE_CHECKING:
    import zarr
else:
    zarr = later("zarr")

NOTES = "import_notes"  # attribute of a store: what was cut and left out, in sentences
FEWEST_FRAMES = 4  # of a trajectory that nobody asked for
SIMULATED_AREA, LARGE_IMAGE = 64, 256**2  # pixels: of a cell in the simulated systems; of images that take long


def import_labels(
    path: str | Path,
    out: str | Path,
    *,
    types: str | Path | None = None,
    frame_dt: float = 1.0,
    time_unit: str = "",
    periodic: bool = False,
    segment: int | None = None,
    crop: tuple[tuple[int, int], tuple[int, int]] | None = None,
    downscale: int = 1,
    stack_is_time: bool = False,
    split: Split | None = None,
    progress: Progress | None = None,
) -> Store:
    """Import films of label images into a store; label 0 is the medium.

    The labels of every trajectory are numbered from 1 without gaps, in their order. Every film is read once.

    Parameters
    ----------
    path : str or Path
        A zarr array, or a zarr group with an array `cell`, (time, y, x) or (movie, time, y, x); a TIFF stack; a folder of TIFF stacks,
        one per film; or a folder of single TIFF images, the frames of one film. Files are taken in natural order. A table of tracks of
        the Cell Tracking Challenge beside the images (man_track.txt or res_track.txt) must agree with them. If a cell divides into two
        within a trajectory, states hold mothers and ages (see `epns_pyro.lineage`), and as many labels are reserved as occur.
    out : str or Path
        Must not exist; it appears after everything has been imported, or not at all.
    types : str or Path, optional
        CSV file with the columns label and type, and movie (name without suffix, or number) where there are several; or a .npy array
        (cell,) or (movie, cell) whose entry l - 1 is the type of label l. An array `cell_type` next to `cell` is used automatically. By
        default all cells are of type 1.
    frame_dt : float
        Time between two frames, in `time_unit`.
    periodic : bool
        Whether the image is periodic: opposite edges meet.
    segment : int, optional
        Cut every film into trajectories of this many frames; remaining frames are dropped. By default as `import_tracks` does it.
    crop, downscale : optional
        Part and resolution of the images, see `View`: ((first row, one past the last), (first column, one past the last)), and the integer
        factor of the downscaling.
    stack_is_time : bool
        Read every image of a TIFF stack as a frame, even if the file declares another axis (z slices, channels).
    split : Split, optional
        Fractions of the sets. Films that are cut are divided along time, with a trajectory left out between two sets; 20 films or more,
        and films that are whole, belong to one set each.

    Raises
    ------
    DataError
        If a file is damaged or a volume; or if a film has no labels, a frame without cells, another size than the others, or a cell without
        a type.
    """
    if periodic and crop:
        raise DataError("a crop of a periodic image is not periodic: leave out crop, or periodic")
    movies = find_movies(Path(path), stack_is_time=stack_is_time)
    lineage = find_lineage(Path(path)) if len(movies) == 1 else None
    types_of = read_types(Path(types)) if types else _neighbouring_types(Path(path))
    with new_directory(out) as temporary, tempfile.TemporaryFile(dir=Path(out).parent) as file:
        segments, sharing = _Segments(file), _Sharing(len(movies), segment, split)
        for number, movie in enumerate(movies):
            frames = movie.labels(View(crop, downscale))
            for start, cut in _cut(movie, frames, types_of, sharing.segment(len(frames)), lineage):
                segments.append(cut)
                sharing.stretches.append(Stretch(number, start, start + len(cut.labels)))
            if progress:
                progress("reading films", number + 1, len(movies))
        _write(segments, sharing, temporary, segments.system(periodic, frame_dt, time_unit), progress)
    return open_store(out)


def label_hints(store: Store) -> list[str]:
    """Say what an import of label images cut and left out, and which options make them fit for training: `segment` and `downscale`."""
    notes = zarr.open_group(store.path, mode="r", use_consolidated=False).attrs.get(NOTES, [])
    config, hints = store.system.config, list(cast("list[str]", notes))
    if "val" not in store.splits or "test" not in store.splits:
        hints.append("too few frames to validate and test a model: import longer films, or more of them")
    largest = config.area[1] if isinstance(config, RecordedCellsConfig) and config.area else 0
    factor = math.isqrt(largest // SIMULATED_AREA)
    if factor > 1 and math.prod(store.sites("train")) > LARGE_IMAGE:
        hints.append(
            f"the largest cell has {largest} pixels: with --downscale {factor} it has {largest // factor**2}, as in simulated tissues, "
            f"and a forecast takes {factor**2} times less work"
        )
    return hints


class _Sharing:
    """How films are cut along time, and which set every piece belongs to."""

    def __init__(self, films: int, segment: int | None, split: Split | None) -> None:
        self._films, self._split, self._length = films, split, segment
        self.stretches: list[Stretch] = []  # of all trajectories
        self.notes: list[str] = []

    def segment(self, frames: int) -> int:
        """Return the frames of a trajectory of a film with so many frames."""
        if self._length is None and self._films < track_splits.MANY and (self._shares(0).val or self._shares(0).test):
            lengths = [frames] * self._films

            def kept(segment: int) -> float:
                return track_splits.kept_for_training(frames, segment, segment, self._shares(sum(lengths) // segment))

            self._length = track_splits.default_segment(lengths, FEWEST_FRAMES, kept)
            if self._length:
                cut = f"cut into trajectories of {self._length} frames, so that every set has some"
                self.notes.append(f"{cut}: --segment N cuts others")
        length = self._length or frames
        if left_over := frames % length:
            self.notes.append(f"dropped {left_over} frame{'s' * (left_over > 1)} at the end of a film, less than a trajectory of {length}")
        return length

    def homes(self) -> list[str]:
        """Return the set of every trajectory; `MARGIN` for those that are left out."""
        count = len(self.stretches)
        shares = self._shares(count)
        if self._films >= track_splits.MANY or count == self._films:
            home = {row: name for name, rows in shares.rows(self._films).items() for row in rows.tolist()}
            return [home[stretch.recording] for stretch in self.stretches]
        margin = self._length or 0
        names = [str(film) for film in range(self._films)]
        found = track_splits.assign(self.stretches, names, how=track_splits.BY_TIME, margin=margin, tests=(), shares=shares)
        if lost := found.count(track_splits.MARGIN):
            what = "trajectory" if lost == 1 else "trajectories"
            self.notes.append(f"dropped {lost} {what} closer than {margin} frames to another set")
        return found

    def _shares(self, trajectories: int) -> Split:
        return self._split or track_splits.default_shares(trajectories)


def _write(segments: _Segments, sharing: _Sharing, temporary: Path, system: System, progress: Progress | None) -> None:
    home = sharing.homes()
    writer = StoreWriter(temporary, Identity.of(system))
    sizes = collections.Counter(name for name in home if name != track_splits.MARGIN)
    outputs = {name: writer.split(name, size, segments.frames, segments.lattice) for name, size in sorted(sizes.items())}
    waiting: dict[str, list[np.ndarray]] = {name: [] for name in outputs}
    for number, name in enumerate(home):
        if name in waiting:
            waiting[name].append(segments.state(number, system.spec))
            if len(waiting[name]) == outputs[name].chunk or outputs[name].complete + len(waiting[name]) == outputs[name].trajectories:
                outputs[name].append(np.stack(waiting[name]))
                waiting[name].clear()
        if progress:
            progress("writing trajectories", number + 1, segments.count)
    writer.annotate({NOTES: sharing.notes})
    writer.finish()


@dataclass(frozen=True)
class _Segment:
    """One trajectory: labels (time, y, x) uint16 without gaps; of every label (cell,) the type, and the mother and first frame if known."""

    movie: Movie
    labels: np.ndarray
    types: np.ndarray
    mothers: np.ndarray
    born: np.ndarray

    @property
    def divides(self) -> bool:
        """Whether a cell is replaced by two daughters from one frame to the next."""
        there = self.areas > 0
        first, last = there.argmax(0), len(there) - there[::-1].argmax(0)
        found = collections.Counter(m for i, m in enumerate(self.mothers.tolist()) if m and 0 < first[i] == last[m - 1])
        return 2 in found.values()

    @property
    def areas(self) -> np.ndarray:
        """Areas of all cells in all frames, pixels: (time, cell); 0 where a cell is absent."""
        count = len(self.types) + 1
        return np.stack([np.bincount(image.ravel(), minlength=count) for image in self.labels])[:, 1:]


def _cut(movie: Movie, frames: np.ndarray, types_of: Types | None, length: int, lineage: Lineage | None) -> Iterator[tuple[int, _Segment]]:
    """Cut the frames (time, y, x) of a film into trajectories; yield each with the number of its first frame."""
    if lineage is not None:
        lineage.check(frames)
    _refuse_empty(movie, frames[: len(frames) // length * length])
    for start in range(0, len(frames) - length + 1, length):
        part = frames[start : start + length]
        names = names_of(part)
        if len(names) >= MOST_LABELS:
            raise DataError(f"{movie.name}: holds {len(names)} labels, at most {MOST_LABELS - 1} fit: cut it (segment), or crop it")
        types = types_of(movie, names) if types_of else np.ones(len(names), dtype=np.int64)
        mothers, born = lineage.of(names, start) if lineage else (np.zeros(len(names), np.int64), np.zeros(len(names), np.int64))
        yield start, _Segment(movie, numbered(part, names), types, mothers, born)


def _refuse_empty(movie: Movie, frames: np.ndarray) -> None:
    """Refuse frames (time, y, x) without any cell; frames that remain after a film is cut may be empty."""
    empty = EmptyFrames(("frame",))
    empty.see(frames)
    if problem := empty.problem():
        raise DataError(f"{movie.name}: {problem}")


class _Segments:
    """The trajectories of all films, kept in a file, and their common properties."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._types: list[np.ndarray] = []
        self._origins: list[tuple[np.ndarray, np.ndarray]] = []
        self._divide = False
        self._first = ""
        self._shape: tuple[int, ...] = ()
        self._areas = (sys.maxsize, 0)

    def append(self, segment: _Segment) -> None:
        """Append a segment, which must have the shape of the others."""
        if not self._types:
            self._first, self._shape = segment.movie.name, segment.labels.shape
        if segment.labels.shape != self._shape:
            raise DataError(
                f"{segment.movie.name}: (time, y, x) is {segment.labels.shape}, that of {self._first} is {self._shape}: "
                "cut films of different length with segment; crop images of different size beforehand"
            )
        areas = segment.areas
        self._areas = min(self._areas[0], areas.min(initial=sys.maxsize)), max(self._areas[1], areas.max(initial=0))
        self._file.write(segment.labels.tobytes())
        self._types.append(segment.types)
        self._origins.append((segment.mothers, segment.born))
        self._divide |= segment.divides

    @property
    def count(self) -> int:
        return len(self._types)

    @property
    def frames(self) -> int:
        return self._shape[0]

    @property
    def lattice(self) -> tuple[int, ...]:
        return self._shape[1:]

    def system(self, periodic: bool, frame_dt: float, time_unit: str) -> System:
        """Return the system that holds all segments."""
        if not self._types:
            raise DataError("no film has as many frames as a segment: choose a smaller segment")
        if self.frames < 2:
            raise DataError(f"{self._first}: has {self.frames} frame: a step needs at least 2")
        cells, types = max(map(len, self._types)), max(int(t.max(initial=1)) for t in self._types)
        if self._divide:  # in forecasts, too
            cells = min(2 * cells, MOST_LABELS - 1)
        settings = {"lattice": self.lattice, "cells": cells, "types": types, "area": tuple(map(int, self._areas)), "lineage": self._divide}
        return RecordedCellsConfig.parse(settings | {"periodic": periodic, "frame_dt": frame_dt, "time_unit": time_unit}).build()

    def state(self, number: int, spec: StateSpec) -> np.ndarray:
        """Return the states (time, y, x, channel) of a segment."""
        size = 2 * int(np.prod(self._shape))
        self._file.seek(number * size)
        labels = np.frombuffer(self._file.read(size), np.uint16).reshape(self._shape)
        table = np.concatenate([[0], self._types[number]]).astype(np.int16)
        if not has_lineage(spec):
            return spec.pack(cell=labels.astype(np.int16), type=table[labels])
        mothers, born = (np.concatenate([[0], values]) for values in self._origins[number])
        ages = ((np.arange(len(labels))[:, None, None] - born[labels]).clip(0, AGES - 1) * (labels > 0)).astype(np.int16)
        return spec.pack(cell=labels.astype(np.int16), type=table[labels], mother=mothers.astype(np.int16)[labels], age=ages)


def _neighbouring_types(path: Path) -> Types | None:
    """Find the array `cell_type` beside `cell` in a zarr group."""
    if not (path.is_dir() and is_zarr(path)):
        return None
    node = open_node(path)
    with reading(f"{path}: the array 'cell_type' cannot be read"):
        if isinstance(node, zarr.Group) and "cell_type" in node:
            return table_of_types(np.asarray(node["cell_type"]), f"{path}/cell_type")
    return None
