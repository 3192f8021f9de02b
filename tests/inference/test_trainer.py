"""Training: exact resume, reproducibility, and what happens when something goes wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from small import config, trainer

import epns_pyro
from epns_pyro.data import Store
from epns_pyro.errors import CheckpointError, ConfigError, TrainingError
from epns_pyro.inference import RunFolder
from epns_pyro.inference.checkpoint import read_checkpoint

HERE = Path(__file__).parent


def state(folder: Path) -> dict:
    content = read_checkpoint(folder / "last.ckpt")
    content["counters"].pop("seconds")
    return content


def assert_same_state(a: dict, b: dict) -> None:
    for name, tensor in a["weights"].items():
        assert torch.equal(tensor, b["weights"][name]), name
    for key, moments in a["optimizer"]["state"].items():
        for name, value in moments.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(b["optimizer"]["state"][key][name]))
    assert torch.equal(a["noise"], b["noise"])
    assert a["windows"] == b["windows"]
    assert a["counters"] == b["counters"]


@pytest.fixture(scope="module")
def uninterrupted(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    trainer(store, folder, config()).fit()
    return folder


def test_same_seed_same_numbers(store: Store, uninterrupted: Path, tmp_path: Path) -> None:
    trainer(store, tmp_path / "again", config()).fit()
    assert_same_state(state(uninterrupted), state(tmp_path / "again"))
    assert (tmp_path / "again" / "metrics.csv").read_text() == (uninterrupted / "metrics.csv").read_text()


@pytest.mark.parametrize("stop", [2, 4, 7])
def test_interrupted_and_resumed_equals_uninterrupted(store: Store, uninterrupted: Path, tmp_path: Path, stop: int) -> None:
    folder = tmp_path / "run"
    first = trainer(store, folder, config())

    def interrupt(progress) -> None:
        if progress.step == stop:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        first.fit(on_progress=interrupt)
    assert state(folder)["counters"]["step"] == stop
    trainer(store, folder, config()).fit(resume=True)
    assert_same_state(state(uninterrupted), state(folder))
    assert (folder / "metrics.csv").read_text() == (uninterrupted / "metrics.csv").read_text()


def test_killed_and_resumed_equals_uninterrupted(store: Store, tmp_path: Path) -> None:
    long = config(steps=60, checkpoint_every=1, validate_every=60, log_every=7)
    code = (
        f"import sys; sys.path.insert(0, {str(HERE)!r}); import torch; torch.set_num_threads(1); from pathlib import Path\n"
        f"from small import config, trainer; from epns_pyro.data import open_store\n"
        f"run = config(steps=60, checkpoint_every=1, validate_every=60, log_every=7)\n"
        f"trainer(open_store({str(store.path)!r}), Path({str(tmp_path / 'killed')!r}), run).fit()"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "killed" / "last.ckpt").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.1)
    finally:
        process.kill()
        process.wait()
    assert read_checkpoint(tmp_path / "killed" / "last.ckpt")["counters"]["step"] < 60
    trainer(store, tmp_path / "killed", long).fit(resume=True)
    trainer(store, tmp_path / "whole", long).fit()
    assert_same_state(state(tmp_path / "whole"), state(tmp_path / "killed"))
    assert (tmp_path / "whole" / "metrics.csv").read_text() == (tmp_path / "killed" / "metrics.csv").read_text()


def test_growing_windows_and_the_free_end_of_the_schedule(store: Store, tmp_path: Path) -> None:
    run = config(horizon={"end": 3, "begin": 0.0}, kl={"warmup": 0.5})
    trainer(store, tmp_path / "run", run).fit()
    rows = [line.split(",") for line in (tmp_path / "run" / "metrics.csv").read_text().splitlines()[1:]]
    horizon = [float(value) for step, name, value in rows if name == "horizon"]
    weight = [float(value) for step, name, value in rows if name == "kl_weight"]
    assert horizon == sorted(horizon)
    assert (horizon[0], horizon[-1]) == (1, 3)
    assert weight == pytest.approx([0.0, 0.25, 0.5, 0.75, 1, 1, 1, 1])


def test_two_processes_equal_one(store: Store, tmp_path: Path) -> None:
    settings = {"free_bits": 0.05, "steps": 5, "clip_norm": 1e6}
    trainer(store, tmp_path / "one", config(**settings)).fit()
    script = tmp_path / "two.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(HERE)!r}); import torch; torch.set_num_threads(1); from pathlib import Path\n"
        f"from small import config; from epns_pyro.data import open_store; from epns_pyro.inference import RunFolder\n"
        f"from epns_pyro.inference.trainer import Hardware, Trainer\n"
        f"folder, hardware, run = RunFolder(Path({str(tmp_path / 'two')!r})), Hardware('cpu', devices=2), config(**{settings!r})\n"
        f"if hardware.is_main: folder.create(run)\n"
        f"Trainer(run, open_store({str(store.path)!r}), folder, hardware).fit()\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = state(tmp_path / "one"), state(tmp_path / "two")
    for name, tensor in one["weights"].items():
        torch.testing.assert_close(tensor, two["weights"][name], rtol=1e-3, atol=2e-5, msg=name)


# -- when something goes wrong -----------------------------------------------------------------------------------------------


def poison(run, when) -> None:
    """Make the loss NaN at the steps for which `when(step)` holds."""
    inner = run.transition.emission
    run.transition.emission = lambda x, h, z: inner(x * (float("nan") if when(run._counters.step) else 1.0), h, z)


def test_a_bad_step_is_skipped_counted_and_reported(store: Store, tmp_path: Path) -> None:
    run = trainer(store, tmp_path / "run", config())
    poison(run, lambda step: step == 2)
    skipped = []
    run.fit(on_progress=lambda progress: skipped.append(progress.skipped))
    assert skipped == [0, 0, 1, 1, 1, 1, 1, 1]
    assert all(torch.isfinite(w).all() for w in state(tmp_path / "run")["weights"].values())


def test_too_many_bad_steps_stop_training_with_a_reason(store: Store, tmp_path: Path) -> None:
    run = trainer(store, tmp_path / "run", config(max_bad_steps=2))
    poison(run, lambda step: step >= 4)
    with pytest.raises(TrainingError, match=r"not finite in 2 steps in a row.*learning_rate.*last good state"):
        run.fit()
    assert state(tmp_path / "run")["counters"]["step"] == 3


def test_resume_refuses_other_settings_by_name(store: Store, uninterrupted: Path) -> None:
    with pytest.raises(CheckpointError, match=r"training\.learning_rate is 0\.003 in the checkpoint, 0\.1 now"):
        trainer(store, uninterrupted, config(learning_rate=0.1)).fit(resume=True)


def test_horizon_longer_than_the_trajectories_is_refused_at_once(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="11 frames"):
        trainer(store, tmp_path / "run", config(horizon={"end": 11}))


def test_an_existing_run_is_kept(uninterrupted: Path) -> None:
    with pytest.raises(CheckpointError, match="--resume"):
        RunFolder(uninterrupted).create(config())


@pytest.mark.parametrize("which", ["best", "last"])
def test_load_gives_the_trained_simulator(uninterrupted: Path, which: str) -> None:
    sim = epns_pyro.load(uninterrupted, which=which)
    assert sim.step in (4, 8)
    assert sim.config == config()
