"""Generating the trajectory sets of a system with its simulator."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from epns_pyro.data.stores import Store, open_store
from epns_pyro.data.writing import Identity, Progress, StoreWriter
from epns_pyro.errors import ConfigError, nearest
from epns_pyro.systems.base import SetConfig, System, SystemConfig, trajectory_seeds


def generate(
    config: SystemConfig,
    path: str | Path,
    seed: int = 0,
    *,
    sets: Sequence[str] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Store:
    """Simulate the sets of a config into a store, or complete the store of an interrupted run.

    Every trajectory depends only on (seed, set, index), so a store made in several runs equals one made in a single run.

    Parameters
    ----------
    config : SystemConfig
    path : str or Path
        Path of the store; an existing one must have the same config and seed.
    seed : int
    sets : sequence of str, optional
        Names of the sets to make, all of ``config.sets`` by default. More can be added later.
    workers : int, optional
        Threads of the simulator, all cores by default; the result does not depend on it.
    progress : callable, optional
        Called as ``progress(set, done, total)`` with numbers of trajectories.

    Raises
    ------
    ConfigError
        If a set is unknown, or its trajectories cannot share their initial states evenly.
    DataError
        If `path` holds anything else; it is not changed.
    """
    names = list(config.sets) if sets is None else list(sets)
    for name in names:
        if name not in config.sets:
            raise ConfigError(f"system {config.name!r} has no set {name!r}: {nearest(name, config.sets)}")
        _check_shared(name, config.sets[name])
    system = config.build()
    if not system.can_simulate:
        raise ConfigError(f"system {config.name!r} has no simulator: its trajectories can only be imported")
    writer = StoreWriter(path, Identity.of(system, seed))
    for name in names:
        _generate_set(system, writer, name, config.sets[name], seed, workers, progress or _silent)
    writer.finish()
    return open_store(path)


def initial_states(system: System, seed: int, name: str, settings: SetConfig, start: int, stop: int) -> np.ndarray:
    """Return the initial states of trajectories start .. stop - 1 of a set: (stop - start, *site, channel).

    A set with `initial_states` k has k of them, and run i starts from number i // (trajectories / k).
    """
    runs = settings.trajectories // (settings.initial_states or settings.trajectories)
    numbers = np.arange(start, stop) // runs
    first = int(numbers[0])
    seeds = trajectory_seeds(seed, f"{name}/initial", int(numbers[-1]) + 1 - first, start=first)
    return np.concatenate([system.initial(1, np.random.default_rng(int(s))) for s in seeds])[numbers - first]


def _generate_set(
    system: System, writer: StoreWriter, name: str, settings: SetConfig, seed: int, workers: int | None, progress: Progress
) -> None:
    total = settings.trajectories
    sites = initial_states(system, seed, name, settings, 0, 1).shape[1:-1]
    output = writer.split(name, total, settings.steps + 1, sites)
    block = output.chunk * -(-2 * (os.cpu_count() or 1) // output.chunk)  # whole chunks, and work for every core
    progress(name, output.complete, total)
    for start in range(output.complete, total, block):
        stop = min(start + block, total)
        x0 = initial_states(system, seed, name, settings, start, stop)
        seeds = trajectory_seeds(seed, name, stop - start, start=start)
        output.append(system.simulate(x0, settings.steps, seeds, workers=workers))
        progress(name, stop, total)


def _check_shared(name: str, settings: SetConfig) -> None:
    k = settings.initial_states
    if k is not None and (k < 1 or settings.trajectories % k):
        raise ConfigError(f"set {name!r}: {settings.trajectories} trajectories cannot be shared evenly by {k} initial states")


def _silent(name: str, done: int, total: int) -> None:
    pass
