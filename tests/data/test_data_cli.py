"""`epns-pyro data`: what it prints, and how it fails."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import toy_systems
import zarr
from click.testing import CliRunner

from epns_pyro.cli import main
from epns_pyro.data import open_store

pytestmark = pytest.mark.filterwarnings("error")


def run(*args):
    return CliRunner().invoke(main, [str(arg) for arg in args], env={"COLUMNS": "200"})


def one_line_error(result, message):
    assert result.exit_code == 2, result.output
    lines = result.stderr.splitlines()
    assert lines[-1].startswith("error: "), result.stderr
    assert message in lines[-1]
    assert "Traceback" not in result.output


def test_generate_and_look(tmp_path):
    path = tmp_path / "deep" / "store.zarr"
    settings = ("--seed", 5, "--trajectories", 4, "--set", "kick=0.1")
    result = run("data", "generate", "toy_walkers", "--out", path, *settings, "--sets", "train, val")
    assert result.exit_code == 0, result.output
    store = open_store(path)
    assert {group: store.size(group) for group in store.splits} == {"train": 4, "val": 3}
    assert store.system.config.kick == 0.1
    result = run("data", "generate", "toy_walkers", "--out", path, *settings)
    assert result.exit_code == 0, result.output
    assert open_store(path).size("same_init") == 6  # 2 initial states, at most 4 runs each
    result = run("data", "info", path)
    assert result.exit_code == 0, result.output
    words = " ".join(result.stdout.split())
    assert "train 4 9 2" in words
    assert "one step is 0.25 s" in words
    assert f"velocity vector m/s {store.context().spec['velocity'].scale:.4g}" in words
    assert "mass scalar kg" in words
    assert "static" in words
    assert "warning: there is no set 'test'" in words


def test_generate_goes_to_the_data_folder_by_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("data", "generate", "toy_stripes", "--trajectories", 1).exit_code == 0
    assert (tmp_path / "data" / "toy_stripes.zarr").is_dir()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["generate", "toy_walker"], "unknown system 'toy_walker': did you mean 'toy_walkers'"),
        (["generate", "toy_walkers", "--set", "kik=1"], "unknown key 'kik': did you mean 'kick'"),
        (["generate", "toy_walkers", "--set", "kick=strong"], "kick: input should be a valid number"),
        (["generate", "toy_walkers", "--sets", "train,vla"], "no set 'vla'"),
        (["generate", "recorded"], "system recorded: spec: field required"),
        (["info", "nothing.zarr"], "nothing.zarr: no such store"),
        (["import-epns", "nothing", "--out", "a.zarr"], "nothing: no such folder"),
        (["import-labels", "nothing", "--out", "a.zarr"], "nothing: no such file or folder"),
    ],
)
def test_mistakes_are_one_line(args, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one_line_error(run("data", *args), message)
    assert not list(tmp_path.iterdir())


def test_a_set_option_without_a_value(tmp_path):
    result = run("data", "generate", "toy_walkers", "--set", "kick", "--out", tmp_path / "a")
    assert result.exit_code == 2
    assert "expected key=value, found 'kick'" in result.stderr


def test_another_store_at_the_path(walkers):
    one_line_error(run("data", "generate", "toy_walkers", "--seed", 9, "--out", walkers.path), "seed is 3 there, 9 was asked for")


@pytest.mark.skipif(os.geteuid() == 0 and not os.path.isdir("/proc"), reason="needs a place where nobody may write")
def test_a_place_where_nothing_can_be_written():
    where = "/proc/nowhere/a.zarr"
    one_line_error(run("data", "generate", "toy_walkers", "--out", where), "/proc/nowhere")


def test_an_interrupted_run_says_so_and_is_finished_by_the_same_command(tmp_path, monkeypatch):
    simulate = toy_systems.Walkers.simulate

    def tired(self, *args, **kw):
        monkeypatch.setattr(toy_systems.Walkers, "simulate", simulate)
        raise KeyboardInterrupt

    monkeypatch.setattr(toy_systems.Walkers, "simulate", tired)
    args = ("data", "generate", "toy_walkers", "--out", tmp_path / "a.zarr")
    result = run(*args)
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1].startswith("interrupted")
    one_line_error(run("data", "info", tmp_path / "a.zarr"), "to correct before it can be used")
    assert run(*args).exit_code == 0
    assert open_store(tmp_path / "a.zarr").missing("train") == 0


def test_info_of_broken_data_names_the_fault_and_fails(walkers, tmp_path):
    data = walkers.dataset("train").load()
    position = data.position.values.copy()
    position[4, 2, 0, 1] = np.nan
    data.assign(position=(data.position.dims, position)).to_zarr(tmp_path / "a.zarr", group="train", consolidated=False)
    walkers.dataset("val").load().to_zarr(tmp_path / "a.zarr", group="val", mode="a", consolidated=False)
    result = run("data", "info", tmp_path / "a.zarr")
    one_line_error(result, "1 error to correct before it can be used")
    assert "error: set 'train': field 'position': 1 values are NaN or infinite, the first in trajectory 4, frame 2, body 0" in result.stdout


def test_info_of_a_users_file_with_a_description(walkers, tmp_path):
    data = walkers.dataset("train").load().drop_attrs()
    data.to_netcdf(tmp_path / "mine.nc", engine="h5netcdf")
    one_line_error(run("data", "info", tmp_path / "mine.nc"), "no description of its fields: give --spec FILE")
    (tmp_path / "spec.yaml").write_text("fields: [{name: position, irreps: 1o, translates: true, unit: '[cm]'}]\nspace: 2\n")
    result = run("data", "info", tmp_path / "mine.nc", "--spec", tmp_path / "spec.yaml")
    assert result.exit_code == 0, result.output
    assert "nothing wrong found" in result.stdout
    assert "position vector [cm]" in " ".join(result.stdout.split())


def test_imports(tmp_path, rng):
    (tmp_path / "published" / "train").mkdir(parents=True)
    states = np.concatenate([np.ones((3, 1, 21)), rng.standard_normal((3, 6, 21))], axis=1)
    np.save(tmp_path / "published" / "train" / "0.npy", states)
    result = run("data", "import-epns", tmp_path / "published", "--out", tmp_path / "a.zarr", "--every", 5)
    assert result.exit_code == 0, result.output
    assert "no folder test_long_simulation/: the store has no set long" in result.stderr
    assert open_store(tmp_path / "a.zarr").steps("train") == 4
    zarr.create_array(tmp_path / "film.zarr", data=np.repeat(np.eye(4, dtype=np.uint16)[None], 6, 0))
    result = run("data", "import-labels", tmp_path / "film.zarr", "--out", tmp_path / "b.zarr", "--segment", 3, "--time-unit", "min")
    assert result.exit_code == 0, result.output
    assert "one step is 1 min" in result.stdout


def test_help_does_not_load_torch():
    script = """
import sys
from epns_pyro.cli import main
main(["data", "generate", "--help"], standalone_mode=False)
assert "torch" not in sys.modules
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "Simulate the trajectory sets of SYSTEM" in result.stdout
