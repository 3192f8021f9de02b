"""The three systems of the field's N-body benchmark: charged particles, particles on springs, and gravity.

Bodies of unit mass that act on each other in pairs, without noise unless it is asked for. The numbers are those of the protocol of GeoTDM
(Han et al., NeurIPS 2024), whose charged particles and springs go back to Kipf et al. (ICML 2018): states are saved every 0.1 time
units, 100 steps of 0.001 apart; 10 frames are given, positions alone, and 20 are predicted.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING, Literal, final

import numpy as np
import pydantic

from epns_pyro.derived import lead_frames
from epns_pyro.later import later
from epns_pyro.state import Field, StateSpec
from epns_pyro.symmetry import Euclidean
from epns_pyro.systems.base import SYSTEMS, Observable, SetConfig, System, SystemConfig, checked_seeds
from epns_pyro.systems.recorded import Recorded, RecordedConfig
from epns_pyro.systems.whole_steps import whole_steps
from epns_pyro.threads import limited

if TYPE_CHECKING:
    from epns_pyro.systems import pair_dynamics as dynamics
else:
    dynamics = later("epns_pyro.systems.pair_dynamics")

FARTHEST = 1e3  # positions beyond it are no longer plausible, L
UNBOUNDED = np.inf


def _protocol_sets() -> dict[str, SetConfig]:
    return {name: SetConfig(trajectories=n, steps=29) for name, n in (("train", 3000), ("val", 2000), ("test", 2000))}


class PairSystemConfig(SystemConfig):
    """What the three systems share.

    Parameters
    ----------
    bodies : int
        All have unit mass.
    noise : float
        Standard deviation of Brownian kicks to every velocity component, L / T per square root of T; 0: deterministic, as published.
    dt, frame_dt : float
        Integrator step and time between two frames, T; a frame is a whole number of steps.
    velocity : {"differences", "recorded"}
        Whether a recording holds positions alone, so that a velocity is a difference of them, or velocities too.
    given : int
        Frames that a forecast may see: held-out forecasts start from the last of them.
    """

    bodies: int = pydantic.Field(5, ge=2)
    noise: pydantic.NonNegativeFloat = 0.0
    dt: pydantic.PositiveFloat = 1e-3
    frame_dt: pydantic.PositiveFloat = pydantic.Field(0.1, validate_default=True)
    velocity: Literal["differences", "recorded"] = "differences"
    given: int = pydantic.Field(10, ge=2)
    sets: dict[str, SetConfig] = pydantic.Field(default_factory=_protocol_sets)

    _whole_steps = pydantic.field_validator("frame_dt")(whole_steps)


class PairSystem(System):
    """Bodies of unit mass under forces between pairs: dv_i = clip(sum_j w_ij (r_i - r_j) / s_ij^power) dt + noise dW_i.

    Where velocities are differences, that of an initial state is the velocity at its time, and those of all frames after it are
    differences: a recording holds positions alone, so the first frame has no state there.
    """

    config: PairSystemConfig
    can_simulate = True
    has_pair_law = True
    time_unit = "T"
    first_time: float = 0.0  # of the first frame, after the draw of the initial state, T
    rotations: str = "full"  # that are symmetries

    def __init__(self, config: PairSystemConfig) -> None:
        self.config = config
        differences = config.velocity == "differences"
        moving = (
            Field("position", "1o", translates=True, unit="L"),
            Field("velocity", "1o", unit="L/T", rate_of="position", differences=differences),
        )
        self.spec = StateSpec((*self.attributes(), *moving), sites=("body",), space=3, rotations=self.rotations)
        self.symmetry = Euclidean.of(self.spec)
        self.can_continue = not differences  # a difference is not the velocity at its time
        self.frame_dt = config.frame_dt
        self.steps_per_frame = round(config.frame_dt / config.dt)

    # -- what a system says of itself ----------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def force(self) -> dynamics.PairForce:
        """The numbers of the law."""

    @abstractmethod
    def attributes(self) -> tuple[Field, ...]:
        """Static fields of bodies and of pairs."""

    @abstractmethod
    def weights(self, x: np.ndarray) -> np.ndarray:
        """Return w_ij of states (*batch, body, channel): (*batch, body, body), positive where two bodies repel each other."""

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draw the fields of one state at time 0, (body[, space])."""

    @abstractmethod
    def pair_energy(self, x: np.ndarray, squared: np.ndarray) -> np.ndarray:
        """Return the potential energy of pairs at squared distances (*batch, body, body): (*batch, body, body)."""

    # -- the process ---------------------------------------------------------------------------------------------------------

    @property
    def forecast_frame(self) -> int:
        """The last given frame, counted from the first that has a state."""
        return max(self.config.given - 1 - lead_frames(self.spec), self.first_frame)

    def initial(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draw n states at the time of the first frame: (n, body, channel)."""
        x = np.stack([self.spec.pack(**self.draw(rng)) for _ in range(n)])
        steps = round(self.first_time / self.config.dt)
        if not steps:
            return x
        return self._walk(x, 1, rng.integers(2**63, size=n).astype(np.uint64), steps, workers=1)[:, -1]

    def simulate(self, x0: np.ndarray, steps: int, seeds: np.ndarray, *, workers: int | None = None) -> np.ndarray:
        """Run the true process from x0 (n, body, channel) for `steps` frames: (n, steps + 1, body, channel).

        Every trajectory has its own random stream, made from its seed (n,) uint64; the number of threads changes nothing.
        """
        seeds = checked_seeds(self.spec, x0, seeds)
        x = self._walk(x0, steps, seeds, self.steps_per_frame, workers)
        if self.config.velocity == "differences":
            position, velocity = (x[..., self.spec.slice(name)] for name in ("position", "velocity"))
            velocity[:, 1:] = np.diff(position, axis=1) / self.frame_dt
        return x

    def _walk(self, x0: np.ndarray, frames: int, seeds: np.ndarray, steps: int, workers: int | None) -> np.ndarray:
        """Run for so many frames of so many steps, with the velocities at their times: (n, frames + 1, body, channel)."""
        position, velocity = (np.ascontiguousarray(self.spec.get(x0, name), np.float64) for name in ("position", "velocity"))
        with limited(workers):
            positions, velocities = dynamics.simulate(self.weights(x0), position, velocity, seeds, frames, steps, self.force)
        static = {f.name: self.spec.get(x0, f.name)[:, None] for f in self.spec.static_fields}
        return self.spec.pack(position=positions, velocity=velocities, **static)

    # -- what to look at -----------------------------------------------------------------------------------------------------

    def observables(self, x: np.ndarray) -> dict[str, Observable]:
        """Evaluate what is looked at in tracks, and the potential energy, along trajectories x (*batch, time, body, channel)."""
        potential = Observable("potential energy", "L²/T²", self.potential_energy(x))
        return self._tracks.observables(x) | {"potential_energy": potential}

    @cached_property
    def _tracks(self) -> Recorded:
        return RecordedConfig(spec=RecordedConfig.plain(self.spec), frame_dt=self.frame_dt, time_unit=self.time_unit).build()

    def pair_accelerations(self, x: np.ndarray) -> np.ndarray:
        """Return w_ij d / s^power, (*batch, body i, body j); a bound on accelerations is left out."""
        position, force = self.spec.get(x, "position"), self.force
        squared = ((position[..., :, None, :] - position[..., None, :, :]) ** 2).sum(-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.weights(x) * np.sqrt(squared) / (squared + force.softening**2) ** (force.power / 2)

    def potential_energy(self, x: np.ndarray) -> np.ndarray:
        """Sum of the energies of all pairs of states (*batch, body, channel): (*batch,)."""
        position = self.spec.get(x, "position")
        squared = ((position[..., :, None, :] - position[..., None, :, :]) ** 2).sum(-1)
        first, second = np.triu_indices(position.shape[-2], 1)
        return self.pair_energy(x, squared)[..., first, second].sum(-1)

    def alive(self, x: np.ndarray) -> np.ndarray:
        """Return (*batch, time) booleans: True until a frame of x (*batch, time, body, channel) is not finite or far away."""
        with np.errstate(invalid="ignore"):
            position = self.spec.get(x, "position")
            about = position - position[..., :1, :, :].mean(-2, keepdims=True)
            plausible = np.isfinite(x).all((-2, -1)) & (np.linalg.norm(about, axis=-1) < FARTHEST).all(-1)
        return np.logical_and.accumulate(plausible, axis=-1)


# -- charged particles ---------------------------------------------------------------------------------------------------------


@SYSTEMS.register("charged")
class ChargedConfig(PairSystemConfig):
    """Charged particles.

    Parameters
    ----------
    strength : float
        Acceleration of two unit charges at distance 1.
    speed : float
        Of every body at the start, in a random direction.
    clip : float
        Bound on every component of an acceleration, L / T^2.
    """

    name: Literal["charged"] = "charged"
    strength: pydantic.PositiveFloat = 1.0
    speed: pydantic.NonNegativeFloat = 0.5
    clip: pydantic.PositiveFloat = 100.0

    def build(self) -> Charged:
        return Charged(self)


@final
class Charged(PairSystem):
    """a_i = clip(strength sum_j q_i q_j (r_i - r_j) / |r_i - r_j|^3), charges of +1 or -1, no softening.

    The bound on every component of an acceleration has no more symmetry than the axes of space.
    """

    name = "charged"
    config: ChargedConfig
    first_time = 0.1
    rotations = "axes"

    @property
    def force(self) -> dynamics.PairForce:
        return dynamics.PairForce(3.0, 0.0, self.config.clip, self.config.noise, self.config.dt)

    def attributes(self) -> tuple[Field, ...]:
        return (Field("charge", dynamic=False),)

    def weights(self, x: np.ndarray) -> np.ndarray:
        charge = np.ascontiguousarray(self.spec.get(x, "charge"), np.float64)
        return self.config.strength * charge[..., :, None] * charge[..., None, :]

    def draw(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        bodies = self.config.bodies
        charge = rng.choice([-1.0, 1.0], bodies)
        return {"charge": charge, "position": rng.standard_normal((bodies, 3)), "velocity": _of_length(self.config.speed, bodies, rng)}

    def pair_energy(self, x: np.ndarray, squared: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(squared > 0, self.weights(x) / np.sqrt(squared), 0.0)


# -- springs -------------------------------------------------------------------------------------------------------------------


@SYSTEMS.register("springs")
class SpringsConfig(PairSystemConfig):
    """Particles of which some pairs are joined by springs.

    Parameters
    ----------
    stiffness : float
        Of a spring, 1 / T^2.
    share : float
        Probability that two bodies are joined.
    spread, speed : float
        Standard deviation of every coordinate at the start, L, and the speed of every body, in a random direction.
    """

    name: Literal["springs"] = "springs"
    stiffness: pydantic.PositiveFloat = 0.1
    share: float = pydantic.Field(0.5, ge=0, le=1)
    spread: pydantic.PositiveFloat = 0.5
    speed: pydantic.NonNegativeFloat = 0.5

    def build(self) -> Springs:
        return Springs(self)


@final
class Springs(PairSystem):
    """a_i = -stiffness sum_j e_ij (r_i - r_j); e_ij, 0 or 1, is an attribute of the pair that is known."""

    name = "springs"
    config: SpringsConfig
    first_time = 0.1

    @property
    def force(self) -> dynamics.PairForce:
        return dynamics.PairForce(0.0, 1.0, UNBOUNDED, self.config.noise, self.config.dt)

    def attributes(self) -> tuple[Field, ...]:
        return (Field("spring", kind="pair", size=self.config.bodies, dynamic=False),)

    def weights(self, x: np.ndarray) -> np.ndarray:
        bodies = x.shape[-2]
        return -self.config.stiffness * np.ascontiguousarray(self.spec.get(x, "spring")[..., :bodies], np.float64)

    def draw(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        bodies = self.config.bodies
        joined = np.triu(rng.random((bodies, bodies)) < self.config.share, 1).astype(np.float64)
        position = self.config.spread * rng.standard_normal((bodies, 3))
        return {"spring": joined + joined.T, "position": position, "velocity": _of_length(self.config.speed, bodies, rng)}

    def pair_energy(self, x: np.ndarray, squared: np.ndarray) -> np.ndarray:
        return -0.5 * self.weights(x) * squared


# -- gravity -------------------------------------------------------------------------------------------------------------------


@SYSTEMS.register("gravity")
class GravityConfig(PairSystemConfig):
    """Bodies of unit mass under softened gravity.

    Parameters
    ----------
    gravitational_constant, softening : float
        The pull of two bodies at distance d is G d / (d^2 + softening^2)^{3/2}.
    """

    name: Literal["gravity"] = "gravity"
    bodies: int = pydantic.Field(10, ge=2)
    gravitational_constant: pydantic.PositiveFloat = 1.0
    softening: pydantic.PositiveFloat = 0.1

    def build(self) -> Gravity:
        return Gravity(self)


@final
class Gravity(PairSystem):
    """a_i = -G sum_j (r_i - r_j) / (|r_i - r_j|^2 + softening^2)^{3/2}, the centre of mass at rest."""

    name = "gravity"
    config: GravityConfig

    @property
    def force(self) -> dynamics.PairForce:
        return dynamics.PairForce(3.0, self.config.softening, UNBOUNDED, self.config.noise, self.config.dt)

    def attributes(self) -> tuple[Field, ...]:
        return ()

    def weights(self, x: np.ndarray) -> np.ndarray:
        return np.full((*x.shape[:-2], x.shape[-2], x.shape[-2]), -self.config.gravitational_constant)

    def draw(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        position, velocity = rng.standard_normal((2, self.config.bodies, 3))
        return {"position": position, "velocity": velocity - velocity.mean(0)}

    def pair_energy(self, x: np.ndarray, squared: np.ndarray) -> np.ndarray:
        return self.weights(x) / np.sqrt(squared + self.config.softening**2)


def _of_length(length: float, bodies: int, rng: np.random.Generator) -> np.ndarray:
    """Draw vectors of a length in random directions: (body, 3)."""
    directions = rng.standard_normal((bodies, 3))
    return length * directions / np.linalg.norm(directions, axis=-1, keepdims=True)
