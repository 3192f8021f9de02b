"""Displacement errors against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from epns_pyro.evaluation.checks.displacement import DisplacementCheck, _row, displacement
from epns_pyro.evaluation.record import Displacement, DisplacementRow
from epns_pyro.state import Field, StateSpec

SPEC = StateSpec((Field("position", "1o", translates=True, unit="m"),), space=2)


def test_errors_are_distances_over_bodies_that_are_there():
    truth = np.zeros((1, 2, 3, 2))  # (trajectory, time, body, space)
    forecast = np.zeros((2, 1, 2, 3, 2))
    forecast[0, 0, 0, :, 0] = [3.0, 0.0, 0.0]
    forecast[0, 0, 1, 0] = [3.0, 4.0]
    truth[0, 1, 2] = np.nan  # the third body has left
    np.testing.assert_allclose(displacement(SPEC, forecast, truth), [[[1.0, 2.5]], [[0.0, 0.0]]])
    boxed = StateSpec(SPEC.fields, space=2, box=(4.0, 10.0))
    np.testing.assert_allclose(displacement(boxed, forecast, truth)[0, 0], [1 / 3, np.hypot(1, 4) / 2])  # 3 is -1 around the box


def test_best_of_k_is_over_whole_members():
    errors = np.full((20, 1, 2), 4.0)  # (sample, trajectory, lead time)
    errors[1, 0], errors[3, 0], errors[10, 0] = [1.0, 3.0], [3.0, 1.0], [0.5, 0.5]
    row = _row("model", errors)
    assert row.ade == pytest.approx((17 * 4 + 2 + 2 + 0.5) / 20)
    assert row.fde == pytest.approx((17 * 4 + 3 + 1 + 0.5) / 20)
    assert (row.ade_best_of_5, row.fde_best_of_5, row.ade_best_of_20, row.fde_best_of_20) == (2.0, 1.0, 0.5, 0.5)


def test_the_summary_puts_the_model_beside_the_references():
    rows = DisplacementRow(name="model", ade=0.1, fde=0.2), DisplacementRow(name="persistence", ade=1.0, fde=2.0)
    record = Displacement(unit="m", steps=3, trajectories=4, rows=rows)
    (line,) = DisplacementCheck().headline(record)
    assert (line.value, line.note) == ("0.1/0.2 m", "persistence 1/2")
    (section,) = DisplacementCheck().sections(record, None)
    assert [row[0] for row in section.items[0].rows] == ["model", "persistence"]
