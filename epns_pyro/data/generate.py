"""Generating the trajectory sets of a system with its simulator."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from epns_pyro.cluster import Cluster
from epns_pyro.data.stores import Store, open_store
from epns_pyro.data.writing import Identity, Progress, SetWriter, StoreWriter
from epns_pyro.errors import ConfigError, nearest
from epns_pyro.extensions import load_extensions
from epns_pyro.systems.base import SYSTEMS, SetConfig, System, SystemConfig, trajectory_seeds


def generate(
    config: SystemConfig,
    path: str | Path,
    seed: int = 0,
    *,
    sets: Sequence[str] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    cluster: Cluster | None = None,
    imports: Sequence[str] = (),
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
    cluster : Cluster, optional
        Workers that share the trajectories, see `epns_pyro.cluster.connect`; the result does not depend on it.
    imports : sequence of str, optional
        Modules or Python files that workers need for the system.

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
        part = _Set(config, name, seed, writer.path.resolve(), (workers or 1) if cluster else workers, tuple(imports))
        _generate_set(part, system, writer, progress or _silent, cluster)
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


@dataclass(frozen=True)
class _Set:
    """A set of a store that is there already; called with a range of its trajectories, it simulates and writes them.

    It goes to workers with its config as plain data, since the code of a user's system has to be imported there first.
    """

    config: SystemConfig
    name: str
    seed: int
    path: Path
    workers: int | None
    imports: tuple[str, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, (self.config.model_dump(mode="json"), self.name, self.seed, self.path, self.workers, self.imports)

    def __call__(self, part: tuple[int, int]) -> int:
        (start, stop), settings = part, self.config.sets[self.name]
        system = self.config.build()
        x0 = initial_states(system, self.seed, self.name, settings, start, stop)
        seeds = trajectory_seeds(self.seed, self.name, stop - start, start=start)
        x = system.simulate(x0, settings.steps, seeds, workers=self.workers)
        SetWriter.open(self.path, self.name, system.spec).write(start, x)
        return stop


def _arrived(config: dict[str, Any], name: str, seed: int, path: Path, workers: int | None, imports: tuple[str, ...]) -> _Set:
    load_extensions(imports)
    return _Set(SYSTEMS.parse(config), name, seed, path, workers, imports)


def _generate_set(part: _Set, system: System, writer: StoreWriter, progress: Progress, cluster: Cluster | None) -> None:
    settings = part.config.sets[part.name]
    total = settings.trajectories
    sites = initial_states(system, part.seed, part.name, settings, 0, 1).shape[1:-1]
    output = writer.split(part.name, total, settings.steps + 1, sites)
    block = output.chunk  # a part is whole chunks, which nobody else writes; here, it is work for every core
    if not cluster:
        block *= -(-2 * (os.cpu_count() or 1) // block)
    progress(part.name, output.complete, total)
    parts = [(start, min(start + block, total)) for start in range(output.complete, total, block)]
    for stop in cluster.map(part, parts) if cluster else map(part, parts):
        output.complete = stop
        progress(part.name, stop, total)


def _check_shared(name: str, settings: SetConfig) -> None:
    k = settings.initial_states
    if k is not None and (k < 1 or settings.trajectories % k):
        raise ConfigError(f"set {name!r}: {settings.trajectories} trajectories cannot be shared evenly by {k} initial states")


def _silent(name: str, done: int, total: int) -> None:
    pass
