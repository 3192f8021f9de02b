"""Finding files of tracks and recognising the program that wrote them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from epns_pyro.data.files import ARRAYS, TABLES
from epns_pyro.data.importers.epns_format import natural
from epns_pyro.data.importers.track_boxes import BoxTracks, is_boxes
from epns_pyro.data.importers.track_frames import ArrayTracks, DeepLabCut, WideTracks, is_wide
from epns_pyro.data.importers.track_recording import Tracks
from epns_pyro.data.importers.track_rows import ParquetTracks, TextTracks, assign, timed
from epns_pyro.data.importers.track_tables import look, parquet_file
from epns_pyro.errors import ConfigError, DataError

WAY_OUT = {
    ".h5": "export the tracks as CSV",
    ".hdf5": "export the tracks as CSV",
    ".xml": "in TrackMate, export the spots as CSV",
    ".xlsx": "save the sheet as CSV",
    ".xls": "save the sheet as CSV",
    ".pkl": "a pickle can run code when it is read: save the table as CSV",
    ".pickle": "a pickle can run code when it is read: save the table as CSV",
    ".mat": "save the table as CSV",
    ".gz": "unpack it first",
    ".zip": "unpack it first",
}


def find_files(paths: Sequence[Path]) -> list[Path]:
    """Return the files of tracks in the given paths, those of a folder in natural order."""
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
        inside = sorted((p for p in path.iterdir() if p.suffix.lower() in TABLES), key=natural) if path.is_dir() else [path]
        if not inside:
            raise DataError(f"{path}: holds no tables: expected files that end in {', '.join(TABLES)}")
        if twice := next((both for both in itertools.combinations(inside, 2) if both[0].stem == both[1].stem), None):
            raise DataError(f"{path}: {twice[0].name} and {twice[1].name} seem to be one recording: give the file that is to be read")
        found += inside
    if repeated := [path for i, path in enumerate(found) if path in found[:i]]:
        raise ConfigError(f"{repeated[0]}: is given twice")
    return found


def open_tracks(path: Path, columns: str | None = None, time_column: str = "") -> Tracks:
    """Look at a file and return its tracks.

    Parameters
    ----------
    path : Path
    columns : str, optional
        What the columns are, as `Columns` reads it; by default the header must be a known one.
    time_column : str
        The column with the times of frames, which then have no numbers.

    Raises
    ------
    DataError
        If the file is not a table of tracks.
    """
    suffix = path.suffix.lower()
    if suffix in WAY_OUT:
        raise DataError(f"{path}: {suffix} files are not read: {WAY_OUT[suffix]}")
    if time_column and suffix in ARRAYS:
        raise ConfigError(f"{path}: an array (frame, animal, axis) has no column of times: leave out --time-column")
    if suffix in ARRAYS:
        return ArrayTracks(path)
    if suffix == ".parquet":
        names = tuple(parquet_file(path).schema_arrow.names)
        found = assign(path, names, True, columns)
        return ParquetTracks(path, timed(path, found, time_column) if time_column else found, bool(columns))
    table = look(path)
    if time_column:
        return TextTracks(table, timed(path, assign(path, table.names, table.has_header, columns), time_column), bool(columns))
    if columns is None and table.head[0][0].lower() == "scorer":
        return DeepLabCut(table)
    if columns is None and table.has_header and is_wide(table.names):
        return WideTracks(table)
    if columns is None and is_boxes(table):
        return BoxTracks(table)
    return TextTracks(table, assign(path, table.names, table.has_header, columns), bool(columns))
