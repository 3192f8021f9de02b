"""Layout of states in a dataset: the variable of each field and its dimensions, encoding and decoding.

A field `position` is a variable `position` (trajectory, time, body, space). A static field has no time dimension. A property of the
entities of a label field, such as the type of a cell, is a variable `cell_type` (trajectory, cell) whose entry l - 1 belongs to label l.
A duration is a variable (trajectory, time): entry t is how long the step from frame t to the next lasts. Without it the coordinate `time`
says so. The box of a trajectory is a variable (trajectory, space): its sides. An attribute of pairs, such as a bond, is a variable
(trajectory, body, body_): entry (i, j) is what body i has to do with body j.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from epns_pyro.data import files
from epns_pyro.derived import derive, lead_frames, recorded_fields
from epns_pyro.durations import steps_between
from epns_pyro.errors import DataError, nearest
from epns_pyro.later import later
from epns_pyro.state import Field, StateSpec

if TYPE_CHECKING:
    import xarray as xr
else:
    xr = later("xarray")

TRAJECTORY, TIME, SPACE = "trajectory", "time", "space"
REAL = ("real", "pair", "duration", "box")  # kinds of fields that are real numbers


@dataclass(frozen=True)
class Variable:
    """The variable of a dataset that holds one field."""

    name: str
    field: Field
    dims: tuple[str, ...]
    dtype: np.dtype

    @property
    def required(self) -> tuple[str, ...]:
        """Required dimensions; a store of one trajectory may leave `trajectory` out, and static values that all share too."""
        return tuple(d for d in self.dims if d != TRAJECTORY)


def variables(spec: StateSpec) -> tuple[Variable, ...]:
    """Return the variables that hold the recorded fields of a spec, in the order of its fields."""
    return tuple(_variable(spec, field) for field in recorded_fields(spec))


def _variable(spec: StateSpec, field: Field) -> Variable:
    if field.of:
        dims: tuple[str, ...] = (TRAJECTORY, field.of)
    else:
        dims = (TRAJECTORY, TIME, *spec.sites) if field.dynamic else (TRAJECTORY, *spec.sites)
    if field.kind == "duration":
        dims = (TRAJECTORY, TIME)
    if field.kind == "box":
        dims = (TRAJECTORY,)
    if field.is_vector:
        dims = (*dims, SPACE)
    if field.is_pair:
        dims = (*dims, other(spec))
    whole = np.uint16 if field.size <= 2**16 else np.uint32
    dtype = np.dtype(np.float64 if field.kind in REAL else whole)
    return Variable(f"{field.of}_{field.name}" if field.of else field.name, field, dims, dtype)


def with_bodies(spec: StateSpec, bodies: int) -> StateSpec:
    """Return the spec with `bodies` channels in attributes of pairs that do not declare their number of bodies."""
    fields = tuple(replace(f, size=bodies) if f.is_pair and not f.size else f for f in spec.fields)
    return replace(spec, fields=fields)


def other(spec: StateSpec) -> str:
    """Return the name of the dimension of the other body of a pair."""
    return f"{spec.sites[0]}_"


def shape(variable: Variable, spec: StateSpec, trajectories: int, frames: int, sites: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a variable for a set of given size."""
    sizes = dict(zip(spec.sites, sites, strict=True)) | {TRAJECTORY: trajectories, TIME: frames, SPACE: spec.space}
    sizes[other(spec)] = sites[0]
    if variable.field.of:
        sizes[variable.field.of] = spec[variable.field.of].size - 1
    return tuple(sizes[d] for d in variable.dims)


# -- states to variables ---------------------------------------------------------------------------------------------------


def encode(spec: StateSpec, x: np.ndarray) -> dict[str, np.ndarray]:
    """Split states x (trajectory, time, *site, channel) into one array per variable."""
    return {v.name: _encode(spec, v, x).astype(v.dtype, copy=False) for v in variables(spec)}


def _encode(spec: StateSpec, variable: Variable, x: np.ndarray) -> np.ndarray:
    field = variable.field
    values = spec.get(x, field.name)
    if field.of:
        labels = spec.get(x, field.of).astype(np.int64)
        table = np.zeros((len(x), spec[field.of].size, *values.shape[labels.ndim :]), values.dtype)
        table[_rows(labels), labels] = values
        return table[:, 1:]
    if field.kind == "duration":
        return values[(..., *(0,) * len(spec.sites))]
    if field.is_pair:
        return values[:, 0, :, : values.shape[-2]]
    if field.kind == "box":
        return values[:, 0, 0]
    return values if field.dynamic else values[:, 0]


def to_dataset(spec: StateSpec, x: np.ndarray, dims: tuple[str, ...], *, frame_dt: float) -> xr.Dataset:
    """Return states as a labelled dataset in memory: one variable per field, with units, and times in physical units.

    Parameters
    ----------
    x : numpy.ndarray, (*dims, *site, channel)
    dims : tuple of str
        Names of the leading axes; they end with "trajectory", "time". What is static is taken from the first sample,
        since all members of an ensemble share it.
    frame_dt : float
        Time between two frames, where states do not say it.

    Returns
    -------
    xarray.Dataset
        Where trajectories differ in their durations, `time` is that of even frames, and `elapsed` (trajectory, time) that of their own.
    """
    first = x[(0,) * (len(dims) - 2)]  # (trajectory, time, *site, channel)
    data = {}
    for variable in (_variable(spec, field) for field in spec.fields if not field.lag_of):
        if variable.field.dynamic:
            axes, values = (*dims, *variable.dims[2:]), spec.get(x, variable.field.name)
        else:  # durations are the same in all members too
            axes, values = variable.dims, _encode(spec, variable, first)
        data[variable.name] = (axes, values, {"units": variable.field.unit})
    times: dict[str, Any] = {TIME: frame_dt * np.arange(x.shape[len(dims) - 1])}
    if spec.duration and (dt := data[spec.duration.name][1]).size:
        elapsed = np.pad(np.cumsum(dt[:, :-1], axis=1, dtype=np.float64), ((0, 0), (1, 0)))
        same = (dt == dt[:1]).all()
        times |= {TIME: elapsed[0]} if same else {"elapsed": (dims[-2:], elapsed)}
    return xr.Dataset(data, coords=times)


# -- variables to states ---------------------------------------------------------------------------------------------------


def decode(spec: StateSpec, dataset: xr.Dataset, frame_dt: float, *, skip: int = 0) -> np.ndarray:
    """Build full states (trajectory, time, *site, channel) from a dataset, whose values are read here.

    Parameters
    ----------
    frame_dt : float
        Time between two frames, for velocities that are differences; with these the first frame has no state.
    skip : int
        States to leave out at the start: their frames are read only to derive later ones.

    Raises
    ------
    DataError
        If a label is outside the declared range.
    """
    values: dict[str, np.ndarray] = {}
    for variable in sorted(variables(spec), key=lambda v: bool(v.field.of)):  # properties after the labels of their entities
        array = _in_memory(variable.field, load(dataset, variable))
        if variable.field.kind == "duration":
            array = array.reshape(*array.shape, *(1,) * len(spec.sites))
        values[variable.field.name] = _look_up(variable, array, values[variable.field.of]) if variable.field.of else array
    return derive(spec, values, frame_dt, skip=skip)


def load(dataset: xr.Dataset, variable: Variable) -> np.ndarray:
    """Read one variable as an array whose axes are (trajectory, time, *site[, space]); missing axes have length 1."""
    data = files.load(dataset, variable.name)
    dims = variable.dims if variable.field.of or TIME in variable.dims else (TRAJECTORY, TIME, *variable.dims[1:])
    array = data.transpose(*(d for d in dims if d in data.dims)).values
    array = np.expand_dims(array, tuple(i for i, d in enumerate(dims) if d not in data.dims))
    return array[:, :, None] if variable.field.kind == "box" else array  # the same for all bodies


def with_durations(spec: StateSpec, dataset: xr.Dataset, frame_dt: float) -> xr.Dataset:
    """Return a dataset with the durations that a spec asks for: its own, those of the coordinate `time`, or even ones."""
    if spec.duration is None or spec.duration.name in dataset.variables or TIME not in dataset.sizes:
        return dataset
    known = TIME in dataset.variables and dataset.variables[TIME].dims[-1:] == (TIME,)
    found = times(dataset) if known else frame_dt * np.arange(dataset.sizes[TIME])
    dims = (TRAJECTORY, TIME)[-found.ndim :]
    return dataset.assign({spec.duration.name: (dims, steps_between(found, frame_dt))})


def times(dataset: xr.Dataset) -> np.ndarray:
    """Read the coordinate 'time': finite numbers that increase along their last axis.

    Raises
    ------
    DataError
        If it is damaged, holds dates or text, or does not increase; the message ends so that a way out can follow.
    """
    variable = dataset.variables[TIME]
    units = str(variable.attrs.get("units", ""))
    if variable.dtype.kind in "mM" or " since " in units:
        what = f"{units!r}" if units else str(variable.dtype)
        raise DataError(f"the coordinate 'time' holds dates ({what}): write the time since the start as numbers, in one unit")
    if variable.dtype.kind not in "fiu":
        raise DataError(f"the coordinate 'time' holds no numbers ({variable.dtype}): write the time since the start as numbers")
    values = np.asarray(files.load(dataset, TIME).values, np.float64)
    if not np.isfinite(values).all():
        raise DataError("the coordinate 'time' holds NaN or infinite values: correct it")
    rises = (np.diff(np.atleast_1d(values), axis=-1) > 0).all(tuple(range(values.ndim - 1)))
    if not rises.all():
        raise DataError(f"the coordinate 'time' does not increase at frame {int(np.argmin(rises)) + 1}: sort the frames or correct it")
    return values


def _in_memory(field: Field, array: np.ndarray) -> np.ndarray:
    if field.kind == "box" and not (array > 0).all():
        raise DataError(f"field {field.name!r}: sides of a box have to be positive, found {float(np.min(array)):.4g}")
    if field.kind in REAL:
        return array
    if array.size and (array.min() < 0 or array.max() >= field.size):
        found = array.min() if array.min() < 0 else array.max()
        raise DataError(f"field {field.name!r}: {undeclared(field, int(found))}")
    return array.astype(np.int16 if field.size <= 2**15 else np.int32)  # signed, which torch is at home with


def undeclared(field: Field, value: int) -> str:
    """Describe a value that is outside the declared range of a label or category field."""
    return f"{field.kind} {value} is outside the declared range 0 to {field.size - 1}"


def _look_up(variable: Variable, table: np.ndarray, labels: np.ndarray) -> np.ndarray:
    # Label 0 is the medium: its category is 0.
    table = np.concatenate([np.zeros_like(table[:, :1]), table], axis=1)
    return np.broadcast_to(table, (len(labels), *table.shape[1:]))[_rows(labels), labels]


def _rows(labels: np.ndarray) -> np.ndarray:
    return np.arange(len(labels)).reshape(-1, *(1,) * (labels.ndim - 1))


# -- does a dataset fit? ---------------------------------------------------------------------------------------------------


def problems(spec: StateSpec, dataset: xr.Dataset) -> list[str]:
    """Describe, in one sentence each, why a dataset cannot hold states of this spec; checks only names, dimensions and dtypes."""
    found = [p for v in variables(spec) for p in variable_problems(spec, v, dataset)]
    needed = 2 + lead_frames(spec)
    if not found and dataset.sizes[TIME] < needed:
        found.append(f"has {dataset.sizes[TIME]} frame{'s' * (dataset.sizes[TIME] != 1)}: a step needs at least {needed}")
    return found


def variable_problems(spec: StateSpec, variable: Variable, dataset: xr.Dataset) -> list[str]:
    """Say what is wrong with one variable, as `problems` does for all."""
    name, field = variable.name, variable.field
    if name not in dataset.variables:
        return [f"field {name!r} is missing: {nearest(name, map(str, dataset.variables))}"]
    found = dataset.variables[name]
    allowed = {TRAJECTORY, TIME, *variable.dims} - ({TIME} if field.of else set())
    if not set(variable.required) <= set(found.dims) <= allowed:
        expected, have = ", ".join(variable.dims), ", ".join(map(str, found.dims))
        return [f"field {name!r}: expected the dimensions ({expected}), found ({have}): rename them, or change the specification"]
    problems = []
    if empty := [str(dim) for dim in found.dims if dim != TRAJECTORY and not found.sizes[dim]]:
        problems.append(f"field {name!r}: the dimension {empty[0]} has no entries: the file is damaged, or nothing was written to it")
    if field.is_pair:
        bodies, others = found.sizes[spec.sites[0]], found.sizes[other(spec)]
        if bodies != others or bodies > field.size:
            problems.append(f"field {name!r}: expected as many rows as columns, at most {field.size}, found {bodies} x {others}")
    if field.kind in REAL and found.dtype.kind not in "fiu" + "b" * field.is_pair:
        problems.append(f"field {name!r}: expected real numbers, found dtype {found.dtype}")
    if field.kind not in REAL and found.dtype.kind not in "iu":
        problems.append(f"field {name!r}: a {field.kind} is a whole number, found dtype {found.dtype}: convert it to unsigned integers")
    if field.is_vector and found.sizes[SPACE] != spec.space:
        problems.append(f"field {name!r}: space has {spec.space} dimensions, found {found.sizes[SPACE]}")
    if field.of and found.sizes[field.of] != (expected_size := spec[field.of].size - 1):
        problems.append(f"field {name!r}: expected {expected_size} entries, one per {field.of}, found {found.sizes[field.of]}")
    return problems
