"""Celestial dynamics: a star and planets under softened gravity, with Brownian kicks to the velocities.

Units are natural: lengths L, times T and masses M such that G has the value given in the config (1 by default).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, Self, final

import numpy as np
import pydantic

from epns_pyro.later import later
from epns_pyro.once import once
from epns_pyro.state import Field, StateSpec
from epns_pyro.symmetry import Euclidean
from epns_pyro.systems.base import SYSTEMS, Observable, SetConfig, SystemConfig
from epns_pyro.systems.kicked_bodies import KickedBodies
from epns_pyro.systems.whole_steps import divides, whole_steps

if TYPE_CHECKING:
    from epns_pyro.systems import nbody_dynamics as dynamics
else:
    dynamics = later("epns_pyro.systems.nbody_dynamics")

Range = tuple[pydantic.PositiveFloat, pydantic.PositiveFloat]


def _default_sets() -> dict[str, SetConfig]:
    return {
        "train": SetConfig(trajectories=400, steps=100),
        "val": SetConfig(trajectories=100, steps=100),
        "test": SetConfig(trajectories=100, steps=100),
        "same_init": SetConfig(trajectories=2500, steps=100, initial_states=5),
        "long": SetConfig(trajectories=100, steps=1000),
    }


@SYSTEMS.register("nbody")
class NBodyConfig(SystemConfig):
    """Settings of the celestial system.

    Parameters
    ----------
    gravitational_constant : float
        G, in L^3 / (M T^2).
    softening : float
        eps, L: the force of two bodies at distance d is G m d / (d^2 + eps^2)^{3/2} per unit of mass.
    bodies : int
        One star and bodies - 1 planets.
    star_mass : float
        M.
    planet_mass, planet_distance, speed_factor : (float, float)
        Ranges of the planets' initial masses (log-uniform, M), distances from the star (uniform, L) and speeds in units of
        that of a circular orbit (uniform).
    sigma : float
        Standard deviation of the kicks to every velocity component, L / T per square root of T. 0 for no noise.
    dt, frame_dt : float
        Integrator step and time between two frames, T; a frame is a whole number of steps.
    oracle_dt : float, optional
        Time step of the covariance in the oracle, T, a multiple of dt that divides frame_dt. None: dt, exactly that of the simulator.
        Five times dt is five times faster and changes the mean score by 1e-5 nats per transition.
    energy_jump : float
        A trajectory is no longer alive after a frame in which its total energy rises by more than this, M L^2 / T^2.
    """

    name: Literal["nbody"] = "nbody"
    gravitational_constant: pydantic.PositiveFloat = 1.0
    softening: pydantic.PositiveFloat = 0.1
    bodies: int = pydantic.Field(5, ge=2)
    star_mass: pydantic.PositiveFloat = 10.0
    planet_mass: Range = (0.05, 1.0)
    planet_distance: Range = (1.0, 5.0)
    speed_factor: Range = (0.8, 1.1)
    sigma: pydantic.NonNegativeFloat = 0.1
    dt: pydantic.PositiveFloat = 1e-3
    frame_dt: pydantic.PositiveFloat = pydantic.Field(0.1, validate_default=True)  # the default too must be a multiple of dt
    oracle_dt: pydantic.PositiveFloat | None = None
    energy_jump: pydantic.PositiveFloat = 20.0
    sets: dict[str, SetConfig] = pydantic.Field(default_factory=_default_sets)

    @classmethod
    def twenty_bodies(cls) -> Self:
        """Return the second preset: a star and 19 planets; the oracle takes five steps at a time, because its cost grows as bodies^3."""
        return cls(bodies=20, oracle_dt=5e-3)

    @pydantic.field_validator("planet_mass", "planet_distance", "speed_factor")
    @classmethod
    def _ordered(cls, value: Range) -> Range:
        if value[0] > value[1]:
            raise ValueError(f"expected (low, high) with low <= high, found {value}")
        return value

    _whole_steps = pydantic.field_validator("frame_dt", "oracle_dt")(whole_steps)

    @pydantic.field_validator("oracle_dt")
    @classmethod
    def _whole_fraction(cls, value: float | None, info: pydantic.ValidationInfo) -> float | None:
        frame_dt = info.data.get("frame_dt")
        if value is not None and frame_dt is not None and not divides(value, frame_dt):
            raise ValueError(f"expected a whole fraction of frame_dt = {frame_dt:g}, found {value:g} = frame_dt / {frame_dt / value:g}")
        return value

    def build(self) -> NBody:
        return NBody(self)


@final
class NBody(KickedBodies):
    """Bodies under softened gravity with Brownian kicks, and the exact distribution of one frame to first order in the noise.

    dr_i = v_i dt,  dv_i = sum_{j != i} G m_j (r_j - r_i) / (|r_j - r_i|^2 + eps^2)^{3/2} dt + sigma dW_i

    Simulator and oracle work for any number of bodies; only `initial` uses `config.bodies`.
    """

    name = "nbody"
    config: NBodyConfig
    has_pair_law = True
    time_unit = "T"
    report_frames = (25, 50, 100)
    key_observables = ("kinetic_energy", "potential_energy", "total_energy", "furthest_body")

    def __init__(self, config: NBodyConfig) -> None:
        self.config = config
        self.spec = StateSpec(
            fields=(
                Field("mass", "0e", dynamic=False, unit="M"),
                Field("position", "1o", translates=True, unit="L"),
                Field("velocity", "1o", unit="L/T", rate_of="position"),
            ),
            sites=("body",),
            space=3,
        )
        self.symmetry = Euclidean(space=3)
        self.frame_dt = config.frame_dt
        self.steps_per_frame = round(config.frame_dt / config.dt)
        self.oracle_stride = round((config.oracle_dt or config.dt) / config.dt)
        self.sigma, self.energy_jump = config.sigma, config.energy_jump
        self.has_oracle = self.has_diagonal_law = self.has_density

    @once
    def physics(self) -> dynamics.Physics:
        """The constants as the compiled code takes them."""
        c = self.config
        return dynamics.Physics(c.gravitational_constant, c.softening, c.sigma, c.dt)

    # -- the process -------------------------------------------------------------------------------------------------------

    def initial(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Sample n systems of planets on nearly circular orbits around a star, relative to their centre of mass: (n, body, channel).

        States are sampled one after the other, so one call for n equals several calls for n in total.
        """
        c, planets = self.config, self.config.bodies - 1
        u_mass, u_distance, u_height, u_azimuth, u_plane, u_speed = np.moveaxis(rng.random((n, planets, 6)), -1, 0)

        mass = _between(np.log(c.planet_mass), u_mass, np.exp)
        distance = _between(c.planet_distance, u_distance)
        speed = _between(c.speed_factor, u_speed) * np.sqrt(c.gravitational_constant * c.star_mass / distance)
        outward, south, east = _sphere(cos_polar=_between((-1, 1), u_height), azimuth=2 * np.pi * u_azimuth)
        plane = 2 * np.pi * u_plane[..., None]
        forward = np.cos(plane) * south + np.sin(plane) * east

        star = np.zeros((n, 1, 3))
        masses = np.concatenate([np.full((n, 1), c.star_mass), mass], axis=1)
        position = np.concatenate([star, distance[..., None] * outward], axis=1)
        velocity = np.concatenate([star, speed[..., None] * forward], axis=1)
        return self.spec.pack(
            mass=masses,
            position=position - _centre(masses, position),
            velocity=velocity - _centre(masses, velocity),
        )

    def _walked(self, x0: np.ndarray, steps: int, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return dynamics.simulate(*self._parts(x0), seeds, steps, self.steps_per_frame, self.physics)

    def _propagated(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return dynamics.propagate_law(*self._parts(x), self.steps_per_frame, self.oracle_stride, self.physics)

    def pair_accelerations(self, x: np.ndarray) -> np.ndarray:
        """Return -G m_j d / (d^2 + eps^2)^{3/2}, (*batch, body i, body j)."""
        mass, position = self.spec.get(x, "mass"), self.spec.get(x, "position")
        squared = ((position[..., :, None, :] - position[..., None, :, :]) ** 2).sum(-1)
        return -self.physics.G * mass[..., None, :] * np.sqrt(squared) / (squared + self.physics.eps**2) ** 1.5

    # -- what to look at -----------------------------------------------------------------------------------------------------

    def observables(self, x: np.ndarray) -> dict[str, Observable]:
        """Return energies, angular momentum about the origin and distances along trajectories x (*batch, time, body, channel)."""
        mass, position, velocity = self._parts(x)
        kinetic, potential = self.kinetic_energy(x), self.potential_energy(x)
        angular_momentum = (mass[..., None] * np.cross(position, velocity)).sum(-2)
        energy = "M L²/T²"
        return {
            "kinetic_energy": Observable("kinetic energy", energy, kinetic),
            "potential_energy": Observable("potential energy", energy, potential),
            "total_energy": Observable("total energy", energy, kinetic + potential),
            "angular_momentum": Observable("angular momentum", "M L²/T", _length(angular_momentum)),
            "furthest_body": Observable("distance of the furthest body", "L", _length(position).max(-1)),
            "least_pair_distance": Observable(
                "least pair distance", "L", np.min([d.min(-1) for _, d in _pair_distances(position)], axis=0)
            ),
            "centre_of_mass": Observable("distance of the centre of mass", "L", _length(_centre(mass, position)[..., 0, :])),
        }

    def total_energy(self, x: np.ndarray) -> np.ndarray:
        return self.kinetic_energy(x) + self.potential_energy(x)

    def kinetic_energy(self, x: np.ndarray) -> np.ndarray:
        """sum_i m_i |v_i|^2 / 2 of states (*batch, body, channel): (*batch,)."""
        mass, _, velocity = self._parts(x)
        return 0.5 * (mass * (velocity**2).sum(-1)).sum(-1)

    def potential_energy(self, x: np.ndarray) -> np.ndarray:
        """-sum_{i < j} G m_i m_j / sqrt(|r_i - r_j|^2 + eps^2) of states (*batch, body, channel): (*batch,)."""
        mass, position, _ = self._parts(x)
        eps, total = self.physics.eps, np.zeros(x.shape[:-2])
        for i, distance in _pair_distances(position):
            total -= self.physics.G * mass[..., i] * (mass[..., i + 1 :] / np.hypot(distance, eps)).sum(-1)
        return total

    def _parts(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mass (*batch, body), position and velocity (*batch, body, 3), each contiguous in float64."""
        mass, position, velocity = (np.ascontiguousarray(self.spec.get(x, name), dtype=np.float64) for name in self.spec.names)
        return mass, position, velocity


def _between(bounds: Sequence[float] | np.ndarray, u: np.ndarray, curve: Callable[[np.ndarray], np.ndarray] = np.asarray) -> np.ndarray:
    """Map u in [0, 1) linearly to the bounds, and then through a curve."""
    return curve(bounds[0] + (bounds[1] - bounds[0]) * u)


def _sphere(cos_polar: np.ndarray, azimuth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return unit vectors outward, south and east (..., 3) at points (...) of the sphere: an orthonormal frame."""
    sin_polar = np.sqrt(1 - cos_polar**2)
    cos, sin, zero = np.cos(azimuth), np.sin(azimuth), np.zeros_like(azimuth)
    return (
        np.stack([sin_polar * cos, sin_polar * sin, cos_polar], axis=-1),
        np.stack([cos_polar * cos, cos_polar * sin, -sin_polar], axis=-1),
        np.stack([-sin, cos, zero], axis=-1),
    )


def _centre(mass: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Mass-weighted mean over the bodies: (*batch, body) and (*batch, body, 3) -> (*batch, 1, 3)."""
    return (mass[..., None] * vectors).sum(-2, keepdims=True) / mass.sum(-1)[..., None, None]


def _length(vectors: np.ndarray) -> np.ndarray:
    return np.linalg.norm(vectors, axis=-1)


def _pair_distances(position: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield for every body i except the last its distances from the bodies after it: i, (*batch, bodies - 1 - i)."""
    for i in range(position.shape[-2] - 1):
        yield i, _length(position[..., i + 1 :, :] - position[..., i : i + 1, :])
