"""Commands on a model with a history: it is given the first frames of a trajectory, and goes on from the last of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from click.testing import CliRunner, Result

import epns_pyro
from epns_pyro.cli import main
from epns_pyro.conditioning.observations import read_observations
from epns_pyro.data import generate, open_store
from epns_pyro.systems import NBodyConfig

SETS = {name: {"trajectories": 6, "steps": 6} for name in ("train", "val", "test")}
SMALL = ["model.width=8", "model.hidden_vectors=3", "model.latent=3", "model.backbone.width=8", "model.backbone.vectors=4"]
SMALL += ["model.backbone.layers=1", "training.batch=8", "training.validation_transitions=20", "training.motion_windows=20"]
FRAMES = 3


def run(*arguments: str | Path | int) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, and a run on it whose window matters although it has learned nothing."""
    path = tmp_path_factory.mktemp("history")
    generate(NBodyConfig.parse({"bodies": 3, "dt": 0.01, "sets": SETS}), path / "data.zarr")
    settings = [f"--set={setting}" for setting in (*SMALL, f"model.history.frames={FRAMES}", "training.learning_rate=0.05")]
    result = run("train", "nbody", "--data", path / "data.zarr", "--out", path / "run", "--steps", 12, "--no-evaluate", *settings)
    assert result.exit_code == 0, result.output
    return path


def test_futures_start_at_the_last_frame_given(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "futures.nc"
    result = run("simulate", folder / "run", "--members", 2, "--steps", 3, "--seed", 5, "--out", out, "--compile", "off")
    assert result.exit_code == 0, result.output
    sim, x = epns_pyro.load(folder / "run"), open_store(folder / "data.zarr").read("test")
    start, more = x[:, FRAMES - 1], {"steps": 3, "members": 2, "seed": 5}
    known, alone = sim.rollout(start, past=x[:, : FRAMES - 1], **more), sim.rollout(start, **more)
    with xr.open_dataset(out, engine="h5netcdf") as found:
        np.testing.assert_allclose(found["position"].isel(sample=0, time=0), sim.spec.get(start, "position"), atol=1e-6)
        np.testing.assert_allclose(found["position"], known["position"], atol=1e-6)
        assert np.abs(found["position"] - alone["position"]).max() > 1e-4


def test_recorded_entries_go_on_after_the_frames_given(folder: Path, tmp_path: Path) -> None:
    command = ("simulate", folder / "run", "--members", 1, "--entries", "recorded", "--compile", "off")
    assert run(*command, "--steps", 4, "--out", tmp_path / "four.nc").exit_code == 0
    too_long = run(*command, "--steps", 5, "--out", tmp_path / "five.nc")
    assert "has 4 steps after the frames given, found --steps 5" in too_long.output


def test_conditioning_starts_at_the_last_frame_given(folder: Path, tmp_path: Path) -> None:
    sim, x = epns_pyro.load(folder / "run"), open_store(folder / "data.zarr").read("test", 1)[0]
    place = sim.spec.get(x, "position")[[FRAMES + 1]]
    seen = xr.Dataset({"position": (("time", "body", "space"), place, {"noise": 0.05})}, coords={"time": [0.2]})
    seen.to_netcdf(tmp_path / "seen.nc", engine="h5netcdf")
    command = ("condition", folder / "run", "--observations", tmp_path / "seen.nc", "--particles", 50)
    result = run(*command, "--from", f"{folder / 'data.zarr'}:1", "--out", tmp_path / "posterior.nc")
    assert result.exit_code == 0, result.output
    given = read_observations(tmp_path / "seen.nc", sim.spec, frame_dt=sim.context.frame_dt)
    past = torch.as_tensor(x[: FRAMES - 1])
    posterior = sim.filter(x[FRAMES - 1], given.observations, particles=50, past=past)
    assert f"{float(posterior['log_evidence'][-1]):.2f} nats" in result.output


def test_a_probability_can_know_the_past(folder: Path) -> None:
    sim, x = epns_pyro.load(folder / "run"), open_store(folder / "data.zarr").read("test", 0)[0]
    start, past = x[FRAMES - 1], x[: FRAMES - 1]
    lengths = []

    def far(futures: np.ndarray) -> np.ndarray:
        lengths.append(np.linalg.norm(sim.spec.get(futures[:, -1], "velocity"), axis=-1).sum(-1))
        return lengths[-1] > lengths[0].mean()

    sim.probability(far, start, steps=3, members=20, past=past)
    sim.probability(far, start[None], steps=3, members=20, past=past[None])
    sim.probability(far, start, steps=3, members=20)
    np.testing.assert_allclose(lengths[0], lengths[1])
    assert np.abs(lengths[0] - lengths[2]).max() > 1e-4
