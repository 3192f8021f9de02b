"""Positions with an error, at uneven times: imported, trained on, inferred and forecast, with nothing set by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from epns_pyro.cli import main
from epns_pyro.data import open_store
from epns_pyro.runs import load

DRIFT, NOISE, FRAMES = 0.4, 0.05, 600
SMALL = ["training.steps=20", "training.batch=4", "model.width=8", "model.latent=2", "training.validation_transitions=60"]
SMALL += ["model.hidden_vectors=3", "model.backbone.width=8", "model.backbone.vectors=4", "model.backbone.layers=1"]


def command(*words: object) -> str:
    run = CliRunner().invoke(main, list(map(str, words)), env={"COLUMNS": "200"})
    assert run.exit_code == 0, run.output
    return run.output


@pytest.fixture
def recording(tmp_path):
    """Two bodies that drift apart; every second step lasts three times as long."""
    rng = np.random.default_rng(0)
    times = np.cumsum(np.where(np.arange(FRAMES) % 2, 0.3, 0.1))
    place = np.stack([DRIFT * times, -DRIFT * times], 1)[..., None] * [1.0, 0.5] + NOISE * rng.standard_normal((FRAMES, 2, 2))
    rows = [(t, body, *place[k, body].round(5)) for k, t in enumerate(times.round(6)) for body in range(2) if rng.random() > 0.05]
    pd.DataFrame(rows, columns=["time", "id", "x", "y"]).to_csv(tmp_path / "table.csv", index=False)
    options = ["--columns", "time,id,x,y", "--segment", 20, "--noise", "learn", "--out", tmp_path / "store.zarr"]
    command("data", "import-tracks", tmp_path / "table.csv", *options)
    return tmp_path


def test_what_stands_in_for_a_velocity_knows_how_long_a_step_lasted(recording):
    store = open_store(recording / "store.zarr")
    velocity = store.spec.get(store.read("train"), "velocity")
    assert store.spec.duration is not None
    speed = np.nanmedian(np.abs(velocity[:, 1:, :, 0]))
    assert speed == pytest.approx(DRIFT, rel=0.2)


def test_a_model_is_trained_and_forecasts(recording):
    store = open_store(recording / "store.zarr")
    command("train", "particles", "--data", recording / "store.zarr", "--out", recording / "run", *(w for s in SMALL for w in ("--set", s)))
    simulator = load(recording / "run")
    seen = store.read("test", stop=10)
    velocity = simulator.spec.get(simulator.infer(seen, members=50), "velocity").mean((0, 1))
    np.testing.assert_allclose(velocity[:, 0], [DRIFT, -DRIFT], atol=0.1)
    futures = simulator.rollout(seen, steps=5, members=20)
    assert np.isfinite(futures["position"].values).all()
