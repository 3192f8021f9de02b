"""Finding films of label images in the files of a user, and the types of the cells in them."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
import zarr

from epns_pyro.data.importers.epns_format import natural
from epns_pyro.errors import DataError, nearest

SUFFIXES = (".tif", ".tiff")


@dataclass(frozen=True)
class Movie:
    """One film of label images."""

    name: str
    number: int
    read: Callable[[], np.ndarray]

    def labels(self) -> np.ndarray:
        """Read the labels (time, y, x): integers, none negative."""
        frames = self.read()
        if frames.ndim != 3:
            raise DataError(f"{self.name}: expected (time, y, x), found {frames.shape}")
        if frames.dtype.kind == "f" and np.array_equal(frames, np.round(frames)):
            frames = frames.astype(np.int64)  # whole numbers, saved as float by many segmentation tools
        if frames.dtype.kind not in "iu":
            raise DataError(f"{self.name}: a label is a whole number, found {frames.dtype}: is this the raw image, not its segmentation?")
        if not frames.size:
            raise DataError(f"{self.name}: holds no images: (time, y, x) is {frames.shape}")
        if frames.min() < 0:
            raise DataError(f"{self.name}: holds negative labels (down to {frames.min()}): use 0 for the medium and 1, 2, ... for cells")
        if not frames.any():
            raise DataError(f"{self.name}: holds no labels, all pixels are 0")
        return frames


Types = Callable[[Movie, np.ndarray], np.ndarray]  # (film, its labels (cell,)) -> types (cell,), 1 or more


def find_movies(path: Path) -> list[Movie]:
    """Return the films that a path holds, in natural order."""
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.is_dir() and is_zarr(path):
        return _zarr_movies(path)
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        return [Movie(path.name, 0, lambda: _tiff(path))]
    files = sorted((p for p in path.glob("*") if p.suffix.lower() in SUFFIXES), key=natural)
    if not files:
        raise DataError(f"{path}: expected a zarr array, a TIFF stack, or a folder of .tif files, found none of them")
    if all(_pages(file) == 1 for file in files):
        return [Movie(path.name, 0, lambda: np.concatenate([_tiff(file) for file in files]))]
    return [Movie(file.name, number, lambda file=file: _tiff(file)) for number, file in enumerate(files)]


def is_zarr(path: Path) -> bool:
    return any((path / name).is_file() for name in ("zarr.json", ".zarray", ".zgroup"))


def _zarr_movies(path: Path) -> list[Movie]:
    node = zarr.open(path, mode="r")
    if isinstance(node, zarr.Group):
        if "cell" not in node:
            raise DataError(f"{path}: has no array 'cell': {nearest('cell', node.array_keys())}")
        node = node["cell"]
    array = node
    if array.ndim == 3:
        return [Movie(path.name, 0, lambda: np.asarray(array[:]))]
    if array.ndim == 4:
        return [Movie(f"{path.name}[{i}]", i, lambda i=i: np.asarray(array[i])) for i in range(array.shape[0])]
    raise DataError(f"{path}: 'cell' must be (time, y, x) or (movie, time, y, x), found {array.shape}")


def _tiff(file: Path) -> np.ndarray:
    try:
        with tifffile.TiffFile(file) as tiff:
            series = tiff.series[0]
            if "S" in series.axes:
                raise DataError(f"{file}: is a colour image, expected labels")
            frames = series.asarray()
    except (tifffile.TiffFileError, OSError, IndexError) as error:
        raise DataError(f"{file}: cannot be read as TIFF: {error}") from None
    return frames[None] if frames.ndim == 2 else frames


def _pages(file: Path) -> int:
    try:
        with tifffile.TiffFile(file) as tiff:
            return len(tiff.pages)
    except (tifffile.TiffFileError, OSError) as error:
        raise DataError(f"{file}: cannot be read as TIFF: {error}") from None


# -- types -----------------------------------------------------------------------------------------------------------------


def read_types(path: Path) -> Types:
    """Read types from a CSV file (label, type and, for several films, movie) or a .npy array (cell,) or (movie, cell)."""
    if not path.is_file():
        raise DataError(f"{path}: no such file of types")
    if path.suffix == ".npy":
        try:
            return table_of_types(np.load(path, allow_pickle=False), str(path))
        except (ValueError, EOFError) as error:
            raise DataError(f"{path}: cannot be read as a .npy array: {error}") from None
    return _csv_types(path)


def table_of_types(table: np.ndarray, where: str) -> Types:
    """Look types up in an array (cell,) or (movie, cell): entry l - 1 belongs to label l."""
    if table.ndim not in (1, 2) or table.dtype.kind not in "iu":
        raise DataError(f"{where}: expected whole numbers (cell,) or (movie, cell), found {table.dtype} {table.shape}")

    def look_up(movie: Movie, labels: np.ndarray) -> np.ndarray:
        if table.ndim == 2 and movie.number >= len(table):
            raise DataError(f"{where}: has types for {len(table)} films, none for {movie.name}")
        row = table if table.ndim == 1 else table[movie.number]
        inside = labels[labels <= len(row)]
        types = np.zeros(len(labels), dtype=np.int64)
        types[: len(inside)] = row[inside.astype(np.int64) - 1]
        return _all_typed(movie, labels, types, where)

    return look_up


def _csv_types(path: Path) -> Types:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        for wanted in ("label", "type"):
            if wanted not in columns:
                raise DataError(f"{path}: has no column {wanted!r}: {nearest(wanted, columns)}")
        known: dict[tuple[str, int], int] = {}
        for row in reader:
            try:
                known[row.get("movie") or "", int(row["label"])] = int(row["type"])
            except (TypeError, ValueError):
                raise DataError(f"{path}, line {reader.line_num}: label and type must be whole numbers, found {row}") from None

    def look_up(movie: Movie, labels: np.ndarray) -> np.ndarray:
        keys = (movie.name, Path(movie.name).stem, str(movie.number), "")
        types = [next((known[key, label] for key in keys if (key, label) in known), 0) for label in labels.tolist()]
        return _all_typed(movie, labels, np.array(types, dtype=np.int64), str(path))

    return look_up


def _all_typed(movie: Movie, labels: np.ndarray, types: np.ndarray, where: str) -> np.ndarray:
    if len(missing := labels[types < 1]):
        raise DataError(f"{where}: no type of 1 or more for label {missing[0]} of {movie.name} ({len(missing)} such labels)")
    return types
