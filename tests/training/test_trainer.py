"""Training: exact resume, reproducibility, and what happens when something goes wrong."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import small
import torch
from small import DISTRIBUTED, config, make_store, trainer

import epns_pyro
from epns_pyro.data import Store
from epns_pyro.errors import CheckpointError, ConfigError, DataError, TrainingError
from epns_pyro.models.transition import Carry
from epns_pyro.training.checkpoint import read_checkpoint
from epns_pyro.training.metrics import read_metrics
from epns_pyro.training.run import RunConfig, RunFolder
from epns_pyro.training.trainer import Hardware, Progress, Trainer
from epns_pyro.training.validation import Validated, Validation, Validator, draw_transitions

SUPPORT = Path(small.__file__).parent


def state(folder: Path) -> dict:
    content = read_checkpoint(folder / "last.ckpt")
    content["counters"] = asdict(content["counters"])
    content["counters"].pop("seconds")
    return content


def column(folder: Path, name: str) -> list[float]:
    return [value for _, found, value in read_metrics(folder / "metrics.csv") if found == name]


def assert_same_state(a: dict, b: dict) -> None:
    for name, tensor in a["weights"].items():
        assert torch.equal(tensor, b["weights"][name]), name
    for name, tensor in a["average"]["weights"].items():
        assert torch.equal(tensor, b["average"]["weights"][name]), name
    assert a["average"]["steps"] == b["average"]["steps"]
    for key, moments in a["optimizer"]["state"].items():
        for name, value in moments.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(b["optimizer"]["state"][key][name]))
    assert torch.equal(a["noise"], b["noise"])
    assert a["windows"] == b["windows"]
    assert a["counters"] == b["counters"]


def assert_same_run(a: Path, b: Path) -> None:
    assert_same_state(state(a), state(b))
    assert (a / "metrics.csv").read_text() == (b / "metrics.csv").read_text()
    best_a, best_b = read_checkpoint(a / "best.ckpt"), read_checkpoint(b / "best.ckpt")
    assert best_a["counters"].step == best_b["counters"].step
    assert all(torch.equal(w, best_b["weights"][name]) for name, w in best_a["weights"].items())


@pytest.fixture(scope="module")
def uninterrupted(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    trainer(store, folder, config()).fit()
    return folder


def test_same_seed_same_numbers(store: Store, uninterrupted: Path, tmp_path: Path) -> None:
    trainer(store, tmp_path / "again", config()).fit()
    assert_same_run(uninterrupted, tmp_path / "again")
    other = config().override({"seed": 1})
    trainer(store, tmp_path / "other", other).fit()
    a, b = state(uninterrupted), state(tmp_path / "other")
    assert not any(torch.equal(w, b["weights"][name]) for name, w in a["weights"].items() if w.ndim > 1)
    assert not torch.equal(a["noise"], b["noise"])
    assert a["windows"] != b["windows"]


@pytest.mark.parametrize("stop", [2, 4, 7])
def test_interrupted_and_resumed_equals_uninterrupted(store: Store, uninterrupted: Path, tmp_path: Path, stop: int) -> None:
    interrupted_and_resumed(store, tmp_path / "run", config(), stop)
    assert_same_run(uninterrupted, tmp_path / "run")


def interrupted_and_resumed(store: Store, folder: Path, run: RunConfig, stop: int) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.step == stop:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trainer(store, folder, run).fit(on_progress=interrupt)
    assert signal.getsignal(signal.SIGINT) is before
    assert state(folder)["counters"]["step"] == stop
    torch.manual_seed(stop)  # whatever torch's global generator does in between
    trainer(store, folder, run).fit(resume=True)


def test_a_signal_during_the_fit_of_the_motion_stops_it_at_once(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the fit goes on")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored where a shell runs the tests in the background
    monkeypatch.setattr("epns_pyro.training.trainer.fit_motion", fit)
    run = trainer(store, tmp_path / "run", config().override({"training.motion_windows": 20, "model.integrator.network": "central"}))
    try:
        with pytest.raises(KeyboardInterrupt):
            run.fit()
    finally:
        signal.signal(signal.SIGINT, before)
    assert not RunFolder(tmp_path / "run").last.exists()


def test_a_law_of_too_many_numbers_to_be_fitted_is_said_and_trained(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("epns_pyro.training.fittable.LARGEST_LAW", 10)
    said: list[str] = []
    run = trainer(store, tmp_path / "run", config(steps=1).override({"model.integrator.network": "central"}))
    run.fit(on_fit=said.append)
    assert run.motion_windows == 0
    assert ["at most 10 are fitted before training" in words for words in said] == [True]


def test_a_run_of_before_weights_were_averaged_goes_on(store: Store, tmp_path: Path) -> None:
    """Its weights are those of its last step, and the average starts there."""
    with pytest.raises(KeyboardInterrupt):
        trainer(store, tmp_path / "run", config()).fit(on_progress=lambda progress: os.kill(os.getpid(), signal.SIGINT))
    old = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    steps, live = old.pop("average").values()
    old["weights"] |= live
    torch.save(old, tmp_path / "run" / "last.ckpt")
    trainer(store, tmp_path / "run", config()).fit(resume=True)
    assert state(tmp_path / "run")["average"]["steps"] == config().training.steps > steps


def test_a_finished_run_is_not_trained_over(store: Store, uninterrupted: Path, tmp_path: Path) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run")
    before = (tmp_path / "run" / "last.ckpt").read_bytes()
    with pytest.raises(CheckpointError, match="exists already: continue it with resume=True"):
        trainer(store, tmp_path / "run", config()).fit()
    assert (tmp_path / "run" / "last.ckpt").read_bytes() == before


def test_killed_and_resumed_equals_uninterrupted(store: Store, uninterrupted: Path, tmp_path: Path) -> None:
    """kill -9 at the worst moment: step 6 is logged, its checkpoint is half way between the temporary file and its name."""
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(SUPPORT)!r})
import torch
torch.set_num_threads(1)
from pathlib import Path
from small import config, trainer
from epns_pyro.data import open_store
run, replace = trainer(open_store({str(store.path)!r}), Path({str(tmp_path / "killed")!r}), config()), os.replace
def replacing(temporary, path):
    if run._counters.step == 6 and str(path).endswith("last.ckpt"):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(temporary, path)
os.replace = replacing
run.fit()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert state(tmp_path / "killed")["counters"]["step"] == 3
    assert {step for step, *_ in read_metrics(tmp_path / "killed" / "metrics.csv")} == {0, 1, 2, 3, 4, 5, 6}
    trainer(store, tmp_path / "killed", config()).fit(resume=True)
    assert_same_run(uninterrupted, tmp_path / "killed")


def test_a_streamed_set_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of two trajectories, two of the eight in memory: windows come from other blocks than at the start when training ends."""
    monkeypatch.setattr("epns_pyro.data.writing.CHUNK_TRAJECTORIES", 2)
    store = make_store(tmp_path)
    run = config(memory=2 * 2 * 11 * 3 * 7 * 4, horizon={"end": 2, "begin": 0.5})
    whole = trainer(store, tmp_path / "whole", run)
    assert not whole._windows.in_memory
    first = list(whole._windows._resident)
    whole.fit()
    assert not set(first) & set(whole._windows._resident)
    interrupted_and_resumed(store, tmp_path / "run", run, stop=5)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_growing_windows_and_the_free_end_of_the_schedule(store: Store, tmp_path: Path) -> None:
    run = config(horizon={"end": 3, "begin": 0.0}, kl={"warmup": 0.5})
    trainer(store, tmp_path / "run", run).fit()
    horizon, weight = column(tmp_path / "run", "horizon"), column(tmp_path / "run", "kl_weight")
    assert horizon == sorted(horizon)
    assert (horizon[0], horizon[-1]) == (1, 3)
    assert weight == pytest.approx([0.0, 0.25, 0.5, 0.75, 1, 1, 1, 1])


def test_the_rate_follows_its_schedule_and_gradients_are_clipped(store: Store, tmp_path: Path) -> None:
    """AdamW with betas 0 and no decay moves a weight by rate x g / (|g| + eps): the moments it keeps are the gradient that it saw."""
    run = config(clip_norm=0.5, betas=(0.0, 0.0), learning_rate=0.1, steps=4, rate={"kind": "constant", "warmup": 0.5})
    trainer(store, tmp_path / "run", run).fit()
    gradients = [moments["exp_avg"] for moments in state(tmp_path / "run")["optimizer"]["state"].values()]
    assert float(torch.cat([g.flatten() for g in gradients]).norm()) == pytest.approx(0.5, rel=1e-4)
    assert column(tmp_path / "run", "gradient_norm")[-1] > 1.0  # what is reported is the norm before clipping
    assert column(tmp_path / "run", "learning_rate") == pytest.approx([1e-4, 0.05, 0.1, 0.1])
    assert state(tmp_path / "run")["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.1)


def found_by_chance(elbo: float) -> Validated:
    """A validation on one transition."""
    return Validated(Validation(elbo, 0.0, 0.0, 0, 3, None), torch.tensor([elbo]))


def test_the_best_state_is_kept_apart_from_the_last(store: Store, tmp_path: Path) -> None:
    run = trainer(store, tmp_path / "run", config(steps=4, validate_every=1))
    elbos = iter([2.0, 3.0, 5.0, float("nan"), 4.0])
    run._validator.evaluate = lambda: found_by_chance(next(elbos))
    assert run.fit().elbo == 4.0
    assert run.best == (2, 5.0)
    assert read_checkpoint(tmp_path / "run" / "best.ckpt")["counters"].step == 2
    assert epns_pyro.load(tmp_path / "run").step == 2
    assert epns_pyro.load(tmp_path / "run", which="last").step == 4


def test_what_does_not_beat_persistence_leaves_persistence(store: Store, tmp_path: Path) -> None:
    """The state before the first step is kept where no later one is better."""
    run = trainer(store, tmp_path / "run", config(steps=3, validate_every=1))
    elbos = iter([2.0, 1.0, -5.0, 1.5])
    run._validator.evaluate = lambda: found_by_chance(next(elbos))
    run.fit()
    assert run.best == (0, 2.0)
    assert epns_pyro.load(tmp_path / "run").step == 0


def test_validation_is_the_bound_of_the_library(store: Store, uninterrupted: Path) -> None:
    sim = epns_pyro.load(uninterrupted, which="last")
    found = Validator(store, sim.context, sim.transition, 20, device=torch.device("cpu"))
    x, x_next = (torch.as_tensor(part, dtype=torch.float32) for part in draw_transitions(store, "val", 20))
    (first, elbos), (again, elbos_again) = found.evaluate(), found.evaluate()
    assert first == again
    assert torch.equal(elbos, elbos_again)
    assert float(elbos.mean()) == pytest.approx(first.elbo, rel=1e-5)
    torch.manual_seed(0)
    many = sim.bounds(x, x_next[:, None], num_samples=500)
    assert first.kl == pytest.approx(float(many.kl.mean()), rel=1e-5)
    assert first.elbo == pytest.approx(float(many.elbo.mean()), rel=0.3)
    kl = sim.latent_kl(x, x_next[:, None]).mean(0)
    assert (first.active, first.latent) == (int((kl >= 0.01).sum()), 3)
    assert first.oracle == pytest.approx(float(store.system.transition_log_prob(*draw_transitions(store, "val", 20)).mean()))


# -- several processes -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_processes(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, str(SUPPORT / "two_processes.py"), str(store.path), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_two_processes_equal_one(store: Store, two_processes: Path, tmp_path: Path) -> None:
    trainer(store, tmp_path / "one", config(**DISTRIBUTED)).fit()
    one, two = state(tmp_path / "one"), state(two_processes / "two")
    largest = max(float(moments["exp_avg"].abs().max()) for moments in one["optimizer"]["state"].values())
    for key, moments in one["optimizer"]["state"].items():
        torch.testing.assert_close(two["optimizer"]["state"][key]["exp_avg"], moments["exp_avg"], rtol=1e-4, atol=1e-5 * largest)
    for name, tensor in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], tensor, rtol=1e-3, atol=2e-5, msg=name)
    assert torch.equal(one["noise"], two["noise"])
    for a, b in zip(*(read_metrics(folder / "metrics.csv") for folder in (tmp_path / "one", two_processes / "two")), strict=True):
        assert a[:2] == b[:2]
        assert a[2] == pytest.approx(b[2], rel=1e-3, abs=1e-4), a[1]


def test_a_signal_to_one_process_stops_all_at_the_same_step(two_processes: Path) -> None:
    assert_same_run(two_processes / "two", two_processes / "interrupted")


def test_a_bad_loss_in_one_process_is_skipped_by_all(two_processes: Path) -> None:
    assert column(two_processes / "bad", "skipped") == [0, 0, 1, 1, 1]
    assert all(torch.isfinite(w).all() for w in state(two_processes / "bad")["weights"].values())


# -- when something goes wrong -----------------------------------------------------------------------------------------------


def poison(run: Trainer, when: Callable[[int], bool]) -> None:
    """Let the networks return NaN in the steps for which `when(step)` holds."""
    step = run.transition.step
    run.transition.step = lambda carry: step(Carry(carry.x * (float("nan") if when(run._counters.step) else 1.0)))


def test_a_bad_step_is_skipped_counted_and_reported(store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = trainer(store, tmp_path / "run", config())
    poison(run, lambda step: step == 2)
    seen: list[Progress] = []
    run.fit(on_progress=seen.append)
    assert [progress.skipped for progress in seen] == [0, 0, 1, 1, 1, 1, 1, 1]
    assert [math.isnan(progress.kl) for progress in seen] == [False, False, True, False, False, False, False, False]
    assert column(tmp_path / "run", "skipped") == [0, 0, 1, 1, 1, 1, 1, 1]
    assert "step 3: loss or gradient not finite" in caplog.text
    assert all(torch.isfinite(w).all() for w in state(tmp_path / "run")["weights"].values())


def test_a_bad_step_changes_no_weight_and_no_moment(store: Store, tmp_path: Path) -> None:
    run = trainer(store, tmp_path / "run", config(steps=2, checkpoint_every=1))
    poison(run, lambda step: step == 1)
    kept = []
    run.fit(on_progress=lambda progress: kept.append([p.detach().clone() for p in run.transition.parameters()]))
    assert all(torch.equal(a, b) for a, b in zip(*kept, strict=True))
    assert {float(moments["step"]) for moments in state(tmp_path / "run")["optimizer"]["state"].values()} == {1.0}


def test_a_gradient_that_is_not_finite_is_a_bad_step_too(store: Store, tmp_path: Path) -> None:
    run = trainer(store, tmp_path / "run", config(steps=3))
    weight = next(run.transition.parameters())
    weight.register_hook(lambda g: g * (float("inf") if run._counters.step == 1 else 1.0))
    run.fit()
    assert column(tmp_path / "run", "skipped") == [0, 1, 1]


def test_too_many_bad_steps_stop_training_with_a_reason(store: Store, tmp_path: Path) -> None:
    run = trainer(store, tmp_path / "run", config(max_bad_steps=2))
    poison(run, lambda step: step in (1, 4, 5))
    with pytest.raises(TrainingError, match=r"not finite in 2 steps in a row, up to step 6: lower training.learning_rate.*last good state"):
        run.fit()
    assert state(tmp_path / "run")["counters"]["step"] == 3


def test_a_run_that_fails_before_its_first_checkpoint_does_not_promise_one(store: Store, tmp_path: Path) -> None:
    run = trainer(store, tmp_path / "run", config(max_bad_steps=1))
    poison(run, lambda step: True)
    with pytest.raises(TrainingError, match="Nothing was saved yet"):
        run.fit()


def test_resume_refuses_other_settings_by_name(store: Store, uninterrupted: Path) -> None:
    with pytest.raises(CheckpointError, match=r"training\.learning_rate is 0\.003 in the checkpoint, 0\.1 now"):
        trainer(store, uninterrupted, config(learning_rate=0.1)).fit(resume=True)


def test_resume_refuses_other_data(store: Store, uninterrupted: Path, tmp_path: Path) -> None:
    other = make_store(tmp_path, seed=1)
    with pytest.raises(CheckpointError, match=r"was trained on other data than .*small\.zarr"):
        trainer(other, uninterrupted, config()).fit(resume=True)


def test_resume_without_a_checkpoint(store: Store, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"last\.ckpt: no such checkpoint"):
        trainer(store, tmp_path / "run", config()).fit(resume=True)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"horizon": {"end": 11}}, "11 frames"), ({"horizon": {"start": 11, "end": 11}}, "11 frames"), ({"memory": 100}, "allow more")],
)
def test_what_cannot_work_is_refused_before_training(store: Store, tmp_path: Path, settings: dict, words: str) -> None:
    with pytest.raises((ConfigError, DataError), match=words):
        trainer(store, tmp_path / "run", config(**settings))


def test_an_accelerator_that_is_not_there() -> None:
    with pytest.raises(TrainingError, match="cannot train on accelerator 'quantum' with 2 device"):
        Hardware("quantum", devices=2).fabric()


def test_an_existing_run_is_kept(uninterrupted: Path) -> None:
    with pytest.raises(CheckpointError, match="--resume"):
        RunFolder(uninterrupted).create(config())


@pytest.mark.parametrize("which", ["best", "last"])
def test_load_gives_the_trained_simulator(uninterrupted: Path, which: str) -> None:
    sim = epns_pyro.load(uninterrupted, which=which)
    assert sim.step in (4, 8)
    assert sim.config == config()
