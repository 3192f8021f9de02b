"""From a recording of positions with errors and gaps to a report, by way of inferred states."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import yaml
from click.testing import CliRunner

import epns_pyro
from epns_pyro import simulator as simulator_module
from epns_pyro.cli import main
from epns_pyro.data import Store, open_store
from epns_pyro.errors import ConfigError, DataError, ShapeError
from epns_pyro.evaluation import evaluate
from epns_pyro.evaluation.checks.likelihood import LikelihoodCheck
from epns_pyro.sampling import Ensemble, Request
from epns_pyro.simulator import Simulator
from epns_pyro.training.run import EvaluationConfig, RunFolder

BODIES, FRAMES, NOISE = 3, 16, 0.05
FIELDS = [
    {"name": "position", "irreps": "1o", "translates": True, "noise": "learn", "unit": "m"},
    {"name": "velocity", "irreps": "1o", "rate_of": "position", "hidden": True, "unit": "m/s"},
]
SMALL = {"name": "vector", "width": 8, "vectors": 4, "layers": 1}
SETTINGS = {
    "training.steps": 6,
    "training.validate_every": 3,
    "training.checkpoint_every": 3,
    "training.log_every": 1,
    "training.validation_transitions": 30,
    "training.horizon": {"start": 6, "end": 6},
    "model.width": 8,
    "model.hidden_vectors": 3,
    "model.latent": 2,
    "model.backbone": SMALL,
}
EVALUATION = EvaluationConfig(
    members=9, trajectories=6, importance_samples=2, likelihood_transitions=40, guide_transitions=10, guide_draws=9, long_trajectories=2
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Bodies that drift and are kicked; 5% of the detections are missing."""
    rng = np.random.default_rng(0)
    velocity = rng.normal(size=(60, 1, BODIES, 2)) + 0.3 * rng.normal(size=(60, FRAMES, BODIES, 2)).cumsum(1)
    position = 0.2 * velocity.cumsum(1) + NOISE * rng.normal(size=velocity.shape)
    position[rng.random(position.shape[:-1]) < 0.05] = np.nan
    path = tmp_path_factory.mktemp("hidden") / "tracks.zarr"
    xr.Dataset({"position": (("trajectory", "time", "body", "space"), position)}).to_zarr(path)
    path.with_name("tracks.zarr.yaml").write_text(yaml.safe_dump({"fields": FIELDS, "space": 2, "frame_dt": 0.2, "time_unit": "s"}))
    return open_store(path)


@pytest.fixture(scope="module")
def run(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config, out = epns_pyro.preset("particles", data=store.system.config).override(SETTINGS), tmp_path_factory.mktemp("runs") / "hidden"
    epns_pyro.train(config, store, out)
    return out


@pytest.fixture
def simulator(run: Path) -> Simulator:
    return epns_pyro.load(run)


def test_the_preset_infers_states_in_windows_with_normal_noise(store: Store) -> None:
    config = epns_pyro.preset("particles", data=store.system.config)
    assert config.model.emission.name == "coupled"
    assert config.training.horizon.at(0) == config.training.horizon.at(1) == 10


def test_futures_go_on_from_the_frames_given_and_are_recorded_with_an_error(store: Store, simulator: Simulator) -> None:
    frames = store.read("test", slice(0, 3), stop=8)
    futures = simulator.rollout(frames, steps=4, members=400, seed=1)
    assert futures["position"].shape == (400, 3, 5, BODIES, 2)
    last = store.spec.get(frames, "position")[:, -1]
    seen = np.isfinite(last)
    assert (futures["position"].values[:, :, 0] == last.astype(np.float32))[:, seen].all()
    with pytest.raises(ShapeError, match=r"the frames given: expected \(trajectory, time, body, channel\)"):
        simulator.infer(frames[0], members=4)
    states = simulator.infer(frames, members=400, seed=1).numpy()
    drawn = store.spec.get(states, "position")
    recorded = futures["position"].values[:, :, 1]
    noise = simulator.noise["position"]
    assert list(simulator.noise) == ["position"]
    assert noise > 0.02
    assert (np.nanvar(recorded, 0) > 0.5 * noise**2).all()
    assert (np.nanstd(drawn, 0)[seen] < 2 * noise).all()
    again = simulator.rollout(frames, steps=4, members=400, seed=1)
    xr.testing.assert_identical(futures, again)


def test_one_frame_is_enough(store: Store, simulator: Simulator) -> None:
    x0 = np.nan_to_num(store.read("test", slice(0, 2), stop=1)[:, 0])
    assert simulator.rollout(x0, steps=2, members=3)["position"].shape == (3, 2, 3, BODIES, 2)


def test_the_evaluation_says_that_states_are_hidden(store: Store, simulator: Simulator, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    found = evaluate(simulator, store, folder, EVALUATION)
    scores = found.record.likelihood
    assert {row.key for row in scores.rows} == {"elbo", "iwae", "persistence", "autoregression"}
    assert scores.row("iwae").value >= scores.row("elbo").value - 1
    words = scores.recording_sentence
    assert "velocity is hidden" in words
    assert "(learned)" in words
    assert f"given {store.system.frames_given} frames" in words
    assert any(line.note == words for line in LikelihoodCheck().headline(scores))
    assert not getattr(found.record, "innovations", None)
    assert set(found.verdicts) == {"observables", "fields"}
    with xr.open_dataset(folder.evaluation / "diagnostics.nc", group="fields", engine="h5netcdf") as fields:
        assert "velocity" not in str(fields)


def test_a_store_that_describes_the_states_as_recorded_is_refused(store: Store, simulator: Simulator, tmp_path: Path) -> None:
    recorded = [FIELDS[0] | {"noise": 0.0}, {key: value for key, value in FIELDS[1].items() if key != "hidden"} | {"differences": True}]
    spec = tmp_path / "recorded.yaml"
    spec.write_text(yaml.safe_dump({"fields": recorded, "space": 2, "frame_dt": 0.2, "time_unit": "s"}))
    with pytest.raises(DataError, match="the model infers states, the store describes them as recorded: open both with one description"):
        evaluate(simulator, open_store(store.path, spec=spec), RunFolder(tmp_path / "run"), EVALUATION)


def test_the_command_line_goes_from_frames_to_futures(store: Store, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "futures.nc"
    arguments = ["simulate", str(run), "--members", "3", "--steps", "4", "--from", f"{store.path}:0", "--out", str(out)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    with xr.open_dataset(out, engine="h5netcdf") as futures:
        assert futures["position"].shape == (3, 1, 5, BODIES, 2)
        last = store.spec.get(store.read("test", [0], stop=store.system.frames_given), "position")[:, -1]
        seen = np.isfinite(last)
        np.testing.assert_allclose(futures["position"].values[:, :, 0][:, seen], np.broadcast_to(last[seen], (3, seen.sum())), rtol=1e-6)


def test_conditioning_starts_from_an_inferred_ensemble(store: Store, run: Path, tmp_path: Path) -> None:
    seen, given = tmp_path / "seen.nc", store.system.frames_given
    row = (
        int(np.flatnonzero(np.isfinite(store.read("test")).all((1, 2, 3)))[0])
        if np.isfinite(store.read("test")).all((1, 2, 3)).any()
        else 0
    )
    position = store.spec.get(store.read("test", [row], stop=given + 3), "position")[0, given - 1 :]
    dims = ("time", "body", "space")
    xr.Dataset({"position": (dims, position, {"noise": 0.1})}, {"time": 0.2 * np.arange(len(position))}).to_netcdf(seen, engine="h5netcdf")
    out = tmp_path / "states.nc"
    arguments = ["condition", str(run), "--observations", str(seen), "--noise", "position=0.1", "--particles", "50"]
    result = CliRunner().invoke(main, [*arguments, "--from", f"{store.path}:{row}", "--out", str(out)])
    assert result.exit_code == 0, result.output
    with xr.open_dataset(out, engine="h5netcdf") as states:
        assert states["velocity"].std("sample").values[0].min() > 0


def test_states_that_are_recorded_are_not_inferred(store: Store, simulator: Simulator) -> None:
    with pytest.raises(ConfigError, match="nothing to infer"):
        Simulator(transition=_plain(store), system=store.system, context=store.context(), config=simulator.config).infer(
            store.read("test", slice(0, 1)), members=2
        )


def _plain(store: Store):
    return epns_pyro.preset("particles", data=store.system.config).override(SETTINGS).model.build(store.context())


def test_hidden_states_are_inferred_once_for_all_blocks_of_an_ensemble(run: Path, store: Store, monkeypatch) -> None:
    """A block is what it is when all members are inferred again for it alone."""
    ensemble, asked = Ensemble.of(Request(run, members=5, steps=2, store=store.path, seed=3)), []
    monkeypatch.setattr(ensemble.sim.transition, "block_size", 2 * ensemble.trajectories)
    monkeypatch.setattr(simulator_module, "infer_last", lambda *a, f=simulator_module.infer_last: asked.append(1) or f(*a))
    parts = [part for number in range(ensemble.blocks) for part in ensemble.sample(number)]
    assert (len(parts), len(asked)) == (3, 1)
    for number, (samples, _, dataset) in enumerate(parts):
        size = 2 * ensemble.trajectories
        (alone,) = ensemble.sim.rollout_blocks(ensemble.x0, steps=2, members=5, seed=3, block_size=size, only=(number,))
        assert alone.samples == samples
        np.testing.assert_array_equal(store.spec.get(alone.states, "position"), dataset["position"])
    assert len(asked) == 4
