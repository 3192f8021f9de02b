"""Checkpoints: written whole or not at all; what is truncated, foreign or from the future is refused in one line, and runs no code."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import epns_pyro
from epns_pyro.context import DataContext
from epns_pyro.data import Store
from epns_pyro.errors import CheckpointError, ConfigError, DataError
from epns_pyro.state import Field, StateSpec
from epns_pyro.training.checkpoint import Counters, context_to_plain, read_checkpoint, versions, write_checkpoint
from epns_pyro.training.metrics import MetricsLog, read_metrics
from epns_pyro.training.run import RunConfig, RunFolder

pytestmark = pytest.mark.filterwarnings("error")

SPEC = StateSpec((Field("position", "1o", translates=True),), space=2)
LEAST = {
    "config": {},
    "system": {},
    "context": context_to_plain(DataContext(SPEC, 0.1, {"position": 1.0}, (3,))),
    "store": "data.zarr",
    "weights": {},
    "optimizer": {},
    "noise": torch.zeros(1, dtype=torch.uint8),
    "windows": {"set": ["train", 1, 2, 1, 1], "rng": {}, "length": 1, "queue": [], "resident": [0], "oldest": 0, "drawn": 0},
    "counters": {},
}


def refused(path: Path, words: str) -> None:
    """Both ways into the file end in one clear line that names it."""
    for read in (read_checkpoint, lambda file: epns_pyro.load(file.parent)):
        with pytest.raises(CheckpointError, match=words) as caught:
            read(path)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)


def test_round_trip(tmp_path: Path) -> None:
    content = LEAST | {"weights": {"w": torch.arange(3.0)}, "counters": {"best": -float("inf"), "step": 3}, "noise": torch.get_rng_state()}
    write_checkpoint(tmp_path / "a.ckpt", **content)
    found = read_checkpoint(tmp_path / "a.ckpt")
    assert torch.equal(found["weights"]["w"], torch.arange(3.0))
    assert torch.equal(found["noise"], content["noise"])
    assert found["counters"] == Counters(step=3)
    assert found["versions"] == versions()
    assert found["versions"]["torch"] == torch.__version__
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


def test_a_truncated_checkpoint_is_refused(run: Path, tmp_path: Path) -> None:
    """Cut before, in and after the first bytes, in the pickle, in the weights, in and at the end of the directory of the archive."""
    whole = (run / "best.ckpt").read_bytes()
    for length in (
        0,
        1,
        3,
        4,
        30,
        100,
        1000,
        *(len(whole) * k // 7 for k in range(1, 7)),
        len(whole) - 300,
        len(whole) - 22,
        len(whole) - 1,
    ):
        (tmp_path / "best.ckpt").write_bytes(whole[:length])
        refused(tmp_path / "best.ckpt", "not a readable checkpoint")


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_a_damaged_checkpoint_is_refused(run: Path, tmp_path: Path, share: float) -> None:
    """64 bytes overwritten: the checksums of the archive tell."""
    damaged = bytearray((run / "best.ckpt").read_bytes())
    place = int(share * len(damaged))
    damaged[place : place + 64] = bytes(b ^ 0xFF for b in damaged[place : place + 64])
    (tmp_path / "best.ckpt").write_bytes(damaged)
    refused(tmp_path / "best.ckpt", "not a readable checkpoint")


class Malicious:
    def __reduce__(self) -> tuple:
        return (os.mkdir, ("proof",))


@pytest.mark.parametrize(
    "save", [lambda content, file: torch.save(content, file), lambda content, file: pickle.dump(content, file)], ids=["torch", "pickle"]
)
def test_code_in_a_checkpoint_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Callable) -> None:
    monkeypatch.chdir(tmp_path)
    with open(tmp_path / "best.ckpt", "wb") as file:
        save({"format": "epns-pyro checkpoint", "version": 1, "weights": Malicious()}, file)
    refused(tmp_path / "best.ckpt", "not a readable checkpoint")
    assert not (tmp_path / "proof").exists()
    with open(tmp_path / "best.ckpt", "wb") as file:
        pickle.dump(Malicious(), file)
    pickle.loads((tmp_path / "best.ckpt").read_bytes())  # and it would have run
    assert (tmp_path / "proof").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"weights": torch.zeros(3)}, "not a checkpoint of epns-pyro"),
        ([torch.zeros(3)], "not a checkpoint of epns-pyro"),
        (torch.zeros(3), "not a checkpoint of epns-pyro"),
        (
            {"format": "epns-pyro checkpoint", "version": 99},
            "version 99, while this epns-pyro .* reads versions 1 to 2: use the epns-pyro that",
        ),
        ({"format": "epns-pyro checkpoint"}, "version None"),
        ({"format": "epns-pyro checkpoint", "version": 1, **LEAST}, "incomplete checkpoint, without versions"),
    ],
)
def test_foreign_and_future_checkpoints_are_refused(tmp_path: Path, content: object, words: str) -> None:
    torch.save(content, tmp_path / "best.ckpt")
    refused(tmp_path / "best.ckpt", words)


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "best.ckpt").mkdir()
    refused(tmp_path / "best.ckpt", "no such checkpoint")
    (tmp_path / "best.ckpt").rmdir()
    refused(tmp_path / "best.ckpt", "no such checkpoint")
    with pytest.raises(CheckpointError, match="nowhere: no such run: make one with epns-pyro train --out"):
        epns_pyro.load(tmp_path / "nowhere")


def test_weights_and_settings_that_do_not_fit(run: Path, tmp_path: Path) -> None:
    content = torch.load(run / "best.ckpt", weights_only=True)
    content = {name: value for name, value in content.items() if name in LEAST}
    wider = content["config"] | {"model": content["config"]["model"] | {"width": 16}}
    write_checkpoint(tmp_path / "best.ckpt", **(content | {"config": wider}))
    with pytest.raises(CheckpointError, match=r"best\.ckpt: the weights do not fit"):
        epns_pyro.load(tmp_path)
    write_checkpoint(tmp_path / "best.ckpt", **(content | {"config": content["config"] | {"sead": 1}}))
    with pytest.raises(ConfigError, match=r"best\.ckpt: unknown key 'sead': did you mean 'seed'"):
        epns_pyro.load(tmp_path)


def as_version_1(content: dict) -> dict:
    """Name things as 0.1 did."""
    old = {"latents_to_mean": "load", "innovation_to_latents": "unload"}
    model = {("sight" if key == "neighbourhood" else key): value for key, value in content["config"]["model"].items()}
    evaluation = {("piece" if key == "block" else key): value for key, value in content["config"]["evaluation"].items()}
    config = {key: value for key, value in content["config"].items() if key != "imports"} | {"model": model, "evaluation": evaluation}
    context = {key: content["context"][key] for key in ("spec", "frame_dt", "step_scales", "sites")}
    weights = {old.get(name, name): weight for name, weight in content["weights"].items()}
    return content | {"version": 1, "config": config, "context": context, "weights": weights}


def test_a_checkpoint_of_version_1_is_read(run: Path, tmp_path: Path) -> None:
    for name in ("best.ckpt", "last.ckpt"):
        old = as_version_1(torch.load(run / name, weights_only=True))
        assert {"load", "unload"} <= old["weights"].keys()
        torch.save(old, tmp_path / name)
    now, then = epns_pyro.load(run), epns_pyro.load(tmp_path)
    assert all(torch.equal(weight, then.transition.state_dict()[name]) for name, weight in now.transition.state_dict().items())
    assert (then.config, then.context, then.step) == (now.config, now.context, now.step)


def test_settings_of_version_1_are_read(tmp_path: Path) -> None:
    config = epns_pyro.preset("cells").override({"model.neighbourhood": 5, "evaluation.block": 3})
    old = config.to_yaml().replace("neighbourhood:", "sight:").replace("  block:", "  piece:")
    assert "  sight: 5" in old
    assert "  piece: 3" in old
    (tmp_path / "config.yaml").write_text(old)
    assert RunConfig.from_yaml(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("windows", lambda w: w | {"rng": {"state": 1}}, "its windows do not fit this run"),
        ("optimizer", lambda o: o | {"state": {0: {"step": torch.tensor(1.0)}}}, "expected step, exp_avg and exp_avg_sq"),
        ("optimizer", lambda o: o | {"state": {0: o["state"][0] | {"exp_avg": torch.zeros(3)}}}, "not of the shape"),
        ("optimizer", lambda o: o | {"state": {0: o["state"][0] | {"step": torch.tensor(torch.nan)}}}, "impossible numbers"),
        ("noise", lambda n: n[:10], "its noise do not fit this run"),
        ("weights", lambda w: dict(list(w.items())[1:]), "its weights do not fit this run"),
        ("weights", lambda w: w | {name: t * torch.nan for name, t in list(w.items())[:1]}, "not finite real numbers"),
        ("context", lambda c: c | {"frame_dt": -1.0}, "positive frame_dt"),
        ("context", lambda c: c | {"step_scales": {}}, "step_scales"),
        ("context", lambda c: c | {"spec": "[" * 10_000}, "context"),
        ("versions", lambda v: v | {"torch": 2}, "versions.torch"),
    ],
)
def test_parts_changed_by_hand_stop_a_resumption_in_a_line(run: Path, store: Store, tmp_path: Path, part: str, change, said: str) -> None:
    content = torch.load(run / "last.ckpt", weights_only=True)
    torch.save(content | {part: change(content[part])}, tmp_path / "last.ckpt")
    config = RunConfig.parse(content["config"])
    with pytest.raises(CheckpointError, match=said) as caught:
        epns_pyro.train(config, store, tmp_path, resume=True)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "last.ckpt") in str(caught.value)


def test_a_model_larger_than_the_weights_is_refused_before_its_memory_is_filled(run: Path, tmp_path: Path) -> None:
    content = torch.load(run / "best.ckpt", weights_only=True)
    for width in (10_000, 10**9, 10**12):
        torch.save(
            content | {"config": content["config"] | {"model": content["config"]["model"] | {"width": width}}}, tmp_path / "best.ckpt"
        )
        with pytest.raises(CheckpointError, match=r"best\.ckpt: the weights do not fit the model of its config, which has more"):
            epns_pyro.load(tmp_path)


def test_best_last_and_neither(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="which: found 'bset': did you mean 'best'"):
        epns_pyro.load(run, which="bset")
    (tmp_path / "last.ckpt").write_bytes((run / "last.ckpt").read_bytes())
    with pytest.raises(CheckpointError, match=r'best\.ckpt: not there yet, .*which="last"'):
        epns_pyro.load(tmp_path)
    assert epns_pyro.load(tmp_path, which="last").step == 30


@pytest.mark.parametrize("broken", ["os.replace", "os.fsync"])
def test_a_crash_while_writing_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    write_checkpoint(tmp_path / "a.ckpt", **(LEAST | {"store": "old"}))

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(broken, crash)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path / "a.ckpt", **(LEAST | {"store": "new"}))
    assert read_checkpoint(tmp_path / "a.ckpt")["store"] == "old"


# -- the log of metrics, which goes with a checkpoint ------------------------------------------------------------------------


def test_rows_after_the_checkpoint_and_half_rows_are_dropped(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with MetricsLog(folder) as log:
        for step in (1, 2, 3):
            log.write(step, loss=step / 7, absent=None)
    whole = folder.metrics.read_text()
    for half in ("4", "4,", "4,loss", "4,loss,", "4,loss,0.5"):
        folder.metrics.write_text(whole + half)
        assert read_metrics(folder.metrics) == [(step, "loss", pytest.approx(step / 7)) for step in (1, 2, 3)]
    with MetricsLog(folder, start=2) as log:
        assert [step for step, *_ in read_metrics(folder.metrics)] == [1, 2]
        log.write(3, loss=3 / 7)
    assert folder.metrics.read_text() == whole.replace("\r", "")


def test_a_crash_while_the_log_is_shortened_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path)
    with MetricsLog(folder) as log:
        log.write(1, loss=1.0)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", crash)
    with pytest.raises(KeyboardInterrupt), MetricsLog(folder, start=1):
        pass
    assert read_metrics(folder.metrics) == [(1, "loss", 1.0)]


@pytest.mark.parametrize("text", ["step,name\n", "step,name,value\n1,loss\n", "step,name,value\n1,loss,x\n", "step,name,value\nx,loss,1\n"])
def test_a_log_changed_by_hand_is_refused_in_a_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(DataError, match=r"metrics\.csv: line \d is not step,name,value"):
        read_metrics(tmp_path / "metrics.csv")


def test_a_key_that_is_gone_is_left_out_of_older_configs() -> None:
    config = epns_pyro.preset("charged")
    raw = config.model_dump(mode="json")
    raw["model"]["integrator"]["carry_doubt"] = True
    assert RunConfig.parse(raw) == config
