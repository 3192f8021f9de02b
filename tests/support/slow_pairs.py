"""The benchmark's forces between pairs, the slow, obvious way: plain NumPy, one pair at a time, no code shared with the library."""

from __future__ import annotations

import numpy as np


def charged(r, charge):
    """a_i = sum_{j != i} q_i q_j (r_i - r_j) / |r_i - r_j|^3, every component within +-100."""
    a = _sum(r, lambda i, j, d: charge[i] * charge[j] * d / np.linalg.norm(d) ** 3)
    return np.minimum(np.maximum(a, -100), 100)


def springs(r, joined):
    """a_i = -0.1 sum_{j != i} e_ij (r_i - r_j)."""
    return _sum(r, lambda i, j, d: -0.1 * joined[i][j] * d)


def gravity(r):
    """a_i = -sum_{j != i} (r_i - r_j) / (|r_i - r_j|^2 + 0.01)^{3/2}."""
    return _sum(r, lambda i, j, d: -d / ((d * d).sum() + 0.01) ** 1.5)


def _sum(r, force):
    a = np.zeros_like(r)
    for i in range(len(r)):
        for j in range(len(r)):
            if i != j:
                a[i] = a[i] + force(i, j, r[i] - r[j])
    return a


def frame(r, v, force, dt=1e-3, steps=100):
    """Kick-drift-kick for one frame."""
    for _ in range(steps):
        v = v + dt / 2 * force(r)
        r = r + dt * v
        v = v + dt / 2 * force(r)
    return r, v
