"""Silicon: a cluster of atoms whose bonds have a preferred angle, with Brownian kicks to the velocities.

The potential is that of Stillinger and Weber (Physical Review B 31, 5262, 1985), with their numbers, in their units: lengths L of 2.0951
Angstrom, energies of 50 kcal/mol, the mass of an atom, and the time T that follows. A sum over pairs makes bonds; a sum over the
angles at every atom bends them to that of a tetrahedron.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, final

import numpy as np
import pydantic

from epns_pyro.later import later
from epns_pyro.once import once
from epns_pyro.state import Field, StateSpec
from epns_pyro.symmetry import Euclidean
from epns_pyro.systems.base import SYSTEMS, Observable, SetConfig, SystemConfig
from epns_pyro.systems.kicked_bodies import KickedBodies
from epns_pyro.systems.whole_steps import whole_steps

if TYPE_CHECKING:
    from epns_pyro.systems import silicon_dynamics as dynamics
else:
    dynamics = later("epns_pyro.systems.silicon_dynamics")

DEPTH, CORE, STEEPNESS, REACH = 7.049556277, 0.6022245584, 1.2, 1.8  # A, B, gamma and a of the publication
SPREAD = 0.4  # of positions as they are drawn, by the cube root of the number of atoms, L
DOWNHILL = 1000  # steps towards a minimum of the energy, from where atoms are drawn


def _default_sets() -> dict[str, SetConfig]:
    return {
        "train": SetConfig(trajectories=400, steps=50),
        "val": SetConfig(trajectories=50, steps=50),
        "test": SetConfig(trajectories=100, steps=50),
        "same_init": SetConfig(trajectories=1000, steps=50, initial_states=5),
    }


@SYSTEMS.register("silicon")
class SiliconConfig(SystemConfig):
    """Settings of a cluster of silicon.

    Parameters
    ----------
    bodies : int
        Atoms.
    angles : float
        Strength lambda of the energy of angles; 0: pairs alone.
    temperature : float
        Of the velocities at the start, in units of energy.
    sigma : float
        Standard deviation of the kicks to every velocity component, L / T per square root of T. 0 for no noise.
    dt, frame_dt : float
        Integrator step and time between two frames, T; a frame is a whole number of steps.
    energy_jump : float
        A trajectory is no longer alive after a frame in which its total energy rises by more than this.
    """

    name: Literal["silicon"] = "silicon"
    bodies: int = pydantic.Field(5, ge=2)
    angles: pydantic.NonNegativeFloat = 21.0
    temperature: pydantic.NonNegativeFloat = 0.1
    sigma: pydantic.NonNegativeFloat = 0.1
    dt: pydantic.PositiveFloat = 2.5e-3
    frame_dt: pydantic.PositiveFloat = pydantic.Field(0.05, validate_default=True)
    energy_jump: pydantic.PositiveFloat = 10.0
    sets: dict[str, SetConfig] = pydantic.Field(default_factory=_default_sets)

    _whole_steps = pydantic.field_validator("frame_dt")(whole_steps)

    def build(self) -> Silicon:
        return Silicon(self)


@final
class Silicon(KickedBodies):
    """Atoms of unit mass under the Stillinger-Weber potential with Brownian kicks, and the law of one frame."""

    name = "silicon"
    config: SiliconConfig
    time_unit = "T"
    key_observables = ("kinetic_energy", "potential_energy", "angle_energy", "total_energy")

    def __init__(self, config: SiliconConfig) -> None:
        self.config = config
        self.spec = StateSpec((Field("position", "1o", translates=True, unit="L"), Field("velocity", "1o", unit="L/T", rate_of="position")))
        self.symmetry = Euclidean(space=3)
        self.frame_dt, self.sigma, self.energy_jump = config.frame_dt, config.sigma, config.energy_jump
        self.steps_per_frame = round(config.frame_dt / config.dt)
        self.has_oracle = self.has_diagonal_law = self.has_density

    # -- the process -------------------------------------------------------------------------------------------------------

    @once
    def physics(self) -> dynamics.Physics:
        """The constants as the compiled code takes them."""
        return dynamics.Physics(DEPTH, CORE, self.config.angles, STEEPNESS, REACH, self.config.sigma, self.config.dt)

    def initial(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draw n clusters near a minimum of the energy, with thermal velocities and the centre of mass at rest: (n, body, channel)."""
        bodies = self.config.bodies
        position = np.stack([self._cluster(rng) for _ in range(n)])
        velocity = np.sqrt(self.config.temperature) * rng.standard_normal((n, bodies, 3))
        return self.spec.pack(position=position, velocity=velocity - velocity.mean(1, keepdims=True))

    def _cluster(self, rng: np.random.Generator) -> np.ndarray:
        """Draw positions until they relax to as many bonds as a chain has: (body, 3)."""
        bodies = self.config.bodies
        while True:
            r = SPREAD * bodies ** (1 / 3) * rng.standard_normal((bodies, 3))
            dynamics.relax(r, self.physics, DOWNHILL)
            if dynamics.energy(r, self.physics) < -(bodies - 1.5):
                return r - r.mean(0)

    def _walked(self, x0: np.ndarray, steps: int, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return dynamics.simulate(*self._parts(x0), seeds, steps, self.steps_per_frame, self.physics)

    def _propagated(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return dynamics.propagate_law(*self._parts(x), self.steps_per_frame, self.physics)

    def acceleration(self, x: np.ndarray) -> np.ndarray:
        """Minus the gradient of the energy at states (*batch, body, channel): (*batch, body, 3)."""
        position, _ = self._parts(x)
        return dynamics.accelerations(position.reshape(-1, *position.shape[-2:]), self.physics).reshape(position.shape)

    # -- what to look at -----------------------------------------------------------------------------------------------------

    def observables(self, x: np.ndarray) -> dict[str, Observable]:
        """Return energies and sizes along trajectories x (*batch, time, body, channel)."""
        position, _ = self._parts(x)
        kinetic, potential = self.kinetic_energy(x), self.potential_energy(x)
        of_pairs = self._energies(x, self.physics._replace(angles=0.0))
        first, second = np.triu_indices(position.shape[-2], 1)
        distances = np.linalg.norm(position[..., first, :] - position[..., second, :], axis=-1)
        energy = "L²/T²"  # of a unit mass
        return {
            "kinetic_energy": Observable("kinetic energy", energy, kinetic),
            "potential_energy": Observable("potential energy", energy, potential),
            "angle_energy": Observable("energy of angles", energy, potential - of_pairs),
            "total_energy": Observable("total energy", energy, kinetic + potential),
            "mean_distance": Observable("mean distance of two atoms", "L", distances.mean(-1)),
            "least_distance": Observable("least distance of two atoms", "L", distances.min(-1)),
        }

    def total_energy(self, x: np.ndarray) -> np.ndarray:
        return self.kinetic_energy(x) + self.potential_energy(x)

    def kinetic_energy(self, x: np.ndarray) -> np.ndarray:
        """sum_i |v_i|^2 / 2 of states (*batch, body, channel): (*batch,)."""
        return 0.5 * (self._parts(x)[1] ** 2).sum((-2, -1))

    def potential_energy(self, x: np.ndarray) -> np.ndarray:
        """Stillinger-Weber energy of states (*batch, body, channel): (*batch,)."""
        return self._energies(x, self.physics)

    def _energies(self, x: np.ndarray, physics: dynamics.Physics) -> np.ndarray:
        position, _ = self._parts(x)
        return dynamics.energies(position.reshape(-1, *position.shape[-2:]), physics).reshape(position.shape[:-2])

    def _parts(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Position and velocity (*batch, body, 3), each contiguous in float64."""
        position, velocity = (np.ascontiguousarray(self.spec.get(x, name), dtype=np.float64) for name in self.spec.names)
        return position, velocity
