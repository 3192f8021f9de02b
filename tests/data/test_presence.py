"""Absent bodies: which are there, and which NaN are no absence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toy_systems import STRIPES, WALKERS

from epns_pyro.data.presence import allows_absence, check_presence, presence, presence_by_field
from epns_pyro.errors import DataError


def states(rng):
    """(trajectory, time, body, channel): body 1 of trajectory 0 is absent from frame 2."""
    shape = (2, 4, 3)
    x = WALKERS.pack(mass=rng.uniform(1, 2, shape), position=rng.standard_normal((*shape, 2)), velocity=rng.standard_normal((*shape, 2)))
    for name in ("position", "velocity"):
        x[0, 2, 1, WALKERS.slice(name)] = np.nan
    return x


def test_a_body_is_absent_where_all_its_dynamic_fields_are_nan(rng):
    x = states(rng)
    expected = np.ones((2, 4, 3), dtype=bool)
    expected[0, 2, 1] = False
    np.testing.assert_array_equal(presence(WALKERS, x), expected)
    np.testing.assert_array_equal(presence(WALKERS, torch.from_numpy(x)).numpy(), expected)
    np.testing.assert_array_equal(presence_by_field(WALKERS, {n: WALKERS.get(x, n) for n in WALKERS.names}), expected)
    check_presence(WALKERS, x)


@pytest.mark.parametrize(("name", "value"), [("velocity", np.nan), ("position", np.inf), ("mass", np.nan)])
def test_any_other_nan_is_an_error(rng, name, value):
    x = states(rng)
    x[1, 1, 0, WALKERS.slice(name)] = value
    with pytest.raises(DataError, match=f"field '{name}' holds NaN or infinite values: epns-pyro data info says where"):
        check_presence(WALKERS, x)
    x = states(rng)
    x[0, 2, 1, WALKERS.slice(name)] = 0.0 if name != "mass" else value  # of the absent body
    with pytest.raises(DataError, match="holds NaN or infinite values"):
        check_presence(WALKERS, x)


def test_label_images_have_no_absent_sites():
    assert allows_absence(WALKERS)
    assert not allows_absence(STRIPES)
