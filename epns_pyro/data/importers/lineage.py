"""Reading the table of tracks of a film in the Cell Tracking Challenge layout: when each cell is present, and its mother.

The table, `man_track.txt` or `res_track.txt`, has no header and four columns: label, first frame, last frame, label of the mother or 0
(celltrackingchallenge.net, "Naming and file content conventions").
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from epns_pyro.data.importers.label_names import names_of
from epns_pyro.errors import DataError
from epns_pyro.later import later

if TYPE_CHECKING:
    import pandas as pd
else:
    pd = later("pandas")

NAMES = ("man_track.txt", "res_track.txt")
COLUMNS = ("label", "begin", "end", "parent")
MOST_BYTES = 2**26


@dataclass(frozen=True)
class Lineage:
    """Presence of the cells of a film, in frames counted from its first file, and their mothers.

    Parameters
    ----------
    file : Path
    table : pandas.DataFrame
        Whole numbers in the columns label, begin, end, parent (0: none), one row per label.
    """

    file: Path
    table: pd.DataFrame

    def check(self, frames: np.ndarray) -> None:
        """Raise DataError if a label in images (time, y, x) is missing in the table, or present in other frames than the table says."""
        begin, end = (dict(zip(self.table["label"], self.table[name], strict=True)) for name in ("begin", "end"))
        for t, image in enumerate(frames):
            for label in names_of(image[None]).tolist():
                if label not in begin:
                    raise DataError(f"{self.file}: has no track {label}, which is in frame {t}: is it the table of another film?")
                if not begin[label] <= t <= end[label]:
                    raise DataError(
                        f"{self.file}: track {label} is from frame {begin[label]} to {end[label]}, but in the images in frame {t} too: "
                        "is it the table of another film?"
                    )

    def of(self, names: np.ndarray, start: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the mothers and the first frames of cells with sorted labels `names` (cell,), all of the table.

        Returns
        -------
        mother : numpy.ndarray, (cell,)
            The place of the mother in `names`, counted from 1; 0 without one there.
        born : numpy.ndarray, (cell,)
            First frame, counted from frame `start` of the film; negative for cells that are older.
        """
        rows = self.table.set_index("label").loc[names]
        place = {int(name): 1 + i for i, name in enumerate(names)}
        return np.array([place.get(int(p), 0) for p in rows["parent"]], dtype=np.int64), rows["begin"].to_numpy() - start

    @property
    def summary(self) -> str:
        """Describe how many cells appear, divide and end within the film."""
        t = self.table
        first, last, daughter = t["begin"] == t["begin"].min(), t["end"] == t["end"].max(), t["parent"] > 0
        mothers, gone = t["parent"][daughter].nunique(), ~last & ~t["label"].isin(t["parent"])
        return (
            f"{self.file.name}: {len(t)} tracks, {first.sum()} from the first frame on; {(~first & ~daughter).sum()} appear later, "
            f"{daughter.sum()} are daughters in {mothers} divisions, {gone.sum()} end before the last frame without a division"
        )


def find_lineage(folder: Path) -> Lineage | None:
    """Read the table of tracks in a folder of images; None if there is none.

    Raises
    ------
    DataError
        If it is not a table of tracks.
    """
    file = next((folder / name for name in NAMES if (folder / name).is_file()), None)
    if file is None:
        return None
    try:
        if (size := file.stat().st_size) > MOST_BYTES:
            raise DataError(f"{file}: is too large for a table of tracks: {size} bytes, at most {MOST_BYTES}")
        text = file.read_bytes().decode("utf-8-sig")
        table = pd.read_csv(io.StringIO(text), sep=r"\s+", header=None, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file}: cannot be read as a table of tracks: {' '.join(str(error).split())[:200]}") from None
    if table.shape[1] != len(COLUMNS):
        raise DataError(f"{file}: expected four columns, label, begin, end and parent, found {table.shape[1]}")
    table.columns = list(COLUMNS)
    for name in COLUMNS:
        if len(wrong := table.index[~table[name].str.fullmatch(r"\d{1,18}", flags=re.ASCII)]):
            raise DataError(f"{file}, row {wrong[0] + 1}: {name} must be a whole number, found {table[name][wrong[0]][:40]!r}")
    table = table.astype(np.int64)
    problems = {
        "a label occurs twice": table["label"].duplicated(),
        "a track ends before it begins": table["end"] < table["begin"],
        "the mother has no track": (table["parent"] > 0) & ~table["parent"].isin(table["label"]),
        "label 0 is that of the medium": table["label"] == 0,
    }
    for problem, rows in problems.items():
        if rows.any():
            raise DataError(f"{file}, row {rows.idxmax() + 1}: {problem}")
    return Lineage(file, table.assign(begin=table["begin"] - table["begin"].min(), end=table["end"] - table["begin"].min()))
