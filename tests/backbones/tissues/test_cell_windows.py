"""Windows around cells have the size that the cells need, unless a user says otherwise."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner

from epns_pyro.backbones.tissues.cell_windows import DEFAULT_WINDOW, window_for
from epns_pyro.backbones.tissues.tissue import Size
from epns_pyro.cli import main
from epns_pyro.context import DataContext
from epns_pyro.data import Split, import_labels
from epns_pyro.models.tissues.cells import CellsModelConfig
from epns_pyro.systems import CellsConfig, RecordedCellsConfig
from epns_pyro.training.presets import preset

LATTICE = Size(64, 70)


@pytest.mark.parametrize(
    ("reach", "side"), [(None, DEFAULT_WINDOW), (17.03, 37), (6.0, 15), (5.5, 13), (0.0, 7), (40.0, 71), (float(2**20), 71)]
)
def test_a_window_holds_what_is_within_reach(reach, side):
    assert window_for(reach, LATTICE) == side


@pytest.mark.parametrize(("setting", "side"), [({}, 37), ({"window": 21}, 21), ({"window": 21, "spacing": 2.0}, 21)])
def test_the_setting_of_a_user_comes_first(setting, side):
    spec = RecordedCellsConfig(lattice=LATTICE, cells=3).build().spec
    network = (
        CellsModelConfig.parse({"network": {"name": "windows"} | setting})
        .build(DataContext(spec, 1.0, {}, LATTICE, cell_reach=17.03))
        .network
    )
    assert network.window(LATTICE) == (side, side)
    assert network.basis.spacing == setting.get("spacing", side / 6)


def test_presets_leave_the_window_of_recorded_cells_to_the_data():
    recorded = RecordedCellsConfig(lattice=LATTICE, cells=3)
    for name, side in (("quick", 13), ("paper", 15)):
        assert preset("cells", name, recorded).model.network.window is None
        assert preset("cells", name, CellsConfig.small()).model.network.window == side
        assert preset("cells", name, CellsConfig(frame_mcs=1000)).model.network.window is None


@pytest.mark.parametrize(("cells", "batch", "validated"), [(1, 16, 100), (16, 16, 100), (41, 6, 39), (285, 1, 10)])
def test_a_step_on_recorded_cells_sees_about_as_many_cells_whatever_their_number_in_an_image(cells, batch, validated):
    training = preset("cells", "quick", RecordedCellsConfig(lattice=LATTICE, cells=cells)).training
    assert (training.batch, training.validation_transitions) == (batch, validated)


def test_the_reach_of_cells_is_measured_in_the_training_set_and_said(tmp_path):
    import tifffile

    y, x = np.mgrid[:40, :40]
    film = np.stack([((y - 18 - t % 2) ** 2 + (x - 20) ** 2 < 9.5**2) for t in range(8)]).astype(np.uint8)
    tifffile.imwrite(tmp_path / "big.tif", film, photometric="minisblack")
    store = import_labels(tmp_path / "big.tif", tmp_path / "b.zarr", segment=2, split=Split(val=0, test=0))
    assert store.context().cell_reach == pytest.approx(10)
    found = CliRunner().invoke(main, ["data", "info", str(tmp_path / "b.zarr")])
    assert "cells stay within 10.0 pixels of their centre during a step: windows around them are 23 x 23 pixels" in found.output
