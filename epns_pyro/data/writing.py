"""Writing a store in order, set by set and block by block, so that an interrupted run can continue.

The attribute `complete` of a set counts the trajectories that are completely on disk. It is increased after the chunks of a block are
written, each file by an atomic rename; after a crash everything else is written again.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from epns_pyro._version import __version__
from epns_pyro.data import files, layout
from epns_pyro.errors import DataError
from epns_pyro.later import later
from epns_pyro.plain import parse_json
from epns_pyro.state import StateSpec
from epns_pyro.systems.base import System

if TYPE_CHECKING:
    import zarr
else:
    zarr = later("zarr")

Progress = Callable[[str, int, int], None]  # (what, how many are done, of how many)

CHUNK_BYTES = 4 * 2**20
CHUNK_TRAJECTORIES = 64


@dataclass(frozen=True)
class Identity:
    """What identifies a store: the same identity always means the same trajectories.

    Parameters
    ----------
    config : dict
        Config of the system, as plain data.
    spec : StateSpec
    frame_dt : float
        Time between two frames, in `time_unit`.
    seed : int, optional
        None for data that were not simulated here.
    """

    config: dict[str, Any]
    spec: StateSpec
    frame_dt: float
    time_unit: str = ""
    seed: int | None = None

    @classmethod
    def of(cls, system: System, seed: int | None = None) -> Identity:
        return cls(system.config.model_dump(mode="json"), system.spec, float(system.frame_dt), system.time_unit, seed)

    def attributes(self) -> dict[str, Any]:
        units = {"time": self.time_unit} | {f.name: f.unit for f in self.spec.fields}
        return {
            "system": self.config["name"],
            "system_config": json.dumps(self.config),
            "state_spec": self.spec.to_json(),
            "frame_dt": self.frame_dt,
            "units": json.dumps(units),
        } | ({} if self.seed is None else {"seed": self.seed})


class StoreWriter:
    """Creates a store, or continues one of the same identity.

    Raises
    ------
    DataError
        If the path holds something else; nothing is changed then.
    """

    def __init__(self, path: str | Path, identity: Identity) -> None:
        self.path, self.identity = Path(path), identity
        attributes = identity.attributes()
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            _refuse_foreign(self.path, attributes)
            for leftover in self.path.rglob("*.partial"):
                leftover.unlink()
            self._root = zarr.open_group(self.path, mode="r+", use_consolidated=False)
            self._root.update_attributes({})  # drops the consolidated metadata, which are about to be out of date
        else:
            self._root = zarr.create_group(self.path, attributes=attributes | {"epns_pyro": __version__})

    def split(self, name: str, trajectories: int, frames: int, sites: tuple[int, ...]) -> SetWriter:
        """Create or continue the set `name` of `trajectories` (time = frames, *site)."""
        if name not in self._root or "complete" not in self._root[name].attrs:
            self._create(name, trajectories, frames, sites)
        return SetWriter(name, trajectories, self._root.require_group(name), self.identity.spec)

    def _create(self, name: str, trajectories: int, frames: int, sites: tuple[int, ...]) -> None:
        from zarr.codecs import ZstdCodec

        spec, checked = self.identity.spec, ZstdCodec(level=0, checksum=True)  # without a checksum a changed byte is read as data
        chunk = chunk_trajectories(spec, frames, sites)
        group = self._root.create_group(name, overwrite=True)
        for variable in layout.variables(spec):
            shape = layout.shape(variable, spec, trajectories, frames, sites)
            group.create_array(
                variable.name,
                shape=shape,
                chunks=(min(chunk, trajectories), *shape[1:]),
                dtype=variable.dtype,
                dimension_names=variable.dims,
                compressors=checked,
                attributes={"units": variable.field.unit} if variable.field.unit else {},
            )
        time = group.create_array(
            layout.TIME, shape=(frames,), chunks=(frames,), dtype=np.float64, dimension_names=(layout.TIME,), compressors=checked
        )
        time[:] = np.arange(frames) * self.identity.frame_dt
        group.update_attributes(self.identity.attributes() | {"set": name, "complete": 0})

    def annotate(self, attributes: dict[str, Any]) -> None:
        """Add attributes to the store, beside those of its identity."""
        self._root.update_attributes(attributes)

    def finish(self) -> None:
        """Consolidate the metadata of all sets in one file, so that xarray opens the store quickly."""
        with warnings.catch_warnings():  # zarr warns that other readers may not know consolidated metadata; they can ignore them
            warnings.filterwarnings("ignore", message="Consolidated metadata")
            zarr.consolidate_metadata(self.path)


class SetWriter:
    """Writes the states of one set."""

    def __init__(self, name: str, trajectories: int, group: zarr.Group, spec: StateSpec) -> None:
        self.name, self.trajectories = name, trajectories
        self._group, self._spec = group, spec
        self._arrays = dict(group.arrays())

    @classmethod
    def open(cls, path: Path, name: str, spec: StateSpec) -> SetWriter:
        """Open a set that is there already, to write trajectories while others write others."""
        group = zarr.open_group(path, path=name, mode="r+", use_consolidated=False)
        arrays = dict(group.arrays())
        return cls(name, arrays[layout.variables(spec)[0].name].shape[0], group, spec)

    @property
    def complete(self) -> int:
        """How many trajectories are on disk, counted from the first."""
        return int(self._group.metadata.attributes["complete"])

    @complete.setter
    def complete(self, trajectories: int) -> None:
        self._group.update_attributes({"complete": trajectories})

    @property
    def chunk(self) -> int:
        """Trajectories per chunk."""
        return int(self._arrays[layout.variables(self._spec)[0].name].chunks[0])

    def append(self, x: np.ndarray) -> None:
        """Write the next trajectories x (trajectory, time, *site, channel)."""
        start = self.complete
        self.write(start, x)
        self.complete = start + len(x)

    def write(self, start: int, x: np.ndarray) -> None:
        """Write trajectories x (trajectory, time, *site, channel) from number `start` on, which have chunks of their own."""
        for name, values in layout.encode(self._spec, x).items():
            self._arrays[name][start : start + len(x)] = values

    def describe(self, name: str, values: np.ndarray, dims: tuple[str, ...], attributes: dict[str, Any]) -> None:
        """Write a variable that is not a field, such as the recordings that trajectories come from."""
        array = self._group.create_array(
            name, shape=values.shape, dtype=values.dtype, dimension_names=dims, attributes=attributes, overwrite=True
        )
        array[:] = values


def chunk_trajectories(spec: StateSpec, frames: int, sites: tuple[int, ...]) -> int:
    """Return how many trajectories a chunk holds: about 4 MiB of states, at most 64."""
    itemsize = max(v.dtype.itemsize for v in layout.variables(spec))
    size = frames * int(np.prod(sites)) * spec.channels * itemsize
    return int(np.clip(CHUNK_BYTES // max(size, 1), 1, CHUNK_TRAJECTORIES))


def _refuse_foreign(path: Path, attributes: dict[str, Any]) -> None:
    try:
        found = files.contents(path)[1]
    except DataError:
        found = {}
    if "state_spec" not in found or "system_config" not in found:
        raise DataError(f"{path}: exists and is not a store of epns-pyro: choose another path")
    for key in dict.fromkeys([*attributes, "seed"]):
        if (difference := _difference(key, found.get(key), attributes.get(key))) is not None:
            raise DataError(f"{path}: holds another data set ({difference}): choose another path, or delete it first")


def _difference(key: str, found: Any, asked: Any) -> str | None:
    """Name the first entry in which two attributes differ, as "sets.train.steps is 100 there, 50 was asked for"."""
    if isinstance(found, str) and isinstance(asked, str) and found[:1] == asked[:1] == "{":
        found, asked = parse_json(found, where=key), parse_json(asked, where=key)
    if isinstance(found, dict) and isinstance(asked, dict):
        prefix = "" if key == "system_config" else f"{key}."
        inner = (_difference(f"{prefix}{k}", found.get(k), asked.get(k)) for k in sorted(found.keys() | asked.keys()))
        return next((d for d in inner if d is not None), None)
    return None if found == asked else f"{key} is {found!r} there, {asked!r} was asked for"


@contextmanager
def new_directory(path: str | Path) -> Iterator[Path]:
    """Yield a temporary directory next to `path`; it is renamed to `path` on success and deleted on failure.

    Raises
    ------
    DataError
        If something exists at `path`.
    """
    path = Path(path)
    if path.exists():
        raise DataError(f"{path}: exists already: choose another path, or delete it first")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}"
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
