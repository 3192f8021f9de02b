"""Rows on disk that are written once and then read group by group, in memory that does not grow with the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

BLOCK_ROWS = 200_000


class Spool:
    """Rows (row, column) of float64 in a file; `grouped` sorts them into groups.

    At most `BLOCK_ROWS` rows, or the rows of one group, are in memory at a time.
    """

    def __init__(self, path: Path, columns: int) -> None:
        self.path, self.columns, self.rows = path, columns, 0

    def append(self, rows: np.ndarray) -> None:
        """Append rows (row, column)."""
        with self.path.open("ab") as file:
            np.ascontiguousarray(rows, dtype=np.float64).tofile(file)
        self.rows += len(rows)

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the rows, a block (row, column) at a time, in the order in which they were appended."""
        for start in range(0, self.rows, BLOCK_ROWS):
            count = min(BLOCK_ROWS, self.rows - start) * self.columns
            yield np.fromfile(self.path, np.float64, count, offset=start * self.columns * 8).reshape(-1, self.columns)

    def grouped(self, path: Path, group: Callable[[np.ndarray], np.ndarray], groups: int) -> Groups:
        """Sort the rows by group into a new file (counting sort: the order within a group is kept).

        Parameters
        ----------
        path : Path
            Path of the new file.
        group : callable
            Rows (row, column) -> the group of each (row,); -1 drops a row.
        groups : int
        """
        counts = np.zeros(groups + 1, dtype=np.int64)
        for rows in self.blocks():
            counts += np.bincount(group(rows) % (groups + 1), minlength=groups + 1)  # -1 comes last
        bounds = np.concatenate([[0], np.cumsum(counts[:-1])])
        if bounds[-1]:
            self._scatter(path, group, bounds)
        return Groups(path, self.columns, bounds, int(counts[-1]))

    def _scatter(self, path: Path, group: Callable[[np.ndarray], np.ndarray], bounds: np.ndarray) -> None:
        """Write the rows of every block to the places of their groups; a memory map would end up holding the whole file in memory."""
        free = bounds.copy()
        with path.open("wb") as file:
            for rows in self.blocks():
                numbers = group(rows)
                order = np.argsort(numbers, kind="stable")
                order = order[numbers[order] >= 0]
                present, first = np.unique(numbers[order], return_index=True)
                for number, run in zip(present.tolist(), np.split(order, first[1:]), strict=False):
                    file.seek(int(free[number]) * self.columns * 8)
                    file.write(rows[run].tobytes())
                    free[number] += len(run)


class Groups:
    """The groups of a spool; `left_out` is the number of rows in no group."""

    def __init__(self, path: Path, columns: int, bounds: np.ndarray, left_out: int) -> None:
        self._path, self._columns, self._bounds, self.left_out = path, columns, bounds, left_out

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def read(self, number: int) -> np.ndarray:
        """Read the rows (row, column) of a group."""
        start, stop = (int(b) for b in self._bounds[number : number + 2])
        if start == stop:
            return np.zeros((0, self._columns))
        count = (stop - start) * self._columns
        return np.fromfile(self._path, np.float64, count, offset=start * self._columns * 8).reshape(-1, self._columns)
