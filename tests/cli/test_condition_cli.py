"""`epns-pyro condition` on a tiny run, and every mistake of a user by its message."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner, Result

from epns_pyro.cli import main
from epns_pyro.data import generate, open_store
from epns_pyro.systems import NBodyConfig

SETS = {name: {"trajectories": 8, "steps": 8} for name in ("train", "val", "test")}
SMALL = ["model.width=8", "model.hidden_vectors=3", "model.latent=3", "model.backbone.width=8", "model.backbone.vectors=4"]
SMALL += ["model.backbone.layers=1", "training.batch=8", "training.validation_transitions=20", "training.motion_windows=20"]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, a run on it, and observations of the first test trajectory."""
    path = tmp_path_factory.mktemp("condition")
    generate(NBodyConfig.parse({"bodies": 3, "dt": 0.01, "sets": SETS}), path / "data.zarr")
    settings = [f"--set={setting}" for setting in SMALL]
    result = run("train", "nbody", "--data", path / "data.zarr", "--out", path / "run", "--steps", 6, "--no-evaluate", *settings)
    assert result.exit_code == 0, result.output
    store = open_store(path / "data.zarr")
    x = store.read("test", 0)[0]
    get = store.spec.get
    seen = xr.Dataset(
        {
            "position": (("time", "body", "space"), get(x, "position")[4::4], {"noise": 0.05}),
            "mass": ("body", get(x, "mass")[0]),
            "initial_position": (("body", "space"), get(x, "position")[0]),
            "initial_velocity": (("body", "space"), get(x, "velocity")[0]),
        },
        coords={"time": [0.4, 0.8]},
    )
    seen["position"][:, 2] = np.nan
    seen.to_netcdf(path / "seen.nc", engine="h5netcdf")
    seen[["position"]].to_netcdf(path / "bare.nc", engine="h5netcdf")
    return path


@pytest.mark.parametrize(("name", "options"), [("filtered.nc", []), ("smoothed.zarr", ["--smooth"])])
def test_a_posterior_is_written_and_summarised(folder: Path, tmp_path: Path, name: str, options: list[str]) -> None:
    out, command = tmp_path / name, ("condition", folder / "run", "--particles", 60, *options)
    result = run(*command, "--observations", folder / "seen.nc", "--out", out)
    assert result.exit_code == 0, result.output
    for words in ("2 of 9 frames observed, 60 particles", "log evidence", "effective sample size  median", str(out)):
        assert words in result.output
    with xr.open_zarr(out, consolidated=False) if out.is_dir() else xr.open_dataset(out, engine="h5netcdf") as posterior:
        assert dict(posterior.sizes) == {"sample": 60, "time": 9, "body": 3, "space": 3}
        np.testing.assert_allclose(np.exp(posterior["log_weight"]).sum("sample"), 1)
        assert posterior.attrs["seed"] == 0
        evidence = float(posterior["log_evidence"].values.ravel()[-1])
    assert f"{evidence:.2f} nats" in result.output
    again = run(*command, "--observations", folder / "bare.nc", "--from", f"{folder / 'data.zarr'}:0", "--out", tmp_path / f"2{name}")
    assert f"{evidence:.2f} nats" in again.output  # the same start, from elsewhere
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, f"2{name}"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--observations", "seen.nc", "--out", "x.csv"], "expected a name that ends in .zarr or .nc"),
        (["--observations", "seen.nc", "--out", "bare.nc"], "exists already"),
        (["--observations", "none.nc", "--out", "x.nc"], "none.nc: no such file"),
        (["--observations", "bare.nc", "--out", "x.nc"], "no initial state: add the variables mass, initial_position, initial_velocity"),
        (["--observations", "seen.nc", "--out", "x.nc", "--noise", "position=0"], "finite noise > 0, found 0"),
        (["--observations", "seen.nc", "--out", "x.nc", "--noise", "speed=1"], "did you mean 'position'|known: position"),
        (["--observations", "seen.nc", "--out", "x.nc", "--noise", "position"], "expected FIELD=SIGMA with a number, found 'position'"),
        (["--observations", "seen.nc", "--out", "x.nc", "--noise", "position=1", "--noise", "position=2"], "position is given twice"),
        (["--observations", "seen.nc", "--out", "no/x.nc"], "no/x.nc: there is no folder"),
        (["--observations", "seen.nc", "--out", "x.nc", "--from", "data.zarr:one"], "PATH:INDEX with a whole number"),
        (["--observations", "seen.nc", "--out", "x.nc", "--smooth", "--particles", "5"], "needs at least 38 particles, found 5"),
    ],
)
def test_mistakes_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str) -> None:
    monkeypatch.chdir(folder)
    result = run("condition", "run", *options)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert any(part in " ".join(result.output.split()) for part in message.split("|")), result.output
    assert not (folder / "x.nc").exists()
