"""Reading text tables and Parquet files in chunks; separator, encoding, decimal sign and header are detected."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from epns_pyro.errors import DataError

CHUNK_ROWS = 200_000
HEAD_BYTES = 2**16
HEAD_LINES = 200
SEPARATORS = {"\t": "tabs", ";": "semicolons", ",": "commas", r"\s+": "spaces"}
MISSING = {"", "nan", "na", "n/a", "none", "null", "-nan", "#n/a"}
LINE = "line"  # name of the index of every chunk: the line of the file that a row was read from, 1 being the first


@dataclass(frozen=True)
class TextTable:
    """Format of a table in a text file, and where its rows begin.

    Parameters
    ----------
    path : Path
    encoding : str
    separator : str
        A key of `SEPARATORS`.
    decimal : {".", ","}
    names : tuple of str
        Names of the columns: those of the header, or "1", "2", ... if there is none.
    has_header : bool
    skip : int
        Lines before the first row.
    head : tuple of tuple of str
        The fields of the first lines, for recognising the layout.
    """

    path: Path
    encoding: str
    separator: str
    decimal: str
    names: tuple[str, ...]
    has_header: bool
    skip: int
    head: tuple[tuple[str, ...], ...]

    def chunks(self) -> Iterator[pd.DataFrame]:
        """Yield the rows, `CHUNK_ROWS` at a time; the index is the line number, blank lines are left out."""
        numbers = [str(i) for i in range(len(self.names))]
        try:
            with pd.read_csv(
                self.path,
                sep=self.separator,
                header=None,
                names=numbers,
                index_col=False,
                skiprows=self.skip,
                encoding=self.encoding,
                decimal=self.decimal,
                skip_blank_lines=False,
                skipinitialspace=True,
                chunksize=CHUNK_ROWS,
                na_values=["none", "None", "NONE"],
            ) as reader:
                for chunk in reader:
                    chunk.index = pd.RangeIndex(self.skip + 1 + chunk.index.start, self.skip + 1 + chunk.index.stop, name=LINE)
                    chunk.columns = list(self.names)
                    chunk = chunk.dropna(how="all")
                    chunk.attrs["decimal"] = self.decimal
                    yield chunk
        except pd.errors.ParserError as error:
            raise DataError(f"{self.path}: {_in_words(str(error), self)}") from None
        except UnicodeError as error:
            raise DataError(f"{self.path}: is not text in {self.encoding} ({error}): save it as UTF-8") from None


def _in_words(error: str, table: TextTable) -> str:
    found = re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", error)
    if not found:
        return f"cannot be read as a table: {' '.join(error.split())}"
    return (
        f"line {found[2]} has {found[3]} columns, the lines before it {found[1]} (separated by {SEPARATORS[table.separator]}): "
        "are separators or decimal signs mixed?"
    )


# -- looking at a text file ------------------------------------------------------------------------------------------------


def look(path: Path) -> TextTable:
    """Detect the format of a text table from its first lines.

    Raises
    ------
    DataError
        If the file is empty, is not text, or has fewer than two columns.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        whole = not file.read(1)
    if not head.strip():
        raise DataError(f"{path}: is empty: expected a table with one row per detection")
    encoding = _encoding(path, head)
    text = codecs.getincrementaldecoder(encoding)().decode(head)
    if "\0" in text:
        raise DataError(f"{path}: is not a text table: unpack it, or save it as CSV")
    lines = text.splitlines()
    lines = (lines if whole or len(lines) < 2 else lines[:-1])[:HEAD_LINES]
    skip = next((i for i, line in enumerate(lines) if line.strip() and not line.lstrip().startswith("#")), len(lines))
    body = [line for line in lines[skip:] if line.strip()]
    if not body:
        raise DataError(f"{path}: holds only comments: expected a table with one row per detection")
    separator, decimal = _separator(path, body)
    rows = tuple(tuple(split(line, separator)) for line in body)
    first = [_number(field, decimal) for field in rows[0]]
    has_header = None in first and all(number is None or np.isnan(number) for number in first)  # a row of data contains a number
    names: tuple[str, ...] = tuple(str(i + 1) for i in range(len(rows[0])))
    if has_header:
        names = tuple(name.strip() or names[i] for i, name in enumerate(rows[0]))
        skip += 1
    elif skip and (commented := split(lines[skip - 1].lstrip().lstrip("# "), separator)) and len(commented) == len(names):
        has_header, names = True, tuple(commented)  # as written by NumPy's savetxt
    return TextTable(path, encoding, separator, decimal, unlike(names), has_header, skip, rows)


def unlike(names: tuple[str, ...]) -> tuple[str, ...]:
    """Make column names unique: "x", "x.1", "x.2"."""
    return tuple(f"{name}.{names[:i].count(name)}" if name in names[:i] else name for i, name in enumerate(names))


def split(line: str, separator: str) -> list[str]:
    """Split a line into its fields, without the spaces and quotes around them."""
    if separator == r"\s+":
        return [field.strip('"') for field in line.split()]
    return [field.strip() for field in next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])]


def _encoding(path: Path, head: bytes) -> str:
    """Return the encoding of a file: from its byte order mark, else UTF-8 if valid, else Latin-1, which accepts all bytes."""
    marks = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
    for mark, name in marks:
        if head.startswith(mark):
            return name
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with path.open("rb") as file:
            while block := file.read(2**20):
                decoder.decode(block)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8"


def _separator(path: Path, lines: list[str]) -> tuple[str, str]:
    """Return the separator and decimal sign under which most of the lines are rows of numbers with the same number of columns."""
    best, choice = 0.0, None
    for separator in SEPARATORS:
        rows = [split(line, separator) for line in lines]
        counts = [len(row) for row in rows]
        columns = max(set(counts), key=counts.count)
        if columns < 2:
            continue
        even = [row for row in rows if len(row) == columns]
        body = even[1:] if len(even) > 1 else even
        for decimal in (".", ",") if separator != "," else (".",):
            known = np.mean([_number(field, decimal) is not None for row in body for field in row])
            score = len(even) / len(rows) * (0.05 + known)
            if score > best + 1e-9:
                best, choice = float(score), (separator, decimal)
    if choice is None:
        raise DataError(f"{path}: no separator (tab, semicolon, comma or space) gives two or more columns: is this a table of tracks?")
    return choice


def _number(text: str, decimal: str) -> float | None:
    """Read a number, NaN where it is missing; None if it is text."""
    if text.strip().lower() in MISSING:
        return float("nan")
    if decimal == ",":
        if "." in text:
            return None
        text = text.replace(",", ".")
    try:
        return float(text)
    except ValueError:
        return None


# -- checked columns -------------------------------------------------------------------------------------------------------


def interval(rows: Sequence[tuple[str, str]]) -> float | None:
    """Return the time between frames, from the frame numbers and times of some rows; None unless they are in proportion."""
    try:
        pairs = sorted((float(frame), float(time)) for frame, time in rows)
    except ValueError:
        return None
    found = [(time - pairs[0][1]) / (frame - pairs[0][0]) for frame, time in pairs if frame > pairs[0][0]]
    even = bool(found) and min(found) > 0 and max(found) - min(found) <= 1e-3 * min(found)
    return round(sorted(found)[len(found) // 2], 9) if even else None


def numbers(path: Path, chunk: pd.DataFrame, column: str) -> np.ndarray:
    """Return a column of a chunk as numbers (row,), NaN where the cell is empty.

    Raises
    ------
    DataError
        If a value is text or infinite; the message names the line.
    """
    raw = chunk[column]
    if chunk.attrs.get("decimal") == "," and not pd.api.types.is_numeric_dtype(raw):
        raw = raw.astype("str").str.replace(",", ".")  # the column contains text, so pandas has converted nothing in it
    values = pd.to_numeric(raw, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    if not pd.api.types.is_numeric_dtype(raw):
        text = np.isnan(values) & raw.notna().to_numpy()
        if text.any():
            row = int(np.argmax(text))
            found = str(chunk[column].iloc[row])
            hint = ": are separators mixed?" if re.search(r"\d[;,\t ]+-?\d", found) else ""
            raise DataError(f"{path}, {_where(chunk, row)}: {column} is {found[:40]!r}, expected a number{hint}")
    if np.isinf(values).any():
        row = int(np.argmax(np.isinf(values)))
        raise DataError(f"{path}, {_where(chunk, row)}: {column} is infinite: leave the cell empty where nothing was measured")
    return values


def _where(chunk: pd.DataFrame, row: int) -> str:
    return f"{chunk.index.name or 'row'} {chunk.index[row]}"


# -- Parquet ---------------------------------------------------------------------------------------------------------------


def parquet_file(path: Path) -> Any:
    """Open a Parquet file; its columns are in `.schema_arrow.names`.

    Raises
    ------
    DataError
        If the file is damaged, or pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{path}: reading Parquet needs pyarrow: pip install 'epns-pyro[parquet]', or save the table as CSV") from None
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {' '.join(str(error).split())[:200]}") from None


def parquet_chunks(path: Path, columns: list[str]) -> Iterator[pd.DataFrame]:
    """Read columns of a Parquet file, `CHUNK_ROWS` at a time; the index is the number of the row, from 0."""
    import pyarrow

    first = 0
    try:
        for batch in parquet_file(path).iter_batches(batch_size=CHUNK_ROWS, columns=columns):
            chunk = batch.to_pandas(ignore_metadata=True)[columns]
            chunk.index = pd.RangeIndex(first, first + len(chunk), name="row")
            first += len(chunk)
            yield chunk
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {' '.join(str(error).split())[:200]}") from None
