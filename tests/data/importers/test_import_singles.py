"""Tracks of bodies that do not influence each other: every track becomes trajectories of one body, and goes to one set."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from small_tracks import detections

from epns_pyro.cli import main
from epns_pyro.data import Split
from epns_pyro.data.importers.track_report import ImportReport
from epns_pyro.data.importers.tracks import Options, import_tracks
from epns_pyro.data.presence import presence
from epns_pyro.errors import ConfigError

TRACKS = 60


@pytest.fixture
def cells(tmp_path):
    """A film of 120 frames with 60 tracks of 1 to 30 frames, of which one detection in ten is missing; the table and its file."""
    rng, rows = np.random.default_rng(0), []
    for track in range(TRACKS):
        frames = int(rng.integers(1, 31))
        start = int(rng.integers(0, 121 - frames))
        place = rng.normal(0, 50, 2) + rng.normal(size=(frames, 2)).cumsum(0)
        rows += [(start + k, 100 + track, *place[k].round(3)) for k in range(frames) if rng.random() > 0.1]
    table = pd.DataFrame(rows, columns=["frame", "id", "x", "y"]).sample(frac=1, random_state=0)
    table.to_csv(tmp_path / "cells.csv", index=False)
    return table, tmp_path / "cells.csv"


def imported(file, name="store.zarr", **options):
    return import_tracks([file], file.with_name(name), Options(**({"segment": 8, "history": 0, "singles": True} | options)))


def tracks_of(store, split):
    return set(store.dataset(split)["body_id"].values[:, 0].tolist())


def test_every_trajectory_is_a_piece_of_one_track(cells):
    table, file = cells
    store = imported(file, shares=Split(val=0, test=0))
    assert store.sites("train") == (1,)
    there = presence(store.spec, store.read("train"))[..., 0]
    assert there[:, :2].all(), "a trajectory begins with two detections in a row"
    kept, found = detections(store), ImportReport.of(store.path)
    pd.testing.assert_frame_equal(
        kept.merge(table, on=["frame", "id", "x", "y"])[["frame", "id"]], kept[["frame", "id"]], check_dtype=False
    )
    assert not kept.duplicated(["frame", "id"]).any()
    assert found.rows == found.kept + sum(found.dropped.values()) == len(table)
    assert found.kept == len(kept)
    assert f"kept {found.kept} rows in {store.size('train')} trajectories of 8 frames, one body in each" in list(found.lines())
    data = store.dataset("train")
    begun = set(zip(data["body_id"].values[:, 0].tolist(), data["first_frame"].values.tolist(), strict=True))
    for track, rows in table.groupby("id"):  # nothing that could begin a trajectory is left out
        frames, end = sorted(rows.frame), -1
        for frame in frames:
            if frame >= end and frame + 1 in frames:
                assert (track, frame) in begun
                end = frame + 8


def test_a_state_with_a_history_needs_so_many_detections_in_a_row(cells):
    store = imported(cells[1], history=3, shares=Split(val=0, test=0))
    there = presence(store.spec, store.read("train"))[..., 0]
    first = store.system.forecast_frame
    assert there[:, first : first + 2].all(), "every trajectory can be forecast, and the forecast judged"
    assert any("fewer than 5 detections of a track in a row" in reason for reason in ImportReport.of(store.path).dropped)


def test_a_track_goes_to_one_set_unless_sets_are_by_time(cells):
    store = imported(cells[1])
    homes = [tracks_of(store, split) for split in ("train", "val", "test")]
    assert all(homes)
    assert sum(map(len, homes)) == len(set.union(*homes))
    by_time = imported(cells[1], "time.zarr", split="time")
    first = {split: by_time.dataset(split)["first_frame"].values for split in by_time.splits}
    assert first["train"].max() + 8 + 8 <= first["val"].min()
    assert first["val"].max() + 8 + 8 <= first["test"].min()


def test_a_whole_track_is_a_trajectory_without_a_segment(cells):
    table, file = cells
    store = imported(file, segment=None, shares=Split(val=0, test=0))
    longest = table.groupby("id").frame.agg(lambda frames: frames.max() - frames.min() + 1).max()
    assert store.steps("train") + 1 == longest
    assert len(tracks_of(store, "train")) == store.size("train")


def test_a_film_too_short_to_be_split_by_time_is_not_used_for_training_in_silence(cells):
    _, file = cells
    short = imported(file, "short.zarr", split="time", margin=120)
    assert short.splits == ("train",)
    assert any(
        note.startswith("cells: too short to be split by time with a margin of 120 frames") for note in ImportReport.of(short.path).notes
    )
    for name, options in {"long": {}, "asked": {"shares": Split(val=0, test=0)}}.items():
        store = imported(file, f"{name}.zarr", split="time", **options)
        assert not any("too short to be split" in note for note in ImportReport.of(store.path).notes)


def test_only_such_tracks_can_be_split_by_track(cells):
    with pytest.raises(ConfigError, match="--split track: only bodies that do not influence each other"):
        imported(cells[1], singles=False, split="track")


def test_the_command_and_the_way_to_it(cells):
    file = cells[1]
    command = ["data", "import-tracks", str(file), "--segment", "12", "--out"]
    run = CliRunner().invoke(main, [*command, str(file.with_name("all.zarr"))])
    assert "if bodies do not influence each other, let each track be a trajectory: --non-interacting" in run.output
    run = CliRunner().invoke(main, [*command, str(file.with_name("single.zarr")), "--non-interacting"])
    assert (run.exit_code, "one body in each" in run.output) == (0, True)


@pytest.mark.parametrize(("longest", "expected"), [(30, 15), (12, 10)])
def test_tracks_are_cut_so_that_half_of_them_reach_the_end(cells, longest, expected):
    table, file = cells
    table = table[table.frame - table.groupby("id").frame.transform("min") < longest]
    table.to_csv(file, index=False)
    spans = table.groupby("id").frame.agg(lambda frames: frames.max() - frames.min() + 1)
    found = ImportReport.of(imported(file, segment=None, history=2).path)
    assert found.segment == expected
    assert (spans[spans >= 4] >= expected).mean() >= 0.5
    assert f"cut into trajectories of {expected} frames, so that many reach their end: --segment N cuts others" in found.notes
    whole = imported(file, "whole.zarr", segment=None, shares=Split(val=0, test=0))
    assert whole.steps("train") + 1 == spans.max()
