"""Tables of tracks: what comes in is what stands in them, and what does not come in is counted."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from small_tracks import detections, walkers

from epns_pyro.data import Split, check
from epns_pyro.data.importers import track_spool, track_tables
from epns_pyro.data.importers.track_fields import Column, Quantities
from epns_pyro.data.importers.track_report import ImportReport
from epns_pyro.data.importers.track_splits import Stretch, by_time, default_shares
from epns_pyro.data.importers.tracks import Options, import_tracks
from epns_pyro.data.presence import presence
from epns_pyro.errors import ConfigError, DataError

pytestmark = pytest.mark.filterwarnings("error")

WHOLE = Split(val=0, test=0)


def imported(tmp_path, table, name="store.zarr", tests=(), **options):
    """Import a table, a file or several; everything is for training unless said otherwise."""
    if isinstance(table, pd.DataFrame):
        path = tmp_path / "walk.csv"
        table.to_csv(path, index=False)
        table = path
    options = {"shares": WHOLE, "history": 0} | options
    return import_tracks(table if isinstance(table, list) else [table], tmp_path / name, Options(**options), tests=tests)


def report(store) -> ImportReport:
    """Return the report of an import, of which every row must be accounted for."""
    found = ImportReport.of(store.path)
    assert found.rows == found.kept + sum(found.dropped.values())
    there = sum(int(presence(store.spec, store.read(split)).sum()) for split in store.splits)
    assert found.kept == there
    return found


def same(store, table):
    found, expected = detections(store), table.sort_values(["frame", "id"], ignore_index=True)
    np.testing.assert_array_equal(found.to_numpy(), expected[list(found)].to_numpy())


def test_bodies_are_there_when_a_row_says_so(tmp_path):
    table = walkers()
    store = imported(tmp_path, table, unit="m", frame_dt=0.4, time_unit="s")
    same(store, table)
    assert (store.frame_dt, store.time_unit, store.spec["position"].unit, store.spec.space) == (0.4, "s", "m", 2)
    assert store.spec["position"].translates
    assert store.size("train") == 1
    assert store.sites("train") == (12,)
    found = report(store)
    assert (found.rows, found.tracks, found.dropped) == (len(table), 12, {})
    assert store.system.alive(store.read("train")).all()
    assert [finding.message for finding in check(store) if finding.level == "error" and finding.split] == []


def test_segments_have_a_body_axis_of_their_own(tmp_path):
    table = walkers(tracks=30, spread=200)
    store = imported(tmp_path, table, segment=8)
    assert store.sites("train")[0] < 30
    there = presence(store.spec, store.read("train"))
    assert there.any(1).sum(1).max() == store.sites("train")[0]
    assert there[:, 0].any(1).all(), "a segment begins in a frame with a body"
    ids = store.dataset("train")["body_id"].values
    np.testing.assert_array_equal(ids >= 0, there.any(1))
    assert ((there[:, 1:] & there[:, :-1]).any((1, 2))).all()
    rows = set(map(tuple, table.to_numpy()))
    kept = detections(store)
    assert set(map(tuple, kept.to_numpy())) <= rows
    found = report(store)
    assert found.kept == len(kept) < found.rows
    assert set(found.dropped) <= {
        "left over at the end of a recording, less than a segment",
        "of segments in which no body is present in two consecutive frames",
    }


@pytest.mark.parametrize("order", ["frame", "id", "shuffled"])
def test_the_size_of_a_chunk_does_not_matter(tmp_path, monkeypatch, order):
    """Tables are read, sorted and cut in pieces: tiny ones give what large ones give."""
    table = walkers(tracks=40, spread=150)
    table["mark"] = np.where(table.id % 3, "a", "b")
    table = table.sample(frac=1, random_state=0) if order == "shuffled" else table.sort_values(order, kind="stable")
    options = {"segment": 10, "shares": Split(), "quantities": Quantities(categories=(Column("mark", ("mark",)),))}
    whole = imported(tmp_path, table, "whole.zarr", **options)
    monkeypatch.setattr(track_tables, "CHUNK_ROWS", 7)
    monkeypatch.setattr(track_spool, "BLOCK_ROWS", 5)
    pieces = imported(tmp_path, table, "pieces.zarr", **options)
    assert ImportReport.of(whole.path) == report(pieces)
    assert whole.splits == pieces.splits == ("train", "val", "test")
    for split in whole.splits:
        np.testing.assert_array_equal(whole.read(split), pieces.read(split))
        np.testing.assert_array_equal(whole.dataset(split)["body_id"], pieces.dataset(split)["body_id"])
    notes = report(whole).notes
    assert (notes[0] == "walk.csv: rows were not in order of the frames: sorted") == (order != "frame")


def test_frame_numbers_that_step(tmp_path):
    """By default no row is lost; `every` keeps fewer frames, and what it leaves out is counted."""
    table = walkers(every=10)
    store = imported(tmp_path, table, "a.zarr", frame_dt=0.04)
    assert (store.frame_dt, report(store).every, report(store).dropped) == (0.4, 10, {})
    every = imported(tmp_path, table, "b.zarr", frame_dt=0.04, every=20)
    kept = table[(table.frame - table.frame.min()) % 20 == 0]
    assert every.frame_dt == 0.8
    assert report(every).dropped["of frames between the kept frames"] == len(table) - len(kept)
    with pytest.raises(DataError, match="no body is present in two consecutive kept frames: frame numbers step by 10, give --every"):
        imported(tmp_path, table, "c.zarr", every=1)


def test_uneven_frames_go_by_their_number(tmp_path):
    """A frame in which nobody was seen is a frame: the walk on either side of it is not one step."""
    table = walkers(spread=3, tracks=4)
    table = table[table.frame != table.frame.min() + 6]
    store = imported(tmp_path, table)
    there = presence(store.spec, store.read("train"))[0]
    assert not there[6].any()
    assert there[5].any()
    assert there[7].any()


def test_pauses_without_anybody_are_skipped(tmp_path):
    early, late = walkers(spread=3, tracks=4), walkers(spread=3, tracks=4)
    late["frame"] += 1000
    store = imported(tmp_path, pd.concat([early, late]), segment=4)
    starts = store.dataset("train")["first_frame"].values
    assert 1000 + early.frame.min() in starts
    assert len(starts) < 20


# -- fields ----------------------------------------------------------------------------------------------------------------


def decorated():
    table = walkers()
    table["brightness"] = np.arange(len(table)) / 7
    table["size"] = 1.5 + table.id
    table["species"] = np.where(table.id % 2, "wolf", "hare")
    table["vx"], table["vy"] = np.arange(len(table)), -np.arange(len(table))
    return table


QUANTITIES = Quantities(
    fields=(Column.parse("brightness:counts"),),
    statics=(Column.parse("diameter=size:um"),),
    categories=(Column.parse("species"),),
    vectors=(Column.parse("velocity=vx,vy", vector=True),),
)


def test_further_columns_become_fields(tmp_path):
    table = decorated()
    store = imported(tmp_path, table, segment=6, quantities=QUANTITIES, unit="um", time_unit="s", scale=0.5)
    spec, x = store.spec, store.read("train")
    assert {f.name: f.unit for f in spec.fields} == {
        "position": "um",
        "velocity": "um/s",
        "brightness": "counts",
        "diameter": "um",
        "species": "",
    }
    assert (spec["velocity"].rate_of, spec["velocity"].irreps) == ("position", "1o")
    assert [f.name for f in spec.static_fields] == ["diameter", "species"]
    assert (spec["species"].kind, spec["species"].size) == ("category", 2)
    there = presence(spec, x)
    ids = np.broadcast_to(store.dataset("train")["body_id"].values[:, None], there.shape)
    rows = {(frame, track): row for row, (frame, track) in enumerate(zip(table.frame, table.id, strict=True))}
    frames = store.dataset("train")["first_frame"].values[:, None, None] + np.arange(6)[:, None]
    at = [rows[key] for key in zip(np.broadcast_to(frames, there.shape)[there], ids[there], strict=True)]
    expected = table.iloc[at]
    np.testing.assert_allclose(spec.get(x, "brightness")[there], expected.brightness)
    np.testing.assert_allclose(spec.get(x, "velocity")[there], 0.5 * expected[["vx", "vy"]])
    np.testing.assert_allclose(spec.get(x, "position")[there], 0.5 * expected[["x", "y"]])
    np.testing.assert_array_equal(spec.get(x, "diameter")[there], expected["size"])
    np.testing.assert_array_equal(spec.get(x, "species")[there] == 1, expected.species == "wolf")
    assert np.isnan(spec.get(x, "brightness")[~there]).all()
    assert "category species: 0 is hare, 1 is wolf" in report(store).notes


def test_places_that_no_body_takes_hold_no_made_up_constants(tmp_path):
    store = imported(tmp_path, decorated(), segment=6, quantities=QUANTITIES)
    x = store.read("train")
    diameter, there = store.spec.get(x, "diameter")[:, 0], presence(store.spec, x).any(1)
    for values, real in zip(diameter, there, strict=True):
        assert set(values) == set(values[real])


def test_rows_without_a_value_are_dropped_and_counted(tmp_path):
    table = decorated()
    gaps = {"x": [3, 8], "brightness": [10], "species": [12, 13, 14], "id": [20]}
    for column, rows in gaps.items():
        table[column] = table[column].astype(object)
        table.loc[rows, column] = None
    store = imported(tmp_path, table, quantities=QUANTITIES)
    reasons = {"without a position": 2, "without brightness": 1, "without species": 3, "without a track": 1}
    assert report(store).dropped == reasons


@pytest.mark.parametrize(
    ("text", "vector", "message"),
    [
        ("=x", False, r"a field is given as NAME\[=COLUMN\]\[:UNIT\], found '=x'"),
        ("a=b,c", False, r"a field is given as"),
        ("velocity", True, r"a vector is given as NAME=COLUMN,COLUMN\[,COLUMN\]\[:UNIT\], found 'velocity'"),
    ],
)
def test_fields_are_given_in_one_form(text, vector, message):
    with pytest.raises(ConfigError, match=message):
        Column.parse(text, vector=vector)


# -- sets ------------------------------------------------------------------------------------------------------------------


def recordings(tmp_path, count, **settings):
    for number in range(count):
        walkers(seed=number, spread=200, tracks=30, **settings).to_csv(tmp_path / f"scene_{number}.csv", index=False)
    return [tmp_path / f"scene_{number}.csv" for number in range(count)]


def moments(store, split):
    """The frames of a set, by recording."""
    data = store.dataset(split)
    frames = data["first_frame"].values[:, None] + np.arange(store.steps(split) + 1)
    return {number: np.unique(frames[data["recording"].values == number]) for number in np.unique(data["recording"])}


@pytest.mark.parametrize("margin", [None, 0, 13])
def test_sets_by_time_keep_their_distance(tmp_path, margin):
    store = imported(tmp_path, recordings(tmp_path, 2), segment=5, margin=margin, shares=Split())
    assert store.splits == ("train", "val", "test")
    train, val, test = (moments(store, split) for split in store.splits)
    for number in (0, 1):
        gap = 5 if margin is None else margin
        assert val[number].min() - train[number].max() > gap
        assert test[number].min() - val[number].max() > gap
    dropped = f"of segments closer than {5 if margin is None else margin} frames to another set"
    assert (dropped in report(store).dropped) == (margin != 0)


@pytest.mark.parametrize(
    ("lengths", "options", "segment"),
    [
        ([1500], {}, 15),
        ([7000], {}, 70),
        ([60], {}, 8),  # of longer ones less than half of the training set would be left
        ([400, 60], {}, 7),
        ([60], {"margin": 0}, 10),
        ([60, 60], {"tests": [1]}, 10),  # two sets and one margin in the other
        ([400], {"noise": "learn", "history": None}, 20),  # ten frames given, ten forecast
        ([90, 50, 70], {"split": "recording"}, 10),
        ([30] * 3, {"split": "recording"}, 30),
        ([30] * 20, {}, 30),  # many of one length: each goes to one set
    ],
)
def test_recordings_are_cut_so_that_every_set_has_some(tmp_path, lengths, options, segment):
    paths = []
    for number, length in enumerate(lengths):
        paths.append(tmp_path / f"scene_{number}.csv")
        pd.DataFrame({"frame": np.arange(length), "id": 1, "x": np.arange(length) % 7, "y": 0.5}).to_csv(paths[-1], index=False)
    tests = [paths[number] for number in options.pop("tests", ())]
    store = imported(tmp_path, paths, shares=None, tests=tests, **options)
    assert store.splits == ("train", "val", "test")
    assert store.steps("train") + 1 == segment
    assert any(f"cut into trajectories of {segment} frames" in note for note in report(store).notes) == (segment != max(lengths))


@pytest.mark.parametrize(("segments", "test"), [(12, 1), (39, 4), (60, 18), (200, 40), (1000, 100)])
def test_short_recordings_keep_enough_for_a_test(segments, test):
    stretches = [Stretch(0, 5 * i, 5 * i + 5) for i in range(segments)]
    sets = by_time(stretches, 5, default_shares(segments))
    assert [sets.count(name) for name in ("train", "val", "test")] == [
        segments - 2 - test - round(segments / 10),
        round(segments / 10),
        test,
    ]


def test_a_test_set_that_is_too_small_is_noted_with_a_way_out(tmp_path):
    few = imported(tmp_path, recordings(tmp_path, 1), "few.zarr", segment=10, shares=None)
    assert few.size("test") < 15
    assert f"the test set has {few.size('test')} trajectories, too few for verdicts: use a shorter --segment" in report(few).notes[-1]
    asked = imported(tmp_path, recordings(tmp_path, 1), "asked.zarr", segment=5, shares=Split(train=40, val=10, test=50))
    assert asked.size("test") >= 15
    assert not report(asked).notes


def test_sets_by_recording_share_none(tmp_path):
    store = imported(tmp_path, recordings(tmp_path, 4), segment=5, split="recording", shares=Split())
    homes = [set(moments(store, split)) for split in ("train", "val", "test")]
    assert sorted(number for home in homes for number in home) == [0, 1, 2, 3]
    assert report(store).recordings == [f"scene_{n}.csv" for n in range(4)]
    with pytest.raises(ConfigError, match="--split recording: training, validation and test need 3 recordings, found 2"):
        imported(tmp_path, recordings(tmp_path, 2), "b.zarr", segment=5, split="recording", shares=Split())


@pytest.mark.parametrize("how", ["among the others", "beside them"])
def test_a_scene_that_is_left_out(tmp_path, how):
    files = recordings(tmp_path, 3)
    given = files if how == "among the others" else [files[0], files[2]]
    store = imported(tmp_path, given, tests=[files[1]], segment=5, shares=Split())
    assert set(moments(store, "test")) == {1 if how == "among the others" else 2}
    assert set(moments(store, "train")) == set(moments(store, "val")) == {0, 2 if how == "among the others" else 1}
    with pytest.raises(ConfigError, match="all recordings are in the test set"):
        imported(tmp_path, files[:1], "b.zarr", tests=files[:1], segment=5)


def test_a_recording_too_short_for_three_sets_is_for_training(tmp_path):
    assert imported(tmp_path, walkers(spread=5), segment=8, shares=Split()).splits == ("train",)


def test_recordings_of_different_length_need_segments(tmp_path):
    files = recordings(tmp_path, 2)
    with pytest.raises(ConfigError, match=r"the recordings have different lengths \(\d+ to \d+ frames\): cut them into"):
        imported(tmp_path, files)
    assert list(tmp_path.glob("*store*")) == list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize("noise", [0.0, 0.05, "learn"])
def test_positions_with_an_error_come_with_a_hidden_velocity(noise, tmp_path):
    table = walkers()
    store = imported(tmp_path, table, unit="m", time_unit="s", noise=noise, history=None)
    same(store, table)
    position, velocity = store.spec.fields
    assert (position.name, position.noise) == ("position", noise)
    assert (velocity.rate_of, velocity.hidden, velocity.differences, velocity.unit) == ("position", True, False, "m/s")


def test_a_recorded_velocity_is_not_hidden(tmp_path):
    table = walkers().assign(vx=0.5, vy=0.25)
    quantities = Quantities(vectors=(Column.parse("velocity=vx,vy", vector=True),))
    store = imported(tmp_path, table, noise="learn", history=None, quantities=quantities)
    assert [(f.name, f.noise, f.hidden) for f in store.spec.fields] == [("position", "learn", False), ("velocity", 0.0, False)]


def test_a_named_column_that_nothing_uses_is_reported(tmp_path):
    store = imported(tmp_path, walkers().assign(size=2.0), columns="frame,id,x,y,size")
    assert "the column 'size' of --columns is not used: --field size makes it a field" in report(store).notes
    assert report(imported(tmp_path, walkers(), name="second.zarr", columns="frame,id,x,y")).notes == []


def test_positions_are_measured_from_the_centre_of_a_trap(tmp_path):
    table = walkers()
    store = imported(tmp_path, table, symmetry="point", centre=(3.0, -1.0), scale=2.0)
    assert not store.spec["position"].translates
    expected = table.assign(x=2.0 * table.x - 3.0, y=2.0 * table.y + 1.0)
    found = detections(store)
    np.testing.assert_allclose(found[["x", "y"]], expected.sort_values(["frame", "id"])[["x", "y"]])
