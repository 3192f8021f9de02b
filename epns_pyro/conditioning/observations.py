"""Observations of one trajectory: some fields, bodies and frames, with errors; and what is known of the initial state.

y = x + sigma e,  e ~ Normal(0, 1),  independently for every observed number
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from epns_pyro.data import files, layout
from epns_pyro.data.precision import PREDICTED, check_magnitude
from epns_pyro.errors import DataError, ShapeError, nearest, require_positive, shown
from epns_pyro.state import StateSpec

if TYPE_CHECKING:
    import xarray as xr

Noise = Mapping[str, float | np.ndarray]
MOST_STEPS = 100_000  # from the initial state to the last observation
ON_A_FRAME = 1e-3  # times may differ from a frame by this fraction of the time step
NOISE, INITIAL = "noise", "initial_"  # attribute with the error of a variable, prefix of the variables of the initial state


@dataclass(frozen=True)
class Observations:
    """Partial and noisy observations of one trajectory; frame 0 is the initial state.

    Use `from_fields`, `from_states` or `read_observations` to make them.

    Parameters
    ----------
    values : numpy.ndarray, (time, *site, dynamic channel)
        NaN: not observed.
    noise : numpy.ndarray, same shape
        Standard deviation of the error of every number; used only where there is a value.
    """

    values: np.ndarray
    noise: np.ndarray

    def __post_init__(self) -> None:
        seen = np.isfinite(self.values)
        if self.values.shape != self.noise.shape:
            raise ShapeError(f"observations: values {self.values.shape} and noise {self.noise.shape} do not have the same shape")
        if len(self.values) < 2:
            raise ShapeError(f"observations: expected at least 2 frames, of which the first is the initial state, found {len(self.values)}")
        if np.isinf(self.values).any():
            raise DataError("observations: hold infinite values: NaN means not observed")
        if not (np.isfinite(self.noise[seen]) & (self.noise[seen] > 0)).all():
            raise DataError(
                f"observations: every measured number needs a finite noise > 0, found {_worst(self.noise[seen]):g}: "
                "give a small noise; a final state that is known exactly goes to smooth(end=...)"
            )
        low, high = PREDICTED
        if seen.any() and not (low <= self.noise[seen].min() and self.noise[seen].max() <= high):
            found = self.noise[seen].min() if self.noise[seen].min() < low else self.noise[seen].max()
            raise DataError(f"observations: the noise must be {low:g} to {high:g}, so that its square can be computed, found {found:g}")

    @property
    def steps(self) -> int:
        """Steps from the initial state to the last frame."""
        return len(self.values) - 1

    @property
    def frames(self) -> np.ndarray:
        """Return the frames in which anything was observed."""
        return np.flatnonzero(np.isfinite(self.values).reshape(len(self.values), -1).any(-1))

    def check(self, spec: StateSpec, sites: tuple[int, ...]) -> None:
        """Raise ShapeError unless these are observations of states of the spec with these site axes."""
        require_real(spec)
        expected = (*sites, spec.dynamic_channels)
        if self.values.shape[1:] != expected:
            raise ShapeError(
                f"observations: expected (time, {', '.join(spec.sites)}, dynamic channel) = (time, {', '.join(map(str, expected))}), "
                f"found {self.values.shape}"
            )

    @classmethod
    def from_fields(cls, spec: StateSpec, fields: Mapping[str, np.ndarray], noise: Noise) -> Observations:
        """Build observations from one array per observed field.

        Parameters
        ----------
        spec : StateSpec
        fields : mapping of str to numpy.ndarray or xarray.DataArray
            (time, *site, space) for a vector, (time, *site) for a scalar, in any order where dimensions have these names; NaN where
            nothing was observed. Fields that are left out were not observed.
        noise : mapping of str to float or numpy.ndarray
            Standard deviation of the error of each of these fields, in the unit of the field; broadcasts against its array.
        """
        require_real(spec)
        dynamic = [f.name for f in spec.dynamic_fields]
        if not fields:
            raise DataError(f"observations: expected at least one of the fields {', '.join(dynamic)}")
        for name in (*fields, *noise):
            if name not in dynamic:
                raise DataError(f"observations: no dynamic field {name!r}: {nearest(name, dynamic)}")
        if missing := [name for name in fields if name not in noise]:
            raise DataError(f"observations: the noise of {', '.join(missing)} is missing: give a standard deviation per observed field")
        arrays = {}
        for name, value in fields.items():
            wanted = ("time", *spec.sites, *(("space",) if spec[name].is_vector else ()))
            array = arrays[name] = _in_order(value, wanted)
            if array.ndim != len(wanted) or (spec[name].is_vector and array.shape[-1] != spec.space):
                raise ShapeError(f"observations of {name!r}: expected ({', '.join(wanted)}), found {array.shape}")
        shapes = {array.shape[: 1 + len(spec.sites)] for array in arrays.values()}
        if len(shapes) > 1:
            found = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
            raise ShapeError(f"observations: the fields do not have the same frames and sites: {found}")
        values = np.full((*shapes.pop(), spec.dynamic_channels), np.nan)
        errors = np.ones_like(values)
        for name, array in arrays.items():
            channels = spec.slice(name, among_dynamic=True)
            values[..., channels] = array.reshape(*values.shape[:-1], -1)
            try:
                error = np.broadcast_to(np.asarray(noise[name], np.float64), array.shape)
            except ValueError:
                raise ShapeError(f"noise of {name!r}: {np.shape(noise[name])} does not broadcast against {array.shape}") from None
            errors[..., channels] = error.reshape(*values.shape[:-1], -1)
        return cls(values, errors)

    @classmethod
    def from_states(
        cls,
        spec: StateSpec,
        states: np.ndarray,
        noise: Noise,
        *,
        every: int = 1,
        sites: np.ndarray | None = None,
        rng: np.random.Generator | None = None,
    ) -> Observations:
        """Make observations of a known trajectory, for twin experiments.

        Parameters
        ----------
        spec : StateSpec
        states : numpy.ndarray, (time, *site, channel)
            Full states.
        noise : mapping of str to float or numpy.ndarray
            The observed fields, and the standard deviation of their errors.
        every : int
            Frames every, 2 every, ... are observed; the initial state is not.
        sites : numpy.ndarray of bool, (*site,), optional
            The observed sites; all by default.
        rng : numpy.random.Generator, optional
            Source of the errors; without it the values are the true ones.
        """
        require_positive(every=every)
        fields = {}
        for name, sigma in noise.items():
            value = np.array(spec.get(states, name), np.float64)
            value = value if rng is None else value + sigma * rng.normal(size=value.shape)
            value[np.arange(len(value)) % every != 0] = np.nan
            value[0] = np.nan
            if sites is not None:
                value[:, ~_mask(sites, value.shape[1 : 1 + len(spec.sites)])] = np.nan
            fields[name] = value
        return cls.from_fields(spec, fields, noise)


def _in_order(value: Any, dims: tuple[str, ...]) -> np.ndarray:
    """Return an array whose dimensions are in this order, where they have names."""
    named = set(getattr(value, "dims", ()))
    return np.asarray(value.transpose(*dims) if named == set(dims) else value, np.float64)


def _mask(sites: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return a mask of sites; ShapeError if it is none, as numbers of sites are not."""
    mask = np.asarray(sites)
    if mask.dtype != bool or mask.shape != shape:
        raise ShapeError(f"sites: expected booleans {shape}, True where a site is observed; found {mask.dtype} {mask.shape}")
    return mask


@dataclass(frozen=True)
class InitialNormal:
    """x_0 ~ Normal(mean, scale) of the dynamic channels, independently; static fields are those of the mean.

    Parameters
    ----------
    mean : numpy.ndarray, (*site, channel)
        A full state.
    scale : mapping of str to float or numpy.ndarray
        Standard deviation per dynamic field, in its unit, broadcasting against the field; fields left out are known exactly.
    """

    mean: np.ndarray
    scale: Noise

    def flat_scale(self, spec: StateSpec) -> np.ndarray:
        """Return standard deviations in the order of the dynamic channels: (*site, dynamic channel)."""
        dynamic = [f.name for f in spec.dynamic_fields]
        for name, value in self.scale.items():
            if name not in dynamic:
                raise DataError(f"prior of the initial state: no dynamic field {name!r}: {nearest(name, dynamic)}")
            if not (np.isfinite(value) & (np.asarray(value) >= 0)).all():
                raise DataError(
                    f"prior of the initial state: the scale of {name!r} must be finite and not negative, found {_worst(value):g}"
                )
        scales = {}
        for name in dynamic:
            shape = spec.get(self.mean, name).shape
            try:
                scales[name] = np.broadcast_to(np.asarray(self.scale.get(name, 0.0), np.float64), shape)
            except ValueError:
                raise ShapeError(f"scale of {name!r}: {np.shape(self.scale[name])} does not broadcast against {shape}") from None
        return spec.pack_dynamic(**scales)


def require_real(spec: StateSpec) -> None:
    """Raise DataError unless all dynamic fields are real numbers, which Normal errors can be added to."""
    if labels := [f.name for f in spec.dynamic_fields if f.kind != "real"]:
        raise DataError(f"only states of real fields can be conditioned on measurements, and {', '.join(labels)} holds labels")


def _worst(values: np.ndarray | float) -> float:
    values = np.asarray(values, np.float64).ravel()
    bad = values[~np.isfinite(values)]
    return float(bad[0] if bad.size else values.min())


# -- files -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ObservationFile:
    """Content of a file: the observations, and the initial state if it has one."""

    observations: Observations
    initial: np.ndarray | InitialNormal | None


def read_observations(path: str | Path, spec: StateSpec, *, frame_dt: float, noise: Noise | None = None) -> ObservationFile:
    """Read observations of one trajectory from a netCDF file or a zarr store.

    Variables are named by field: `position` (time, body, space), NaN where nothing was observed, with an attribute `noise`, the
    standard deviation of its error. Times are in physical units and start at 0, the initial state; frames that were not observed may be
    left out. The initial state may be included: static fields (`mass` (body)) and `initial_position`, `initial_velocity`, ..., each
    with an attribute `noise` if it is uncertain.

    Parameters
    ----------
    path : str or Path
        FILE.nc or FILE.zarr.
    spec : StateSpec
    frame_dt : float
        Time of one model step.
    noise : mapping, optional
        Overrides the attributes.
    """
    with files.open_dataset(Path(path)) as dataset:
        try:
            return observations_of(dataset, spec, frame_dt=frame_dt, noise=noise)
        except (DataError, ShapeError) as error:
            raise type(error)(f"{path}: {error}") from None


def observations_of(dataset: xr.Dataset, spec: StateSpec, *, frame_dt: float, noise: Noise | None = None) -> ObservationFile:
    """Read observations from a dataset in memory; see `read_observations`."""
    require_real(spec)
    dynamic, noise = [f.name for f in spec.dynamic_fields], dict(noise or {})
    observed = [name for name in dynamic if name in dataset.data_vars]
    if not observed:
        raise DataError(f"holds none of the fields {', '.join(dynamic)}, found {', '.join(map(str, dataset.data_vars)) or 'no variables'}")
    frames = _frames(dataset, frame_dt)
    fields = {}
    for name in observed:
        array = _array(dataset, name, spec, name, time=True)
        fields[name] = np.full((frames[-1] + 1, *array.shape[1:]), np.nan)
        fields[name][frames] = array
        if name not in noise and NOISE not in dataset[name].attrs:
            raise DataError(
                f"{name!r} has no attribute 'noise', the standard deviation of its error: add it, or give it as --noise {name}="
            )
        noise.setdefault(name, _noise(dataset, name))
    if unused := [name for name in noise if name not in observed]:
        raise DataError(f"a noise is given for {unused[0]!r}, which is not observed: {nearest(unused[0], observed)}")
    return ObservationFile(Observations.from_fields(spec, fields, noise), _initial(dataset, spec))


def _frames(dataset: xr.Dataset, frame_dt: float) -> np.ndarray:
    """Return the frame number of every time: (time,)."""
    if "time" not in dataset.coords or dataset["time"].ndim != 1:
        raise DataError("has no coordinate 'time' (time): the times of the observations, 0 for the initial state")
    times = layout.times(dataset)
    if times.size and (largest := float(np.abs(times).max())) > MOST_STEPS * frame_dt:
        raise DataError(
            f"time {largest:g} is {largest / frame_dt:.3g} model steps of {frame_dt:g} from the start: expected at most {MOST_STEPS}: "
            "is it in the time unit of the model, and 0 at the initial state?"
        )
    frames = np.round(times / frame_dt)
    off = np.abs(times / frame_dt - frames) > ON_A_FRAME
    if off.any():
        raise DataError(f"time {times[off][0]:g} is not a whole number of model steps of {frame_dt:g}")
    if times.size == 0 or times[0] < 0 or (np.diff(frames) <= 0).any() or frames[-1] < 1:
        raise DataError("times must increase from 0, the initial state, and go beyond it")
    return frames.astype(int)


def _initial(dataset: xr.Dataset, spec: StateSpec) -> np.ndarray | InitialNormal | None:
    fields = [f for f in spec.fields if f.kind != "duration"]  # steps are nominal
    names = {f.name: f"{INITIAL}{f.name}" if f.dynamic else f.name for f in fields}
    given = [variable for variable in names.values() if variable in dataset.data_vars]
    if not any(variable.startswith(INITIAL) for variable in given):
        return None
    if missing := [variable for variable in names.values() if variable not in given]:
        raise DataError(f"the initial state is incomplete: {', '.join(missing)} is missing")
    mean = spec.pack(**{name: _array(dataset, variable, spec, name, time=False) for name, variable in names.items()})
    scale = {f.name: _noise(dataset, names[f.name]) for f in spec.dynamic_fields if NOISE in dataset[names[f.name]].attrs}
    return InitialNormal(mean, scale) if scale else mean


def _array(dataset: xr.Dataset, variable: str, spec: StateSpec, field: str, *, time: bool) -> np.ndarray:
    data = files.load(dataset, variable)
    data = data.isel(trajectory=0) if data.sizes.get("trajectory") == 1 else data
    dims = (*(("time",) if time else ()), *spec.sites, *(("space",) if spec[field].is_vector else ()))
    if set(data.dims) != set(dims):
        raise ShapeError(
            f"{variable!r}: expected the dimensions ({', '.join(dims)}) of one trajectory, found ({', '.join(map(str, data.dims))})"
        )
    values = files.as_numbers(data.transpose(*dims), f"variable {variable!r}")
    check_magnitude(spec[field], values)
    return values


def _noise(dataset: xr.Dataset, variable: str) -> np.ndarray:
    value = dataset[variable].attrs.get(NOISE)
    try:
        return np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise DataError(f"the attribute {NOISE!r} of {variable!r}: expected a number, found {shown(value)}") from None
