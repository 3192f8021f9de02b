"""Recorded particles: data without a simulator. The config describes the channels; the observables work for any fields."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, Literal, Self, final

import numpy as np
import pydantic

from epns_pyro.derived import has_hidden_states, judged_fields
from epns_pyro.presence import presence
from epns_pyro.state import Field, StateSpec
from epns_pyro.symmetry import Euclidean
from epns_pyro.systems import track_observables as tracks
from epns_pyro.systems.base import SYSTEMS, Observable, System, SystemConfig


@SYSTEMS.register("recorded")
class RecordedConfig(SystemConfig):
    """Properties of recorded particles.

    Parameters
    ----------
    spec : dict
        The state specification as plain data, as `StateSpec.from_dict` reads it.
    frame_dt : float
        Time between two frames, in `time_unit`.
    time_unit : str
        Unit of time, for labels.
    extent : dict of str to float
        By dynamic field, its largest size in the data, in the unit of the field (see `RecordedConfig.describing`). A field without
        an entry must only be finite.
    extent_multiple : float
        A trajectory is no longer alive when a field exceeds this multiple of its extent.
    bodies : int
        Places for bodies in a trajectory; 0 if unknown. Presets choose graphs and minibatches by it.
    given : int
        Frames that a forecast is given before it starts, where states are hidden.
    """

    name: Literal["recorded"] = "recorded"
    spec: dict[str, Any]
    frame_dt: pydantic.PositiveFloat
    time_unit: str = ""
    extent: dict[str, pydantic.PositiveFloat] = pydantic.Field(default_factory=dict)
    extent_multiple: float = pydantic.Field(10.0, gt=1)
    bodies: int = pydantic.Field(0, ge=0)
    given: int = pydantic.Field(10, ge=2)

    @classmethod
    def describing(cls, spec: StateSpec, x: np.ndarray, *, frame_dt: float, time_unit: str = "") -> Self:
        """Return the config of data x (*batch, time, body, channel), with the extent of every field measured."""
        sizes = {f.name: float(np.fmax.reduce(_size(spec, f, x), axis=None)) for f in spec.dynamic_fields if not _is_in_box(spec, f)}
        extent = {name: size for name, size in sizes.items() if size > 0}
        return cls(spec=cls.plain(spec), frame_dt=frame_dt, time_unit=time_unit, extent=extent)

    @staticmethod
    def plain(spec: StateSpec) -> dict[str, Any]:
        """Return a spec as the plain data that a config holds."""
        return asdict(spec)

    @pydantic.field_validator("spec")
    @classmethod
    def _particles(cls, value: dict[str, Any]) -> dict[str, Any]:
        spec = StateSpec.from_dict(value)
        if len(spec.sites) != 1:
            raise ValueError(f"recorded data are particles with one site axis, found {', '.join(spec.sites) or 'none'}")
        if unreal := [f.name for f in spec.fields if f.kind != "real" and f.dynamic]:
            raise ValueError(f"recorded particles have real dynamic fields, found a {spec[unreal[0]].kind} {unreal[0]!r}")
        return json.loads(spec.to_json())  # with all entries, as it is read from a store

    @pydantic.field_validator("extent")
    @classmethod
    def _of_dynamic_fields(cls, value: dict[str, float], info: pydantic.ValidationInfo) -> dict[str, float]:
        if "spec" in info.data:
            spec = StateSpec.from_dict(info.data["spec"])
            for name in value:
                if not spec[name].dynamic:
                    raise ValueError(f"field {name!r} is static: only a dynamic field can outgrow its extent")
        return value

    def build(self) -> Recorded:
        return Recorded(self)


@final
class Recorded(System):
    """Particles in Euclidean space, known only from data: no simulator, no oracle."""

    name = "recorded"
    config: RecordedConfig

    def __init__(self, config: RecordedConfig) -> None:
        self.config = config
        self.spec = StateSpec.from_dict(config.spec)
        self.frame_dt = config.frame_dt
        self.time_unit = config.time_unit
        fields = self.spec.dynamic_fields
        self._position = self.spec.position if self.spec.position in fields else None
        rates = [f for f in fields if f.is_vector and f.rate_of and not f.hidden]
        self._velocity = next((f for f in rates if self._moves_with(f)), rates[0] if rates else None)
        self.symmetry = Euclidean.of(self.spec)

    @property
    def forecast_frame(self) -> int:
        """The first frame after the burn-in for which all velocities of earlier frames are known, and all frames to be given are past."""
        return self.first_frame + sum(1 for f in self.spec.fields if f.lag_of) + self.frames_given - 1

    @property
    def frames_given(self) -> int:
        return self.config.given if has_hidden_states(self.spec) else 1

    def observables(self, x: np.ndarray) -> dict[str, Observable]:
        """Evaluate the observables that the fields allow on trajectories x (*batch, time, body, channel).

        The position is `StateSpec.position`. Where it translates: spread about the centroid (not in a box, which has no centre); else
        distance from the centre. Of two bodies or more also the least pair distance, of three or more the distance of the nearest
        neighbour. Then how bodies move: displacement from the start and its spread between bodies, straightness, mean squared displacement
        over a lag, turning angle, velocity autocorrelation with the start and over a lag and, of two or more, polarisation, by the
        velocity, which is the rate of the position, or by steps where there is none, with their length. Of velocities: mean speed and,
        where there is a scalar "mass", kinetic energy. Any other dynamic field: root mean square.

        All are computed from the bodies present; NaN if there are too few.
        """
        found = self._of_position(x, self._position) if self._position else {}
        found |= self._of_velocity(x, self._velocity) if self._velocity else {}
        for field in judged_fields(self.spec):
            if field not in (self._position, self._velocity):
                label, size = f"root mean square {field.name}", tracks.rms(_vectors(self.spec, field, x))
                found[f"rms_{field.name}"] = Observable(label, field.unit, size)
        return found

    def _moves_with(self, velocity: Field) -> bool:
        return self._position is not None and velocity.rate_of == self._position.name

    def _of_position(self, x: np.ndarray, field: Field) -> dict[str, Observable]:
        space, position, found = self.spec.space_of(x[..., :1, :, :]), _vectors(self.spec, field, x), {}
        if not field.translates:
            away = tracks.rms(space.displacement(np.zeros(space.dim), position))
            found[f"rms_{field.name}"] = Observable("distance from the centre", field.unit, away)
        elif not space.periodic and position.shape[-2] > 1:
            about = position - tracks.mean_vector(position)[..., None, :]
            found["spread"] = Observable("spread about the centroid", field.unit, tracks.rms(about))
        if position.shape[-2] > 1:
            nearest = tracks.nearest_neighbours(space, position)
            found["least_pair_distance"] = Observable("least pair distance", field.unit, np.fmin.reduce(nearest, axis=-1))
            if position.shape[-2] > 2:  # with two bodies it equals the pair distance
                found["nearest_neighbour_distance"] = Observable("nearest-neighbour distance", field.unit, tracks.mean(nearest))
        away = tracks.rms(tracks.ways_from_start(space, position))
        found["displacement"] = Observable("displacement from the start", field.unit, away)
        squared = f"{field.unit}²" if field.unit.isalpha() else f"({field.unit})²" if field.unit else ""
        lagged = tracks.mean_squared_displacement(space, position)
        found["msd_over_half"] = Observable("mean squared displacement over half of the time so far", squared, lagged)
        found["straightness"] = Observable("straightness", "", tracks.mean(tracks.straightness(space, position)))
        if position.shape[-2] > 1:
            lengths = np.linalg.norm(tracks.ways_from_start(space, position), axis=-1)
            found["displacement_spread"] = Observable("spread of displacement between bodies", field.unit, tracks.deviation(lengths))
        if self._velocity and self._moves_with(self._velocity):
            return found | self._of_moves(_vectors(self.spec, self._velocity, x))
        steps = tracks.steps(space, position)
        found["step_length"] = Observable("step length", field.unit, tracks.mean(np.linalg.norm(steps, axis=-1)))
        return found | self._of_moves(steps)

    def _of_moves(self, moves: np.ndarray) -> dict[str, Observable]:
        found = {"turning_angle": Observable("turning angle", "rad", tracks.turning_angle(moves))} if self.spec.space > 1 else {}
        found["velocity_autocorrelation"] = Observable("velocity autocorrelation with the start", "", tracks.autocorrelation(moves))
        lagged = tracks.lagged_autocorrelation(moves)
        found["velocity_autocorrelation_over_half"] = Observable("velocity autocorrelation over half of the time so far", "", lagged)
        if moves.shape[-2] > 1:
            found["polarisation"] = Observable("polarisation", "", tracks.polarisation(moves))
        return found

    def _of_velocity(self, x: np.ndarray, field: Field) -> dict[str, Observable]:
        squared = (_vectors(self.spec, field, x) ** 2).sum(-1)
        found = {"mean_speed": Observable("mean speed", field.unit, tracks.mean(np.sqrt(squared)))}
        if "mass" in self.spec and not self.spec["mass"].is_vector:
            unit = f"{self.spec['mass'].unit} ({field.unit})²" if self.spec["mass"].unit and field.unit else ""
            energy = 0.5 * tracks.total(self.spec.get(x, "mass").astype(np.float64) * squared)
            found["kinetic_energy"] = Observable("kinetic energy", unit, energy)
        return found

    def alive(self, x: np.ndarray) -> np.ndarray:
        """Return (*batch, time) booleans of x (*batch, time, body, channel): True until a state is no longer plausible.

        A state is implausible if a value of a present body is not finite, if a field exceeds its extent, or if no body is left.
        """
        there = presence(self.spec, x)
        with np.errstate(over="ignore", invalid="ignore"):
            plausible = (np.isfinite(self.spec.dynamic(x)).all(-1) | ~there).all(-1)
            for field in self.spec.static_fields:
                plausible &= np.isfinite(x[..., self.spec.slice(field.name)]).all((-2, -1))
            plausible &= np.logical_or.accumulate(there.any(-1)[..., ::-1], axis=-1)[..., ::-1]
            for name, extent in self.config.extent.items():
                if _is_in_box(self.spec, self.spec[name]):
                    continue
                plausible &= ~(_size(self.spec, self.spec[name], x) > self.config.extent_multiple * extent)
        return np.logical_and.accumulate(plausible, axis=-1)


def _vectors(spec: StateSpec, field: Field, x: np.ndarray) -> np.ndarray:
    """Return a field of x as vectors (*batch, time, body, width) in float64."""
    return x[..., spec.slice(field.name)].astype(np.float64)


def _is_in_box(spec: StateSpec, field: Field) -> bool:
    """Whether a field is the position in a periodic box, which it cannot leave, and in which no place is the middle."""
    return spec.geometry.periodic and field == spec.position


def _size(spec: StateSpec, field: Field, x: np.ndarray) -> np.ndarray:
    """Largest length of a field over the bodies of x (*batch, time, body, channel): (*batch, time).

    A translating field is measured from the centroid of the first frame, so that translating the data changes nothing.
    """
    values = _vectors(spec, field, x)
    if field.translates:
        values = values - tracks.mean_vector(values[..., :1, :, :])[..., None, :]
    return np.fmax.reduce(np.linalg.norm(values, axis=-1), axis=-1)
