"""Displacement errors against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from epns_pyro.evaluation import heldout
from epns_pyro.evaluation.checks.displacement import DisplacementCheck, _row
from epns_pyro.evaluation.ensembles import displacement
from epns_pyro.evaluation.forecasters import Truth
from epns_pyro.evaluation.record import Displacement, DisplacementRow
from epns_pyro.state import Field, StateSpec
from epns_pyro.training.run import EvaluationConfig

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


def test_errors_are_those_of_the_ensembles_that_are_judged(store):
    """Found block by block while these are sampled, they are those of the whole ensemble."""
    settings = EvaluationConfig(members=21, trajectories=5, block=3)
    truth = Truth(store.system)
    found = heldout.measure(truth, store, "test", settings, references={"again": truth}).displacement
    assert found.sizes == {"forecaster": 2, "sample": 21, "trajectory": 5, "time": store.steps("test") + 1}
    path = store.read("test", slice(0, 5))
    for start, stop in ((0, 3), (3, 5)):
        seed = heldout._seed(settings.seed, "test", start)
        for i, name in enumerate(("model", "again")):
            whole = displacement(store.spec, truth.sample(path[start:stop, 0], store.steps("test"), 21, seed + i), path[start:stop])
            np.testing.assert_allclose(found.sel(forecaster=name)[:, start:stop], whole, atol=1e-6)


def test_the_best_of_more_members_than_there_are_is_not_known():
    row = _row("model", np.ones((9, 2, 3)))
    assert row.ade_best_of_5 == 1.0
    assert np.isnan(row.ade_best_of_20)
    (section,) = DisplacementCheck().sections(Displacement(unit="m", steps=3, trajectories=2, rows=(row,)), None)
    assert section.items[0].rows == [("model", "1", "1", "1", "1", "–", "–")]
