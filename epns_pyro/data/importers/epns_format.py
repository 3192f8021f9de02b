"""Importing data in the layout of the published code: folders of .npy files, one per trajectory."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from itertools import islice
from pathlib import Path
from typing import ClassVar, final

import numpy as np

from epns_pyro.data.importers.label_names import names_of, numbered
from epns_pyro.data.importers.npy import load_npy
from epns_pyro.data.inspection.labels import EmptyFrames
from epns_pyro.data.stores import Store, open_store
from epns_pyro.data.writing import Identity, Progress, StoreWriter, new_directory
from epns_pyro.errors import DataError
from epns_pyro.state import StateSpec
from epns_pyro.systems import SYSTEMS, SetConfig, System
from epns_pyro.systems.lattice import MOST_LABELS

FOLDERS = {"train": "train", "val": "val", "test": "test", "same_init": "test_same_init", "long": "test_long_simulation"}
MOST_TYPES = 254
PUBLISHED_DT = 0.01  # time between two published frames of celestial data


def import_epns(
    directory: str | Path, out: str | Path, *, every: int | None = None, frame_dt: float | None = None, progress: Progress | None = None
) -> Store:
    """Import a folder with train/, val/, test/, test_same_init/ and test_long_simulation/ into a store.

    Celestial files are (bodies, 7, time) with channels mass, x, y, z, vx, vy, vz; cellular files (time, height, width, 2) with
    channels cell and type. The first training file decides which of the two it is. Folders other than train/ may be missing. Labels with
    gaps are numbered from 1, file by file.

    Parameters
    ----------
    directory, out : str or Path
        `out` must not exist; it appears after everything has been imported, or not at all.
    every : int, optional
        Keep every N-th frame: by default 10 for celestial, 1 for cellular data.
    frame_dt : float, optional
        Time between two frames that are kept; 0.01 x `every` for celestial data, that of the system for cellular data.
    progress : callable, optional
        Called as ``progress(set, done, total)``.

    Raises
    ------
    DataError
        Names the file, if one has a wrong layout or another shape than the others of its folder.
    """
    files = _find(Path(directory))
    layout = _recognise(files["train"][0], every)
    with new_directory(out) as temporary:
        shapes = {name: layout.survey(paths) for name, paths in files.items()}
        writer = StoreWriter(temporary, Identity.of(layout.system(files, shapes, frame_dt)))
        for name, paths in files.items():
            frames, *sites = shapes[name]
            output = writer.split(name, len(paths), frames, tuple(sites))
            states = (layout.read(path, writer.identity.spec) for path in paths)
            while block := list(islice(states, output.chunk)):
                output.append(np.stack(block))
                if progress:
                    progress(name, output.complete, len(paths))
        writer.finish()
    return open_store(out)


def _find(directory: Path) -> dict[str, list[Path]]:
    if not directory.is_dir():
        raise DataError(f"{directory}: no such folder")
    if not (directory / "train").is_dir():
        raise DataError(f"{directory}: has no folder train/: expected {', '.join(f'{f}/' for f in FOLDERS.values())} with .npy files")
    found = {name: sorted((directory / folder).glob("*.npy"), key=natural) for name, folder in FOLDERS.items()}
    for name, folder in FOLDERS.items():
        if (directory / folder).is_dir() and not found[name]:
            raise DataError(f"{directory / folder}: holds no .npy files")
    return {name: paths for name, paths in found.items() if paths}


def natural(path: Path) -> list[tuple[int, str]]:
    """Sort key that puts run_2 before run_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _recognise(path: Path, every: int | None) -> Layout:
    shape = load_npy(path).shape
    for layout in (Celestial, Cellular):
        if layout.fits(shape):
            return layout(every or layout.default_every)
    raise DataError(f"{path}: expected celestial data ({Celestial.shape}) or cellular data ({Cellular.shape}), found {shape}")


class Layout(ABC):
    """Layout of a trajectory in one kind of published file."""

    shape: ClassVar[str]
    default_every: ClassVar[int]

    def __init__(self, every: int) -> None:
        self.every = every

    @staticmethod
    @abstractmethod
    def fits(shape: tuple[int, ...]) -> bool:
        """Return whether an array has this layout."""

    @abstractmethod
    def frames(self, array: np.ndarray) -> np.ndarray:
        """Return the frames that are kept: (time, *site, channel)."""

    @abstractmethod
    def read(self, path: Path, spec: StateSpec) -> np.ndarray:
        """Return the states (time, *site, channel) in a file that passed `survey`."""

    @abstractmethod
    def system(self, files: dict[str, list[Path]], shapes: dict[str, tuple[int, ...]], frame_dt: float | None) -> System:
        """Return the system that the files describe."""

    @abstractmethod
    def check(self, path: Path, frames: np.ndarray) -> None:
        """Raise DataError if the values are impossible."""

    def survey(self, paths: list[Path]) -> tuple[int, ...]:
        """Check every file of a set; return the shape (time, *site) that they share."""
        expected: tuple[int, ...] = ()
        for path in paths:
            array = load_npy(path)
            if not self.fits(array.shape):
                raise DataError(f"{path}: expected {self.shape}, found {array.shape}")
            frames = self.frames(array)
            expected = expected or frames.shape
            if frames.shape != expected:
                raise DataError(f"{path}: has {_in_words(frames.shape)}, the files before it in {path.parent.name}/ {_in_words(expected)}")
            if len(frames) < 2:
                raise DataError(f"{path}: every = {self.every} keeps {len(frames)} frame: expected at least 2, choose a smaller one")
            if frames.dtype.kind not in "fiu" or not np.isfinite(frames).all():
                raise DataError(f"{path}: holds values that are not finite numbers")
            self.check(path, frames)
        return expected[:-1]


def _in_words(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} frames of {' x '.join(map(str, shape[1:-1]))} sites"


@final
class Celestial(Layout):
    """(bodies, 7, time): mass, position, velocity."""

    shape = "(bodies, 7, time)"
    channels: ClassVar[dict[str, int | slice]] = {"mass": 0, "position": slice(1, 4), "velocity": slice(4, 7)}  # the files have no names
    default_every = 10

    @staticmethod
    def fits(shape: tuple[int, ...]) -> bool:
        return len(shape) == 3 and shape[1] == 7

    def frames(self, array: np.ndarray) -> np.ndarray:
        return np.moveaxis(array[..., :: self.every], -1, 0)

    def check(self, path: Path, frames: np.ndarray) -> None:
        mass = frames[..., self.channels["mass"]]
        if not (mass == mass[0]).all():
            raise DataError(f"{path}: the mass (channel 0) changes in time: are its channels mass, x, y, z, vx, vy, vz?")
        if not (mass > 0).all():
            raise DataError(f"{path}: has a mass (channel 0) of {mass.min():g}: expected positive masses")

    def read(self, path: Path, spec: StateSpec) -> np.ndarray:
        x = self.frames(load_npy(path)).astype(np.float64)
        return spec.pack(**{name: x[..., channels] for name, channels in self.channels.items()})

    def system(self, files: dict[str, list[Path]], shapes: dict[str, tuple[int, ...]], frame_dt: float | None) -> System:
        bodies = {name: shape[1] for name, shape in shapes.items()}
        for name, number in bodies.items():
            if number != bodies["train"]:
                raise DataError(f"{files[name][0]}: has {number} bodies, those in train/ {bodies['train']}")
        settings = {"bodies": bodies["train"], "frame_dt": frame_dt or PUBLISHED_DT * self.every}
        return SYSTEMS["nbody"]().override(settings | {"sets": _sets(self, files, shapes)}).build()


@final
class Cellular(Layout):
    """(time, height, width, 2): label and type of the cell at every pixel."""

    shape = "(time, height, width, 2)"
    default_every = 1

    def __init__(self, every: int) -> None:
        super().__init__(every)
        self._names = np.empty(0, np.int64)  # all labels in all files
        self._cells = self._types = 0  # largest number of cells in a file, largest type

    @staticmethod
    def fits(shape: tuple[int, ...]) -> bool:
        return len(shape) == 4 and shape[3] == 2

    def frames(self, array: np.ndarray) -> np.ndarray:
        return array[:: self.every]

    def check(self, path: Path, frames: np.ndarray) -> None:
        if not (frames == np.round(frames)).all() or frames.min() < 0 or frames.max() >= 2**53:
            raise DataError(f"{path}: holds labels or types that are negative or not whole numbers below 2**53")
        labels, types = np.moveaxis(frames.astype(np.int64), -1, 0)
        empty = EmptyFrames(("frame",))
        empty.see(labels)
        if problem := empty.problem():
            raise DataError(f"{path}: of the frames kept, {problem}")
        if types.max() > MOST_TYPES:
            raise DataError(f"{path}: type {types.max()} is larger than {MOST_TYPES}, the limit: are its channels cell and type?")
        names = names_of(labels)
        if len(names) >= MOST_LABELS:
            raise DataError(f"{path}: holds {len(names)} labels, at most {MOST_LABELS - 1} fit: are its channels cell and type?")
        labels = numbered(labels, names)
        table = np.zeros(len(names) + 1, dtype=np.int64)
        table[labels] = types
        if table[0] or not np.array_equal(table[labels], types):
            raise DataError(f"{path}: a cell has two types, or the medium (label 0) has one: are its channels cell and type?")
        if len(untyped := np.flatnonzero(table[1:] == 0)):
            raise DataError(f"{path}: cell {names[untyped[0]]} has type 0, which is that of the medium")
        self._names = np.union1d(self._names, names)
        self._cells, self._types = max(self._cells, len(names)), max(self._types, int(types.max()))

    @property
    def _holes(self) -> bool:
        """Return whether the labels of all files are other than 1 .. n: those of every file are then numbered from 1, in their order."""
        return len(self._names) != self._names.max()

    def read(self, path: Path, spec: StateSpec) -> np.ndarray:
        labels, types = np.moveaxis(self.frames(load_npy(path)).astype(np.int64), -1, 0)
        labels = numbered(labels, names_of(labels)) if self._holes else labels
        return spec.pack(cell=labels.astype(np.int32), type=types.astype(np.int32))

    def system(self, files: dict[str, list[Path]], shapes: dict[str, tuple[int, ...]], frame_dt: float | None) -> System:
        lattice = shapes["train"][1:]
        for name, shape in shapes.items():
            if shape[1:] != lattice:
                raise DataError(f"{files[name][0]}: has images of {shape[1:]} pixels, those in train/ {lattice}")
        cells = self._cells if self._holes else len(self._names)
        rows = min(max(math.isqrt(cells), -(-cells // lattice[1])), lattice[0])
        blocks = (rows, -(-cells // rows))
        default = SYSTEMS["cells"]()
        settings = {
            "lattice": lattice,
            "blocks": blocks,
            "block_size": min(default.block_size, *(side // count for side, count in zip(lattice, blocks, strict=True))),
            "types": self._types,
            "frame_mcs": round(frame_dt) if frame_dt else default.frame_mcs * self.every,
        }
        return default.override(settings | {"sets": _sets(self, files, shapes)}).build()


def _sets(layout: Layout, files: dict[str, list[Path]], shapes: dict[str, tuple[int, ...]]) -> dict[str, SetConfig]:
    return {
        name: SetConfig(trajectories=len(paths), steps=shapes[name][0] - 1, initial_states=_initial_states(layout, paths))
        for name, paths in files.items()
    }


def _initial_states(layout: Layout, paths: list[Path]) -> int | None:
    """Return the number of initial states if the files divide evenly into consecutive runs of each; None otherwise."""
    first = np.stack([layout.frames(load_npy(path))[0] for path in paths])
    new = [i for i in range(1, len(paths)) if not np.array_equal(first[i], first[i - 1])]
    runs = np.diff([0, *new, len(paths)])
    return len(runs) if len(runs) < len(paths) and (runs == runs[0]).all() else None
