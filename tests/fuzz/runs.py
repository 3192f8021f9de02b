"""The files of a run, fuzzed: checkpoints, settings and the log of metrics, each changed by hand or damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mutators
import numpy as np
import torch
from harness import Reader
from readers import own_particles

import epns_pyro
import epns_pyro.data
from epns_pyro.training.checkpoint import read_checkpoint
from epns_pyro.training.metrics import read_metrics
from epns_pyro.training.run import RunConfig

TINY = {
    "model.width": 4,
    "model.hidden_vectors": 3,
    "model.latent": 2,
    "model.backbone.width": 4,
    "model.backbone.vectors": 2,
    "model.backbone.layers": 1,
    "model.integrator.steps": 1,
    "model.integrator.network.width": 4,
    "training.steps": 2,
    "training.batch": 2,
    "training.log_every": 1,
    "training.validate_every": 1,
    "training.checkpoint_every": 1,
    "training.validation_transitions": 2,
}
HOSTILE_TENSORS = (
    torch.zeros(()),
    torch.zeros(0),
    torch.zeros(3, 5, dtype=torch.float64),
    torch.full((4,), torch.nan),
    torch.ones(2, dtype=torch.int64),
    torch.ones(2, 2).to_sparse(),
    torch.ones(2, dtype=torch.complex64),
    torch.zeros(5056, dtype=torch.uint8),
)


# -- sound inputs ----------------------------------------------------------------------------------------------------------


def run(folder: Path) -> None:
    """A run that stopped after the first of two steps."""

    def stop(progress: Any) -> None:
        if progress.step == 2:
            raise KeyboardInterrupt

    torch.set_num_threads(1)
    own_particles(folder)
    store = epns_pyro.data.open_store(folder / "x.zarr")
    try:
        epns_pyro.train(epns_pyro.preset("particles", data=store.system.config).override(TINY), store, folder / "run", on_progress=stop)
    except KeyboardInterrupt:
        for path in sorted((folder / "run" / "tensorboard").iterdir()):
            path.unlink()


# -- what may happen to a checkpoint -----------------------------------------------------------------------------------------


def change_checkpoint(folder: Path, rng: np.random.Generator) -> str:
    """Replace, delete or add one entry, at any depth, of one of the two checkpoints of a run."""
    path = folder / "run" / ("best.ckpt", "last.ckpt")[rng.integers(2)]
    content = torch.load(path, weights_only=True)
    places = list(_places(content))
    owner, key, depth = places[rng.integers(len(places))]
    if rng.random() < 0.5:  # not only one of the many weights
        owner, key, depth = [place for place in places if place[2] <= 2][rng.integers(sum(place[2] <= 2 for place in places))]
    kind = rng.integers(5)
    if kind == 0 and isinstance(owner, dict):
        del owner[key]
        what = "deleted"
    elif kind == 1 and isinstance(owner, dict):
        owner["more"] = owner.pop(key)
        what = "renamed"
    elif kind == 2:
        owner[key] = HOSTILE_TENSORS[rng.integers(len(HOSTILE_TENSORS))]
        what = f"is a tensor {tuple(owner[key].shape)} {owner[key].dtype}"
    elif kind == 3 and isinstance(owner[key], torch.Tensor) and owner[key].numel():
        values = owner[key].clone()
        values.view(-1)[0] = 255 if values.dtype == torch.uint8 else [torch.nan, torch.inf, -1.0, 1e38][rng.integers(4)]
        owner[key] = values
        what = "holds another number"
    else:
        value = mutators.HOSTILE_VALUES[rng.integers(len(mutators.HOSTILE_VALUES))]
        owner[key] = value
        what = f"is {mutators._short(value)}"
    torch.save(content, path)
    return f"{path.name}: {'.' * depth}{key} {what}"


def _places(data: Any, depth: int = 0) -> Any:
    """(mapping or list, key, depth) of every entry; a tuple is made a list first, so that it can be changed."""
    for key in list(data) if isinstance(data, dict) else range(len(data)):
        if isinstance(data[key], tuple):
            data[key] = list(data[key])
        yield data, key, depth
        if isinstance(data[key], (dict, list)):
            yield from _places(data[key], depth + 1)


# -- readers -----------------------------------------------------------------------------------------------------------------


def read_run(folder: Path) -> None:
    """Load the simulator, sample with it, and go on with training."""
    torch.set_num_threads(1)
    sim = epns_pyro.load(folder / "run")
    store = epns_pyro.data.open_store(folder / "x.zarr")
    sim.rollout(store.read("test", 0, stop=1)[:, 0], steps=1, members=2)
    last = folder / "run" / "last.ckpt"
    config = RunConfig.parse(read_checkpoint(last)["config"], where=str(last))
    epns_pyro.train(config, store, folder / "run", resume=True)


def read_settings(folder: Path) -> None:
    """Train anew with the settings of a run."""
    torch.set_num_threads(1)
    config = RunConfig.from_yaml(folder / "run" / "config.yaml")
    few = {"training.steps": 1, "training.validation_transitions": 2}
    epns_pyro.train(config.override(few), folder / "x.zarr", folder / "again")


def read_log(folder: Path) -> None:
    read_metrics(folder / "run" / "metrics.csv")


def only(name: str) -> tuple[Any, ...]:
    """Mutators of bytes and YAML for one file of the run."""

    def narrowed(mutator: Any) -> Any:
        def change(folder: Path, rng: np.random.Generator) -> str:
            aside = folder / "aside"
            aside.mkdir()
            (folder / "run" / name).rename(aside / name)
            what = mutator(aside, rng)
            if (aside / name).exists():
                (aside / name).rename(folder / "run" / name)
            aside.rmdir()
            return what

        change.__name__ = mutator.__name__
        return change

    kinds = (*mutators.BYTES, mutators.change_yaml, mutators.nest) if name.endswith(".yaml") else mutators.BYTES
    return tuple(map(narrowed, kinds))


READERS = (
    Reader("checkpoint", run, read_run, (change_checkpoint, *only("best.ckpt"))),
    Reader("settings", run, read_settings, only("config.yaml")),
    Reader("metrics", run, read_log, only("metrics.csv")),
)
