"""Bodies of unit mass that act on each other in pairs, with Brownian kicks, compiled: the simulator.

    dr_i = v_i dt
    dv_i = clip( sum_{j != i} w_ij (r_i - r_j) / s_ij^power ) dt + noise dW_i,    s_ij^2 = |r_i - r_j|^2 + softening^2

One step is kick-drift-kick leapfrog, then noise sqrt(dt) N(0, 1) on every velocity. Positions r and velocities v are (body, 3), weights
w (body, body).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit, prange

from epns_pyro.systems.nbody_dynamics import copy
from epns_pyro.systems.rng import normal, seeded


class PairForce(NamedTuple):
    """The numbers in the equations of motion.

    Parameters
    ----------
    power : float
        Of the softened distance.
    softening : float
    clip : float
        Bound on every component of an acceleration.
    noise : float
        Standard deviation of the kicks to a velocity component, per square root of time.
    dt : float
        Step of the integrator.
    """

    power: float
    softening: float
    clip: float
    noise: float
    dt: float


@njit(cache=True, error_model="numpy")
def accelerate(r, w, force, a):
    """Set a_i to clip(sum_{j != i} w_ij (r_i - r_j) / s_ij^power)."""
    for i in range(len(r)):
        a[i, 0], a[i, 1], a[i, 2] = 0.0, 0.0, 0.0
        for j in range(len(r)):
            if i != j and w[i, j] != 0.0:
                x, y, z = r[i, 0] - r[j, 0], r[i, 1] - r[j, 1], r[i, 2] - r[j, 2]
                s2 = x * x + y * y + z * z + force.softening**2
                push = w[i, j] / (s2 * np.sqrt(s2)) if force.power == 3.0 else w[i, j] * s2 ** (-0.5 * force.power)
                a[i, 0] += push * x
                a[i, 1] += push * y
                a[i, 2] += push * z
        for k in range(3):
            a[i, k] = min(max(a[i, k], -force.clip), force.clip)


@njit(cache=True, parallel=True)
def simulate(w, r0, v0, seeds, frames, steps, force):
    """Walk every trajectory for `frames` frames of `steps` steps, each on its own random stream.

    w (trajectory, body, body), r0 and v0 (trajectory, body, 3), seeds (trajectory,) uint64 -> r, v (trajectory, frames + 1, body, 3).
    """
    n, bodies = r0.shape[:2]
    r = np.empty((n, frames + 1, bodies, 3))
    v = np.empty((n, frames + 1, bodies, 3))
    for i in prange(n):
        walk(w[i], r0[i], v0[i], r[i], v[i], seeds[i], steps, force)
    return r, v


@njit(cache=True)
def walk(w, r0, v0, r, v, seed, steps, force):
    """Fill one trajectory r, v (time, body, 3), whose frame 0 is the initial state r0, v0 (body, 3)."""
    rng, a = seeded(seed), np.empty((len(r0), 3))
    kick = force.noise * np.sqrt(force.dt)
    copy(r0, v0, r[0], v[0])
    accelerate(r0, w, force, a)
    for t in range(1, len(r)):
        copy(r[t - 1], v[t - 1], r[t], v[t])
        for _ in range(steps):
            for i in range(len(r0)):
                for k in range(3):
                    v[t, i, k] += 0.5 * force.dt * a[i, k]
                    r[t, i, k] += force.dt * v[t, i, k]
            accelerate(r[t], w, force, a)
            for i in range(len(r0)):
                for k in range(3):
                    v[t, i, k] += 0.5 * force.dt * a[i, k]
                    if kick > 0.0:
                        v[t, i, k] += kick * normal(rng)
