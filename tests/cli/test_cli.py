"""The commands on tiny sizes, and every mistake of a user by its message."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import yaml
from click.testing import CliRunner, Result

import epns_pyro
from epns_pyro.cli import main
from epns_pyro.data import generate, open_store
from epns_pyro.simulator import Simulator
from epns_pyro.state import StateSpec
from epns_pyro.systems import NBodyConfig, SetConfig, SpringsConfig

SETS = {name: {"trajectories": n, "steps": 12} for name, n in (("train", 12), ("val", 6), ("test", 4))}
SMALL = [
    f"--set={setting}"
    for setting in (
        "model.width=8",
        "model.hidden_vectors=3",
        "model.latent=3",
        "model.backbone.width=8",
        "model.backbone.vectors=4",
        "model.backbone.layers=1",
        "training.batch=8",
        "training.motion_windows=20",
        "training.validation_transitions=20",
    )
]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def refused(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert not isinstance(result.exception, ValueError)
    last = result.output.strip().splitlines()[-1]
    for word in words:
        assert word in last, last


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "tiny.zarr"
    generate(NBodyConfig.parse({"bodies": 3, "dt": 0.01, "sets": SETS}), path)
    return path


@pytest.fixture(scope="module")
def trained(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    result = run("train", "nbody", "--data", store, "--out", folder, "--steps", 6, "--no-evaluate", *SMALL)
    assert result.exit_code == 0, result.output
    return folder


def test_train_says_what_it_reached_and_what_comes_next(store: Path, tmp_path: Path) -> None:
    result = run("train", "nbody", "--data", store, "--out", tmp_path / "run", "--steps", 3, "--no-evaluate", *SMALL)
    assert result.exit_code == 0, result.output
    for word in ("nats per transition", "below the oracle", "latent dimensions active", "epns-pyro evaluate", "epns-pyro report"):
        assert word in result.output
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["training"]["steps"] == 3
    assert config["model"]["backbone"]["width"] == 8


def test_a_config_file_repeats_a_run(trained: Path, store: Path, tmp_path: Path) -> None:
    result = run("train", "nbody", "--data", store, "--config", trained / "config.yaml", "--out", tmp_path / "again", "--no-evaluate")
    assert result.exit_code == 0, result.output
    first, again = ((folder / "metrics.csv").read_text() for folder in (trained, tmp_path / "again"))
    assert first == again


def test_resume_of_a_finished_run_changes_nothing(trained: Path) -> None:
    before = (trained / "metrics.csv").read_text()
    result = run("train", "nbody", "--out", trained, "--resume", "--no-evaluate")
    assert result.exit_code == 0, result.output
    assert (trained / "metrics.csv").read_text() == before


@pytest.mark.parametrize("suffix", [".zarr", ".nc"])
def test_simulate_writes_a_labelled_ensemble(trained: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"futures{suffix}"
    result = run("simulate", trained, "--members", 3, "--steps", 4, "--out", out, "--seed", 1)
    assert result.exit_code == 0, result.output
    with xr.open_dataset(out, **({"engine": "zarr", "consolidated": False} if suffix == ".zarr" else {})) as futures:
        assert dict(futures.sizes) == {"sample": 3, "trajectory": 4, "time": 5, "body": 3, "space": 3}
        assert futures["position"].dims == ("sample", "trajectory", "time", "body", "space")
        assert futures["mass"].dims == ("trajectory", "body")
        assert futures["alive"].dtype == bool
        np.testing.assert_allclose(futures["time"], 0.1 * np.arange(5))
        assert np.isfinite(futures["position"]).all()


def test_simulate_from_one_trajectory(trained: Path, store: Path, tmp_path: Path) -> None:
    result = run("simulate", trained, "--members", 2, "--steps", 2, "--from", f"{store}:1", "--out", tmp_path / "one.zarr")
    assert result.exit_code == 0, result.output
    assert "1 initial state" in result.output


def test_a_law_that_was_found_is_said(tmp_path: Path) -> None:
    sets = {"train": SetConfig(trajectories=40, steps=6), "val": SetConfig(trajectories=2, steps=6)}
    generate(SpringsConfig(sets=sets, bodies=3), tmp_path / "springs.zarr")
    small = ("--steps", 2, "--set", "training.batch=2", "--set", "training.motion_windows=20", "--no-evaluate")
    result = run("train", "springs", "--data", tmp_path / "springs.zarr", "--out", tmp_path / "run", *small)
    assert result.exit_code == 0, result.output
    assert "law of pairs: forces go as r^1\n" in result.output
    assert "fitted first, to 20 windows" in result.stderr


def test_help_does_not_import_torch() -> None:
    code = "import sys; from click.testing import CliRunner; from epns_pyro.cli import main; "
    code += "r = CliRunner().invoke(main, ['--help']); assert r.exit_code == 0, r.output; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# -- mistakes ----------------------------------------------------------------------------------------------------------------


def test_unknown_system_and_preset_offer_the_nearest() -> None:
    refused(run("train", "nbodi"), "unknown family of models 'nbodi'", "did you mean 'nbody'")
    refused(run("train", "nbody", "--preset", "papr"), "unknown preset 'papr'", "did you mean 'paper'")


def test_unknown_settings_offer_the_nearest(store: Path, tmp_path: Path) -> None:
    train = ("train", "nbody", "--data", store, "--out", tmp_path / "run", "--no-evaluate")
    refused(run(*train, "--set", "model.widht=3"), "unknown key 'widht'", "did you mean 'width'")
    refused(run(*train, "--set", "training.batch=many"), "training.batch", "found 'many'")
    refused(run(*train, "--set", "model.backbone.name=vektor"), "unknown backbone 'vektor'", "did you mean 'vector'")
    refused(run(*train, "--set", "nonsense"), "expected key=value")
    assert not (tmp_path / "run").exists()


def test_an_existing_run_is_not_overwritten(trained: Path, store: Path) -> None:
    before = (trained / "last.ckpt").read_bytes()
    refused(run("train", "nbody", "--data", store, "--out", trained, "--steps", 3, *SMALL), "holds a run already", "--resume")
    assert (trained / "last.ckpt").read_bytes() == before


def test_resume_refuses_new_settings(trained: Path) -> None:
    refused(run("train", "nbody", "--out", trained, "--resume", "--steps", 9), "--resume uses the settings")


def test_what_would_be_ignored_is_refused(trained: Path, store: Path, tmp_path: Path) -> None:
    refused(run("train", "nbody", "--resume", "--out", trained, "--preset", "paper"), "leave out --config, --preset")
    new = ("train", "nbody", "--data", store, "--out", tmp_path / "new")
    refused(run(*new, "--set", "system.sigma=0.7"), "--set system.sigma: is for data that are simulated")
    refused(run(*new, "--steps", 2, "--set", "training.steps=1e3x"), "--set training.steps: there is an option for it")
    twice = tmp_path / "twice.yaml"
    twice.write_text((trained / "config.yaml").read_text() + "seed: 7\n")
    refused(run(*new, "--config", twice), "the key 'seed' is given twice")
    assert not (tmp_path / "new").exists()


def test_a_config_describes_the_data_that_were_used(trained: Path, store: Path) -> None:
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["system"]["bodies"] == 3
    simulator = epns_pyro.train(
        epns_pyro.preset("nbody").override({"training.steps": 1} | dict(pair[6:].split("=") for pair in SMALL)),
        store,
        trained.parent / "script",
    )
    assert simulator.config.system == open_store(store).system.config


def test_initial_states_of_other_fields_are_refused(trained: Path, store: Path, tmp_path: Path) -> None:
    recorded = open_store(store)
    turned = StateSpec(recorded.spec.fields[::-1], space=recorded.spec.space)
    with xr.open_zarr(store, group="test", consolidated=False) as data:
        data.load().assign_attrs(state_spec=turned.to_json(), frame_dt=recorded.frame_dt).to_netcdf(
            tmp_path / "turned.nc", engine="h5netcdf"
        )
    result = run("simulate", trained, "--from", tmp_path / "turned.nc", "--members", 2, "--steps", 2, "--out", tmp_path / "x.nc")
    refused(result, "turned.nc: has the fields velocity, position, mass, the model has mass, position, velocity")


def test_an_interrupted_result_is_completed(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, write = tmp_path / "x.nc", xr.Dataset.to_netcdf

    def stop(data: xr.Dataset, path: Path, **settings: object) -> None:
        write(data.isel(sample=[0]), path, **settings)
        raise KeyboardInterrupt

    command = ("simulate", trained, "--members", 3, "--steps", 2, "--out", out)
    with monkeypatch.context() as patch:
        patch.setattr(xr.Dataset, "to_netcdf", stop)
        assert run(*command).exit_code == 130
    assert not out.exists()
    assert run(*command).exit_code == 0
    with xr.open_dataset(out) as found:
        assert found.sizes["sample"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["x.nc"]


def test_resume_and_simulate_need_a_run(tmp_path: Path) -> None:
    refused(run("train", "nbody", "--out", tmp_path / "none", "--resume"), "no such checkpoint")
    refused(run("simulate", tmp_path / "none", "--out", tmp_path / "x.zarr"), "no such run")


def test_missing_data(tmp_path: Path) -> None:
    refused(run("train", "nbody", "--data", tmp_path / "none.zarr"), "none.zarr")


def test_too_few_frames(store: Path, tmp_path: Path) -> None:
    long = ("--set", "training.horizon.end=40", "--set", "training.horizon.begin=0")
    refused(run("train", "nbody", "--data", store, "--out", tmp_path / "run", "--steps", 3, *long, *SMALL), "window length", "13 frames")


def test_nan_in_the_data_is_named(store: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.zarr"
    for group in SETS:
        data = xr.open_zarr(store, group=group, consolidated=False, chunks=None).load()
        if group == "train":
            data["velocity"][2, 3, 1, 0] = np.nan
        data.drop_encoding().to_zarr(broken, group=group, mode="a", consolidated=False)
    refused(run("train", "nbody", "--data", broken, "--out", tmp_path / "run", "--steps", 3, *SMALL), "NaN", "data info")


def test_unwritable_folder(store: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    refused(run("train", "nbody", "--data", store, "--out", tmp_path / "file" / "run", "--steps", 3, *SMALL), "file")


def test_simulate_does_not_overwrite(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "there.zarr").mkdir()
    refused(run("simulate", trained, "--out", tmp_path / "there.zarr"), "exists already")
    refused(run("simulate", trained, "--out", tmp_path / "futures.csv"), ".zarr or .nc")
    refused(run("simulate", trained, "--from", "data.zarr:first", "--out", tmp_path / "a.zarr"), "whole number")


@pytest.mark.parametrize(("own", "expected"), [({}, "3000"), ({"OMP_WAIT_POLICY": "active"}, "None"), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_idle_threads_spin_briefly_unless_told_otherwise(own: dict[str, str], expected: str) -> None:
    """It has to be said before torch is loaded."""
    environment = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")} | own
    script = "import os, sys, epns_pyro; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [expected, "False"]


def test_simulations_are_compiled_where_that_is_asked_for_or_pays(trained: Path, tmp_path: Path, monkeypatch) -> None:
    compiled = []
    monkeypatch.setattr(Simulator, "compile", lambda sim: compiled.append(sim) or sim)
    small = ("simulate", trained, "--members", 2, "--steps", 2, "--out")
    for number, (choice, expected) in enumerate((("auto", 0), ("off", 0), ("on", 1))):
        assert run(*small, tmp_path / f"{number}.zarr", "--compile", choice).exit_code == 0
        assert len(compiled) == expected
    monkeypatch.setattr("epns_pyro.inference.compiled.PAYS_FROM", 1)
    assert run(*small, tmp_path / "long.zarr").exit_code == 0
    assert len(compiled) == 2
    monkeypatch.setattr("epns_pyro.inference.compiled.find_compiler", lambda: None)
    assert run(*small, tmp_path / "plain.zarr").exit_code == 0
    assert len(compiled) == 2
    refused(run(*small, tmp_path / "none.zarr", "--compile", "on"), "--compile on: no C++ compiler was found: install g++ or clang++")
