"""A square lattice as a graph: the neighbours of every pixel by number, for any boundary."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

MOST_LABELS = 2**15  # cells and medium: labels fit into int16, which every library can hold
# Each pair of neighbours once: right, down, then the two diagonals below. Their opposites complete the neighbourhood.
_FORWARD = ((0, 1), (1, 0), (1, 1), (1, -1))


class Lattice(NamedTuple):
    """Pixels numbered row by row, and the neighbours of each.

    Parameters
    ----------
    height, width : int
    periodic : bool
        Whether opposite edges touch; otherwise no flux passes the edges.
    neighbour : numpy.ndarray, (pixel, direction), uint32
        The neighbour of a pixel in a direction; `wall` where it is off the lattice. The first half of the directions reaches every pair
        of neighbours once, those that share an edge before those that share a corner; the second half are their opposites, in order.
    """

    height: int
    width: int
    periodic: bool
    neighbour: np.ndarray

    @property
    def pixels(self) -> int:
        return self.height * self.width

    @property
    def wall(self) -> int:
        """The number of the one pixel that represents everything outside the lattice: one after the last."""
        return self.pixels


def square_lattice(height: int, width: int, *, neighbours: int, periodic: bool) -> Lattice:
    """Build a lattice with 4 (edges) or 8 (edges and corners) neighbours per pixel."""
    y, x = np.divmod(np.arange(height * width), width)
    forward = np.array(_FORWARD[: neighbours // 2])
    dy, dx = np.concatenate([forward, -forward]).T
    y, x = y[:, None] + dy, x[:, None] + dx
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    wrapped = y % height * width + x % width
    return Lattice(height, width, periodic, np.where(periodic | inside, wrapped, height * width).astype(np.uint32))
