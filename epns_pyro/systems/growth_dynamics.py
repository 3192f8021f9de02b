"""Growth, division and death of cells in the Cellular Potts model, compiled; the copies are those of `potts_dynamics`.

The target area of a cell grows linearly with its age, A(a) = A_0 (1 + a / cycle), and with it the cell. After every Monte Carlo step (MCS)
a cell of at least twice the area A_0 divides with a fixed probability, along the plane through its centre of mass perpendicular to its long
axis, as CompuCell3D's Mitosis steppable does along the minor axis. Ages are counted in frames, and a daughter grows from the frame after
its birth on: what a frame shows, labels and ages, is all that the process depends on.

Sources: Hogeweg, "Evolving mechanisms of morphogenesis: on the interplay between differential adhesion and cell differentiation", J. Theor.
Biol. 203 (2000), for division in the Potts model; Swat et al., "Multi-scale modeling of tissues using CompuCell3D", Methods Cell Biol. 110
(2012).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit, prange

from epns_pyro.systems.lattice import Lattice
from epns_pyro.systems.potts_dynamics import Potts, PottsState, potts_state, run
from epns_pyro.systems.rng import seeded, uniform


class Growth(NamedTuple):
    """The life of cells.

    Parameters
    ----------
    cycle : float
        MCS in which the target area doubles.
    divides, dies : float
        Probability per MCS that a cell of twice the area divides, and that any cell dies: its pixels become medium.
    """

    cycle: float
    divides: float
    dies: float


class Cells(NamedTuple):
    """Properties of all labels of one trajectory, changed in place: each (label,).

    Parameters
    ----------
    type, mother : numpy.ndarray, uint8 and uint16
    born : numpy.ndarray, int64
        Frame in which the cell is first seen; negative for cells that are older than the trajectory.
    used : numpy.ndarray, bool
        Whether the label is or was that of a cell.
    """

    type: np.ndarray
    mother: np.ndarray
    born: np.ndarray
    used: np.ndarray


@njit(cache=True)
def set_targets(state: PottsState, born: np.ndarray, potts: Potts, growth: Growth, frame: int, mcs: int, per_frame: int) -> None:
    """Set the target areas of all cells `mcs` MCS after frame `frame`."""
    for label in range(1, born.size):
        age = (frame - born[label]) * per_frame + mcs if born[label] <= frame else 0
        state.target[label] = potts.target_area * (1.0 + age / growth.cycle)


@njit(cache=True)
def _offset(difference: float, period: int, periodic: bool) -> float:
    return difference - period * math.floor(difference / period + 0.5) if periodic else difference


@njit(cache=True)
def halves(label: np.ndarray, cell: int, lattice: Lattice, second: np.ndarray) -> int:
    """Find the pixels of a cell on one side of the plane through its centre of mass, perpendicular to its long axis.

    Parameters
    ----------
    label : numpy.ndarray, (pixel + wall,)
    cell : int
    lattice : Lattice
        A cell on a periodic one spans less than half of it.
    second : numpy.ndarray, (pixel,), bool
        Where the answer is written.

    Returns
    -------
    int
        The number of pixels found; those on the plane itself are left to the other half.
    """
    width, pixels = lattice.width, lattice.neighbour.shape[0]
    first, area, y, x, yy, xx, xy = -1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for pixel in range(pixels):
        if label[pixel] == cell:
            first = pixel if first < 0 else first
            dy = _offset(float(pixel // width - first // width), lattice.height, lattice.periodic)
            dx = _offset(float(pixel % width - first % width), width, lattice.periodic)
            area, y, x, yy, xx, xy = area + 1.0, y + dy, x + dx, yy + dy * dy, xx + dx * dx, xy + dy * dx
    y, x = y / area, x / area
    yy, xx, xy = yy / area - y * y, xx / area - x * x, xy / area - y * x
    angle = 0.5 * math.atan2(2.0 * xy, xx - yy)  # of the long axis, from x towards y
    along_y, along_x, found = math.sin(angle), math.cos(angle), 0
    for pixel in range(pixels):
        second[pixel] = False
        if label[pixel] == cell:
            dy = _offset(float(pixel // width - first // width), lattice.height, lattice.periodic) - y
            dx = _offset(float(pixel % width - first % width), width, lattice.periodic) - x
            second[pixel] = along_y * dy + along_x * dx < -1e-9
            found += second[pixel]
    return found


@njit(cache=True)
def divide(state: PottsState, cells: Cells, cell: int, lattice: Lattice, frame: int, second: np.ndarray) -> bool:
    """Divide a cell into two with labels of their own, the two lowest that are free; do nothing where there is no room for them."""
    one, other = 0, 0
    for label in range(1, cells.used.size):
        if not cells.used[label]:
            if one:
                other = label
                break
            one = label
    if not other:
        return False
    halves(state.label, cell, lattice, second)
    for pixel in range(second.size):
        if state.label[pixel] == cell:
            daughter = other if second[pixel] else one
            state.label[pixel] = daughter
            state.area[daughter] += 1
    state.area[cell] = 0
    for daughter in (one, other):
        state.type[daughter] = cells.type[daughter] = cells.type[cell]
        cells.mother[daughter], cells.born[daughter], cells.used[daughter] = cell, frame, True
    return True


@njit(cache=True)
def die(state: PottsState, cell: int) -> None:
    """Turn the pixels of a cell into medium."""
    for pixel in range(state.label.size - 1):
        if state.label[pixel] == cell:
            state.label[pixel] = 0
    state.area[0] += state.area[cell]
    state.area[cell] = 0


@njit(cache=True)
def live(
    state: PottsState, cells: Cells, lattice: Lattice, potts: Potts, growth: Growth, frame: int, rng: np.ndarray, order: np.ndarray
) -> None:
    """Let cells die and divide after one MCS before frame `frame`, in the order of their first pixels, whatever their names."""
    count, pixels, second = 0, lattice.neighbour.shape[0], np.empty(lattice.neighbour.shape[0], np.bool_)
    seen = np.zeros(cells.used.size, np.bool_)
    for pixel in range(pixels):
        cell = state.label[pixel]
        if cell and not seen[cell]:
            seen[cell], order[count] = True, cell
            count += 1
    for cell in order[:count]:
        if growth.dies > 0.0 and uniform(rng) < growth.dies:
            die(state, cell)
        elif state.area[cell] >= 2.0 * potts.target_area and (growth.divides >= 1.0 or uniform(rng) < growth.divides):
            divide(state, cells, cell, lattice, frame, second)


@njit(cache=True)
def trajectory(frames: np.ndarray, cells: Cells, lattice: Lattice, potts: Potts, growth: Growth, per_frame: int, seed: np.uint64) -> None:
    """Fill frames 1, 2, ... of frames (time, pixel) from frame 0, with `per_frame` MCS between two."""
    pixels = frames.shape[1]
    state, rng = potts_state(frames[0], cells.type, potts), seeded(seed)
    order = np.empty(cells.used.size, np.int64)
    for t in range(1, frames.shape[0]):
        for mcs in range(per_frame):
            set_targets(state, cells.born, potts, growth, t - 1, mcs, per_frame)
            run(state, lattice, potts, pixels, rng)
            live(state, cells, lattice, potts, growth, t, rng, order)
        for pixel in range(pixels):
            frames[t, pixel] = state.label[pixel]


@njit(cache=True, parallel=True)
def trajectories(
    frames: np.ndarray,
    types: np.ndarray,
    mothers: np.ndarray,
    born: np.ndarray,
    used: np.ndarray,
    lattice: Lattice,
    potts: Potts,
    growth: Growth,
    per_frame: int,
    seeds: np.ndarray,
) -> None:
    """Fill frames (trajectory, time, pixel) and the properties (trajectory, label) of cells that are born, each from its own seed."""
    for i in prange(frames.shape[0]):
        trajectory(frames[i], Cells(types[i], mothers[i], born[i], used[i]), lattice, potts, growth, per_frame, seeds[i])
