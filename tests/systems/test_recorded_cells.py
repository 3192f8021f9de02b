"""Recorded cells: what can be said about label images without a law."""

from __future__ import annotations

import numpy as np
import pytest

from epns_pyro.errors import ConfigError, ShapeError
from epns_pyro.systems import CellsConfig, RecordedCellsConfig, trajectory_seeds


@pytest.fixture(scope="module", params=["no flux", "periodic"])
def cells_and_states(request):
    """A small Potts system and runs of it: (3, 5, 18, 20, 2)."""
    system = CellsConfig(lattice=(18, 20), blocks=(3, 3), types=2, frame_mcs=5, boundary=request.param).build()
    x0 = system.initial(3, np.random.default_rng(0))
    return system, system.simulate(x0, 4, trajectory_seeds(0, "test", 3))


def recorded_like(system, **settings):
    periodic = system.config.boundary == "periodic"
    return RecordedCellsConfig(lattice=system.config.lattice, cells=9, types=2, periodic=periodic, **settings).build()


def test_the_observables_are_those_of_the_cellular_system(cells_and_states):
    system, x = cells_and_states
    recorded = recorded_like(system)
    assert recorded.spec == system.spec
    expected = system.observables(x)
    found = recorded.observables(x)
    assert set(expected) - set(found) == {"hamiltonian"}
    for name, observable in found.items():
        np.testing.assert_allclose(observable.values, expected[name].values)
        assert (observable.unit, observable.discrete) == (expected[name].unit, expected[name].discrete)


def test_a_trajectory_dies_when_too_many_cells_have_an_area_never_seen(cells_and_states):
    system, x = cells_and_states
    assert recorded_like(system).alive(x).all()
    recorded = recorded_like(system, area=(12, 40), area_multiple=2.0, implausible_share=1 / 9)
    assert recorded.alive(x).all()
    broken = x.copy()
    for cell in (1, 2):  # two of nine cells shrink below half of the smallest area seen, to a single pixel
        image = broken[1, 2, ..., 0]
        pixels = np.argwhere(image == cell)[1:]
        broken[1, 2, pixels[:, 0], pixels[:, 1]] = 0
    alive = recorded.alive(broken)
    np.testing.assert_array_equal(alive[1], [True, True, False, False, False])
    assert alive[[0, 2]].all()
    assert recorded_like(system, area=(12, 40), implausible_share=2 / 9).alive(broken).all()
    assert recorded_like(system, area=(2, 40), implausible_share=1 / 9).alive(broken).all()


def test_it_cannot_be_simulated(cells_and_states):
    recorded = recorded_like(cells_and_states[0], frame_dt=2.5, time_unit="min")
    assert (recorded.can_simulate, recorded.has_oracle, recorded.frame_dt, recorded.time_unit) == (False, False, 2.5, "min")
    with pytest.raises(TypeError, match="no simulator"):
        recorded.simulate(cells_and_states[1][:, 0], 1, np.zeros(3, np.uint64))


def test_states_and_settings_that_do_not_fit(cells_and_states):
    system, x = cells_and_states
    with pytest.raises(ShapeError, match=r"expected \(\*batch, time, 18, 20, 2\) with channels cell, type; found"):
        recorded_like(system).observables(x[:, :, 1:])
    with pytest.raises(ConfigError, match="cells: input should be less than 32768"):
        RecordedCellsConfig.parse({"lattice": (4, 4), "cells": 40000})
