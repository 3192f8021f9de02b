"""Training ends early where no newer state is kept, and goes on from there to nowhere."""

from __future__ import annotations

import os
import signal

import pytest
from click.testing import CliRunner
from small import config, make_store, trainer
from small_tracks import walkers

from epns_pyro.cli import main
from epns_pyro.data import Store, open_store
from epns_pyro.training.checkpoint import read_checkpoint
from epns_pyro.training.keeping import Keeper
from epns_pyro.training.presets import preset
from epns_pyro.training.run import RunConfig


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("data") / "nbody.zarr")


@pytest.fixture
def verdicts(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What the keeper says of one validation after the other, in the place of its own opinion."""
    found: list[bool] = []
    monkeypatch.setattr(Keeper, "takes", lambda self, elbos, *, later: found.pop(0))
    return found


def patient(patience: int | None) -> RunConfig:
    return config().override({"training.steps": 20, "training.validate_every": 2, "training.patience": patience})


@pytest.mark.parametrize(
    ("patience", "told", "end"),
    [
        (2, [True, True, False, False], 6),
        (2, [True, False, True, False, True, False, False], 12),
        (3, [True, False, False, False], 6),
        (1, [True, *[True] * 10], 20),
        (None, [True, *[False] * 10], 20),
    ],
)
def test_it_ends_after_so_many_validations_in_a_row(store, tmp_path, verdicts, patience, told, end):
    verdicts += told
    one = trainer(store, tmp_path / "run", patient(patience))
    one.fit()
    assert not verdicts
    assert read_checkpoint(tmp_path / "run" / "last.ckpt")["counters"].step == end
    assert one.lost_patience == (end < 20)


def test_patience_is_counted_across_an_interruption(store, tmp_path, verdicts):
    verdicts += [True, False]
    with pytest.raises(KeyboardInterrupt):
        trainer(store, tmp_path / "run", patient(2)).fit(
            on_progress=lambda progress: os.kill(os.getpid(), signal.SIGINT) if progress.step == 3 else None
        )
    assert read_checkpoint(tmp_path / "run" / "last.ckpt")["counters"].worse == 1
    verdicts[:] = [False]
    trainer(store, tmp_path / "run", patient(2)).fit(resume=True)
    ended = read_checkpoint(tmp_path / "run" / "last.ckpt")["counters"]
    assert (ended.step, ended.worse) == (4, 2)
    trainer(store, tmp_path / "run", patient(2)).fit(resume=True)  # nothing is left to do
    assert read_checkpoint(tmp_path / "run" / "last.ckpt")["counters"].step == 4


def test_recordings_are_trained_with_patience_and_the_command_says_so(tmp_path, monkeypatch):
    walkers(tracks=40, spread=160).to_csv(tmp_path / "walks.csv", index=False)

    def command(*words: object) -> str:
        run = CliRunner().invoke(main, list(map(str, words)), env={"COLUMNS": "200"})
        assert run.exit_code == 0, run.output
        return run.output

    command("data", "import-tracks", tmp_path / "walks.csv", "--segment", 12, "--out", tmp_path / "walks.zarr")
    assert preset("particles", data=open_store(tmp_path / "walks.zarr")).training.patience == 3
    assert preset("nbody").training.patience is None
    monkeypatch.setattr(Keeper, "takes", lambda self, elbos, *, later: False)
    small = ["model.width=8", "model.hidden_vectors=3", "model.latent=2", "training.batch=4", "training.validate_every=1"]
    options = [word for setting in small for word in ("--set", setting)]
    out = command("train", "particles", "--data", tmp_path / "walks.zarr", "--out", tmp_path / "run", "--no-evaluate", *options)
    assert "ended early: the last 3 validations were worse than the best" in out
