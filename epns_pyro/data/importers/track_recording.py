"""A recording of tracks: what its detections look like, whatever file they come from."""

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
        Who writes such files.
    columns : tuple of str
        What a detection has beside its frame, track and position.
    axes : tuple of str
        "x", "y" and perhaps "z".
    unit : str
        Of the positions, where the file says it.
    declared : bool
        Whether the user has said which column is which.
    """

    layout: ClassVar[str]
    unit: str = ""
    declared: bool = False

    def __init__(self, path: Path, columns: tuple[str, ...], axes: tuple[str, ...]) -> None:
        self.path, self.columns, self.axes = path, columns, axes

    @property
    def name(self) -> str:
        return self.path.stem

    @abstractmethod
    def chunks(self) -> Iterator[pd.DataFrame]:
        """Read the detections, about `CHUNK_ROWS` at a time, in columns frame (or time), id, x, y[, z] and those of `columns`.

        The index says where a detection stands in the file; frame, time and the axes are numbers, NaN where nothing stands.
        """
