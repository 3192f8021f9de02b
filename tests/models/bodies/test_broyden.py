"""Broyden's method solves small systems that v <- v + error does not, and goes on with the rows that are left."""

from __future__ import annotations

import torch

from epns_pyro.models.bodies.broyden import Broyden


def test_systems_whose_plain_iteration_diverges_are_solved():
    rng = torch.Generator().manual_seed(0)
    bend = torch.randn(7, 4, 4, dtype=torch.float64, generator=rng)
    slope = torch.eye(4, dtype=torch.float64) + 1.3 * bend / torch.linalg.matrix_norm(bend, 2)[:, None, None]
    goal = torch.randn(7, 4, dtype=torch.float64, generator=rng)

    def error(v, rows):
        return goal[rows] - (slope[rows] @ (v + 0.05 * v**3)[..., None])[..., 0]

    everything = torch.arange(7)
    plain = torch.zeros_like(goal)
    for _ in range(40):
        plain = plain + error(plain, everything)
    assert error(plain, everything).abs().amax(-1).gt(1e-3).any()

    v, rows, solver = torch.zeros_like(goal), everything, Broyden()
    for _ in range(40):
        missed = error(v[rows], rows)
        left = missed.abs().amax(-1) > 1e-13
        v[rows] = v[rows] + solver.step(missed)
        rows = rows[left]
        solver.keep(left)
        if not len(rows):
            break
    torch.testing.assert_close(error(v, everything), torch.zeros_like(goal), atol=1e-9, rtol=0)
