"""Tables of tracks as other programs write them: the same walk comes in from each."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from small_tracks import detections, walkers
from track_files import (
    boxes,
    boxes_in_the_world,
    btrack,
    csv,
    deeplabcut,
    idtracker_array,
    idtracker_csv,
    idtracker_dictionary,
    idtracker_text,
    napari,
    parquet,
    trackmate,
    trackpy,
)

from epns_pyro.data import Split
from epns_pyro.data.importers.track_fields import Column, Quantities
from epns_pyro.data.importers.track_report import ImportReport
from epns_pyro.data.importers.tracks import Options, import_tracks
from epns_pyro.errors import ConfigError, DataError

pytestmark = pytest.mark.filterwarnings("error")


def imported(path, **options):
    store = import_tracks([path], path.parent / "store.zarr", Options(**({"shares": Split(val=0, test=0), "history": 0} | options)))
    found = ImportReport.of(store.path)
    assert found.rows == found.kept + sum(found.dropped.values())
    return store, found


def same(store, table):
    found, expected = detections(store), table.sort_values(["frame", "id"], ignore_index=True)
    np.testing.assert_array_equal(found.to_numpy(), expected[list(found)].to_numpy())


IDTRACKER = [idtracker_csv, idtracker_text, idtracker_array, idtracker_dictionary]


@pytest.mark.parametrize("write", [trackpy, trackmate, napari, btrack, parquet, boxes_in_the_world, *IDTRACKER])
def test_the_same_walk_from_every_program(tmp_path, write):
    table = walkers()
    store, found = imported(write(tmp_path, table))
    same(store, table)
    assert store.spec.space == 2
    expected = {"trackpy": "trackpy", "trackmate": "TrackMate", "napari": "napari", "btrack": "napari", "parquet": "trackpy"}
    expected |= {"boxes_in_the_world": "MOTChallenge"}
    assert found.layouts == [expected.get(write.__name__, "idtracker")]
    if write is trackmate:
        assert store.spec["position"].unit == "micron"
        assert (store.frame_dt, store.time_unit) == (0.5, "sec")
    if write is idtracker_csv:
        assert store.frame_dt == pytest.approx(1 / 30)
    if write is idtracker_dictionary:
        assert (store.frame_dt, store.time_unit) == (1 / 32, "s")
    if write in (trackmate, btrack):
        assert "z is 0 everywhere: space has 2 dimensions" in found.notes


@pytest.mark.parametrize("known", [True, False])
def test_middles_of_boxes_in_an_image(tmp_path, known):
    table = walkers()
    path = boxes(tmp_path, table)
    if known:  # and a table with classes has nine columns
        path.write_text(path.read_text().replace(",-1,-1,-1,-1", ",0.5,1,1").replace(",0.5,", ",0.25,", 7))
    store, found = imported(path, quantities=Quantities(fields=(Column.parse("height:px"),)), **({"likelihood": 0.5} if known else {}))
    np.testing.assert_allclose(detections(store), table[7 * known :].reset_index(drop=True), atol=1e-12)
    assert found.layouts == ["MOTChallenge"]
    assert "boxes.txt: positions are the middles of boxes, in pixels" in found.notes
    assert not any("likelihood" in note for note in found.notes)
    heights = store.spec.get(store.read("train"), "height")
    np.testing.assert_array_equal(heights[~np.isnan(heights)], 8.0)


def test_a_box_nowhere_in_the_world_is_left_out(tmp_path):
    table = walkers()
    path = boxes_in_the_world(tmp_path, table)
    lines = path.read_text().splitlines()
    lines[3] = ",".join([*lines[3].split(",")[:7], "-1,-1,-1"])
    path.write_text("\n".join(lines))
    store, found = imported(path)
    same(store, table.drop(index=3))
    assert found.dropped == {"without a position": 1}


@pytest.mark.parametrize(("old", "new"), [(",4,8,", ",0,8,"), ("\n30,", "\n30.5,"), (",-1,-1,-1,-1", ",7,-1,-1,-1")])
def test_other_tables_of_ten_columns_are_not_boxes(tmp_path, old, new):
    path = boxes(tmp_path, walkers(first=0))
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(DataError, match="there is no header above its 10 columns"):
        imported(path)


def test_a_word_among_pairs_is_the_column_of_that_name(tmp_path):
    table = walkers()
    table.rename(columns={"frame": "t", "id": "cell"}).to_csv(tmp_path / "walk.csv", index=False)
    same(imported(tmp_path / "walk.csv", columns="frame=t,id=cell,x,y")[0], table)


@pytest.mark.parametrize(("header", "unit"), [("seconds", "s"), ("time", "")])
def test_wide_tables_say_the_time_between_frames(tmp_path, header, unit):
    x = np.random.default_rng(0).normal(size=(60, 4)).cumsum(0)
    wide = pd.DataFrame(x, columns=["x1", "y1", "x2", "y2"])
    wide.insert(0, header, 5 + 0.25 * np.arange(60))
    wide.to_csv(tmp_path / "even.csv", index=False)
    store, _ = imported(tmp_path / "even.csv")
    assert (store.frame_dt, store.time_unit) == (0.25, unit)
    wide[header] **= 2
    (tmp_path / "other").mkdir()
    wide.to_csv(tmp_path / "other" / "uneven.csv", index=False)
    assert imported(tmp_path / "other" / "uneven.csv")[0].frame_dt == 1


def test_a_time_between_frames_that_is_given_is_not_taken_from_the_file(tmp_path):
    store, _ = imported(trackmate(tmp_path, walkers()), frame_dt=3.0, time_unit="h")
    assert (store.frame_dt, store.time_unit) == (3.0, "h")


def test_recordings_with_different_times_between_frames_are_refused(tmp_path):
    first = trackmate(tmp_path, walkers())
    other = first.with_name("other.csv")
    lines = [line.split(",") for line in first.read_text().splitlines()]
    time = lines[0].index("POSITION_T")
    doubled = [[*line[:time], str(2 * float(line[time])), *line[time + 1 :]] for line in lines[4:]]
    other.write_text("\n".join(",".join(line) for line in lines[:4] + doubled))
    with pytest.raises(ConfigError, match=r"different times between frames \(0.5 sec and 1 sec\): give --frame-dt"):
        import_tracks([first, other], tmp_path / "both.zarr", Options(segment=4))


def test_a_z_that_varies_is_an_axis(tmp_path):
    table = walkers().rename(columns={"id": "particle"})
    table["z"] = np.arange(len(table)) / 8
    store, _ = imported(csv(tmp_path / "a.csv", table))
    assert store.spec.space == 3
    np.testing.assert_array_equal(detections(store).z, table.z)


def test_spots_of_no_track_are_left_out(tmp_path):
    path = trackmate(tmp_path, walkers())
    lines = path.read_text().splitlines()
    lines[6:8] = [",".join(["" if i == 2 else field for i, field in enumerate(line.split(","))]) for line in lines[6:8]]
    path.write_text("\n".join(lines))
    _, found = imported(path, quantities=Quantities(statics=(Column.parse("radius=RADIUS:um"),)))
    assert found.dropped == {"without a track": 2}


# -- DeepLabCut ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("individuals", [[()], [("mouse1",), ("mouse2",)]])
def test_deeplabcut(tmp_path, individuals):
    table = deeplabcut(individuals)
    table.to_csv(tmp_path / "mouse.csv")
    store, found = imported(tmp_path / "mouse.csv", likelihood=0.9)
    assert found.layouts == ["DeepLabCut"]
    assert found.dropped == {"less likely than 0.9": 5}
    x = store.read("train")[0]
    names = store.dataset("train")["body_id"].attrs["names"]
    order = store.dataset("train")["body_id"].values[0]
    assert [names[i] for i in order] == ["/".join((*owner, part)) for owner in individuals for part in ("nose", "tail")]
    position = store.spec.get(x, "position")
    values = table.to_numpy().reshape(30, -1, 3)
    np.testing.assert_array_equal(np.isnan(position[:, 0, 0]), np.isin(np.arange(30), np.arange(4, 9)))
    np.testing.assert_array_equal(position[:, 1:], values[:, 1:, :2])
    assert not found.notes
    unfiltered = import_tracks([tmp_path / "mouse.csv"], tmp_path / "all.zarr")
    note = ImportReport.of(unfiltered.path).notes[0]
    assert "no detection was dropped for it: --likelihood 0.9" in note


def test_body_parts_can_be_a_category(tmp_path):
    deeplabcut([("mouse1",), ("mouse2",)]).to_csv(tmp_path / "mice.csv")
    store, found = imported(tmp_path / "mice.csv", quantities=Quantities(categories=(Column.parse("bodypart"),)))
    assert "category bodypart: 0 is nose, 1 is tail" in found.notes
    np.testing.assert_array_equal(store.spec.get(store.read("train")[0, 0], "bodypart"), [0, 1, 0, 1])


# -- text as people and spreadsheets write it ------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", [",", ";", "\t", " ", "   ", ", "])
@pytest.mark.parametrize("header", [True, False])
def test_separators_are_found(tmp_path, separator, header):
    table = walkers()
    lines = [separator.join(map(str, row)) for row in [table.columns] * header + table.astype(object).to_numpy().tolist()]
    (tmp_path / "walk.txt").write_text("\n".join(lines) + "\n\n")
    store, _ = imported(tmp_path / "walk.txt", columns="" if header else "frame,id,x,y")
    same(store, table)


@pytest.mark.parametrize("separator", [";", "\t", "  "])
def test_decimal_commas(tmp_path, separator):
    table = walkers()
    rows = [separator.join(str(value).replace(".", ",") for value in row) for row in table.astype(object).to_numpy().tolist()]
    (tmp_path / "walk.txt").write_text(separator.join(table.columns) + "\n" + "\n".join(rows))
    store, _ = imported(tmp_path / "walk.txt")
    same(store, table)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1", "utf-8"])
def test_encodings(tmp_path, encoding):
    table = walkers()
    named = table.assign(id="Käfer " + table.id.astype(str), größe=1.5)
    csv(tmp_path / "walk.csv", named, encoding=encoding, lineterminator="\r\n")
    store, _ = imported(tmp_path / "walk.csv", quantities=Quantities(statics=(Column.parse("size=Größe"),)))
    names = store.dataset("train")["body_id"].attrs["names"]
    assert set(names) == set(named.id)
    found = detections(store)
    found["id"] = [int(names[i].split()[1]) for i in found.id]
    np.testing.assert_array_equal(found.sort_values(["frame", "id"]), table)


def test_a_header_behind_a_hash(tmp_path):
    table = walkers()
    np.savetxt(tmp_path / "walk.txt", table[["id", "frame", "x", "y"]], header="id frame x y", fmt="%.3f")
    store, _ = imported(tmp_path / "walk.txt")
    same(store, table)


@pytest.mark.parametrize(
    ("columns", "order"),
    [
        ("frame,id,x,y", "frame,id,x,y"),
        ("id,frame,x,y", "frame,id,x,y"),
        ("-,y,frame,x,id", "junk,y,frame,x,id"),
        ("frame=2,id=4,x=WALK_X,y=walk_y", "junk,t,WALK_X,who,WALK_Y"),
        ("frame,id,x,y", "t,who,WALK_X,WALK_Y"),
    ],
)
def test_columns_by_name_and_by_place(tmp_path, columns, order):
    table = walkers().assign(junk="a")
    names = {"t": "frame", "who": "id", "WALK_X": "x", "WALK_Y": "y"}
    shuffled = table[[names.get(name, name) for name in order.split(",")]].set_axis(order.split(","), axis=1)
    header = columns != "-,y,frame,x,id"
    store, _ = imported(csv(tmp_path / "walk.csv", shuffled, header=header), columns=columns)
    same(store, table)


def test_times_in_place_of_frames_and_one_body_without_id(tmp_path):
    """A bead in a trap: times and places."""
    table = walkers(tracks=1, length=30)
    table = pd.DataFrame({"t (s)": 0.04 * table.frame, "x": table.x, "y": table.y, "id": 1, "frame": table.frame})
    csv(tmp_path / "bead.csv", table[["t (s)", "x", "y"]])
    store, _ = imported(tmp_path / "bead.csv", columns="time=1,x=x,y=y", frame_dt=0.04)
    same(store, table)
    assert store.frame_dt == 0.04
    (tmp_path / "store.zarr").rename(tmp_path / "done.zarr")
    with pytest.raises(DataError, match=r"bead.csv, line 2: time is [\d.]+, expected a whole multiple of --frame-dt 0.07"):
        imported(tmp_path / "bead.csv", columns="time=1,x=x,y=y", frame_dt=0.07)


def test_a_folder_of_files_in_natural_order(tmp_path):
    (tmp_path / "scenes").mkdir()
    for number in (10, 2, 1):
        csv(tmp_path / "scenes" / f"scene_{number}.csv", walkers(seed=number))
    (tmp_path / "scenes" / "README.md").write_text("no table")
    store = import_tracks([tmp_path / "scenes"], tmp_path / "store.zarr", Options(segment=5))
    assert ImportReport.of(store.path).recordings == ["scene_1.csv", "scene_2.csv", "scene_10.csv"]


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    path = parquet(tmp_path, walkers())
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"walk.parquet: reading Parquet needs pyarrow: pip install 'epns-pyro\[parquet\]'"):
        imported(path)


def test_a_table_read_from_a_pipe_has_no_surprise(tmp_path):
    """The table of the pedestrian recordings: numbers with and without a point, tabs, no header, frames that step by 10."""
    table = walkers(every=10)
    text = io.StringIO()
    table.assign(frame=table.frame.astype(float), id=table.id.astype(float)).to_csv(text, sep="\t", header=False, index=False)
    (tmp_path / "walk.txt").write_text(text.getvalue())
    store, found = imported(tmp_path / "walk.txt", columns="frame,id,x,y", frame_dt=0.04, every=10)
    assert (store.frame_dt, found.rows, found.kept) == (0.4, len(table), len(table))
    assert set(store.dataset("train")["body_id"].values[0]) == set(table.id)
