"""A recording of tracks: its detections in one form, for all kinds of files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pandas as pd

FRAME, TIME, TRACK, LIKELIHOOD = "frame", "time", "id", "likelihood"
AXES = ("x", "y", "z")
ROLES = (FRAME, TIME, TRACK, *AXES, LIKELIHOOD)


class Tracks(ABC):
    """One recording: a file of detections.

    Attributes
    ----------
    layout : str
        The program that writes such files.
    columns : tuple of str
        Columns of a detection besides frame, track and position.
    axes : tuple of str
        "x", "y" and optionally "z".
    unit : str
        Unit of the positions, if the file has one.
    box : tuple of float
        Sides of the periodic box, in that unit; empty without one.
    declared : bool
        Whether the user declared the meaning of the columns.
    frame_dt : float, optional
        Time between two frame numbers, if the file has one, in `time_unit`.
    time_unit : str
    note : str
        What was changed while it was read, for the report of the import.
    simulated : bool
        Whether it is a simulation of molecules, whose bodies influence each other.
    """

    layout: ClassVar[str]
    unit: str = ""
    box: tuple[float, ...] = ()
    declared: bool = False
    frame_dt: float | None = None
    time_unit: str = ""
    note: str = ""
    simulated: ClassVar[bool] = False

    def __init__(self, path: Path, columns: tuple[str, ...], axes: tuple[str, ...]) -> None:
        self.path, self.columns, self.axes = path, columns, axes

    @property
    def name(self) -> str:
        return self.path.stem

    @abstractmethod
    def chunks(self) -> Iterator[pd.DataFrame]:
        """Yield the detections, about `CHUNK_ROWS` at a time, in columns frame (or time), id, x, y[, z] and those of `columns`.

        The index says where a detection is in the file; frame, time and the axes are numbers, NaN where the cell is empty.
        """
