"""The Stillinger-Weber potential with Brownian kicks, compiled: the simulator, and mean and covariance of one frame.

    dr_i = v_i dt
    dv_i = -dE/dr_i dt + sigma dW_i
    E = sum_{i < j} u(r_ij) + sum_i sum_{j < k} w(r_ij) w(r_ik) (cos theta_jik + 1/3)^2
    u(r) = A (B / r^4 - 1) exp(1 / (r - reach)),  w(r) = sqrt(lambda) exp(gamma / (r - reach)),  both 0 from the reach on

The second sum is over the angles at every body: it makes the tetrahedra of silicon. One step is kick-drift-kick leapfrog, then
sigma sqrt(dt) N(0, 1) on every velocity. Positions r, velocities v and accelerations a are (body, 3), masses are 1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit, prange

from epns_pyro.systems.nbody_dynamics import add_noise, clear, copy, drift_covariance, kick_covariance
from epns_pyro.systems.rng import normal, seeded

STRAIGHT = -1.0 / 3.0  # cosine of the angle of a tetrahedron
DIFFERENCE = 1e-5  # of a position, for derivatives of forces
GENTLE, LONGEST = 4e-3, 0.05  # factor and largest length of a step downhill


class Physics(NamedTuple):
    """The numbers in the equations of motion: A, B, lambda, gamma, reach, sigma per square root of time, integrator step dt."""

    A: float
    B: float
    angles: float
    gamma: float
    reach: float
    sigma: float
    dt: float


# -- the equations of motion -----------------------------------------------------------------------------------------------


@njit(cache=True, error_model="numpy")
def arm(r, i, j, u):
    """Set u to the unit vector from body i to body j; return their distance."""
    s = 0.0
    for k in range(3):
        u[k] = r[j, k] - r[i, k]
        s += u[k] * u[k]
    s = np.sqrt(s)
    for k in range(3):
        u[k] /= s
    return s


@njit(cache=True, error_model="numpy")
def energy(r, physics):
    """Potential energy of positions r (body, 3)."""
    total, p, q = 0.0, np.empty(3), np.empty(3)
    for i in range(len(r)):
        for j in range(len(r)):
            near = arm(r, i, j, p) if i != j else physics.reach
            if near >= physics.reach:
                continue
            if i < j:
                total += physics.A * (physics.B / near**4 - 1.0) * np.exp(1.0 / (near - physics.reach))
            for k in range(j):
                far = arm(r, i, k, q) if i != k else physics.reach
                if far < physics.reach:
                    bend = p[0] * q[0] + p[1] * q[1] + p[2] * q[2] - STRAIGHT
                    both = physics.gamma / (near - physics.reach) + physics.gamma / (far - physics.reach)
                    total += physics.angles * np.exp(both) * bend * bend
    return total


@njit(cache=True, error_model="numpy")
def accelerate(r, physics, a):
    """Set a to minus the gradient of the energy at r."""
    a[:] = 0.0
    p, q = np.empty(3), np.empty(3)
    for i in range(len(r)):
        for j in range(len(r)):
            near = arm(r, i, j, p) if i != j else physics.reach
            if near >= physics.reach:
                continue
            left = near - physics.reach
            if i < j:
                shape = physics.A * np.exp(1.0 / left)
                slope = -shape * (4.0 * physics.B / near**5 + (physics.B / near**4 - 1.0) / (left * left))
                for x in range(3):
                    a[i, x] += slope * p[x]
                    a[j, x] -= slope * p[x]
            for k in range(j):
                far = arm(r, i, k, q) if i != k else physics.reach
                if far >= physics.reach:
                    continue
                cosine, beyond = p[0] * q[0] + p[1] * q[1] + p[2] * q[2], far - physics.reach
                bend = cosine - STRAIGHT
                both = physics.angles * np.exp(physics.gamma / left + physics.gamma / beyond) * bend
                to_near = -both * bend * physics.gamma / (left * left)  # derivatives by the two distances and the cosine
                to_far = -both * bend * physics.gamma / (beyond * beyond)
                turn = 2.0 * both
                for x in range(3):
                    of_near = to_near * p[x] + turn * (q[x] - cosine * p[x]) / near
                    of_far = to_far * q[x] + turn * (p[x] - cosine * q[x]) / far
                    a[j, x] -= of_near
                    a[k, x] -= of_far
                    a[i, x] += of_near + of_far


@njit(cache=True)
def leapfrog(r, v, a, physics):
    """One noiseless step, in place: kick dt/2, drift dt, kick dt/2. `a` holds the accelerations at r, before and after."""
    for i in range(len(r)):
        for k in range(3):
            v[i, k] += 0.5 * physics.dt * a[i, k]
            r[i, k] += physics.dt * v[i, k]
    accelerate(r, physics, a)
    for i in range(len(r)):
        for k in range(3):
            v[i, k] += 0.5 * physics.dt * a[i, k]


@njit(cache=True)
def relax(r, physics, steps):
    """Move bodies downhill, in place, by at most LONGEST in a step."""
    a = np.empty((len(r), 3))
    for _ in range(steps):
        accelerate(r, physics, a)
        for i in range(len(r)):
            pull = np.sqrt(a[i, 0] ** 2 + a[i, 1] ** 2 + a[i, 2] ** 2)
            step = min(GENTLE, LONGEST / max(pull, 1e-12))
            for k in range(3):
                r[i, k] += step * a[i, k]


# -- the simulator ---------------------------------------------------------------------------------------------------------


@njit(cache=True, parallel=True)
def simulate(r0, v0, seeds, frames, steps, physics):
    """Simulate every trajectory for `frames` frames of `steps` steps, each with its own random stream.

    r0 and v0 (trajectory, body, 3), seeds (trajectory,) uint64 -> r, v (trajectory, frames + 1, body, 3).
    """
    n, bodies = r0.shape[:2]
    r = np.empty((n, frames + 1, bodies, 3))
    v = np.empty((n, frames + 1, bodies, 3))
    for i in prange(n):
        walk(r0[i], v0[i], r[i], v[i], seeds[i], steps, physics)
    return r, v


@njit(cache=True)
def walk(r0, v0, r, v, seed, steps, physics):
    """Fill one trajectory r, v (time, body, 3), whose frame 0 is the initial state r0, v0 (body, 3)."""
    rng, a = seeded(seed), np.empty((len(r0), 3))
    kick = physics.sigma * np.sqrt(physics.dt)
    copy(r0, v0, r[0], v[0])
    accelerate(r0, physics, a)
    for t in range(1, len(r)):
        copy(r[t - 1], v[t - 1], r[t], v[t])
        for _ in range(steps):
            leapfrog(r[t], v[t], a, physics)
            for i in range(len(r0)):
                for k in range(3):
                    v[t, i, k] += kick * normal(rng)


# -- the law of one frame (the oracle) -------------------------------------------------------------------------------------


@njit(cache=True, parallel=True)
def propagate_law(r0, v0, steps, physics):
    """Return mean and covariance after one frame of `steps` steps, to first order in the noise.

    r0 and v0 (n, body, 3) -> r, v (n, body, 3), P (n, 6 body, 6 body), all positions before all velocities.
    """
    n, bodies = r0.shape[:2]
    r, v = np.empty((n, bodies, 3)), np.empty((n, bodies, 3))
    P = np.empty((n, 6 * bodies, 6 * bodies))
    for i in prange(n):
        copy(r0[i], v0[i], r[i], v[i])
        walk_law(r[i], v[i], P[i], steps, physics)
    return r, v, P


@njit(cache=True)
def walk_law(r, v, P, steps, physics):
    """Propagate mean and covariance of one state in place, from P = 0: P <- A P A' + Q with A the Jacobian of a step."""
    clear(P)
    a, K = np.empty((len(r), 3)), np.empty((3 * len(r), 3 * len(r)))
    accelerate(r, physics, a)
    tide(r, physics, K)
    for _ in range(steps):
        kick_covariance(P, K, 0.5 * physics.dt)
        drift_covariance(P, physics.dt)
        leapfrog(r, v, a, physics)
        tide(r, physics, K)
        kick_covariance(P, K, 0.5 * physics.dt)
        add_noise(P, 1, physics)


@njit(cache=True)
def tide(r, physics, K):
    """K <- da/dr, by central differences."""
    here = r.copy()
    more, less = np.empty((len(r), 3)), np.empty((len(r), 3))
    for j in range(len(r)):
        for q in range(3):
            here[j, q] = r[j, q] + DIFFERENCE
            accelerate(here, physics, more)
            here[j, q] = r[j, q] - DIFFERENCE
            accelerate(here, physics, less)
            here[j, q] = r[j, q]
            for i in range(len(r)):
                for p in range(3):
                    K[3 * i + p, 3 * j + q] = (more[i, p] - less[i, p]) / (2.0 * DIFFERENCE)


@njit(cache=True)
def energies(r, physics):
    """Potential energies of states r (n, body, 3): (n,)."""
    total = np.empty(len(r))
    for i in range(len(r)):
        total[i] = energy(r[i], physics)
    return total


@njit(cache=True)
def accelerations(r, physics):
    """Accelerations of states r (n, body, 3): (n, body, 3)."""
    a = np.empty(r.shape)
    for i in range(len(r)):
        accelerate(r[i], physics, a[i])
    return a
