"""The Stillinger-Weber potential the slow, obvious way: plain NumPy, one triple at a time, no code shared with the library."""

from __future__ import annotations

import numpy as np

A, B, GAMMA, REACH = 7.049556277, 0.6022245584, 1.2, 1.8


def length(d):
    """|d|, which a complex step can pass."""
    return np.sqrt((d * d).sum())


def energy(r, angles=21.0):
    """Of positions (body, 3), real or complex."""
    total, n = 0.0, len(r)
    d = [[length(r[j] - r[i]) for j in range(n)] for i in range(n)]
    near = [[i != j and d[i][j].real < REACH for j in range(n)] for i in range(n)]
    for i in range(n):
        for j in range(i):
            if near[i][j]:
                total = total + A * (B / d[i][j] ** 4 - 1) * np.exp(1 / (d[i][j] - REACH))
    for i in range(n):
        for j in range(n):
            for k in range(j):
                if near[i][j] and near[i][k]:
                    cosine = ((r[j] - r[i]) * (r[k] - r[i])).sum() / (d[i][j] * d[i][k])
                    total = total + angles * np.exp(GAMMA / (d[i][j] - REACH) + GAMMA / (d[i][k] - REACH)) * (cosine + 1 / 3) ** 2
    return total


def acceleration(r, angles=21.0, step=1e-30):
    """Minus the gradient, by complex steps: exact to rounding."""
    a = np.zeros_like(r)
    for i in range(len(r)):
        for k in range(3):
            z = r.astype(complex)
            z[i, k] += 1j * step
            a[i, k] = -energy(z, angles).imag / step
    return a


def leap(r, v, dt):
    """Kick-drift-kick."""
    v = v + dt / 2 * acceleration(r)
    r = r + dt * v
    return r, v + dt / 2 * acceleration(r)


def law(r, v, sigma, dt, steps, difference=1e-6):
    """Mean r, v and covariance (all positions, then all velocities): P <- J P J' + sigma^2 dt on v, J by differences of whole steps."""
    size = r.size
    P, Q = np.zeros((2 * size, 2 * size)), np.diag(np.repeat([0.0, sigma**2 * dt], size))

    def step(y):
        return np.concatenate([part.ravel() for part in leap(y[:size].reshape(r.shape), y[size:].reshape(r.shape), dt)])

    y = np.concatenate([r.ravel(), v.ravel()])
    for _ in range(steps):
        J = np.stack([(step(y + difference * e) - step(y - difference * e)) / (2 * difference) for e in np.eye(2 * size)], 1)
        y, P = step(y), J @ P @ J.T + Q
    return y[:size].reshape(r.shape), y[size:].reshape(r.shape), P
