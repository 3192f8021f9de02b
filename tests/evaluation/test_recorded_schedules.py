"""Forecasts that are told what is not forecast: how long steps last, and who enters and leaves."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner
from relaxing import make_store
from small_tracks import walkers

import epns_pyro
from epns_pyro.cli import main
from epns_pyro.data.importers.tracks import Options, import_tracks
from epns_pyro.evaluation import ensembles
from epns_pyro.evaluation.forecasters import Model
from epns_pyro.evaluation.linear_forecasters import Persistence
from epns_pyro.evaluation.record import EvaluationRecord
from epns_pyro.models.epns import EPNSModel
from epns_pyro.presence import presence
from epns_pyro.training.presets import preset

SMALL = {
    "model.backbone.width": 8,
    "model.backbone.vectors": 4,
    "model.backbone.layers": 1,
    "model.width": 8,
    "model.hidden_vectors": 3,
    "model.latent": 2,
    "training.steps": 3,
    "training.validate_every": 3,
    "evaluation.members": 9,
    "evaluation.likelihood_transitions": 40,
    "evaluation.guide_transitions": 10,
    "evaluation.guide_draws": 9,
    "evaluation.importance_samples": 2,
}


@pytest.fixture(scope="module")
def street(tmp_path_factory):
    folder = tmp_path_factory.mktemp("street")
    walkers(tracks=60, length=14, spread=240).to_csv(folder / "walk.csv", index=False)
    store = import_tracks([folder / "walk.csv"], folder / "walk.zarr", Options(segment=12, history=1))
    config = preset("particles", "quick", store.system.config).override(SMALL)
    return epns_pyro.train(config, store, folder / "run"), store


@pytest.mark.parametrize("forecaster", ["model", "persistence"])
def test_with_recorded_entries_bodies_are_there_when_the_recording_has_them(street, forecaster):
    simulator, store = street
    x, spec = store.read("train"), store.spec
    there = presence(spec, x)
    assert (there[:, 1:] & ~there[:, :1]).any()
    one = Model(simulator) if forecaster == "model" else Persistence(simulator.context)
    schedule = ensembles.schedule_of(store.system, x, "recorded")
    futures = one.sample(x[:, 0], x.shape[1] - 1, 5, 0, schedule=schedule)
    np.testing.assert_array_equal(presence(spec, futures), np.broadcast_to(there, futures.shape[:-1]))
    entering = there & ~np.concatenate([there[:, :1], there[:, :-1]], 1)
    wanted = np.broadcast_to(spec.get(x, "position")[entering], (5, entering.sum(), 2))
    np.testing.assert_allclose(spec.get(futures, "position")[:, entering], wanted, atol=1e-5)
    assert spec.get(futures, "position")[:, there & ~entering & (np.arange(there.shape[1])[:, None] > 0)].std(0).min() > 0


def test_the_pyro_model_follows_a_schedule_too(street):
    simulator, store = street
    x = store.read("train")
    model = EPNSModel(simulator.transition)
    model.schedule = simulator.local(x[:, 1:])
    end = model(simulator.local(x[:, 0]), horizon=x.shape[1] - 1)
    np.testing.assert_array_equal(presence(store.spec, end).numpy(), presence(store.spec, x[:, -1]))


def test_by_default_bodies_of_the_initial_state_stay(street):
    _, store = street
    x = store.read("train")
    assert ensembles.schedule_of(store.system, x) is None
    there = ensembles.followed(store.system, x)
    assert not (there & ~there[:, :1]).any()
    assert ensembles.followed(store.system, x, "recorded").sum() > there.sum()


def test_the_report_says_which(street):
    _, store = street
    folder = store.path.parent / "run"
    for entries, words in (
        ("recorded", "Bodies enter forecasts where they were first recorded"),
        ("kept", "hold the bodies of their initial"),
    ):
        run = CliRunner().invoke(main, ["evaluate", str(folder), "--set", f"entries={entries}"])
        assert run.exit_code == 0, run.output
        shown = CliRunner().invoke(main, ["report", str(folder)])
        assert shown.exit_code == 0, shown.output
        assert words in (folder / "report.html").read_text()


def test_simulate_follows_the_recorded_entries(street, tmp_path):
    import xarray as xr

    _, store = street
    folder, out = store.path.parent / "run", tmp_path / "futures.nc"
    command = ["simulate", str(folder), "--members", "2", "--entries", "recorded", "--steps"]
    run = CliRunner().invoke(main, [*command, "10", "--out", str(out)])
    assert run.exit_code == 0, run.output
    with xr.open_dataset(out, engine="h5netcdf", decode_times=False) as futures:
        there = np.isfinite(futures["position"].transpose("sample", "trajectory", "time", "body", "space").values).all(-1)
        assert futures.attrs["entries"] == "recorded"
    np.testing.assert_array_equal(there[1], presence(store.spec, store.read("test")))
    run = CliRunner().invoke(main, [*command, "500", "--out", str(tmp_path / "b.nc")])
    assert run.exit_code != 0
    assert "has 10 steps after the frames given, found --steps 500" in run.output.replace("\n", " ")


def test_a_recording_of_uneven_frames_is_trained_on_and_judged(tmp_path):
    import xarray as xr

    store = make_store(tmp_path / "store.zarr", steps=16, sizes={"train": 12, "val": 4, "test": 8}, uneven=True)
    config = preset("particles", "quick", store.system.config).override(SMALL)
    epns_pyro.train(config, store, tmp_path / "run")
    run = CliRunner().invoke(main, ["evaluate", str(tmp_path / "run")])
    assert run.exit_code == 0, run.output
    record = EvaluationRecord.read(tmp_path / "run" / "evaluation")
    assert {row.key for row in record.likelihood.rows} >= {"elbo", "persistence", "autoregression"}
    x = store.read("test")
    schedule = ensembles.schedule_of(store.system, x)
    np.testing.assert_array_equal(store.spec.get(schedule, "duration"), store.spec.get(x[:, 1:], "duration"))
    out = tmp_path / "futures.nc"
    run = CliRunner().invoke(
        main, ["simulate", str(tmp_path / "run"), "--steps", "3", "--members", "2", "--frame-dt", "0.6", "--out", str(out)]
    )
    assert run.exit_code == 0, run.output
    with xr.open_dataset(out, engine="h5netcdf", decode_times=False) as futures:
        np.testing.assert_allclose(futures["time"], [0, 0.6, 1.2, 1.8])
