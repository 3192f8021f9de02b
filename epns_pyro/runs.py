"""Runs from Python: load a trained simulator, or train one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from epns_pyro.data import Store, open_store
from epns_pyro.errors import CheckpointError, ConfigError, nearest
from epns_pyro.extensions import load_extensions
from epns_pyro.machine import find_device
from epns_pyro.pretrained import find_run
from epns_pyro.simulator import Simulator
from epns_pyro.training.checkpoint import build_transition, read_checkpoint
from epns_pyro.training.presets import preset
from epns_pyro.training.run import RunConfig, RunFolder
from epns_pyro.training.trainable import check_trainable

if TYPE_CHECKING:
    from epns_pyro.training.trainer import Hardware, Progress


def load(run: str | Path, *, which: str = "best", device: str | torch.device = "cpu", imports: Iterable[str] = ()) -> Simulator:
    """Load the trained simulator of a run.

    Parameters
    ----------
    run : str or Path
        Folder that `epns-pyro train` wrote, or "pretrained:NAME" for a simulator that comes with the package ("pretrained:nbody").
    which : {"best", "last"}
        The parameters that training keeps, the newest that validation cannot tell from the best, or the newest of all.
    device : str or torch.device
    imports : iterable of str
        Modules or Python files that register what the run needs; their code is executed. A run never loads code by itself.

    Raises
    ------
    CheckpointError
        If there is no readable checkpoint.
    ConfigError
        If `which` is invalid, if the device does not exist, if the package has no simulator of that name, or if the run needs a name
        that is not registered.
    """
    load_extensions(imports)
    folder = RunFolder(find_run(run))
    if not folder.path.is_dir():
        raise CheckpointError(f"{run}: no such run: make one with epns-pyro train --out {run}")
    paths = {"best": folder.best, "last": folder.last}
    if which not in paths:
        raise ConfigError(f"which: found {which!r}: {nearest(which, paths)}")
    path, place = paths[which], find_device(device)
    if which == "best" and folder.last.is_file() and not path.exists():
        raise CheckpointError(
            f'{path}: not there yet, because nothing was validated: use load(run, which="last"), or continue with --resume'
        )
    content = read_checkpoint(path)
    config = RunConfig.parse(content["config"], where=str(path))
    system = RunConfig.parse(content["config"] | {"system": content["system"]}, where=str(path)).system
    return Simulator(
        transition=build_transition(path, config, content["context"], content["weights"]).to(place).eval(),
        system=system.build(),
        context=content["context"],
        config=config,
        step=content["counters"].step,
        store=str(folder.data) if folder.data.is_file() else content["store"],
        versions=content["versions"],
    )


def train(
    config: RunConfig | str,
    store: Store | str | Path,
    out: str | Path,
    *,
    resume: bool = False,
    hardware: Hardware | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    imports: Iterable[str] = (),
) -> Simulator:
    """Train a simulator on a store, and return it, loaded from the folder of the run.

    Parameters
    ----------
    config : RunConfig or str
        `epns_pyro.preset("nbody").override({"training.steps": 500})`, or the name of a family of models, "nbody" (the same as
        "particles") or "cells", for its quick preset.
    store : Store or path
        Trajectories to train on, with the sets `train` and `val`.
    out : path
        Folder of the run; one that holds a run is refused unless `resume` is set.
    resume : bool
        Continue from the last checkpoint in `out`.
    hardware : Hardware, optional
        By default one process on the CPU.
    on_progress : callable, optional
        Called with a `Progress` whenever training logs.
    imports : iterable of str
        Modules or Python files that register what the config needs.

    Returns
    -------
    Simulator
        With the parameters that training keeps.

    Raises
    ------
    ConfigError, DataError, CheckpointError, TrainingError
        If settings and data do not match, if `out` holds a run already or none to resume, or if the loss stays non-finite.
    """
    from epns_pyro.training.trainer import Hardware, Trainer  # takes seconds to import, which loading a run does without

    load_extensions(imports)
    store = store if isinstance(store, Store) else open_store(store)
    if isinstance(config, str):
        config = preset(config, data=store)
    folder, names = RunFolder(Path(out)), tuple(imports)
    if names:
        config = config.override({"imports": names})
    check_trainable(store, config)
    if doubt := config.model.doubt(store.context()):
        warnings.warn(doubt, stacklevel=2)
    hardware = hardware or Hardware("cpu")
    new = not resume and hardware.is_main
    if new:
        folder.check_free()
    trainer = Trainer(config, store, folder, hardware)
    if new:  # after the trainer, which refuses data that it cannot train on: then no empty folder is left behind
        folder.create(trainer.config)
    trainer.fit(resume=resume, on_progress=on_progress)
    return load(folder.path)
