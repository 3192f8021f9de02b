"""The transition whose mean is a symplectic map: BAOAB sub-steps of a learned potential energy, and noise on momenta.

It needs positions and velocities that are both recorded, and takes the masses that the data have. Before training bodies move freely, with
the noise of the data. Sizes of noise depend on static attributes alone: were they to depend on positions, kicks would be no shears. For
the same reason nothing is added to the end of a frame, except the small error s of a recording.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import pydantic
import torch
from torch import Tensor, nn

from epns_pyro.backbones.bodies.base import perceptron
from epns_pyro.config import one_of
from epns_pyro.context import DataContext
from epns_pyro.derived import has_hidden_states
from epns_pyro.errors import ConfigError
from epns_pyro.models.bodies.emissions import DiagonalConfig
from epns_pyro.models.bodies.fields import BodyFields
from epns_pyro.models.symplectic.flow import Flow
from epns_pyro.models.symplectic.noise import NOISES, NoiseConfig, SymplecticStep
from epns_pyro.models.symplectic.potentials import POTENTIALS, PotentialConfig, velocity_and_mass
from epns_pyro.models.transition import TRANSITIONS, Carry, Transition, TransitionConfig
from epns_pyro.state import StateSpec

STRENGTHS = (1e-3, 3.0)  # of the noise before training, in typical changes per frame
RECORDING = 0.03  # the error s before training, in typical changes per frame
FRICTION = -4.0  # friction before training: softplus of it, per frame
HIDDEN = 16  # channels of the network that sets the size of noise
FASTER = 10.0  # logarithms of sizes have far to go, and an optimiser moves each weight by about its learning rate per step


class SymplecticTransition(Transition):
    """A symplectic map with noise on momenta; equivariant where its potential is invariant."""

    hidden_event_dim = 2
    block_size = 1024
    step_scales: Tensor

    def __init__(self, config: SymplecticConfig, context: DataContext) -> None:
        super().__init__()
        self.config, self.spec, self.bodies = config, context.spec, BodyFields(context)
        self.position = self.bodies.position
        self.velocity, self.mass = _require_phase_space(context.spec, self.position, config.mass)
        self.absences, self.noise = context.absences, config.noise
        self.latent_fields = config.noise.latent_fields(self.spec[self.velocity])
        self.positions_first = self.spec.names.index(self.position) < self.spec.names.index(self.velocity)
        self.potential = config.potential.build(context, self.velocity, self.mass)
        attributes = self.potential.seen.feature_counts[0]
        self.log_sigma = nn.Parameter(torch.zeros(()))
        self.sigma_net = perceptron(attributes, HIDDEN, 1, small_output=True) if attributes else None
        scales = torch.tensor([context.step_scales[f.name] for f in self.spec.dynamic_fields])
        self.register_buffer("step_scales", scales, persistent=False)
        self.kick_unit = context.step_scales[self.velocity] / math.sqrt(context.frame_dt)
        self.log_spread = nn.Parameter(torch.full((2,), math.log(RECORDING) / FASTER))
        self.raw_friction = nn.Parameter(torch.tensor(FRICTION)) if config.friction else None

    def step(self, carry: Carry) -> SymplecticStep:
        return self.noise.build(self, carry)

    # -- what a step is made of ------------------------------------------------------------------------------------------------

    def flow(self, x: Tensor, mask: Tensor | None = None) -> Flow:
        """Return the map of a frame for the attributes in states x (*batch, body, channel)."""
        return Flow(self.potential.at(x, mask), self.potential.masses(x, mask), self.bodies.duration(x), self.config.steps, self.friction)

    def phase(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return positions and velocities of states, each (*batch, body, space)."""
        return self.spec.get(x, self.position), self.spec.get(x, self.velocity)

    def channels(self, q: Tensor, v: Tensor) -> Tensor:
        """Return positions and velocities as dynamic channels (*batch, body, dynamic channel)."""
        return self.spec.pack_dynamic(**{self.position: q, self.velocity: v})

    def sigma(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the strength of the noise on velocities, per root of time: (*batch, body). It depends on static attributes alone."""
        raw = (FASTER * self.log_sigma).expand(x.shape[:-1])
        if self.sigma_net is not None:
            raw = raw + self.sigma_net(self.potential.seen.features(self.potential.visible(x), mask).scalars)[..., 0]
        return DiagonalConfig().scales(raw, self.log_sigma.new_tensor(self.kick_unit))

    @torch.no_grad()
    def start_noise(self, sigma: float) -> None:
        """Set the strength of the noise on velocities before training, per root of time, to one of the sizes that it can have."""
        size = min(max(sigma / self.kick_unit, STRENGTHS[0]), STRENGTHS[1])
        self.log_sigma.fill_(math.log(size) / FASTER)

    def spread(self, x: Tensor) -> Tensor:
        """Return the error s of a recording, a standard deviation: (field,), or (*batch, body, field) where steps are uneven."""
        return DiagonalConfig(minimum=self.noise.minimum).scales(FASTER * self.log_spread, self.bodies.step_units(x, self.step_scales))

    @property
    def has_motion(self) -> bool:
        return True

    def acceleration(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return -grad U / m; friction is left out: (*batch, body, space)."""
        return self.potential.at(x, mask).forces(self.phase(x)[0]) / self.potential.masses(x, mask)[..., None]

    @property
    def friction(self) -> Tensor | None:
        """Return the friction gamma, per unit of time: (); None where there is none."""
        return None if self.raw_friction is None else nn.functional.softplus(self.raw_friction) / self.bodies.frame_dt


def _require_phase_space(spec: StateSpec, position: str, mass: str) -> tuple[str, str]:
    """Return the names of velocity and mass.

    Raises
    ------
    ConfigError
        Unless the dynamic fields are a position and its velocity, both recorded.
    """
    velocity, mass = velocity_and_mass(spec, position, mass)
    found = ", ".join(f.name for f in spec.dynamic_fields)
    if not velocity or {f.name for f in spec.dynamic_fields} != {position, velocity}:
        raise ConfigError(
            f"model 'symplectic' is for positions and their velocities alone, found the dynamic fields {found}: use model 'particles'"
        )
    if spec[velocity].differences or has_hidden_states(spec):
        raise ConfigError(
            f"model 'symplectic' needs positions and velocities that are both recorded, and {velocity} is computed or inferred: "
            "use model 'particles'"
        )
    return velocity, mass


@TRANSITIONS.register("symplectic")
class SymplecticConfig(TransitionConfig):
    """A learned potential energy, followed by symplectic steps; noise on momenta."""

    name: Literal["symplectic"] = "symplectic"
    potential: Annotated[PotentialConfig, one_of(POTENTIALS)] = pydantic.Field(default="pair", validate_default=True)
    steps: int = pydantic.Field(default=10, ge=1, le=1000, description="sub-steps per frame")
    noise: Annotated[NoiseConfig, one_of(NOISES)] = pydantic.Field(
        default="covariance", validate_default=True, description="a covariance that the map transports, or kicks inside the map as latents"
    )
    friction: bool = pydantic.Field(default=False, description="learn a friction, the same for all bodies")
    mass: str = pydantic.Field(default="mass", description="static field of the masses; where the data have none, all weigh the same")

    def build(self, context: DataContext) -> SymplecticTransition:
        return SymplecticTransition(self, context)
