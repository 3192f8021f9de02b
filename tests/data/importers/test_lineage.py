"""The layout of the Cell Tracking Challenge: images and their table of tracks."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
import torch
from click.testing import CliRunner

from epns_pyro.cli import main
from epns_pyro.data import check, import_labels
from epns_pyro.data.importers.lineage import find_lineage
from epns_pyro.errors import DataError
from epns_pyro.inference.elbo import path_bounds
from epns_pyro.lineage import has_lineage
from epns_pyro.models.tissues.cells import CellsModelConfig
from epns_pyro.models.tissues.events import DIES, DIVIDES

TABLE = "3 0 3 0\n7 4 7 3\n9 4 7 3\n5 0 7 0\n8 2 5 0\n"


@pytest.fixture
def folder(tmp_path):
    """Eight frames: cell 3 divides into 7 and 9 at frame 4, 5 stays, 8 is there from frame 2 to 5."""
    folder = tmp_path / "01_GT" / "TRA"
    folder.mkdir(parents=True)
    for t in range(8):
        image = np.zeros((16, 16), np.uint16)
        image[2:5, 2:5], image[5:8, 2:5] = (3, 3) if t < 4 else (7, 9)
        image[10:13, 9:12] = 5
        image[2:4, 10:13] = 8 if 2 <= t <= 5 else 0
        tifffile.imwrite(folder / f"man_track{t:03d}.tif", image)
    (folder / "man_track.txt").write_text(TABLE)
    return folder


def test_what_appears_divides_and_ends_is_counted(folder, tmp_path):
    out = tmp_path / "store.zarr"
    result = CliRunner().invoke(main, ["data", "import-labels", str(folder), "--out", str(out), "--segment", "4"])
    assert result.exit_code == 0, result.output
    assert (
        "man_track.txt: 5 tracks, 2 from the first frame on; 1 appear later, 2 are daughters in 1 divisions, "
        "1 end before the last frame without a division; epns-pyro data info lists the cells that appear within a trajectory"
    ) in result.output
    found = [str(finding) for finding in check(import_labels(folder, tmp_path / "whole.zarr"))]
    assert any("labels first appear within a trajectory 1 times, first in trajectory 0, frame 2, label 4" in line for line in found)


def test_divisions_within_a_trajectory_are_kept(folder, tmp_path):
    cut = import_labels(folder, tmp_path / "cut.zarr", segment=4)  # the division is between two trajectories
    assert not has_lineage(cut.spec)
    store = import_labels(folder, tmp_path / "whole.zarr")
    assert has_lineage(store.spec)
    assert store.spec["cell"].size - 1 == 10  # as many labels again for forecasts
    x = store.read(store.splits[0])[0]
    cell, _, mother, age = (store.spec.get(x, name) for name in store.spec.names)
    for label, expected in ((1, 0), (2, 0), (3, 1), (4, 0), (5, 1)):  # 3, 5, 7, 8, 9 in the table
        assert np.unique(mother[cell == label]).tolist() == [expected]
    assert [int(age[t][cell[t] == 3][0]) for t in (4, 5, 7)] == [0, 1, 3]
    assert [int(age[t][cell[t] == 2][0]) for t in (0, 7)] == [0, 7]
    assert [int(age[t][cell[t] == 4][0]) for t in (2, 5)] == [0, 3]


def test_a_model_scores_the_divisions_of_a_film(folder, tmp_path):
    store = import_labels(folder, tmp_path / "whole.zarr")
    context = store.context(store.splits[0])
    assert context.event_rates == pytest.approx((1 / 21, 1 / 21))  # 21 cells before a step: 8 is gone after frame 5, 3 divides at frame 4
    inner = {"name": "windows", "width": 6, "depth": 1, "nodes": 3, "dilations": (1, 2)}
    transition = CellsModelConfig.parse({"network": inner, "latent": 2, "prior_width": 8, "interlacing": 2}).build(context)
    x = torch.as_tensor(store.read(store.splits[0])).long()
    seen = transition.at(x[:, 3]).seen_events(x[:, 4])[0]
    assert (seen >= DIVIDES).nonzero()[:, 0].tolist() == [0]
    assert transition.at(x[:, 5]).seen_events(x[:, 6])[0].tolist()[3] == DIES
    assert path_bounds(transition, x[:, 0], x[:, 1:]).elbo.isfinite().all()


def test_frames_are_counted_from_the_first(folder, tmp_path):
    rows = [list(map(int, line.split())) for line in TABLE.splitlines()]
    (folder / "man_track.txt").write_text("".join(f"{label} {b + 10} {e + 10} {p}\r\n" for label, b, e, p in rows))
    assert find_lineage(folder).table["begin"].tolist() == [0, 4, 4, 0, 2]
    import_labels(folder, tmp_path / "store.zarr", crop=((0, 9), (0, 16)))  # the table may know of cells that are cropped away


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "cannot be read as a table of tracks"),
        ("3 0 3\n", "expected four columns, label, begin, end and parent, found 3"),
        (TABLE + "x 0 1 0\n", "row 6: label must be a whole number, found 'x'"),
        (TABLE + "11 -1 1 0\n", "row 6: begin must be a whole number, found '-1'"),
        (TABLE + "3 0 1 0\n", "row 6: a label occurs twice"),
        (TABLE + "11 3 1 0\n", "row 6: a track ends before it begins"),
        (TABLE + "11 3 4 77\n", "row 6: the mother has no track"),
        (TABLE + "0 3 4 0\n", "row 6: label 0 is that of the medium"),
        (TABLE.replace("5 0 7 0\n", ""), "has no track 5, which is in frame 0: is it the table of another film"),
        (TABLE.replace("8 2 5", "8 3 5"), "track 8 is from frame 3 to 5, but in the images in frame 2 too"),
        ("\ufeff" + TABLE + "1 2 3 4 5\n", "cannot be read as a table of tracks"),
    ],
)
def test_tables_that_do_not_fit(folder, tmp_path, table, message):
    (folder / "man_track.txt").write_text(table, encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        import_labels(folder, tmp_path / "store.zarr")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "store.zarr").exists()
