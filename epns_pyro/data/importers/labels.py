"""Importing label images: segmented and tracked cells, from zarr arrays or TIFF stacks."""

from __future__ import annotations

import collections
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from epns_pyro.data.description import Split
from epns_pyro.data.importers.movies import Movie, Types, find_movies, is_zarr, read_types, table_of_types
from epns_pyro.data.inspection.labels import EmptyFrames, count_labels
from epns_pyro.data.stores import Store, open_store
from epns_pyro.data.writing import Identity, Progress, StoreWriter, new_directory
from epns_pyro.errors import DataError
from epns_pyro.state import StateSpec
from epns_pyro.systems import RecordedCellsConfig


def import_labels(
    path: str | Path,
    out: str | Path,
    *,
    types: str | Path | None = None,
    frame_dt: float = 1.0,
    time_unit: str = "",
    periodic: bool = False,
    segment: int | None = None,
    split: Split | None = None,
    progress: Progress | None = None,
) -> Store:
    """Import films of label images into a store; label 0 is the medium.

    The labels of every trajectory are numbered anew from 1, without holes and in their order.

    Parameters
    ----------
    path : str or Path
        A zarr array, or a zarr group with an array `cell`, (time, y, x) or (movie, time, y, x); a TIFF stack; a folder of TIFF stacks,
        one per film; or a folder of single TIFF images, the frames of one film. Files are taken in natural order.
    out : str or Path
        Must not exist; it appears when everything has been imported, or not at all.
    types : str or Path, optional
        CSV file with the columns label and type, and movie (name without suffix, or number) where there are several; or a .npy array
        (cell,) or (movie, cell) whose entry l - 1 is the type of label l. An array `cell_type` beside `cell` is found by itself. By
        default all cells are of type 1.
    frame_dt : float
        Time between two frames, in `time_unit`.
    periodic : bool
        Whether the image wraps around at its edges.
    segment : int, optional
        Cut every film into trajectories of this many frames; what is left over is dropped.
    split : Split, optional
        Shares of the sets.

    Raises
    ------
    DataError
        If a film does not hold labels, has a frame without any cell, differs in size from the others, or a cell has no type.
    """
    movies = find_movies(Path(path))
    types_of = read_types(Path(types)) if types else _neighbouring_types(Path(path))
    survey = _survey(_pieces(movies, types_of, segment))
    home = {row: name for name, rows in (split or Split()).rows(survey.count).items() for row in rows.tolist()}
    system = RecordedCellsConfig.parse(survey.settings | {"periodic": periodic, "frame_dt": frame_dt, "time_unit": time_unit}).build()
    with new_directory(out) as temporary:
        writer = StoreWriter(temporary, Identity.of(system))
        sizes = collections.Counter(home.values())
        outputs = {name: writer.split(name, size, survey.frames, system.config.lattice) for name, size in sorted(sizes.items())}
        waiting: dict[str, list[np.ndarray]] = {name: [] for name in outputs}
        for number, piece in enumerate(_pieces(movies, types_of, segment)):
            name = home[number]
            waiting[name].append(piece.state(system.spec))
            if len(waiting[name]) == outputs[name].chunk or outputs[name].complete + len(waiting[name]) == outputs[name].trajectories:
                outputs[name].append(np.stack(waiting[name]))
                waiting[name].clear()
            if progress:
                progress("films", number + 1, survey.count)
        writer.finish()
    return open_store(out)


@dataclass(frozen=True)
class _Piece:
    """One trajectory: labels (time, y, x) without holes, and the type of every label (cell,)."""

    movie: Movie
    labels: np.ndarray
    types: np.ndarray

    @property
    def areas(self) -> np.ndarray:
        """Areas of all cells in all frames, pixels: (time, cell); 0 where a cell has not come or has gone."""
        flat = self.labels.reshape(1, len(self.labels), -1)
        return count_labels(flat, flat > 0, len(self.types) + 1)[0, :, 1:]

    def state(self, spec: StateSpec) -> np.ndarray:
        table = np.concatenate([[0], self.types]).astype(np.int64)
        return spec.pack(cell=self.labels, type=table[self.labels])


def _pieces(movies: list[Movie], types_of: Types | None, segment: int | None) -> Iterator[_Piece]:
    for movie in movies:
        frames = movie.labels()
        length = segment or len(frames)
        _refuse_empty(movie, frames[: len(frames) // length * length])
        for start in range(0, len(frames) - length + 1, length):
            names, labels = np.unique(frames[start : start + length], return_inverse=True)
            if names[0] != 0:  # no medium anywhere
                names, labels = np.concatenate([[0], names]), labels + 1
            names = names[1:]
            types = types_of(movie, names) if types_of else np.ones(len(names), dtype=np.int64)
            yield _Piece(movie, labels.reshape(length, *frames.shape[1:]), types)


def _refuse_empty(movie: Movie, frames: np.ndarray) -> None:
    """Refuse frames (time, y, x) without any cell; those that are left over when a film is cut may be empty."""
    empty = EmptyFrames(("frame",))
    empty.see(frames)
    if problem := empty.problem():
        raise DataError(f"{movie.name}: {problem}")


@dataclass(frozen=True)
class _Survey:
    """What all pieces have in common: how many there are, how many frames each has, and settings of the system that holds them."""

    count: int
    frames: int
    settings: dict[str, Any]


def _survey(pieces: Iterator[_Piece]) -> _Survey:
    cells, types, count, areas = 0, 1, 0, (sys.maxsize, 0)
    first: _Piece | None = None
    for piece in pieces:
        first = first or piece
        if piece.labels.shape != first.labels.shape:
            raise DataError(
                f"{piece.movie.name}: (time, y, x) is {piece.labels.shape}, that of {first.movie.name} is {first.labels.shape}: "
                "cut films of different length with segment, images of different size beforehand"
            )
        cells, types, count = max(cells, len(piece.types)), max(types, int(piece.types.max(initial=0))), count + 1
        areas = min(areas[0], piece.areas.min(initial=sys.maxsize)), max(areas[1], piece.areas.max(initial=0))
    if first is None:
        raise DataError("no film has as many frames as a segment: choose a smaller one")
    frames, *lattice = first.labels.shape
    if frames < 2:
        raise DataError(f"{first.movie.name}: has {frames} frame: a step needs at least 2")
    return _Survey(count, frames, {"lattice": lattice, "cells": cells, "types": types, "area": tuple(map(int, areas))})


def _neighbouring_types(path: Path) -> Types | None:
    """Find the array `cell_type` beside `cell` in a zarr group."""
    if not (path.is_dir() and is_zarr(path)):
        return None
    node = zarr.open(path, mode="r")
    if isinstance(node, zarr.Group) and "cell_type" in node:
        return table_of_types(np.asarray(node["cell_type"]), f"{path}/cell_type")
    return None
