"""Active matter: self-propelled particles that align with their neighbours, in a periodic box, with noise."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Literal, final

import numpy as np
import pydantic

from epns_pyro.later import later
from epns_pyro.state import Field, StateSpec
from epns_pyro.symmetry import Euclidean
from epns_pyro.systems.base import SYSTEMS, Observable, SetConfig, System, SystemConfig, checked_seeds
from epns_pyro.systems.recorded import Recorded, RecordedConfig
from epns_pyro.threads import limited

if TYPE_CHECKING:
    from epns_pyro.systems import active_dynamics as dynamics
else:
    dynamics = later("epns_pyro.systems.active_dynamics")

FASTEST = 10.0  # multiple of the speed of a free particle that is no longer plausible
SMALL = 0.05  # of a side: the largest jump of a position, so that images of it are beyond any rounding


def _sets() -> dict[str, SetConfig]:
    sets = {name: SetConfig(trajectories=n, steps=30) for name, n in (("train", 60), ("val", 10), ("test", 20))}
    return sets | {"same_init": SetConfig(trajectories=100, steps=30, initial_states=1), "long": SetConfig(trajectories=5, steps=300)}


@SYSTEMS.register("active")
class ActiveConfig(SystemConfig):
    """Self-propelled particles that align.

    Parameters
    ----------
    bodies : int
        All are alike.
    space : int
        2 or 3.
    density : float
        Bodies per unit of area or volume: the box grows with the number of bodies.
    radius : float
        Distance within which bodies align, L.
    drive : float
        Rate at which a body comes back to its own speed, 1/T.
    speed : float
        Of a free body, L/T.
    align : float
        Rate of alignment, 1/T.
    noise : float
        Of every velocity component, L/T per square root of time.
    diffusion : float
        Of positions, L^2/T.
    frame_dt : float
        The time step, which is the time between two frames, T.
    settled : int
        Steps between random positions and directions and the initial states.
    """

    name: Literal["active"] = "active"
    bodies: int = pydantic.Field(100, ge=2)
    space: Literal[2, 3] = 2
    density: pydantic.PositiveFloat = 4.0
    radius: pydantic.PositiveFloat = 1.0
    drive: pydantic.NonNegativeFloat = 1.0
    speed: pydantic.PositiveFloat = 1.0
    align: pydantic.NonNegativeFloat = 2.0
    noise: pydantic.PositiveFloat = 0.4
    diffusion: pydantic.PositiveFloat = 1e-3
    frame_dt: pydantic.PositiveFloat = 0.1
    settled: int = pydantic.Field(100, ge=0)
    sets: dict[str, SetConfig] = pydantic.Field(default_factory=_sets)

    @pydantic.model_validator(mode="after")
    def _fits(self) -> ActiveConfig:
        if 2 * self.radius > self.side:
            raise ValueError(f"expected a box of at least two radii, {2 * self.radius:g}, found the side {self.side:.3g}: take more bodies")
        if (jump := (2 * self.diffusion * self.frame_dt) ** 0.5) > SMALL * self.side:
            raise ValueError(f"expected positions that jump by less than {SMALL:g} of the box in a step, found {jump / self.side:.2g}")
        return self

    @property
    def side(self) -> float:
        """Length of a side of the box, L."""
        return (self.bodies / self.density) ** (1 / self.space)

    def build(self) -> Active:
        return Active(self)


@final
class Active(System):
    """A model of the kind of Vicsek (Phys. Rev. Lett. 75, 1226, 1995), in discrete time with a soft speed and smooth weights.

        r' = r + v dt + sqrt(2 diffusion dt) N(0, 1)                                                  in the box
        v' = v + dt [drive (1 - |v|^2 / speed^2) v + align (u - v)] + noise sqrt(dt) N(0, 1)

    u is the mean velocity around a body, itself included, weighted by (1 - d^2 / radius^2)^2 up to the radius. The factor of
    v in the drive is at least -1 / dt, so that no step overshoots rest. Given a state, all
    components of the next one are independent Normals: the oracle is exact. Every state holds the sides of its box, so that a model can
    go on to more bodies than it was trained on.
    """

    name = "active"
    config: ActiveConfig
    can_simulate = True
    has_oracle = True
    has_diagonal_law = True
    time_unit = "T"

    def __init__(self, config: ActiveConfig) -> None:
        self.config = config
        moving = (Field("position", "1o", translates=True, unit="L"), Field("velocity", "1o", unit="L/T", rate_of="position"))
        self.spec = StateSpec((Field("box", "1o", dynamic=False, kind="box", unit="L"), *moving), space=config.space)
        self.symmetry = Euclidean.of(self.spec)
        self.frame_dt = config.frame_dt

    @property
    def law(self) -> dynamics.ActiveLaw:
        c = self.config
        return dynamics.ActiveLaw(c.radius, c.drive, c.speed, c.align, c.noise, c.diffusion, c.frame_dt)

    # -- the process ---------------------------------------------------------------------------------------------------------

    def initial(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draw n states, settled from random positions and directions: (n, body, channel)."""
        shape = (n, self.config.bodies, self.config.space)
        direction = rng.standard_normal(shape)
        velocity = self.config.speed * direction / np.linalg.norm(direction, axis=-1, keepdims=True)
        x = self.spec.pack(box=np.full(shape, self.config.side), position=self.config.side * rng.random(shape), velocity=velocity)
        seeds = rng.integers(2**63, size=n).astype(np.uint64)
        return self.simulate(x, self.config.settled, seeds, workers=1)[:, -1]

    def simulate(self, x0: np.ndarray, steps: int, seeds: np.ndarray, *, workers: int | None = None) -> np.ndarray:
        """Run the process from x0 (n, body, channel) for `steps` frames: (n, steps + 1, body, channel).

        Every trajectory has its own random stream, made from its seed (n,) uint64; the number of threads changes nothing.
        """
        seeds = checked_seeds(self.spec, x0, seeds)
        with limited(workers):
            positions, velocities = dynamics.simulate(*self._parts(x0), seeds, steps, self.law)
        return self.spec.pack(box=self.spec.get(x0, "box")[:, None], position=positions, velocity=velocities)

    def transition_law(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation of every dynamic channel of the next frame of states x (*batch, body, channel).

        Returns
        -------
        mean : numpy.ndarray, (*batch, body, dynamic channel)
            Positions may lie outside of the box.
        deviation : numpy.ndarray, (1, dynamic channel)
            The same for all bodies.
        """
        self.spec.check(x)
        position, velocity, sides = self._parts(x.reshape(-1, *x.shape[-2:]))
        following = dynamics.drifts(position, velocity, sides, self.law)
        mean = self.spec.pack_dynamic(position=position + self.frame_dt * velocity, velocity=following)
        jump, kick = (2 * self.config.diffusion * self.frame_dt) ** 0.5, self.config.noise * self.frame_dt**0.5
        ones = np.ones((1, self.config.space))
        return mean.reshape(*x.shape[:-1], -1), self.spec.pack_dynamic(position=jump * ones, velocity=kick * ones)

    def transition_log_prob(self, x: np.ndarray, x_next: np.ndarray) -> np.ndarray:
        """Return log p(x' | x), nats, (*batch,), for full states (*batch, body, channel); a position is that of its nearest image."""
        mean, deviation = self.transition_law(x)
        self.spec.check(x_next, what="the next state")
        after = self.spec.dynamic(x_next)
        away = self.spec.pack_dynamic(
            position=self.spec.space_of(x).displacement(*(self.spec.get_dynamic(y, "position") for y in (mean, after))),
            velocity=self.spec.get_dynamic(after - mean, "velocity"),
        )
        return -(0.5 * (away / deviation) ** 2 + np.log(deviation) + 0.5 * np.log(2 * np.pi)).sum((-2, -1))

    def diagonal_log_prob(self, x: np.ndarray, x_next: np.ndarray) -> np.ndarray:
        """Return the same as `transition_log_prob`: the law is diagonal."""
        return self.transition_log_prob(x, x_next)

    def _parts(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return position and velocity of states (n, body, channel), and the length of the sides of their boxes, (n,)."""
        position, velocity = (np.ascontiguousarray(self.spec.get(x, name), np.float64) for name in ("position", "velocity"))
        return position, velocity, self.spec.get(x, "box")[:, 0, 0].astype(np.float64)

    # -- what to look at -----------------------------------------------------------------------------------------------------

    def observables(self, x: np.ndarray) -> dict[str, Observable]:
        """Evaluate the order of directions, the mean speed, and what is looked at in tracks, along x (*batch, time, body, channel)."""
        velocity = self.spec.get(x, "velocity")
        speed = np.linalg.norm(velocity, axis=-1).mean(-1)
        order = np.linalg.norm(velocity.mean(-2), axis=-1) / speed
        mine = {"polarisation": Observable("polarisation", "", order), "mean_speed": Observable("mean speed", "L/T", speed)}
        return mine | self._tracks.observables(x)

    @cached_property
    def _tracks(self) -> Recorded:
        return RecordedConfig(spec=RecordedConfig.plain(self.spec), frame_dt=self.frame_dt, time_unit=self.time_unit).build()

    def alive(self, x: np.ndarray) -> np.ndarray:
        """Return (*batch, time) booleans: True until a frame of x (*batch, time, body, channel) is not finite or a body is too fast."""
        with np.errstate(invalid="ignore", over="ignore"):
            fast = np.linalg.norm(self.spec.get(x, "velocity"), axis=-1) > FASTEST * self.config.speed
            plausible = np.isfinite(x).all((-2, -1)) & ~fast.any(-1)
        return np.logical_and.accumulate(plausible, axis=-1)
