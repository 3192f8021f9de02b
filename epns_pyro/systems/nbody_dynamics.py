"""Softened gravity with Brownian kicks, compiled: the simulator, and mean and covariance of one frame.

    dr_i = v_i dt
    dv_i = sum_{j != i} G m_j (r_j - r_i) / (|r_j - r_i|^2 + eps^2)^{3/2} dt + sigma dW_i

One step is kick-drift-kick leapfrog, then sigma sqrt(dt) N(0, 1) on every velocity. `simulate` uses it; `propagate_law`
propagates the mean with the same step without noise, and the covariance with its Jacobian, P <- A P A' + Q.

Positions r and velocities v are (body, 3), masses m (body,); a phase-space matrix is (2, body, 3, 2, body, 3) flattened to
(6 body, 6 body), all positions first. Units: the ones in which G is given.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit, prange

from epns_pyro.systems.rng import normal, seeded


class Physics(NamedTuple):
    """The numbers in the equations of motion: G, softening eps, sigma per square root of time, integrator step dt."""

    G: float
    eps: float
    sigma: float
    dt: float


# -- the equations of motion -----------------------------------------------------------------------------------------------


@njit(cache=True, error_model="numpy")
def accelerate(r, m, physics, a):
    """a_i <- sum_{j != i} G m_j d / s^3 with d = r_j - r_i, s^2 = |d|^2 + eps^2."""
    for i in range(len(m)):
        a[i, 0], a[i, 1], a[i, 2] = 0.0, 0.0, 0.0
        for j in range(i):
            x, y, z = r[j, 0] - r[i, 0], r[j, 1] - r[i, 1], r[j, 2] - r[i, 2]
            s2 = x * x + y * y + z * z + physics.eps**2
            pull = physics.G / (s2 * np.sqrt(s2))
            a[i, 0] += m[j] * pull * x
            a[i, 1] += m[j] * pull * y
            a[i, 2] += m[j] * pull * z
            a[j, 0] -= m[i] * pull * x
            a[j, 1] -= m[i] * pull * y
            a[j, 2] -= m[i] * pull * z


@njit(cache=True, error_model="numpy")
def leapfrog(r, v, a, m, physics):
    """One noiseless step, in place: kick dt/2, drift dt, kick dt/2. `a` holds the accelerations at r, before and after."""
    for i in range(len(m)):
        for k in range(3):
            v[i, k] += 0.5 * physics.dt * a[i, k]
            r[i, k] += physics.dt * v[i, k]
    accelerate(r, m, physics, a)
    for i in range(len(m)):
        for k in range(3):
            v[i, k] += 0.5 * physics.dt * a[i, k]


@njit(cache=True)
def copy(r, v, r_out, v_out):
    """r_out, v_out <- r, v, all (body, 3)."""
    for i in range(len(r)):
        for k in range(3):
            r_out[i, k], v_out[i, k] = r[i, k], v[i, k]


# -- the simulator ---------------------------------------------------------------------------------------------------------


@njit(cache=True, parallel=True)
def simulate(m, r0, v0, seeds, frames, steps, physics):
    """Simulate every trajectory for `frames` frames of `steps` steps, each with its own random stream.

    m (trajectory, body), r0 and v0 (trajectory, body, 3), seeds (trajectory,) uint64 -> r, v (trajectory, frames + 1, body, 3).
    """
    n, bodies = m.shape
    r = np.empty((n, frames + 1, bodies, 3))
    v = np.empty((n, frames + 1, bodies, 3))
    for i in prange(n):
        walk(m[i], r0[i], v0[i], r[i], v[i], seeds[i], steps, physics)
    return r, v


@njit(cache=True)
def walk(m, r0, v0, r, v, seed, steps, physics):
    """Fill one trajectory r, v (time, body, 3), whose frame 0 is the initial state r0, v0 (body, 3)."""
    rng, a = seeded(seed), np.empty((len(m), 3))
    kick = physics.sigma * np.sqrt(physics.dt)
    copy(r0, v0, r[0], v[0])
    accelerate(r0, m, physics, a)
    for t in range(1, len(r)):
        copy(r[t - 1], v[t - 1], r[t], v[t])
        for _ in range(steps):
            leapfrog(r[t], v[t], a, m, physics)
            for i in range(len(m)):
                for k in range(3):
                    v[t, i, k] += kick * normal(rng)


# -- the law of one frame (the oracle) -------------------------------------------------------------------------------------


@njit(cache=True, parallel=True)
def propagate_law(m, r0, v0, steps, stride, physics):
    """Return mean and covariance after one frame of `steps` steps, to first order in the noise.

    The mean takes every step of the simulator, the covariance one leapfrog step of `stride` dt at a time, linearised at this mean.

    m (n, body), r0 and v0 (n, body, 3) -> r, v (n, body, 3), P (n, 6 body, 6 body), all positions before all velocities.
    """
    n, bodies = m.shape
    r, v = np.empty((n, bodies, 3)), np.empty((n, bodies, 3))
    P = np.empty((n, 6 * bodies, 6 * bodies))
    for i in prange(n):
        copy(r0[i], v0[i], r[i], v[i])
        walk_law(m[i], r[i], v[i], P[i], steps, stride, physics)
    return r, v, P


@njit(cache=True)
def walk_law(m, r, v, P, steps, stride, physics):
    """Propagate mean and covariance of one state in place, from P = 0: P <- A P A' + Q, A = kick(H/2) drift(H) kick(H/2), H = stride dt."""
    H = stride * physics.dt
    clear(P)
    a, K = np.empty((len(m), 3)), np.empty((3 * len(m), 3 * len(m)))
    accelerate(r, m, physics, a)
    tide(r, m, physics, K)
    for _ in range(steps // stride):
        kick_covariance(P, K, 0.5 * H)
        drift_covariance(P, H)
        for _ in range(stride):
            leapfrog(r, v, a, m, physics)
        tide(r, m, physics, K)
        kick_covariance(P, K, 0.5 * H)
        add_noise(P, stride, physics)


@njit(cache=True, error_model="numpy")
def tide(r, m, physics, K):
    """K <- da/dr: K_ij = G m_j (1/s^3 - 3 d d'/s^5) for j != i, and K_ii = -sum_{j != i} K_ij (nothing feels a translation)."""
    clear(K)
    d = np.empty(3)
    for i in range(len(m)):
        for j in range(len(m)):
            if i != j:
                d[0], d[1], d[2] = r[j, 0] - r[i, 0], r[j, 1] - r[i, 1], r[j, 2] - r[i, 2]
                s2 = d[0] ** 2 + d[1] ** 2 + d[2] ** 2 + physics.eps**2
                pull = physics.G * m[j] / (s2 * np.sqrt(s2))
                for p in range(3):
                    for q in range(3):
                        tidal = pull * ((p == q) - 3.0 * d[p] * d[q] / s2)
                        K[3 * i + p, 3 * j + q] = tidal
                        K[3 * i + p, 3 * i + q] -= tidal


@njit(cache=True)
def clear(matrix):
    """matrix <- 0."""
    for i in range(len(matrix)):
        for j in range(len(matrix)):
            matrix[i, j] = 0.0


@njit(cache=True, fastmath={"reassoc"})
def kick_covariance(P, K, h):
    """P <- S P S' for the kick dv = h K dr: velocity rows gain h K times position rows, then the same for columns."""
    half = len(K)
    for i in range(half):
        for k in range(half):
            hK = h * K[i, k]
            for j in range(2 * half):
                P[half + i, j] += hK * P[k, j]
    for i in range(half):
        for j in range(half):
            total = 0.0
            for k in range(half):
                total += P[half + i, k] * K[j, k]
            P[half + i, half + j] += h * total
            P[j, half + i] = P[half + i, j]  # the position-velocity block by symmetry


@njit(cache=True)
def drift_covariance(P, h):
    """P <- S P S' for the drift dr = h dv: position rows gain h times velocity rows, then the same for columns."""
    half = len(P) // 2
    for i in range(half):
        for j in range(2 * half):
            P[i, j] += h * P[half + i, j]
    for i in range(2 * half):
        for j in range(half):
            P[i, j] += h * P[i, half + j]


@njit(cache=True)
def add_noise(P, stride, physics):
    """P <- P + Q: the kicks of `stride` steps of the simulator, propagated to the end of these steps without forces.

    A kick is followed by k = stride - 1, ..., 0 more steps, so Q_vv = sigma^2 dt sum 1, Q_rv = sigma^2 dt^2 sum k and
    Q_rr = sigma^2 dt^3 sum k^2. With stride 1 the whole of Q is sigma^2 dt on the velocities.
    """
    half, variance = len(P) // 2, physics.sigma**2 * physics.dt
    vv = variance * stride
    rv = variance * physics.dt * stride * (stride - 1) / 2
    rr = variance * physics.dt**2 * stride * (stride - 1) * (2 * stride - 1) / 6
    for i in range(half):
        P[i, i] += rr
        P[i, half + i] += rv
        P[half + i, i] += rv
        P[half + i, half + i] += vv
