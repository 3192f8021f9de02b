"""Tables of bounding boxes in images: the layout of MOTChallenge, which most trackers of people and vehicles write."""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

import numpy as np
import pandas as pd

from epns_pyro.data.importers.track_recording import FRAME, LIKELIHOOD, TRACK, Tracks
from epns_pyro.data.importers.track_tables import TextTable, numbers

BOX = ("left", "top", "width", "height")
RESULTS = (FRAME, TRACK, *BOX, LIKELIHOOD, "world_x", "world_y", "world_z")
TRUTH = (FRAME, TRACK, *BOX, LIKELIHOOD, "class", "visibility")
UNKNOWN = -1.0  # a confidence, or coordinates in the world, that are not known


def is_boxes(table: TextTable) -> bool:
    """Return whether a table has no header and 9 or 10 columns: frame, track, a box of positive size in an image, and what follows it."""
    rows = [row for row in table.head if len(row) == len(table.names)]
    if table.has_header or len(table.names) not in (len(TRUTH), len(RESULTS)) or not rows:
        return False
    try:
        values = np.array(rows, dtype=np.float64)
    except ValueError:
        return False
    whole = (values[:, :2] == values[:, :2].round()).all() and (values[:, 0] >= 0).all()
    return bool(whole and (values[:, 4:6] > 0).all() and ((values[:, 6] >= -1) & (values[:, 6] <= 1)).all())


@final
class BoxTracks(Tracks):
    """One row per box; a position is the middle of the box or, where the table has it, the place in the plane of the ground.

    A confidence is the likelihood of a detection; in files of the truth it is 0 for boxes that are no target.
    """

    layout = "MOTChallenge"

    def __init__(self, table: TextTable) -> None:
        names: tuple[str, ...] = RESULTS if len(table.names) == len(RESULTS) else TRUTH
        rows = [dict(zip(names, map(float, row), strict=True)) for row in table.head if len(row) == len(names)]
        self._in_world = any(row.get(axis, UNKNOWN) != UNKNOWN for row in rows for axis in ("world_x", "world_y"))
        if all(row[LIKELIHOOD] == UNKNOWN for row in rows):
            names = tuple("confidence" if name == LIKELIHOOD else name for name in names)
        self._table, self._names = table, names
        super().__init__(table.path, (*BOX, *names[7:]), ("x", "y"))
        self.note = f"positions are {'world_x, world_y' if self._in_world else 'the middles of boxes, in pixels'}"

    def chunks(self) -> Iterator[pd.DataFrame]:
        for chunk in self._table.chunks():
            chunk.columns = list(self._names)
            columns = {name: numbers(self.path, chunk, name) for name in self._names if name != TRACK}
            if self._in_world:
                x, y = columns["world_x"], columns["world_y"]
                known = (x != UNKNOWN) | (y != UNKNOWN)
                x, y = np.where(known, x, np.nan), np.where(known, y, np.nan)
            else:
                x, y = columns["left"] + columns["width"] / 2, columns["top"] + columns["height"] / 2
            tidy = chunk.assign(**columns, x=x, y=y)
            tidy.index.name = chunk.index.name
            tidy.attrs = chunk.attrs
            yield tidy
