"""Import of tables of tracks: one row per detection, bodies that enter and leave."""

from __future__ import annotations

import functools
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from epns_pyro.data import layout
from epns_pyro.data.description import with_symmetry
from epns_pyro.data.importers import track_segments
from epns_pyro.data.importers.track_fields import Reader, natural_order, with_boxes
from epns_pyro.data.importers.track_layouts import find_files, open_tracks
from epns_pyro.data.importers.track_options import Options
from epns_pyro.data.importers.track_recording import LIKELIHOOD, Tracks
from epns_pyro.data.importers.track_report import ImportReport
from epns_pyro.data.importers.track_segments import FIRST_VALUE, Cut, Recording, Segment, read_segment
from epns_pyro.data.importers.track_sharing import Sharing
from epns_pyro.data.importers.track_singles import SingleCut
from epns_pyro.data.importers.track_splits import MARGIN, Stretch
from epns_pyro.data.importers.track_spool import Spool
from epns_pyro.data.stores import Store, open_store
from epns_pyro.data.writing import Identity, Progress, StoreWriter, new_directory
from epns_pyro.durations import are_uneven, with_duration
from epns_pyro.errors import ConfigError, DataError
from epns_pyro.state import StateSpec
from epns_pyro.systems import RecordedConfig

LARGEST_TRAJECTORY = 2**31  # bytes
BODY = "body"
MOST_SAID = 12  # classes of a category, by name


def import_tracks(
    paths: Sequence[str | Path],
    out: str | Path,
    options: Options | None = None,
    *,
    tests: Sequence[str | Path] = (),
    progress: Progress | None = None,
) -> Store:
    """Import tables of tracks into a store of particles; a body is absent (NaN) in frames without a row for it.

    Memory holds one chunk of a table (`track_tables.CHUNK_ROWS` rows), the rows of one segment, and the frame numbers and track names of
    all recordings; everything else is in temporary files next to `out`.

    Parameters
    ----------
    paths : sequence of str or Path
        Files or folders; every file is one recording.
    out : str or Path
        Must not exist; it appears after everything has been imported, or not at all.
    options : Options
    tests : sequence of str or Path
        Recordings of the test set, by path; they need not be among `paths`.
    progress : callable, optional
        Called as ``progress(what, done, total)``.

    Returns
    -------
    Store
        The report, `ImportReport.of(store.path)`, says what was dropped and why. Besides the fields, the sets have `body_id` (trajectory,
        body), -1 for an unused place, `recording` (trajectory) and `first_frame` (trajectory).

    Raises
    ------
    DataError
        If a table cannot be read, or no row of it can be used.
    ConfigError
        If the options do not fit the tables or each other.
    """
    options = options or Options()
    files, left_out = _files(paths, tests)
    tracks = [open_tracks(file, options.columns or None, options.time_column) for file in files]
    return import_recordings(tracks, out, _timed(options, tracks), tests=left_out, progress=progress)


def _timed(options: Options, tracks: Sequence[Tracks]) -> Options:
    """Take the time between frames from the files where they have one, and the user has given none."""
    if options.frame_dt or options.time_column:
        return options
    if len(known := {(t.frame_dt, t.time_unit) for t in tracks}) > 1:
        found = " and ".join(f"{dt:g} {unit}".strip() if dt else "unknown" for dt, unit in sorted(known, key=str))
        raise ConfigError(f"{tracks[0].path}: recordings have different times between frames ({found}): give --frame-dt, or import each")
    return replace(options, frame_dt=tracks[0].frame_dt, time_unit=options.time_unit or tracks[0].time_unit)


def import_recordings(
    tracks: Sequence[Tracks], out: str | Path, options: Options, *, tests: Sequence[int] = (), progress: Progress | None = None
) -> Store:
    """Import recordings that are open, as `import_tracks` does; `tests` are the numbers of those that are the test set."""
    with new_directory(out) as temporary, tempfile.TemporaryDirectory(dir=Path(out).parent, prefix=f".{Path(out).name}.") as folder:
        work = _Work(list(tracks), options, Path(folder), tests)
        work.read(progress)
        work.cut()
        work.write(temporary, work.homes(), progress)
    return open_store(out)


def _files(paths: Sequence[str | Path], tests: Sequence[str | Path]) -> tuple[list[Path], list[int]]:
    """Return all files, and the numbers of those of the test set."""
    if not paths:
        raise ConfigError("no table of tracks is given")
    files = find_files([Path(path) for path in paths])
    held_out = find_files([Path(path) for path in tests]) if tests else []
    files += [path for path in held_out if path not in files]
    return files, [files.index(path) for path in held_out]


class _Work:
    """The steps of an import: read all tables to disk, cut the recordings, write the store."""

    def __init__(self, tracks: list[Tracks], options: Options, folder: Path, tests: Sequence[int]) -> None:
        self._tracks, self._options, self._folder, self._tests = tracks, options, folder, tests
        axes = {t.axes for t in tracks}
        if len(axes) > 1:
            raise DataError(
                f"{tracks[0].path} has the axes {','.join(tracks[0].axes)}, another recording has others: import them separately"
            )
        self._axes = tracks[0].axes
        self._boxes = options.boxes_of(tracks)
        self._quantities = options.quantities
        if flat := [v.name for v in self._quantities.vectors if len(v.columns) != len(self._axes)]:
            raise ConfigError(f"--vector {flat[0]}: positions have {len(self._axes)} axes, so it needs as many columns")
        if options.centre and len(options.centre) != len(self._axes):
            raise ConfigError(f"--centre: positions have {len(self._axes)} axes, found {len(options.centre)} numbers")
        known: dict[str, Any] = {
            "likelihood": options.likelihood,
            "scale": options.scale,
            "frame_dt": options.frame_dt,
            "centre": options.centre,
        }
        self._reader = Reader(self._quantities, **known, times=bool(options.time_column))
        self._dropped: Counter[str] = self._reader.dropped
        self._notes = [f"{one.path.name}: {one.note}" for one in tracks if one.note]
        if unused := options.unused():
            if not options.names_bodies:
                raise ConfigError(f"--columns: {unused[0]!r} has no meaning, and no column is the id of bodies: write id in its place")
            self._notes.append(f"the column {unused[0]!r} of --columns is not used: --field {unused[0]} makes it a field")

    # -- reading -----------------------------------------------------------------------------------------------------------

    def read(self, progress: Progress | None) -> None:
        """Read every table once, to disk."""
        width = FIRST_VALUE + len(self._axes) + sum(len(q.columns) for q in self._quantities.all)
        self._recordings, uncertain = [], False
        for number, source in enumerate(self._tracks):
            recording = Recording(source.name, source.path, Spool(self._folder / f"rows_{number}", width))
            for chunk in source.chunks():
                uncertain |= LIKELIHOOD in chunk
                recording.add(self._reader.read(source.path, chunk, self._axes, recording.tracks))
            recording.number_frames(self._folder / f"numbered_{number}", clocked=self._reader.clocked)
            self._recordings.append(recording)
            if not recording.in_order:
                self._notes.append(f"{source.path.name}: rows were not in order of the frames: sorted")
            if progress:
                progress("tables", number + 1, len(self._tracks))
        if not self._reader.rows:
            raise DataError(f"{self._tracks[0].path}: holds no rows: expected one per detection")
        for pairs in self._options.pairs:
            pairs.require([recording.tracks for recording in self._recordings])
        if uncertain and self._options.likelihood is None:
            self._notes.append("there is a column 'likelihood', and no detection was dropped for it: --likelihood 0.9 drops uncertain ones")

    # -- cutting -----------------------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """Cut the recordings into segments, and check every segment."""
        self._every = self._options.every or self._common_step()
        self._sharing = Sharing(self._options, self._recordings, self._tests, self._every)
        self._length = self._sharing.segment()
        self._cuts = [self._cut(recording, number) for number, recording in enumerate(self._recordings)]
        lengths = {cut.segment for cut in self._cuts if len(cut.frames)}
        if len(lengths) > 1:
            found = f"{min(lengths)} to {max(lengths)} frames"
            raise ConfigError(f"the recordings have different lengths ({found}): cut them into trajectories of one length, --segment N")
        self._segment = max(lengths, default=0)
        if not any(cut.stretches for cut in self._cuts):
            self._nothing_left()
        if self._segment < 2:
            raise DataError(f"{self._tracks[0].path}: has 1 frame: a step needs at least 2")
        self._groups = [cut.groups(self._folder / f"groups_{i}", self._dropped) for i, cut in enumerate(self._cuts)]
        self._bodies, self._rows, self._heights = 0, {}, set()
        self._usable: list[tuple[int, int]] = []
        for recording, number, segment in self._segments(self._dropped):
            if not segment.has_step:
                self._dropped[track_segments.NO_STEP] += len(segment.rows)
                continue
            self._usable.append((recording, number))
            self._rows[recording, number] = len(segment.rows)
            self._bodies = max(self._bodies, segment.bodies)
            if len(self._axes) > 2:
                heights = segment.rows[:, FIRST_VALUE + 2]
                self._heights |= {float(heights.min()), float(heights.max())}
                self._heights = {min(self._heights), max(self._heights)}
        if not self._usable:
            step = self._common_step()
            hint = f": frame numbers step by {step}, give --every {step}" if step > self._every else ""
            raise DataError(f"{self._tracks[0].path}: no body is present in two consecutive kept frames{hint}")

    def _cut(self, recording: Recording, number: int) -> Cut:
        how = (recording, number, self._every, self._length, self._dropped)
        return SingleCut(*how, self._options.in_a_row) if self._options.singles else Cut(*how)

    def _common_step(self) -> int:
        steps = [np.gcd.reduce(np.diff(recording.frames)) for recording in self._recordings if len(recording.frames) > 1]
        return int(np.gcd.reduce(steps)) if steps else 1

    def _nothing_left(self) -> None:
        longest = max((int(cut.frames[-1] - cut.frames[0]) + 1 for cut in self._cuts if len(cut.frames)), default=0)
        path = self._tracks[0].path
        if longest:
            raise DataError(f"{path}: no recording has as many frames as a segment, {self._segment}; the longest has {longest}")
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self._dropped.items() if count)
        hint = ": is the id in the right column?" if self._dropped[track_segments.ONE_ROW] else ""
        raise DataError(f"{path}: none of {self._reader.rows:,} rows can be used ({reasons}){hint}")

    def _segments(self, dropped: Counter[str]) -> Iterator[tuple[int, int, Segment]]:
        for recording, (cut, groups) in enumerate(zip(self._cuts, self._groups, strict=True)):
            for number in range(len(groups)):
                yield recording, number, read_segment(cut, groups, number, self._options.duplicates, dropped)

    # -- sharing out -------------------------------------------------------------------------------------------------------

    def _stretch(self, key: tuple[int, int]) -> Stretch:
        return self._cuts[key[0]].stretches[key[1]]

    def homes(self) -> dict[tuple[int, int], str]:
        """Return the set of every segment that belongs to one."""
        found = self._sharing.homes([self._stretch(key) for key in self._usable], self._segment)
        homes = dict(zip(self._usable, found, strict=True))
        if "train" not in homes.values():
            raise DataError(f"{self._tracks[0].path}: no segment is left for training: give longer recordings, or a shorter --segment")
        if lost := sum(self._rows[key] for key, name in homes.items() if name == MARGIN):
            margin = self._sharing.margin(self._segment)
            self._dropped[f"of segments closer than {margin} frames to another set"] += lost
        simulated = any(t.simulated for t in self._tracks)
        self._sharing.warn_of_few(found.count("test"), self._segment, simulated=simulated, bodies=self._bodies)
        self._notes += self._sharing.notes
        return {key: name for key, name in homes.items() if name != MARGIN}

    # -- writing -----------------------------------------------------------------------------------------------------------

    def _spec(self) -> StateSpec:
        """Return the specification of the states; a constant z of a known layout is no axis."""
        axes = len(self._axes)
        if axes == 3 and len(self._heights) == 1 and not any(t.declared for t in self._tracks) and not self._quantities.vectors:
            axes = 2
            self._notes.append(f"z is {next(iter(self._heights)):g} everywhere: space has 2 dimensions")
        unit = self._options.unit or next((t.unit for t in self._tracks if t.unit and self._options.scale == 1.0), "")
        sizes = {name: len(known) for name, known in self._reader.categories.items()}
        spec = self._quantities.spec(axes, unit, self._options.time_unit, sizes)
        spec = replace(spec, fields=(*spec.fields, *(pairs.field(self._bodies) for pairs in self._options.pairs)))
        spec = with_symmetry(with_boxes(spec, self._boxes), self._options.symmetry, self._options.axis)
        return with_duration(spec, self._frame_dt) if any(are_uneven(times) for times in self._clocks) else spec

    @property
    def _clocks(self) -> list[np.ndarray]:
        """Times of the kept frames of every recording that has times."""
        return [r.times[:: self._every] for r in self._recordings if r.times is not None]

    @property
    def _frame_dt(self) -> float:
        """Time between two kept frames: the typical one where they are uneven."""
        steps = [np.diff(times) for times in self._clocks if len(times) > 1]
        return float(np.median(np.concatenate(steps))) if steps else (self._options.frame_dt or 1.0) * self._every

    def write(self, path: Path, homes: dict[tuple[int, int], str], progress: Progress | None) -> None:
        """Write the segments of every set, with their origin and the report."""
        spec = self._spec()
        size = self._segment * self._bodies * spec.channels * 8
        if size > LARGEST_TRAJECTORY:
            needs = f"{self._segment} frames and {self._bodies} bodies takes {size / 2**30:.3g} GiB"
            raise ConfigError(f"a trajectory of {needs}: cut shorter ones, --segment N")
        frame_dt = self._frame_dt
        state = self._options.state(spec)
        config = RecordedConfig.parse({"spec": asdict(state), "frame_dt": frame_dt, "time_unit": self._options.time_unit})
        writer = StoreWriter(path, Identity.of(config.build()))
        counts = Counter(homes.values())
        outputs = {name: _Output(writer, name, counts[name], self._segment, self._bodies) for name in sorted(counts)}
        for done, (key, segment) in enumerate(self._chosen(homes)):
            recording = self._recordings[key[0]]
            pairs = {p.name: p.matrix(segment.tracks, recording.tracks, self._bodies) for p in self._options.pairs}
            x = segment.states(spec, self._quantities, len(self._axes), self._bodies, f"{recording.path}", pairs)
            if spec.box_field:
                x[..., spec.slice(spec.box_field.name)] = self._boxes[key[0]]
            if spec.duration:
                dt = self._cuts[key[0]].durations(self._stretch(key).start, frame_dt)
                x[..., spec.slice(spec.duration.name)] = dt[:, None, None]
            ids = np.full(self._bodies, -1, dtype=np.int64)
            ids[: segment.bodies] = self._ids(key[0])[segment.tracks]
            outputs[homes[key]].add(spec.wrap(self._recode(spec, x)), ids, key[0], self._cuts[key[0]].frame(self._stretch(key).start))
            if progress:
                progress("trajectories", done + 1, len(homes))
        for output in outputs.values():
            output.finish([recording.path.name for recording in self._recordings], self._names())
        writer.annotate(self._report(homes).attributes())
        writer.finish()

    def _chosen(self, homes: dict[tuple[int, int], str]) -> Iterator[tuple[tuple[int, int], Segment]]:
        for key in homes:
            cut, groups = self._cuts[key[0]], self._groups[key[0]]
            yield key, read_segment(cut, groups, key[1], self._options.duplicates, Counter())

    def _recode(self, spec: StateSpec, x: np.ndarray) -> np.ndarray:
        """Number the categories in states x by the order of their names, not of their appearance."""
        for name, known in self._reader.categories.items():
            order = {category: rank for rank, category in enumerate(natural_order(known))}
            ranks = np.array([order[category] for category in known])
            x[..., spec.slice(name)] = ranks[x[..., spec.slice(name)].astype(np.int64)]
        return x

    def _names(self) -> list[str] | None:
        """Return the names of all tracks of all recordings; None if all are integers, which are used as they are."""
        names = [name for recording in self._recordings for name in recording.tracks]
        return None if all(re.fullmatch(r"-?\d{1,18}", name) for name in names) else names

    @functools.cache  # noqa: B019 - this object lives as long as the import
    def _ids(self, recording: int) -> np.ndarray:
        """Return the id of every track of a recording: its name if all names are integers, otherwise its rank among all names."""
        tracks = self._recordings[recording].tracks
        if self._names() is None:
            return np.array([int(name) for name in tracks], dtype=np.int64)
        return np.arange(len(tracks)) + sum(len(r.tracks) for r in self._recordings[:recording])

    def _report(self, homes: dict[tuple[int, int], str]) -> ImportReport:
        notes = [f"category {name}: {_numbered(known)}" for name, known in self._reader.categories.items()]
        return ImportReport(
            recordings=[recording.path.name for recording in self._recordings],
            layouts=[tracks.layout for tracks in self._tracks],
            rows=self._reader.rows,
            tracks=sum(len(recording.tracks) for recording in self._recordings),
            frames=sum(len(cut.frames) for cut in self._cuts),
            every=self._every,
            kept=sum(self._rows[key] for key in homes),
            dropped={reason: count for reason, count in self._dropped.items() if count},
            sets=dict(Counter(homes.values())),
            segment=self._segment,
            bodies=self._bodies,
            notes=self._notes + notes,
        )


def _numbered(known: dict[str, int]) -> str:
    said = [f"{rank} is {name}" for rank, name in enumerate(natural_order(known))]
    return ", ".join(said if len(said) <= MOST_SAID else [*said[:2], "...", said[-1]])


class _Output:
    """Writes one set, a chunk of trajectories at a time, and keeps the origin of each."""

    def __init__(self, writer: StoreWriter, name: str, trajectories: int, frames: int, bodies: int) -> None:
        self._set = writer.split(name, trajectories, frames, (bodies,))
        self._waiting: list[np.ndarray] = []
        self._ids: list[np.ndarray] = []
        self._origins: list[tuple[int, int]] = []

    def add(self, x: np.ndarray, ids: np.ndarray, recording: int, frame: int) -> None:
        self._waiting.append(x)
        self._ids.append(ids)
        self._origins.append((recording, frame))
        if len(self._waiting) == self._set.chunk or self._set.complete + len(self._waiting) == self._set.trajectories:
            self._set.append(np.stack(self._waiting))
            self._waiting.clear()

    def finish(self, recordings: list[str], names: list[str] | None) -> None:
        recording, frame = np.array(self._origins, dtype=np.int64).T
        self._set.describe("body_id", np.stack(self._ids), (layout.TRAJECTORY, BODY), {"names": names} if names else {})
        self._set.describe("recording", recording, (layout.TRAJECTORY,), {"names": recordings})
        self._set.describe("first_frame", frame, (layout.TRAJECTORY,), {})
