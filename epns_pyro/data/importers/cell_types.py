"""Reading the types of cells from tables as spreadsheets write them, and from arrays."""

from __future__ import annotations

import codecs
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from epns_pyro.data.importers.epns_format import MOST_TYPES
from epns_pyro.data.importers.movies import Movie
from epns_pyro.data.importers.npy import load_npy
from epns_pyro.errors import DataError, nearest
from epns_pyro.later import later

if TYPE_CHECKING:
    import pandas as pd
else:
    pd = later("pandas")

Types = Callable[[Movie, np.ndarray], np.ndarray]  # (film, its labels (cell,)) -> types (cell,), 1 or more

MOST_BYTES = 2**26  # of a table: 64 MiB are millions of lines
_SEPARATORS = (",", ";", "\t", "|")
_WHOLE = r"\s*\+?\d{1,18}(?:\.0*)?\s*"  # 18 digits fit into 64 bits


def read_types(path: Path) -> Types:
    """Read types from a CSV file (label, type and, for several films, movie) or a .npy array (cell,) or (movie, cell).

    A CSV file may be separated by commas, semicolons or tabs, and encoded in UTF-8, UTF-16 or Windows-1252, as spreadsheets write them.

    Raises
    ------
    DataError
        If there is no such file, or if it is not a table of types.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file of types")
    return table_of_types(load_npy(path), str(path)) if path.suffix == ".npy" else _csv_types(path)


def table_of_types(table: np.ndarray, where: str) -> Types:
    """Return a lookup of types in an array (cell,) or (movie, cell): entry l - 1 belongs to label l."""
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
    table = _table(path)
    numbers = {name: _whole_numbers(path, table, name) for name in ("label", "type")}
    movies = table["movie"].str.strip() if "movie" in table else pd.Series("", index=table.index)
    keys = pd.MultiIndex.from_arrays([movies, numbers["label"]])
    known = pd.Series(numbers["type"].to_numpy(), index=keys)
    if len(contradicted := known[known.groupby(level=[0, 1]).transform("nunique") > 1]):
        raise DataError(f"{path}: label {contradicted.index[0][1]} has several types: expected one line per label (and movie)")
    types_of = known.to_dict()

    def look_up(movie: Movie, labels: np.ndarray) -> np.ndarray:
        names = (movie.name, Path(movie.name).stem, str(movie.number), "")
        types = [next((types_of[name, label] for name in names if (name, label) in types_of), 0) for label in labels.tolist()]
        return _all_typed(movie, labels, np.array(types, dtype=np.int64), str(path))

    return look_up


def _table(path: Path) -> pd.DataFrame:
    """Read a CSV file as text, with the columns label, type and optionally movie; the index is the line of the file."""
    text = _text(path)
    head, _, rest = text.partition("\n")
    hint = head.strip().lower().removeprefix("sep=") if head.lower().startswith("sep=") else ""  # a first line that Excel writes
    skipped, text = (1, rest) if hint else (0, text)
    heading = text.partition("\n")[0]
    separator = hint if hint in _SEPARATORS else max(_SEPARATORS, key=heading.count)
    text_only = {"dtype": str, "keep_default_na": False}
    layout = {"sep": separator, "index_col": False, "skip_blank_lines": False, "skipinitialspace": True}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # values without a column would be dropped
            table = pd.read_csv(io.StringIO(text), **layout, **text_only)
    except (ValueError, pd.errors.ParserWarning) as error:
        raise DataError(f"{path}: cannot be read as a table: {' '.join(str(error).split())[:200]}") from None
    table.columns = [str(name).strip().lower() for name in table.columns]
    table.index += 2 + skipped
    for wanted in ("label", "type"):
        if wanted not in table.columns:
            raise DataError(f"{path}: has no column {wanted!r}: {nearest(wanted, [name[:40] for name in table.columns[:20]])}")
    if table.columns.duplicated().any():
        raise DataError(f"{path}: has two columns of the same name: expected label, type and, for several films, movie")
    table = table[[name for name in ("label", "type", "movie") if name in table]].fillna("")
    return table[(table != "").any(axis=1)]


def _text(path: Path) -> str:
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise DataError(f"{path}: is too large for a table of types: {size} bytes, at most {MOST_BYTES}")
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    marked = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
    encodings = [name for mark, name in marked.items() if raw.startswith(mark)] or ["utf-8", "cp1252", "latin-1"]
    for encoding in encodings:
        try:
            return raw.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
        except UnicodeDecodeError:
            continue
    raise DataError(f"{path}: is not text in {encodings[0]}, the encoding that its first bytes indicate")


def _whole_numbers(path: Path, table: pd.DataFrame, name: str) -> pd.Series:
    wrong = ~table[name].str.fullmatch(_WHOLE)
    if wrong.any():
        line = wrong.idxmax()
        raise DataError(f"{path}, line {line}: label and type must be whole numbers below 1e18, found {name} {table[name][line][:40]!r}")
    numbers = table[name].str.split(".").str[0].astype(np.int64)
    if name == "type" and (numbers > MOST_TYPES).any():
        line = (numbers > MOST_TYPES).idxmax()
        raise DataError(f"{path}, line {line}: type {numbers[line]} is larger than {MOST_TYPES}, the limit")
    return numbers


def _all_typed(movie: Movie, labels: np.ndarray, types: np.ndarray, where: str) -> np.ndarray:
    if len(missing := labels[types < 1]):
        raise DataError(f"{where}: no type of 1 or more for label {missing[0]} of {movie.name} ({len(missing)} such labels)")
    if types.max(initial=0) > MOST_TYPES:
        raise DataError(f"{where}: type {types.max()} of {movie.name} is larger than {MOST_TYPES}, the limit")
    return types
