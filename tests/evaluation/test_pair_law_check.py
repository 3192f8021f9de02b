"""The check of the law of pairs: what it measures on a run, what it shows, and when it has nothing to say."""

from __future__ import annotations

from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import xarray as xr

from epns_pyro.errors import DataError
from epns_pyro.evaluation.check import Inputs
from epns_pyro.evaluation.checks.pair_law import PairLaw, PairLawCheck, share_off
from epns_pyro.evaluation.evaluated import Evaluated
from epns_pyro.training.run import EvaluationConfig

matplotlib.use("Agg")


def inputs(sim, store, folder) -> Inputs:
    return Inputs(sim, store, EvaluationConfig(), {}, folder)


def test_the_integrator_of_a_run_is_read_per_mass_and_drawn(sim, store, tmp_path):
    found = PairLawCheck().measure(inputs(sim, store, tmp_path))
    assert found.per == "mass"
    assert found.pairs > 0
    assert 0 < found.off < 10
    data = xr.load_dataset(tmp_path / "pair_law.nc", engine="h5netcdf")
    assert share_off(data) == pytest.approx(found.off)
    (section,) = PairLawCheck().sections(found, Evaluated(None, files={"pair_law": data}))
    (figure,) = section.items
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    for panel in figure.panels:
        panel.draw(axes)
    assert axes.lines
    (line,) = PairLawCheck().headline(found)
    assert line.value == f"{found.off:.1%} off"


def test_a_model_without_an_equation_of_motion_has_no_law_to_read(sim, store, tmp_path):
    config = sim.config.override({"model.integrator": None})
    without = replace(sim, transition=config.model.build(sim.context))
    assert PairLawCheck().measure(inputs(without, store, tmp_path)) is None
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_named(tmp_path):
    xr.Dataset({"learned": ("distance", np.zeros(3))}).to_netcdf(tmp_path / "pair_law.nc", engine="h5netcdf")
    from epns_pyro.evaluation.evaluated import _checked

    with pytest.raises(DataError, match=r"pair_law.nc: expected learned with the dims distance, kind, quantile"):
        _checked(tmp_path / "pair_law.nc", xr.load_dataset(tmp_path / "pair_law.nc", engine="h5netcdf"))


def test_nothing_known_of_the_truth_is_said_as_nothing():
    found = xr.Dataset({"learned": (("kind", "distance", "quantile"), np.zeros((1, 2, 3)))}, {"quantile": [0.05, 0.5, 0.95]})
    assert np.isnan(share_off(found))
    assert list(PairLawCheck().headline(PairLaw(pairs=3, per=""))) == []


def test_a_law_that_can_be_read_is_said_in_words():
    found = PairLaw(pairs=10, per="", times="mass", form="forces go as r^1 and r^0; accelerations are forces over mass")
    (line,) = PairLawCheck().headline(found)
    assert line.value == found.form
    shape = ("kind", "distance", "quantile")
    data = xr.Dataset(
        {"learned": (shape, np.ones((1, 3, 3))), "pairs": (shape[:2], np.ones((1, 3), int))},
        {"kind": ["all pairs"], "distance": [1.0, 2.0, 3.0], "quantile": [0.05, 0.5, 0.95]},
    )
    (section,) = PairLawCheck().sections(found, Evaluated(None, files={"pair_law": data}))
    words, figure = section.items
    assert words.words == "Forces go as r^1 and r^0; accelerations are forces over mass."
    assert "times the mass of the body that is moved" in figure.caption
