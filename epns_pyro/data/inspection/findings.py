"""A finding about a store, and the base class of inspectors, which make findings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

ERROR, WARNING = "error", "warning"


@dataclass(frozen=True)
class Finding:
    """One problem of a set: an error prevents its use, a warning does not."""

    level: str
    split: str
    message: str

    def __str__(self) -> str:
        return f"{self.level}: set {self.split!r}: {self.message}" if self.split else f"{self.level}: {self.message}"


class Inspector(ABC):
    """Looks for one kind of problem in a set, which it receives block by block."""

    @abstractmethod
    def look(self, arrays: dict[str, np.ndarray], first: int) -> None:
        """Process the fields of trajectories first, first + 1, ...: arrays (trajectory, time, *site[, space]), as stored."""

    @abstractmethod
    def findings(self) -> Iterator[tuple[str, str]]:
        """Yield (level, message), after all blocks."""


class Tally:
    """Counts occurrences, and keeps in words where the first one was."""

    def __init__(self, axes: tuple[str, ...] = ("trajectory", "frame")) -> None:
        self.count, self.where, self.axes = 0, "", axes

    def add(self, mask: np.ndarray, first: int) -> tuple[int, ...] | None:
        """Count the True entries of a mask (trajectory, time, ...); return the index of the first, if it is the first of all."""
        new = int(np.count_nonzero(mask))
        is_first = new > 0 and not self.count
        self.count += new
        if not is_first:
            return None
        index = np.unravel_index(int(np.argmax(mask)), mask.shape)
        numbers = (int(index[0]) + first, *(int(i) for i in index[1:]))
        self.where = ", ".join(f"{axis} {number}" for axis, number in zip(self.axes, numbers, strict=False))
        return tuple(int(i) for i in index)
