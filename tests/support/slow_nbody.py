"""Softened gravity the slow, obvious way: plain NumPy, one body at a time, no code shared with the library."""

from __future__ import annotations

import numpy as np


def acceleration(m, r, G, eps):
    """a_i = sum_{j != i} G m_j (r_j - r_i) / (|r_j - r_i|^2 + eps^2)^{3/2} for m (body,), r (body, 3)."""
    a = np.zeros_like(r)
    for i in range(len(m)):
        for j in range(len(m)):
            if j != i:
                d = r[j] - r[i]
                a[i] = a[i] + G * m[j] * d / ((d * d).sum() + eps**2) ** 1.5
    return a


def step(m, r, v, G, eps, dt):
    """Kick-drift-kick."""
    v = v + dt / 2 * acceleration(m, r, G, eps)
    r = r + dt * v
    v = v + dt / 2 * acceleration(m, r, G, eps)
    return r, v


def run(m, r, v, G, eps, dt, steps):
    for _ in range(steps):
        r, v = step(m, r, v, G, eps, dt)
    return r, v


def jacobian(m, r, v, G, eps, dt):
    """Jacobian of one step, by the complex step: column k is Im f(y + i h e_k) / h, exact to rounding."""
    y, h = np.concatenate([r.ravel(), v.ravel()]), 1e-30
    columns = []
    for k in range(len(y)):
        z = y.astype(complex)
        z[k] += 1j * h
        end = step(m, z[: r.size].reshape(r.shape), z[r.size :].reshape(v.shape), G, eps, dt)
        columns.append(np.concatenate([part.ravel().imag for part in end]) / h)
    return np.stack(columns, axis=1)


def law(m, r, v, G, eps, sigma, dt, steps):
    """Mean r, v and covariance P (all positions, then all velocities) after `steps` noisy steps: P <- A P A' + sigma^2 dt on v."""
    size = r.size
    P = np.zeros((2 * size, 2 * size))
    Q = np.diag(np.repeat([0.0, sigma**2 * dt], size))
    for _ in range(steps):
        A = jacobian(m, r, v, G, eps, dt)
        r, v = step(m, r, v, G, eps, dt)
        P = A @ P @ A.T + Q
    return r, v, P


def energy(m, r, v, G, eps):
    """Kinetic and potential energy."""
    kinetic = sum(0.5 * m[i] * (v[i] @ v[i]) for i in range(len(m)))
    potential = sum(
        -G * m[i] * m[j] / np.sqrt((r[i] - r[j]) @ (r[i] - r[j]) + eps**2) for i in range(len(m)) for j in range(len(m)) if i < j
    )
    return kinetic, potential
