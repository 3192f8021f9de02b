"""The check of symmetry: a defect is told from rounding, also where noise is so narrow that rounding shows."""

from __future__ import annotations

import numpy as np
import torch

from epns_pyro.evaluation.checks.symmetry import breaks, rounding_error
from epns_pyro.evaluation.record import Symmetry
from epns_pyro.state import Field, StateSpec
from epns_pyro.symmetry import Euclidean, density_invariance_error

SPEC = StateSpec((Field("position", "1o", translates=True),), space=3)


def test_where_noise_is_narrow_the_last_digit_explains_an_error():
    x0 = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 4, 3)))
    path = x0[:, None] + 1e-7 * torch.from_numpy(np.random.default_rng(1).standard_normal((3, 2, *x0.shape[1:])))
    z = torch.zeros(3, 2, 4, 0, dtype=torch.float64)

    def log_density(x0, path, z, defect=0.0):
        way = SPEC.get(path, "position") - SPEC.get(x0, "position")[:, None]
        return -((way / 1e-7).square().sum((1, 2, 3)) / 2) + defect * SPEC.get(x0, "position")[..., 0].sum(-1)

    arguments = (SPEC, x0, path, z, Euclidean(3, 1000.0))
    error, rounding = density_invariance_error(log_density, *arguments).maximum, rounding_error(log_density, *arguments)
    assert 1e-9 < error < 10 * rounding
    defect = density_invariance_error(lambda *parts: log_density(*parts, defect=1.0), *arguments).maximum
    assert defect > 1000 * rounding
    assert not breaks(Symmetry(maximum=error, rounding=rounding))
    assert breaks(Symmetry(maximum=defect, rounding=rounding))
    assert breaks(Symmetry(maximum=error))
