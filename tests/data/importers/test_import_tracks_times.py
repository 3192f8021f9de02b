"""Tables of tracks with times in place of frame numbers: even ones, uneven ones, and holes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from epns_pyro.cli import main
from epns_pyro.data.importers.tracks import Options, import_tracks
from epns_pyro.errors import ConfigError, DataError


def beads(*, frames: int = 60, even: bool = False, seed: int = 0) -> pd.DataFrame:
    """Make a table time, id, x, y of three bodies; every step lasts 0.1, 0.2 or 0.5."""
    rng = np.random.default_rng(seed)
    steps = np.full(frames - 1, 0.1) if even else rng.choice([0.1, 0.2, 0.5], frames - 1, p=[0.6, 0.2, 0.2])
    time = np.concatenate([[0.0], np.cumsum(steps)]).round(6)
    place = rng.normal(size=(frames, 3, 2)).cumsum(0).round(3)
    columns = {"time": np.repeat(time, 3), "id": np.tile([1, 2, 3], frames), "x": place[..., 0].ravel(), "y": place[..., 1].ravel()}
    return pd.DataFrame(columns)


def imported(table: pd.DataFrame, tmp_path, **options):
    table.to_csv(tmp_path / "beads.csv", index=False)
    return import_tracks([tmp_path / "beads.csv"], tmp_path / "store.zarr", Options(**({"segment": 12, "history": 0} | options)))


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("history", [0, 2])
def test_durations_are_those_of_the_table(every, history, tmp_path):
    table = beads()
    store = imported(table, tmp_path, columns="time,id,x,y", history=history, every=every)
    time = table["time"].unique()[::every]
    lost = 1 if history else 0
    x = store.read("train")
    first = store.dataset("train")["first_frame"].values // every
    assert store.frame_dt == pytest.approx(np.median(np.diff(time)))
    for trajectory, start in zip(x, first, strict=True):
        expected = np.diff(time)[start + lost :][: len(trajectory)]
        np.testing.assert_allclose(store.spec.get(trajectory, "duration")[: len(expected), 0], expected, atol=1e-9)
        if history:
            moved = np.diff(store.spec.get(trajectory, "position"), axis=0)
            dt = store.spec.get(trajectory, "duration")[:-1, :, None]
            np.testing.assert_allclose(store.spec.get(trajectory, "velocity")[1:], moved / dt, rtol=1e-9)


def test_a_column_of_times_takes_the_place_of_frame_numbers(tmp_path):
    table = beads().assign(frame=lambda t: t.groupby("id").cumcount(), seconds=lambda t: t["time"]).drop(columns="time")
    store = imported(table, tmp_path, time_column="seconds")
    assert set(np.unique(store.spec.get(store.read("train"), "duration").round(6))) == {0.1, 0.2, 0.5}


def test_even_times_make_even_frames(tmp_path):
    store = imported(beads(even=True), tmp_path, columns="time,id,x,y")
    assert store.spec.duration is None
    assert store.frame_dt == pytest.approx(0.1)


def test_rows_in_any_order_give_the_same_store(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    ordered = imported(beads(), tmp_path / "a", columns="time,id,x,y")
    shuffled = imported(beads().sample(frac=1, random_state=0), tmp_path / "b", columns="time,id,x,y")
    for name in ("x", "y"):  # bodies are numbered in the order of their rows
        found = [np.sort(store.spec.get(store.read("train"), "position")[..., "xy".index(name)], -1) for store in (ordered, shuffled)]
        np.testing.assert_array_equal(*found)
    durations = [store.spec.get(store.read("train"), "duration") for store in (ordered, shuffled)]
    np.testing.assert_array_equal(*durations)


def test_what_has_no_times_says_so(tmp_path):
    np.save(tmp_path / "array.npy", np.zeros((20, 3, 2)))
    with pytest.raises(ConfigError, match=r"array.npy: an array .* has no column of times"):
        import_tracks([tmp_path / "array.npy"], tmp_path / "a.zarr", Options(time_column="t"))
    beads().assign(frame=lambda t: t.groupby("id").cumcount()).to_csv(tmp_path / "beads.csv", index=False)
    with pytest.raises(DataError, match=r"beads.csv: has no column 'clock'"):
        import_tracks([tmp_path / "beads.csv"], tmp_path / "a.zarr", Options(time_column="clock"))


def test_the_command_imports_uneven_frames_and_says_how_long_they_last(tmp_path):
    beads().to_csv(tmp_path / "beads.csv", index=False)
    out = tmp_path / "store.zarr"
    command = ["data", "import-tracks", str(tmp_path / "beads.csv"), "--columns", "id=id,x=x,y=y,time=time", "--time-unit", "s"]
    run = CliRunner().invoke(main, [*command, "--segment", "12", "--out", str(out)])
    assert run.exit_code == 0, run.output
    shown = CliRunner().invoke(main, ["data", "info", str(out)])
    assert shown.exit_code == 0, shown.output
    assert "a step lasts 0.1 to 0.5 s, median 0.1" in shown.output.replace("\n", " ")
