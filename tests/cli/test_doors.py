"""The last net, quiet libraries, devices, numbers that cannot be, the word of train, and the list of settings."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from pyro.infer import Predictive

import epns_pyro
from epns_pyro import sampling
from epns_pyro.cli import _log, main
from epns_pyro.cli._common import trajectory_of
from epns_pyro.config import list_settings
from epns_pyro.errors import ConfigError, TrainingError
from epns_pyro.training.presets import preset
from epns_pyro.training.trainer import Hardware


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def one_line(result: Result, code: int = 2) -> str:
    assert result.exit_code == code, result.output
    lines = result.output.strip().splitlines()
    assert len(lines) == 1, result.output
    return lines[0]


# -- the last net ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError("two\nlines"), MemoryError(), RecursionError("deep"), KeyError("k"), AssertionError("a")])
def test_an_unexpected_error_is_one_line_and_a_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception) -> None:
    def broken(*arguments: object, **settings: object) -> None:
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sampling, "load", broken)
    line = one_line(invoke("simulate", tmp_path, "--out", "x.zarr"), 70)
    (log,) = tmp_path.glob("*.log")
    assert log.name in line
    assert type(error).__name__ in line
    assert "Traceback" in log.read_text()
    assert "in broken" in log.read_text()
    assert "torch" in log.read_text()


def test_where_the_folder_cannot_be_written_the_log_goes_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    make = _log.tempfile.mkstemp

    def mkstemp(*, dir: Path, **settings: object) -> tuple[int, str]:
        if Path(dir) == tmp_path:
            raise PermissionError
        return make(dir=tmp_path, **settings)

    monkeypatch.setattr(_log.tempfile, "mkstemp", mkstemp)
    assert Path(_log.write_log(ValueError("x"))).parent == tmp_path


def test_an_interrupt_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*arguments: object, **settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sampling, "load", interrupted)
    assert one_line(invoke("simulate", tmp_path, "--out", tmp_path / "x.zarr"), 130) == "interrupted"


def test_warnings_of_libraries_stay_off_the_screen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def warns(*arguments: object, **settings: object) -> None:
        with warnings.catch_warnings(record=True) as shown:
            warnings.warn("Initializing zero-element tensors is a no-op", stacklevel=1)
        raise ConfigError(f"{len(shown)} shown")

    monkeypatch.setattr(sampling, "load", warns)
    assert one_line(invoke("simulate", tmp_path, "--out", tmp_path / "x.zarr")) == "error: 0 shown"


# -- values of options -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:7", "meta:x", "nonsense", "mtia"])
def test_a_device_that_is_not_there_is_refused(run: Path, tmp_path: Path, device: str) -> None:
    for command in (["simulate", run, "--out", tmp_path / "x.zarr"], ["evaluate", run]):
        assert "device" in one_line(invoke(*command, "--device", device))
    with pytest.raises(ConfigError, match="device"):
        epns_pyro.load(run, device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_where_nothing_can_be_trained_no_folder_is_left(store, tmp_path: Path) -> None:
    out, train = tmp_path / "run", ["train", "nbody", "--data", store.path, "--no-evaluate", "--steps", 1]
    assert "accelerator 'cuda'" in one_line(invoke(*train, "--out", out, "--accelerator", "cuda"))
    assert not out.exists()
    with pytest.raises(TrainingError, match="accelerator 'cuda'"):
        epns_pyro.train("nbody", store, out, hardware=Hardware("cuda"))
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--seed", "9" * 25], "--seed"),
        (["--seed", "-1"], "--seed"),
        (["--members", 10**30], "--members"),
        (["--members", 10**9, "--steps", 10**6], "ask for fewer --members or --steps"),
        (["--steps", 10**9, "--members", 1], "or --steps"),
        (["--from", "x:²"], "whole number, found '²'"),
        (["--from", ":3"], "expected PATH"),
        (["--from", "x:" + "9" * 5000], "whole number"),
    ],
)
def test_numbers_that_cannot_be_are_refused(run: Path, tmp_path: Path, options: list[object], said: str) -> None:
    assert said in one_line(invoke("simulate", run, "--out", tmp_path / "x.zarr", *options))
    assert list(tmp_path.iterdir()) == []


def test_a_path_may_have_colons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = Path("2024-01-01T12:30:00")
    place.mkdir()
    assert trajectory_of(str(place)) == (place, None)
    assert trajectory_of(f"{place}:2") == (place, 2)
    assert trajectory_of("data.zarr:12") == (Path("data.zarr"), 12)


# -- train -------------------------------------------------------------------------------------------------------------------


def test_the_word_of_train_is_checked_against_the_data(run: Path, store, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for arguments in (["--data", store.path], ["--config", run / "config.yaml"], ["--config", run / "config.yaml", "--data", store.path]):
        line = one_line(invoke("train", "cells", *arguments, "--out", out))
        assert "`train cells` is for label images" in line
        assert "epns-pyro train nbody or epns-pyro train particles" in line
    assert "unknown family of models 'nonsense'" in one_line(invoke("train", "nonsense", "--config", run / "config.yaml"))
    assert "`train cells`" in one_line(invoke("train", "cells", "--out", run, "--resume"))
    assert not out.exists()


def test_particles_are_the_family_of_nbody() -> None:
    assert preset("particles") == preset("nbody")


def test_resume_before_the_first_checkpoint_says_what_to_do(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "config.yaml", tmp_path)
    line = one_line(invoke("train", "nbody", "--out", tmp_path, "--resume"))
    assert line == f"error: {tmp_path}: stopped before its first checkpoint: start again without --resume"


# -- files changed by hand ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("context", None),
        ("windows", {"length": 3}),
        ("counters", 7),
        ("counters", {"step": "x"}),
        ("config", 3),
        ("weights", [1]),
        ("store", 1),
    ],
)
def test_a_checkpoint_changed_by_hand_is_one_line_in_every_command(run: Path, tmp_path: Path, part: str, value: object) -> None:
    content = torch.load(run / "last.ckpt", weights_only=True) | {part: value}
    for name in ("last.ckpt", "best.ckpt"):
        torch.save(content, tmp_path / name)
    shutil.copy(run / "config.yaml", tmp_path)
    for command in (
        ["simulate", tmp_path, "--out", tmp_path / "x.zarr"],
        ["evaluate", tmp_path],
        ["train", "nbody", "--resume", "--out", tmp_path],
    ):
        line = one_line(invoke(*command))
        assert "damaged or changed by hand" in line
        assert part in line


def test_a_simulator_has_one_model_and_one_guide_which_take_arrays(sim, x0) -> None:
    sim.model.kl_weight = 0.5
    assert sim.model is sim.model
    assert sim.guide is sim.guide
    assert sim.model.kl_weight == 0.5
    for states in (x0, torch.as_tensor(x0).double()):
        sites = Predictive(sim.model, guide=sim.guide, num_samples=2, parallel=True)(states, horizon=2)
        assert sites["x_2"].dtype == sim.dtype
        assert len(sites["x_2"]) == 2


# -- settings and the public face ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["nbody", "cells"])
def test_every_setting_is_listed_by_a_key_that_set_takes(family: str) -> None:
    config = preset(family)
    listed = list(list_settings(config))
    for setting in listed:
        if setting.value != {} and not setting.key.startswith("system.sets"):
            assert config.override({setting.key: setting.value}) == config, setting.key
    shown = invoke("settings", family).output
    assert all(setting.key in shown for setting in listed)
    described = [setting for setting in listed if setting.description]
    assert len(described) > 40
    assert all(" ".join(setting.description.rstrip(".").split()) in shown for setting in described)


def test_settings_follow_changes_and_refuse_what_train_refuses() -> None:
    shown = invoke("settings", "particles", "--set", "model.backbone=mlp", "--set", "model.integrator=null").output
    assert "model.backbone = mlp" in shown
    assert "model.integrator.steps" not in shown
    assert "did you mean 'width'" in one_line(invoke("settings", "nbody", "--set", "model.widht=3"))


def test_the_package_shows_its_public_face_alone() -> None:
    assert dir(epns_pyro) == ["Observations", "Simulator", "__version__", "load", "preset", "train"]
    for name in dir(epns_pyro):
        assert getattr(epns_pyro, name)
    with pytest.raises(AttributeError, match="no attribute 'os'"):
        epns_pyro.os  # noqa: B018
