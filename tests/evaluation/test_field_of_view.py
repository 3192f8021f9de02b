"""Bodies that leave the field of view: forecasts by the law that made the recording are found right, and a wrong law is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from epns_pyro.data import open_store
from epns_pyro.evaluation import heldout
from epns_pyro.evaluation.field_of_view import FieldOfView, field_of_view
from epns_pyro.evaluation.forecasters import Forecaster
from epns_pyro.presence import presence
from epns_pyro.state import Field, StateSpec
from epns_pyro.training.run import EvaluationConfig

SIDE, STEP, STEPS, BODIES = 10.0, 0.5, 20, 3
SPEC = StateSpec((Field("position", "1o", translates=True, unit="m"),), space=2)


class Walk(Forecaster):
    """The law of the recording: every body takes independent Normal steps, here of `step`."""

    def __init__(self, step: float = STEP) -> None:
        self.step = step

    def sample(self, x0, steps, members, seed, *, schedule=None):
        kicks = self.step * np.random.default_rng(seed).standard_normal((members, len(x0), steps, *x0.shape[1:]))
        path = x0[:, None] + np.concatenate([np.zeros_like(kicks[:, :, :1]), kicks], 2).cumsum(2)
        return path


def film(path: Path, *, lost: float = 0.0, seen: float = SIDE, seed: int = 0) -> Path:
    """Write walkers who start anywhere in a square and are recorded until they leave the part of it with |x|, |y| < seen / 2.

    They are lost before with a probability per frame.
    """
    rng = np.random.default_rng(seed)
    for name, n in {"train": 200, "val": 30, "test": 150}.items():
        start = rng.uniform(-SIDE / 2, SIDE / 2, (n, BODIES, 2))
        x = Walk().sample(start, STEPS, 1, int(rng.integers(1 << 30)))[0]
        gone = (np.abs(x) > seen / 2).any(-1) | (rng.random(x.shape[:-1]) < lost)
        x = np.where(np.logical_or.accumulate(gone, axis=1)[..., None], np.nan, x)
        x = x[~np.isnan(x[:, 0]).all((-1, -2))]
        data = xr.Dataset({"position": (("trajectory", "time", "body", "space"), x)})
        data.to_zarr(path, group=name, mode="a", consolidated=False)
    Path(f"{path}.yaml").write_text("frame_dt: 1.0\nspace: 2\nfields:\n  - {name: position, irreps: 1o, translates: true, unit: m}\n")
    return path


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    return open_store(film(tmp_path_factory.mktemp("film") / "x.zarr"))


def judged(store, forecaster=None):
    settings = EvaluationConfig(members=39, trajectories=150)
    found = heldout.measure(forecaster or Walk(), store, "test", settings, references={})
    return {v.subject: v.word for v in found.verdicts["observables"]}, found


def test_the_region_lies_a_step_within_what_was_seen(window):
    view = field_of_view(window)
    reach = 2.58 * STEP  # 99% of the steps along an axis
    np.testing.assert_allclose(view.high, SIDE / 2 - reach, atol=0.15)
    np.testing.assert_allclose(view.low, -view.high, atol=0.3)
    assert view.words("m").endswith(" m")


def faults(words):
    return [subject for subject, word in words.items() if word not in ("calibrated", "too few data to say")]


def test_the_true_law_is_found_right_and_a_wrong_one_wrong(window, monkeypatch, tmp_path):
    """Of 36 lines at 5% more than 6 fail with a probability of 0.3%; the seeds are fixed."""
    films = [window, *(open_store(film(tmp_path / f"{seed}.zarr", seed=seed)) for seed in (1, 2))]
    words, found = zip(*map(judged, films), strict=True)
    assert sum(len(faults(one)) for one in words) <= 6
    assert all("field_of_view" in one.diagnostics["observables"].attrs for one in found)
    assert {"step length", "displacement from the start"} <= set(faults(judged(window, Walk(1.4 * STEP))[0]))
    monkeypatch.setattr(heldout, "field_of_view", lambda store: None)  # then those that stay are a selection of those that went less far
    assert sum(len(faults(judged(one)[0])) for one in films) >= 12


def test_every_path_is_judged_until_it_leaves():
    view = FieldOfView(np.array([-1.0, -1.0]), np.array([1.0, 1.0]))
    x = np.zeros((1, 4, 5, 2))
    x[0, 1, 0] = 3.0  # leaves and comes back
    x[0, 2:, 1] = np.nan  # is lost within
    x[0, :, 2] = 2.0  # is outside from the start on
    x[0, 2, 3, 0], x[0, 3, 3] = 1.5, np.nan  # leaves, and is no longer recorded
    there = presence(SPEC, x)
    mine, members = view.judged(SPEC, x, there)
    np.testing.assert_array_equal(mine[0].T, [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]])
    np.testing.assert_array_equal(members[0].T, [[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]])


@pytest.mark.parametrize(("lost", "seen"), [(0.05, 40.0), (0.0, 3.0)], ids=["lost anywhere", "too narrow"])
def test_no_region_where_bodies_do_not_leave_or_steps_are_long(lost, seen, tmp_path):
    assert field_of_view(open_store(film(tmp_path / "x.zarr", lost=lost, seen=seen))) is None


def test_no_region_where_nobody_ever_leaves_or_space_has_no_border(tmp_path):
    store = open_store(film(tmp_path / "x.zarr", seen=1e6))
    assert field_of_view(store) is None
    film(tmp_path / "y.zarr")
    text = Path(f"{tmp_path / 'y.zarr'}.yaml").read_text()
    Path(f"{tmp_path / 'y.zarr'}.yaml").write_text(f"box: [40, 40]\n{text}")
    assert field_of_view(open_store(tmp_path / "y.zarr")) is None
