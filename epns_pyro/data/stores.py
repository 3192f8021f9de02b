"""Reading trajectory stores: zarr directories or netCDF files, made here or by a user."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from epns_pyro.context import DataContext
from epns_pyro.data import files, layout
from epns_pyro.data.description import Description, Split, read_description
from epns_pyro.data.precision import check_precision
from epns_pyro.data.presence import check_presence
from epns_pyro.data.scales import compute_context
from epns_pyro.data.writing import chunk_trajectories
from epns_pyro.derived import lead_frames, memory_frames
from epns_pyro.durations import are_uneven, with_duration
from epns_pyro.errors import ConfigError, DataError, nearest, shown
from epns_pyro.later import later
from epns_pyro.plain import parse_json
from epns_pyro.state import StateSpec
from epns_pyro.systems import SYSTEMS, RecordedConfig, System

if TYPE_CHECKING:
    import xarray as xr
else:
    xr = later("xarray")

FINGERPRINTED = 100  # steps of a trajectory
ORDER = ("train", "val", "test", "same_init", "long")


@dataclass(frozen=True)
class _Set:
    """The trajectories of a set: a group of the file, and their numbers in it (None: all)."""

    location: str | None
    rows: np.ndarray | None = None


class Store:
    """Sets of trajectories on disk, read on demand; `open_store` makes it.

    Parameters
    ----------
    path : Path
    spec : StateSpec
        As stored, without scales from the data: those are in `context`.
    frame_dt : float
        Time between two frames.
    time_unit : str
    config : dict
        Of the system, as plain data.
    sets : dict
    """

    def __init__(self, path: Path, spec: StateSpec, frame_dt: float, time_unit: str, config: dict[str, Any], sets: dict[str, _Set]) -> None:
        self.path, self.spec, self.frame_dt, self.time_unit, self.config = path, spec, frame_dt, time_unit, config
        self._sets = sets
        self._datasets: dict[str, xr.Dataset] = {}
        self._contexts: dict[str, DataContext] = {}

    @cached_property
    def system(self) -> System:
        """The system of the trajectories; for recorded particles, the extent of the training set is measured first."""
        config = SYSTEMS.parse(self.config)
        if isinstance(config, RecordedConfig) and not config.extent and "train" in self.splits:
            given = max(2, min(config.given, (self.steps("train") + 1) // 2))
            config = config.override({"extent": self._extent(config), "bodies": max(self.sites("train"), default=0), "given": given})
        return config.build()

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the sets."""
        return tuple(self._sets)

    @property
    def groups(self) -> tuple[str, ...]:
        """The former name of `splits`."""
        warnings.warn("Store.groups is now called Store.splits", DeprecationWarning, stacklevel=2)
        return self.splits

    def size(self, split: str) -> int:
        """Number of trajectories of a set."""
        rows = self._set(split).rows
        return self.dataset(split).sizes.get(layout.TRAJECTORY, 1) if rows is None else len(rows)

    def steps(self, split: str) -> int:
        """Number of steps of a trajectory: frames after the initial state, which is the second frame where velocities are differences."""
        return self.dataset(split).sizes.get(layout.TIME, 1) - 1 - lead_frames(self.spec)

    def sites(self, split: str) -> tuple[int, ...]:
        """Sizes of the site axes."""
        return tuple(self.dataset(split).sizes.get(name, 0) for name in self.spec.sites)

    def dataset(self, split: str) -> xr.Dataset:
        """Return the raw dataset that a set is in, nothing of it read yet; `rows` says which trajectories belong to the set."""
        location = self._set(split).location
        if split not in self._datasets:
            opened = files.open_dataset(self.path, location)
            self._datasets[split] = layout.with_durations(self.spec, opened, self.frame_dt)
        return self._datasets[split]

    def rows(self, split: str, indices: slice | Iterable[int] | int | None = None) -> np.ndarray:
        """Return the numbers in the dataset of the trajectories `indices` (default: all) of a set."""
        rows = self._set(split).rows
        rows = np.arange(self.size(split)) if rows is None else rows
        if indices is None or isinstance(indices, slice):
            return rows[slice(None) if indices is None else indices]
        wanted = np.atleast_1d(np.asarray(indices if isinstance(indices, (int, np.integer)) else list(indices), dtype=np.int64))
        if wanted.size and not (-len(rows) <= wanted.min() and wanted.max() < len(rows)):
            raise DataError(f"{self.path}: set {split!r} has trajectories 0 to {len(rows) - 1}, found {wanted.min()} to {wanted.max()}")
        return rows[wanted]

    def missing(self, split: str) -> int:
        """Return the number of trajectories that an interrupted run has not written yet."""
        dataset = self.dataset(split)
        total = dataset.sizes.get(layout.TRAJECTORY, 1)
        complete = dataset.attrs.get("complete", total)
        if not isinstance(complete, (int, np.integer)) or not 0 <= complete <= total:
            raise DataError(
                f"{self.path}: set {split!r}: the attribute 'complete' is the number of trajectories that are written, 0 to {total}, "
                f"found {shown(complete)}"
            )
        return total - int(complete)

    def fingerprint(self, split: str) -> str:
        """Return a digest of the size of a set and of its first and last trajectory: two equal sets have the same."""
        ends = self.read(split, [0, -1], 0, 1 + FINGERPRINTED)
        about = (self.size(split), self.steps(split), self.frame_dt, ends.shape, str(ends.dtype))
        return hashlib.sha256(repr(about).encode() + np.ascontiguousarray(ends).tobytes()).hexdigest()[:16]

    def read(self, split: str, indices: slice | Iterable[int] | int | None = None, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read full states: (trajectory, time, *site, channel), floating point, or integers where every field is a label or category.

        Parameters
        ----------
        split : str
        indices : slice, int or iterable of int, optional
            Trajectories of the set, all by default. Only the chunks that hold them are read.
        start, stop : int
            Range of frames.

        Returns
        -------
        numpy.ndarray
            The dynamic fields of a body are NaN in frames from which it is absent; all other values are finite (see `data.presence`).

        Raises
        ------
        DataError
            If the set is unknown or incomplete, does not match the spec, or has NaN or infinite values other than those of
            absent bodies.
        """
        self.require(split)
        rows = self.rows(split, indices)
        if len(rows) and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))):
            rows = slice(int(rows[0]), int(rows[0]) + len(rows))
        start, stop, _ = slice(start, stop).indices(self.steps(split) + 1)
        lead = lead_frames(self.spec)
        first = max(0, start - (memory_frames(self.spec) - lead))
        part = self.dataset(split).isel({layout.TRAJECTORY: rows}, missing_dims="ignore").isel({layout.TIME: slice(first, stop + lead)})
        with self.naming(split):
            x = layout.decode(self.spec, part, self.frame_dt, skip=start - first)
            check_presence(self.spec, x)
            check_precision(self.spec, x)
        return x

    @contextmanager
    def naming(self, split: str) -> Iterator[None]:
        """Add the names of store and set to the message of every DataError from inside, unless it has them already."""
        try:
            yield
        except DataError as error:
            where = "" if str(error).startswith(f"{self.path}:") else f"{self.path}: set {split!r}: "
            raise DataError(f"{where}{error}") from None

    def require(self, split: str) -> None:
        """Raise DataError unless the set is complete and its variables fit the spec."""
        if missing := self.missing(split):
            total = self.size(split)
            raise DataError(
                f"{self.path}: set {split!r} is incomplete, {total - missing} of {total} trajectories: "
                "run the command that made the store again to complete it"
            )
        if problems := layout.problems(self.spec, self.dataset(split)):
            more = f" (and {len(problems) - 1} more: see epns-pyro data info)" if problems[1:] else ""
            raise DataError(f"{self.path}: set {split!r}: {problems[0]}{more}")

    def blocks(self, split: str) -> list[np.ndarray]:
        """Partition the trajectories of a set into ranges that share chunks and take a few MiB, to read everything once."""
        chunk = self._chunk(split)
        block = chunk * max(1, chunk_trajectories(self.spec, self.steps(split) + 1, self.sites(split)) // chunk)
        home = self.rows(split) // block
        return np.split(np.arange(len(home)), np.flatnonzero(np.diff(home)) + 1)

    def context(self, split: str = "train") -> DataContext:
        """Measure the data context, from the training set alone; computed once per opened store."""
        if split not in self._contexts:
            self._contexts[split] = compute_context(self, split)
        return self._contexts[split]

    def timed(self) -> Store:
        """Return this store with the durations of steps in its states, also where frames are even.

        Raises
        ------
        ConfigError
            If the states are not recorded particles.
        """
        if self.spec.duration is not None:
            return self
        if self.config.get("name") != "recorded":
            raise ConfigError(f"{self.path}: durations of steps are for recorded particles, found the system {self.config.get('name')!r}")
        spec = with_duration(self.spec, self.frame_dt)
        return Store(self.path, spec, self.frame_dt, self.time_unit, self.config | {"spec": asdict(spec)}, self._sets)

    def states_for(self, spec: StateSpec, frame_dt: float) -> Store:
        """Return this store as a model of states of a spec and of steps of frame_dt reads it: with durations, if its states have them.

        Raises
        ------
        DataError
            If the store has other fields, units or steps.
        """
        store = self.timed() if spec.duration else self
        if store.spec.names != spec.names:
            raise DataError(f"{self.path}: has the fields {', '.join(store.spec.names)}, the model has {', '.join(spec.names)}")
        if store.spec.space != spec.space:
            raise DataError(f"{self.path}: space has {store.spec.space} dimensions, {spec.space} in the model")
        for field, known in zip(store.spec.fields, spec.fields, strict=True):
            for what in ("irreps", "kind", "dynamic"):
                if (found := getattr(field, what)) != getattr(known, what):
                    raise DataError(f"{self.path}: the field {field.name!r} has {what} {found}, in the model {getattr(known, what)}")
            if field.unit and known.unit and field.unit != known.unit:
                raise DataError(f"{self.path}: the field {field.name!r} is in {field.unit}, in the model in {known.unit}: convert it")
        if not spec.duration and not np.isclose(self.frame_dt, frame_dt, rtol=1e-3):
            raise DataError(f"{self.path}: a step lasts {self.frame_dt:.6g}, of the model {frame_dt:.6g}: a model knows its own step alone")
        return store

    def _extent(self, config: RecordedConfig) -> dict[str, float]:
        extent: dict[str, float] = {}
        for block in self.blocks("train"):
            x = self.read("train", block)
            here = config.describing(self.spec, x, frame_dt=self.frame_dt).extent
            extent = {name: max(size, extent.get(name, 0.0)) for name, size in (extent | here).items()}
        return extent

    def _chunk(self, split: str) -> int:
        found = self.dataset(split).variables
        names = [v.name for v in layout.variables(self.spec) if v.field.dynamic and v.name in found]
        return max((int(found[name].encoding.get("preferred_chunks", {}).get(layout.TRAJECTORY, 1)) for name in names), default=1)

    def _set(self, split: str) -> _Set:
        if split not in self._sets:
            raise DataError(f"{self.path}: has no set {split!r}: {nearest(split, self._sets)}")
        return self._sets[split]


def open_store(path: str | Path, *, spec: str | Path | None = None, split: Split | None = None) -> Store:
    """Open a store for reading.

    Parameters
    ----------
    path : str or Path
        A zarr directory or a netCDF file. Groups are sets; without groups the trajectories are split into train, val and test.
    spec : str or Path, optional
        YAML file that describes the fields. By default the attribute `state_spec` is used, then `<path>.yaml` next to the store.
    split : Split, optional
        Fractions of the sets of a store without groups; by default those in the YAML file, or 80, 10 and 10 percent.

    Raises
    ------
    DataError
        If there is no store, no set in it, or no description of it.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such store: make one with epns-pyro data generate, or check the path")
    names, attributes = files.contents(path)
    if names and "state_spec" not in attributes:
        attributes = files.open_dataset(path, names[0]).attrs | attributes
    description = _description(path, spec, attributes)
    locations: list[str | None] = [*sorted(names, key=_place)] or [None]
    sample = files.open_dataset(path, locations[0])
    fields = description.spec
    if any(f.is_pair and not f.size for f in fields.fields):
        bodies = max(files.open_dataset(path, place).sizes.get(fields.sites[0], 0) for place in locations)
        fields = layout.with_bodies(fields, bodies)
    frame_dt = description.frame_dt or _spacing(path, sample)
    if fields.duration or (len(fields.sites) == 1 and any(_is_uneven(path, place) for place in locations)):
        fields = with_duration(fields, frame_dt)
    if "system_config" in attributes and spec is None:
        config = _json(path, attributes, "system_config")
        config |= {"spec": asdict(fields)} if config.get("name") == "recorded" else {}
    else:
        config = _recorded(fields, sample) | {"frame_dt": frame_dt, "time_unit": description.time_unit}
    if locations == [None]:
        trajectories = sample.sizes.get(layout.TRAJECTORY, 1)
        sets = {name: _Set(None, rows) for name, rows in (split or description.split).rows(trajectories).items()}
    else:
        sets = {str(name): _Set(name) for name in locations}
    return Store(path, fields, frame_dt, description.time_unit, config, sets)


def _place(name: str) -> tuple[int, str]:
    return (ORDER.index(name) if name in ORDER else len(ORDER), name)


def _description(path: Path, spec: str | Path | None, attributes: dict[str, Any]) -> Description:
    if spec is not None:
        return read_description(spec)
    if "state_spec" in attributes:
        raw = asdict(StateSpec.from_dict(_json(path, attributes, "state_spec")))
        units = _json(path, attributes, "units")
        return Description.parse(raw | {"frame_dt": attributes.get("frame_dt"), "time_unit": units.get("time", "")}, where=str(path))
    for beside in (path.with_name(path.name + ".yaml"), path.with_suffix(".yaml")):
        if beside.is_file():
            return read_description(beside)
    raise DataError(
        f"{path}: no description of its fields: give --spec FILE, put {path.name}.yaml next to it, or set the attribute state_spec"
    )


def _recorded(spec: StateSpec, sample: xr.Dataset) -> dict[str, Any]:
    """Return the settings of the system of a user's data: label images of cells with a type, or particles."""
    if spec.names == ("cell", "type") and spec["cell"].kind == "label" and spec["type"].of == "cell":
        lattice = tuple(sample.sizes.get(name, 0) for name in spec.sites)
        cells, types = spec["cell"].size - 1, spec["type"].size - 1
        return {"name": "recorded_cells", "lattice": lattice, "cells": cells, "types": types, "periodic": spec.periodic}
    return {"name": "recorded", "spec": asdict(spec)}


def _json(path: Path, attributes: dict[str, Any], key: str) -> dict[str, Any]:
    value = parse_json(attributes.get(key, "{}"), where=f"{path}: the attribute {key!r}")
    if not isinstance(value, dict):
        raise DataError(f"{path}: the attribute {key!r} is not a JSON object")
    return value


def _is_uneven(path: Path, location: str | None) -> bool:
    """Whether the coordinate 'time' of a set is that of uneven frames; what is wrong with it is said elsewhere."""
    dataset = files.open_dataset(path, location)
    if layout.TIME not in dataset.variables or dataset.variables[layout.TIME].size < 3:
        return False
    try:
        return are_uneven(layout.times(dataset))
    except DataError:
        return False


def _spacing(path: Path, dataset: xr.Dataset) -> float:
    time = dataset.variables.get(layout.TIME)
    if time is None or time.size < 2:
        raise DataError(f"{path}: the time between frames is unknown: give frame_dt in the description, or a numeric coordinate 'time'")
    try:
        times = layout.times(dataset)
    except DataError as error:
        raise DataError(f"{path}: {error}, or give frame_dt in the description") from None
    return float(np.median(np.diff(times)))
