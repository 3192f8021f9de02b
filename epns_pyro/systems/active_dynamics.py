"""Aligning self-propelled particles in a periodic box, compiled: neighbours by a cell list, time linear in their number.

Sizes: r and v (body, space), space 2 or 3; a box has sides of one length, `side`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit, prange

from epns_pyro.systems.rng import normal, seeded


class ActiveLaw(NamedTuple):
    """The numbers in the equations of motion, see `epns_pyro.systems.active.Active`; `dt` is a time step."""

    radius: float
    drive: float
    speed: float
    align: float
    noise: float
    diffusion: float
    dt: float


@njit(cache=True)
def near(d: float, side: float) -> float:
    """Return a difference of coordinates to the nearest image."""
    return d - side * np.round(d / side)


@njit(cache=True)
def add(i, j, r, v, side, law, total, weight):
    """Add what body j says of the direction to the sums of body i."""
    squared = 0.0
    for k in range(r.shape[1]):
        squared += near(r[i, k] - r[j, k], side) ** 2
    if squared < law.radius**2:
        w = (1.0 - squared / law.radius**2) ** 2
        weight[i] += w
        for k in range(r.shape[1]):
            total[i, k] += w * v[j, k]


@njit(cache=True)
def mean_velocities(r, v, side, law, total, weight):
    """Set total (body, space) to the mean velocity around each body, weighted by (1 - d^2 / radius^2)^2; its own has the weight 1."""
    bodies, space = r.shape
    total[:] = 0.0
    weight[:] = 0.0
    across = int(side / law.radius)  # cells along a side, none thinner than the radius
    if across < 3:  # then the cells beside a cell are not all different
        for i in range(bodies):
            for j in range(bodies):
                add(i, j, r, v, side, law, total, weight)
    else:
        first = np.full(across**space, -1, np.int64)  # a body of each cell
        following = np.empty(bodies, np.int64)  # the next one in the same cell
        place = np.empty((bodies, space), np.int64)
        for i in range(bodies):
            cell = 0
            for k in range(space):
                place[i, k] = int(np.floor(r[i, k] / side * across)) % across
                cell = cell * across + place[i, k]
            following[i] = first[cell]
            first[cell] = i
        for i in range(bodies):
            for beside in range(3**space):
                cell, digits = 0, beside
                for k in range(space):
                    cell = cell * across + (place[i, k] + digits % 3 - 1) % across
                    digits //= 3
                j = first[cell]
                while j >= 0:
                    add(i, j, r, v, side, law, total, weight)
                    j = following[j]
    for i in range(bodies):
        for k in range(space):
            total[i, k] /= weight[i]


@njit(cache=True)
def drift(r, v, side, law, mean, weight):
    """Set mean (body, space) to the mean of the next velocity."""
    mean_velocities(r, v, side, law, mean, weight)
    for i in range(len(r)):
        squared = 0.0
        for k in range(r.shape[1]):
            squared += v[i, k] ** 2
        push = max(law.drive * (1.0 - squared / law.speed**2), -1.0 / law.dt)  # a step brings to rest, at most
        for k in range(r.shape[1]):
            mean[i, k] = v[i, k] + law.dt * (push * v[i, k] + law.align * (mean[i, k] - v[i, k]))


@njit(cache=True, parallel=True)
def simulate(r0, v0, sides, seeds, frames, law):
    """Walk every trajectory for `frames` steps on its own random stream: r, v (trajectory, frames + 1, body, space)."""
    n, bodies, space = r0.shape
    r = np.empty((n, frames + 1, bodies, space))
    v = np.empty((n, frames + 1, bodies, space))
    for i in prange(n):
        walk(r0[i], v0[i], r[i], v[i], sides[i], seeds[i], law)
    return r, v


@njit(cache=True)
def walk(r0, v0, r, v, side, seed, law):
    """Fill one trajectory r, v (time, body, space), whose frame 0 is r0, v0."""
    rng, weight = seeded(seed), np.empty(len(r0))
    kick, jump = law.noise * np.sqrt(law.dt), np.sqrt(2.0 * law.diffusion * law.dt)
    r[0], v[0] = r0, v0
    for t in range(1, len(r)):
        drift(r[t - 1], v[t - 1], side, law, v[t], weight)
        for i in range(len(r0)):
            for k in range(r0.shape[1]):
                v[t, i, k] += kick * normal(rng)
                place = r[t - 1, i, k] + law.dt * v[t - 1, i, k] + jump * normal(rng)
                place -= side * np.floor(place / side)
                r[t, i, k] = place if place < side else 0.0


@njit(cache=True, parallel=True)
def drifts(r, v, sides, law):
    """Return the mean of the next velocity of states r, v (n, body, space) in boxes of sides (n,): (n, body, space)."""
    mean = np.empty_like(v)
    for i in prange(len(r)):
        drift(r[i], v[i], sides[i], law, mean[i], np.empty(r.shape[1]))
    return mean
