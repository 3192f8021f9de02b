"""Reach of cells in label images during one step. Compiled, parallel over frames."""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange

from epns_pyro.systems.label_observables import centres
from epns_pyro.systems.lattice import square_lattice
from epns_pyro.threads import limited


@limited(None)
def step_reach(cells: np.ndarray, n: int, *, periodic: bool) -> np.ndarray:
    """Measure the distance of the pixels of cells 1 .. n from the cell's centre before a step, before and after the step.

    Parameters
    ----------
    cells : numpy.ndarray, (*batch, time, y, x)
        Labels, integers; 0 is the medium.

    Returns
    -------
    numpy.ndarray, (*batch, time - 1, cell)
        The largest distance along y or x, pixels: half the side of the smallest square around the centre that holds the cell at both times.
        NaN where the cell is absent before the step.
    """
    *batch, time, height, width = cells.shape
    lattice = square_lattice(height, width, neighbours=4, periodic=periodic)
    middle = centres(cells, n, lattice).reshape(-1, time, n, 2)
    frames = np.ascontiguousarray(cells, dtype=np.uint16).reshape(-1, time, height * width)
    return _step_reach(frames, middle, height, width, periodic).reshape(*batch, time - 1, n)


@njit(cache=True, parallel=True)
def _step_reach(frames, middle, height, width, periodic):
    trajectories, time, pixels = frames.shape
    out = np.empty((trajectories, time - 1, middle.shape[2]))
    for k in prange(trajectories * (time - 1)):
        i, t = k // (time - 1), k % (time - 1)
        reach, centre = out[i, t], middle[i, t]
        for label in range(reach.size):
            reach[label] = math.nan if math.isnan(centre[label, 0]) else 0.0
        for after in range(2):
            for p in range(pixels):
                label = np.int64(frames[i, t + after, p]) - 1
                if label >= 0 and not math.isnan(reach[label]):
                    y = _distance(p // width - centre[label, 0], height, periodic)
                    x = _distance(p % width - centre[label, 1], width, periodic)
                    reach[label] = max(reach[label], y, x)
    return out


@njit(cache=True)
def _distance(difference, period, periodic):
    return abs(difference - period * math.floor(difference / period + 0.5)) if periodic else abs(difference)
