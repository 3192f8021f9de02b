"""Which stretches of held-out trajectories are forecast, and how they hang together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from epns_pyro.data import Store, open_store
from epns_pyro.errors import ConfigError
from epns_pyro.evaluation.heldout import measure
from epns_pyro.evaluation.likelihood import _transitions
from epns_pyro.evaluation.linear_forecasters import Persistence
from epns_pyro.evaluation.trials import trials
from epns_pyro.training.run import EvaluationConfig

DT = 0.5


def walkers(path: Path, sizes: dict[str, tuple[int, int]], **origins: np.ndarray) -> Store:
    """Write sets of `sizes` (trajectories, frames) of two walkers; `origins` are variables (trajectory) of the test set."""
    rng = np.random.default_rng(0)
    for name, (n, frames) in sizes.items():
        position = np.cumsum(rng.normal(size=(n, frames, 2, 2)), axis=1)
        data = xr.Dataset({"position": (("trajectory", "time", "body", "space"), position)})
        if name == "test":
            data = data.assign({key: ("trajectory", value) for key, value in origins.items()})
        data.to_zarr(path, group=name, mode="a", consolidated=False)
    fields = "fields:\n  - {name: position, irreps: 1o, translates: true}\n"
    Path(f"{path}.yaml").write_text(f"frame_dt: {DT}\ntime_unit: s\nspace: 2\n{fields}")
    return open_store(path)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return walkers(tmp_path_factory.mktemp("long") / "x.zarr", {"train": (1, 300), "val": (1, 100), "test": (2, 302)})


@pytest.mark.parametrize(("settings", "steps", "number"), [({}, 12, 50), ({"stretch": 50}, 50, 12), ({"trajectories": 10}, 12, 10)])
def test_long_trajectories_are_cut_into_stretches(long, settings, steps, number):
    first = long.system.forecast_frame
    found = trials(long, "test", EvaluationConfig(**settings))
    assert (found.steps, len(found)) == (steps, number)
    assert found.starts.min() == first
    assert found.starts.max() + steps <= long.steps("test")
    for row in (0, 1):
        assert (np.diff(found.starts[found.rows == row]) >= steps).all(), "stretches must not overlap"
    x, states = long.read("test"), found.read(slice(3, 9))
    expected = [x[row, start : start + steps + 1] for row, start in zip(found.rows[3:9], found.starts[3:9], strict=True)]
    np.testing.assert_array_equal(states, expected)


def test_the_validation_set_is_cut_into_stretches_as_long_as_those_of_the_test_set(long):
    assert trials(long, "val", EvaluationConfig()).steps == trials(long, "test", EvaluationConfig()).steps


def test_trajectories_of_one_body_hang_together_by_track(tmp_path):
    rng, recording, track = np.random.default_rng(0), np.array([0, 0, 0, 1, 1, 0] * 4), np.array([7, 7, 8, 7, 8, 8] * 4)
    for name, n in {"train": 1, "val": 1, "test": 24}.items():
        data = xr.Dataset({"position": (("trajectory", "time", "body", "space"), rng.normal(size=(n, 9, 1, 2)))})
        if name == "test":
            data["recording"], data["first_frame"] = ("trajectory", recording), ("trajectory", np.arange(24))
            data["body_id"] = (("trajectory", "body"), track[:, None])
        data.to_zarr(tmp_path / "x.zarr", group=name, mode="a", consolidated=False)
    (tmp_path / "x.zarr.yaml").write_text("frame_dt: 1.0\nspace: 2\nfields:\n  - {name: position, irreps: 1o, translates: true}\n")
    found = trials(open_store(tmp_path / "x.zarr"), "test", EvaluationConfig())
    same = found.recording[:, None] == found.recording
    origin = np.stack([recording, track], 1)[found.rows]
    np.testing.assert_array_equal(same, (origin[:, None] == origin).all(-1))
    for one in np.unique(found.recording):
        assert (np.diff(found.rows[found.recording == one]) > 0).all(), "a track is in the order of time"


def test_stretches_of_one_trajectory_hang_together(long):
    found = trials(long, "test", EvaluationConfig())
    np.testing.assert_array_equal(found.recording, found.rows)
    labelled = found.label(xr.Dataset({"pit": ("trajectory", np.zeros(len(found)))}))
    assert labelled["order"].attrs["spacing"] == found.steps * DT
    assert (np.diff(labelled["order"]) > 0).all()


def test_a_stretch_longer_than_the_trajectories_is_refused(long):
    with pytest.raises(ConfigError, match=r"evaluation.stretch: .* found 400: choose at most"):
        trials(long, "test", EvaluationConfig(stretch=400))


def test_segments_of_one_recording_hang_together_in_time_order(tmp_path):
    recording, first = np.array([1, 0] * 15), 20 * np.arange(30)[::-1]
    store = walkers(tmp_path / "x.zarr", {"train": (2, 12), "test": (30, 12)}, recording=recording, first_frame=first)
    found = trials(store, "test", EvaluationConfig())
    assert sorted(found.rows) == list(range(30))
    assert found.steps == store.steps("test") - store.system.forecast_frame
    np.testing.assert_array_equal(found.recording, np.repeat([0, 1], 15))
    for which in (0, 1):
        assert (np.diff(first[found.rows[found.recording == which]]) > 0).all()
    np.testing.assert_array_equal(found.read(slice(0, 3)), store.read("test", found.rows[:3], start=store.system.forecast_frame))


@pytest.mark.parametrize("origins", [{}, {"recording": np.arange(30)}])
def test_whole_trajectories_of_separate_recordings_are_independent(tmp_path, origins):
    store = walkers(tmp_path / "x.zarr", {"train": (2, 12), "test": (30, 12)}, **origins)
    found = trials(store, "test", EvaluationConfig(trajectories=25))
    assert found.recording is None
    np.testing.assert_array_equal(found.rows, np.arange(25))


def test_one_long_recording_has_verdicts_that_say_what_it_is_worth(long):
    settings = EvaluationConfig(members=9, block=7, trajectories=100)
    judged = measure(Persistence(long.context()), long, "test", settings, references={})
    assert judged.truth.sizes["trajectory"] == 50
    for verdict in (v for group in judged.verdicts.values() for v in group):
        assert "50 stretches, equivalent to" in verdict.rule
    frames, _, x, _ = _transitions(long, settings)
    assert len(x) == 50 * len(frames)


# -- recorded states before a trial ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trajectories", [2, 30], ids=["stretches", "whole"])
def test_trials_know_what_came_before_them(tmp_path, trajectories):
    """In the recording, frame by frame; before its first frame nothing."""
    store = walkers(tmp_path / "x.zarr", {"train": (2, 30), "test": (trajectories, 120)})
    found, x = trials(store, "test", EvaluationConfig()), store.read("test")
    earlier = 14
    past, start = found.past(slice(0, 9), earlier), found.read(slice(0, 9))[:, 0]
    assert past.shape == (9, earlier, *start.shape[1:])
    for row, first, states in zip(found.rows, found.starts, past, strict=False):
        for back in range(1, earlier + 1):
            if first >= back:
                np.testing.assert_array_equal(states[-back], x[row, first - back])
            else:
                assert np.isnan(states[-back]).all()
    assert found.past(slice(0, 9), 0) is None


class Remembering(Persistence):
    """Persistence that notes which past it was given."""

    earlier_frames = 3

    def sample(self, x0, steps, members, seed, *, schedule=None, past=None):
        given.append((x0, past))
        return super().sample(x0, steps, members, seed, schedule=schedule)


given: list[tuple[np.ndarray, np.ndarray]] = []


def test_forecasters_that_remember_are_given_the_past(long):
    """And references, which know nothing of it, are not."""
    given.clear()
    settings = EvaluationConfig(members=9, block=50, trajectories=50)
    reference = Persistence(long.context())
    measure(Remembering(long.context()), long, "test", settings, references={"persistence": reference})
    found, x = trials(long, "test", settings), long.read("test")
    (x0, past), *_ = given
    np.testing.assert_array_equal(x0, found.read(slice(0, 50))[:, 0])
    for trial in (1, 30):
        row, first = found.rows[trial], found.starts[trial]
        np.testing.assert_array_equal(past[trial], x[row, first - 3 : first])


def test_scored_transitions_come_with_their_past(long):
    settings = EvaluationConfig(trajectories=5)
    plain, with_past = _transitions(long, settings), _transitions(long, settings, 3)
    for a, b in zip((plain[0], *plain[2:]), (with_past[0], *with_past[2:]), strict=True):
        np.testing.assert_array_equal(a, b)
    found, x = trials(long, "test", settings), long.read("test")
    frames, past = with_past[0], with_past[1].reshape(5, len(with_past[0]), 3, *x.shape[2:])
    for trial, number in ((0, 0), (2, 3), (4, len(frames) - 1)):
        row, end = found.rows[trial], found.starts[trial] + frames[number]
        for back in (1, 2, 3):
            expected = x[row, end - 1 - back] if end - 1 >= back else np.full(x.shape[2:], np.nan)
            np.testing.assert_array_equal(past[trial, number, -back], expected)
