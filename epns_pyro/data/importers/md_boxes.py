"""What becomes of the periodic box of a simulation of molecules: a model knows rectangular boxes alone, which do not change.

Frames are dictionaries of arrays (atom,), x, y, z and perhaps vx, vy, vz, with `cell` (3, 3), whose rows are the vectors of the box; None
without one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from epns_pyro.data.importers.track_recording import AXES
from epns_pyro.errors import ConfigError, DataError
from epns_pyro.geometry import SAME

RECTANGULAR = 1e-4  # of a side: how far a cell vector may lean in the rounding of a file
VELOCITIES = ("vx", "vy", "vz")
WAYS_OUT = "--box mean scales positions to the mean box, --box none follows atoms across its sides"

Frame = dict[str, Any]


class Box(ABC):
    """Puts the frames of a file into the box of the model.

    Attributes
    ----------
    sides : tuple of float
        Of the model's box; empty without one.
    note : str
        What was done, for the report of the import.
    """

    sides: tuple[float, ...] = ()
    note: str = ""

    @abstractmethod
    def __init__(self, path: Path, frames: Callable[[], Iterator[Frame]]) -> None:
        """Read what has to be known of the frames, which `frames` reads anew from the first one."""

    @abstractmethod
    def place(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        """Yield the frames, whose places are those in the model's box."""


class Recorded(Box):
    """The box of the file, which has to be constant and rectangular."""

    def __init__(self, path: Path, frames: Callable[[], Iterator[Frame]]) -> None:
        self._path = path
        self.sides = _sides(path, 0, next(frames())["cell"])

    def place(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        for number, frame in enumerate(frames):
            sides = _sides(self._path, number, frame["cell"])
            if len(sides) != len(self.sides) or not np.allclose(sides, self.sides, rtol=SAME, atol=0):
                first, now = (" x ".join(f"{side:.6g}" for side in box) or "none" for box in (self.sides, sides))
                raise DataError(
                    f"{self._path}: the box changes, from {first} in frame 0 to {now} in frame {number}: only a constant one is modelled; "
                    + WAYS_OUT
                )
            yield frame


class Mean(Box):
    """The mean box of all frames, to which places and velocities are scaled: for a pressure that is held (NPT)."""

    def __init__(self, path: Path, frames: Callable[[], Iterator[Frame]]) -> None:
        self._found = found = [_sides(path, number, frame["cell"]) for number, frame in enumerate(frames())]
        if not all(found):
            raise DataError(f"{path}: --box mean: frame {next(i for i, sides in enumerate(found) if not sides)} has no box")
        mean = np.mean(found, axis=0)
        self.sides = tuple(map(float, mean))
        self.note = f"places are scaled to the mean box, of which a box differs by up to {np.abs(found / mean - 1).max():.2g}"

    def place(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        for frame, sides in zip(frames, self._found, strict=True):
            yield frame | {
                name: frame[name] * mean / side
                for names in (AXES, VELOCITIES)
                for name, mean, side in zip(names, self.sides, sides, strict=True)
                if name in frame
            }


class Followed(Box):
    """No box: atoms are followed across the sides of theirs, whatever its form, and what it cuts in the first frame is made whole.

    For one molecule, or a selection, among others that are left out. Atoms that see each other across a side of the box no longer do.
    """

    note = "atoms are followed across the sides of their box, and are in none: what is near across a side is not near"

    def __init__(self, path: Path, frames: Callable[[], Iterator[Frame]]) -> None:
        self._path = path

    def place(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        before = None
        for number, frame in enumerate(frames):
            x = np.stack([frame[axis] for axis in AXES], -1)
            if (cell := frame["cell"]) is not None:
                if np.linalg.matrix_rank(cell) < len(AXES):
                    raise DataError(f"{self._path}: the cell of frame {number} is flat: expected three vectors that span space")
                x = _made_whole(x, cell) if before is None else before + _nearest(x - before, cell)
            before = x
            yield frame | dict(zip(AXES, x.T, strict=True))


BOXES: dict[str, type[Box]] = {"recorded": Recorded, "mean": Mean, "none": Followed}


def box(name: str) -> type[Box]:
    """Return what is to be done with the box of a file, by name."""
    if name not in BOXES:
        raise ConfigError(f"--box {name}: expected one of {', '.join(BOXES)}")
    return BOXES[name]


def _sides(path: Path, number: int, cell: np.ndarray | None) -> tuple[float, ...]:
    """Return the sides of a rectangular cell; empty without one."""
    if cell is None:
        return ()
    sides = np.diag(cell)
    if np.abs(cell - np.diag(sides)).max() > RECTANGULAR * np.abs(sides).max():
        raise DataError(
            f"{path}: the cell of frame {number} is not rectangular (triclinic): only boxes with right angles are modelled; "
            "--box none follows atoms across its sides"
        )
    if (sides <= 0).any():
        raise DataError(f"{path}: the cell of frame {number} has sides {np.round(sides, 4).tolist()}: expected positive lengths")
    return tuple(map(float, sides))


def _nearest(difference: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Return the images of differences (..., 3) nearest to zero, exact for those shorter than half of the distance between two faces."""
    return difference - np.round(difference @ np.linalg.inv(cell)) @ cell


def _made_whole(x: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Return images of places (atom, 3) such that atoms are beside those nearest to them: along a minimum spanning tree (Prim 1957)."""
    x = x.copy()
    waiting = np.ones(len(x), dtype=bool)
    parent, way = np.zeros(len(x), dtype=np.int64), np.full((len(x), 3), np.inf)
    distance = np.full(len(x), np.inf)
    new = 0
    for _ in range(len(x) - 1):
        waiting[new] = False
        step = _nearest(x - x[new], cell)
        length = np.linalg.norm(step, axis=-1)
        closer = waiting & (length < distance)
        parent[closer], way[closer], distance[closer] = new, step[closer], length[closer]
        new = int(np.argmin(np.where(waiting, distance, np.inf)))
        x[new] = x[parent[new]] + way[new]
    return x
