"""The Cellular Potts model, compiled: change of the Hamiltonian by a copy, the Metropolis step, and whole trajectories.

    H = sum over neighbouring pixel pairs {k, l} with different labels of J[type_k, type_l]  +  lambda sum over cells (area - target)^2

Energies are dimensionless. A Monte Carlo step (MCS) is as many copy attempts as the lattice has pixels.

Sources: Graner and Glazier, "Simulation of biological cell sorting using a two-dimensional extended Potts model", PRL 69 (1992); Glazier
and Graner, PRE 47 (1993); the copy attempt is the one that CompuCell3D calls metropolisFast.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit, prange

from epns_pyro.systems.lattice import Lattice
from epns_pyro.systems.rng import below, seeded, uniform

# The inner loop: inlined, and without reference counting of arrays, which would dominate its cost. The caller owns the arrays.
hot = njit(cache=True, error_model="numpy", forceinline=True, _nrt=False)  # type: ignore[call-overload]


class Potts(NamedTuple):
    """The parameters of the Hamiltonian and of the dynamics.

    Parameters
    ----------
    J : numpy.ndarray, (type + wall, type + wall)
        Energy per pair of neighbouring pixels with different labels, symmetric. Type 0 is the medium; the wall is a separate type after
        the last, with zeros: pixels outside the lattice contribute nothing.
    stiffness, target_area : float
        lambda, and the area without a cost (pixels).
    temperature : float
        T, in the unit of the energies.
    """

    J: np.ndarray
    stiffness: float
    target_area: float
    temperature: float


def potts(J: np.ndarray, stiffness: float, target_area: float, temperature: float) -> Potts:
    """Return the parameters with contact energies J (type, type), extended by the wall."""
    return Potts(np.pad(np.asarray(J, np.float64), (0, 1)), float(stiffness), float(target_area), float(temperature))


class PottsState(NamedTuple):
    """One configuration, changed in place by the dynamics.

    Parameters
    ----------
    label : numpy.ndarray, (pixel + wall,), uint16
        0 is the medium; the wall's label is the one after the last cell's.
    area : numpy.ndarray, (label + wall,), int64
        Pixels of each label.
    type : numpy.ndarray, (label + wall,), uint8
        Type of each label.
    target : numpy.ndarray, (label + wall,), float64
        Area without a cost of each label, pixels: that of all cells at first.
    """

    label: np.ndarray
    area: np.ndarray
    type: np.ndarray
    target: np.ndarray


@njit(cache=True)
def potts_state(image: np.ndarray, types: np.ndarray, potts: Potts) -> PottsState:
    """Prepare a label image (pixel,) of cells with `types` (label,) for the dynamics."""
    wall = types.size
    label, area, kind = np.empty(image.size + 1, np.uint16), np.zeros(wall + 1, np.int64), np.empty(wall + 1, np.uint8)
    for name in range(wall):
        kind[name] = types[name]
    for pixel in range(image.size):
        label[pixel] = image[pixel]
        area[image[pixel]] += 1
    label[image.size], kind[wall] = wall, potts.J.shape[0] - 1
    return PottsState(label, area, kind, np.full(wall + 1, potts.target_area))


@hot
def contact_change(state: PottsState, lattice: Lattice, potts: Potts, target: int, new: int) -> float:
    """Return the change of sum_{k,l} J[type_k, type_l] (1 - delta(label_k, label_l)) if pixel `target` took the label `new`."""
    label, kind, J = state.label, state.type, potts.J
    old, change = label[target], 0.0
    for direction in range(lattice.neighbour.shape[1]):
        other = label[lattice.neighbour[target, direction]]
        change += (other != new) * J[kind[new], kind[other]] - (other != old) * J[kind[old], kind[other]]
    return change


@hot
def area_change(state: PottsState, potts: Potts, target: int, new: int) -> float:
    """Return the change of lambda sum_cells (area - target_area)^2 if pixel `target` took the label `new`; the medium has no target."""
    old, change = state.label[target], 0.0
    if new != 0:
        change += potts.stiffness * (2.0 * (state.area[new] - state.target[new]) + 1.0)
    if old != 0:
        change -= potts.stiffness * (2.0 * (state.area[old] - state.target[old]) - 1.0)
    return change


@hot
def attempt_copy(state: PottsState, lattice: Lattice, potts: Potts, rng: np.ndarray) -> bool:
    """Do one Metropolis step: copy the label of a random pixel to a random neighbour with probability min(1, exp(-dH / T))."""
    pixels, directions = lattice.neighbour.shape
    source = np.uint32(below(rng, pixels))
    target = lattice.neighbour[source, np.uint32(below(rng, directions))]
    new, old = state.label[source], state.label[target]
    if new == old or target == pixels:  # nothing to change, or outside the lattice
        return False
    dH = contact_change(state, lattice, potts, target, new) + area_change(state, potts, target, new)
    if dH > 0.0 and uniform(rng) >= math.exp(-dH / potts.temperature):
        return False
    state.label[target] = new
    state.area[new] += 1
    state.area[old] -= 1
    return True


@njit(cache=True, error_model="numpy", _nrt=False)  # type: ignore[call-overload]
def run(state: PottsState, lattice: Lattice, potts: Potts, attempts: int, rng: np.ndarray) -> int:
    """Make `attempts` copy attempts, one after the other; return how many copies were made."""
    copies = 0
    for _ in range(attempts):
        copies += attempt_copy(state, lattice, potts, rng)
    return copies


@njit(cache=True)
def trajectory(frames: np.ndarray, types: np.ndarray, lattice: Lattice, potts: Potts, attempts: int, seed: np.uint64) -> None:
    """Fill frames 1, 2, ... of frames (time, pixel) from frame 0, with `attempts` copy attempts between two."""
    state, rng = potts_state(frames[0], types, potts), seeded(seed)
    for t in range(1, frames.shape[0]):
        run(state, lattice, potts, attempts, rng)
        for pixel in range(frames.shape[1]):
            frames[t, pixel] = state.label[pixel]


@njit(cache=True, parallel=True)
def trajectories(frames: np.ndarray, types: np.ndarray, lattice: Lattice, potts: Potts, attempts: int, seeds: np.ndarray) -> None:
    """Fill frames (trajectory, time, pixel) of cells with types (trajectory, label), each trajectory from its own seed (trajectory,)."""
    for i in prange(frames.shape[0]):
        trajectory(frames[i], types[i], lattice, potts, attempts, seeds[i])
