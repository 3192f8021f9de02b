"""A test set that jitters more or less than the training set is told; random walks and smooth tracks are not."""

from __future__ import annotations

import re

import numpy as np
import pytest

from epns_pyro.data import check
from epns_pyro.data.importers.tracks import Options, import_tracks
from epns_pyro.data.inspection.exactness import Exactness, differ
from epns_pyro.derived import with_history
from epns_pyro.state import Field, StateSpec

SPEC = with_history(StateSpec((Field("position", "1o", translates=True, unit="m"),), space=2), 2)
SHAPE = (60, 20, 3, 2)  # trajectory, time, body, space


def seen(path: np.ndarray) -> Exactness:
    inspector = Exactness(SPEC)
    for first in range(0, len(path), 25):
        inspector.look({"position": path[first : first + 25]}, first)
    return inspector


def smooth(seed: int, error: float = 0.0, kick: float = 0.02) -> np.ndarray:
    """Bodies whose velocity changes at random; a tenth of the detections is missed."""
    rng = np.random.default_rng(seed)
    path = np.cumsum(np.cumsum(kick * rng.normal(size=SHAPE), 1), 1) + error * rng.normal(size=SHAPE)
    return np.where(rng.random(SHAPE[:-1])[..., None] < 0.1, np.nan, path)


def told(train: np.ndarray, test: np.ndarray) -> list[str]:
    return [finding.message for finding in differ(SPEC, {"train": seen(train), "test": seen(test)})]


def test_the_error_is_found():
    assert seen(smooth(0, error=0.1)).error == pytest.approx(0.1, rel=0.1)
    assert seen(smooth(0)).error < 0.005


def test_a_test_set_that_jitters_is_told():
    (message,) = told(smooth(0), smooth(1, error=0.05))
    assert float(re.search(r"jitter by about ([\d.]+) m", message)[1]) == pytest.approx(0.05, rel=0.1)
    assert float(message.rsplit("training.jitter=")[1]) == pytest.approx(0.1, rel=0.1)


def test_a_training_set_that_jitters_is_told():
    (message,) = told(smooth(0, error=0.05), smooth(1))
    assert float(re.search(r"those of the training set jitter by about ([\d.]+) m", message)[1]) == pytest.approx(0.05, rel=0.1)
    assert float(message.rsplit("training.jitter=")[1]) == pytest.approx(0.05, rel=0.1)


@pytest.mark.parametrize(("train", "test"), [(0.0, 0.0), (0.05, 0.05), (0.05, 0.03), (0.004, 0.0), (0.0, 0.004)])
def test_sets_alike_and_errors_that_do_not_matter_are_left_alone(train, test):
    assert told(smooth(0, error=train), smooth(1, error=test)) == []


def test_a_test_set_of_busy_tracks_is_left_alone_as_they_may_hide_an_error():
    assert told(smooth(0, error=0.05), smooth(1, kick=0.2)) == []


def test_random_walks_are_left_alone():
    """Their steps are independent, as if their positions jittered, but in both sets alike."""
    walks = [np.cumsum(np.random.default_rng(seed).normal(size=SHAPE), 1) for seed in range(2)]
    assert told(*walks) == []


def test_few_data_say_nothing():
    assert told(smooth(0), smooth(1, error=0.05)[:1, :6]) == []


def test_recordings_of_tracks_are_compared(tmp_path):
    for name, error in (("exact", 0.0), ("rough", 0.05)):
        path = np.random.default_rng(2).normal(size=(200, 4, 2)).cumsum(0).cumsum(0) * 0.02
        path += error * np.random.default_rng(3).normal(size=path.shape)
        rows = [f"{t},{body},{x},{y}" for t, frame in enumerate(path) for body, (x, y) in enumerate(frame)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["frame,id,x,y", *rows]))
    how = Options(frame_dt=0.4, segment=20)
    store = import_tracks([tmp_path / "exact.csv"], tmp_path / "store.zarr", how, tests=[tmp_path / "rough.csv"])
    assert any("training.jitter=" in str(finding) for finding in check(store))
