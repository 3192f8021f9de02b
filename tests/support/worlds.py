"""Small particle worlds of every make, and transitions for them, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from epns_pyro.context import DataContext
from epns_pyro.models import TRANSITIONS, Transition
from epns_pyro.models.bodies.particles import ParticlesConfig, ParticleTransition
from epns_pyro.state import Field, StateSpec

DT = 0.1
POSITION = Field("position", "1o", translates=True, unit="m")
VELOCITY = Field("velocity", "1o", rate_of="position", unit="m/s")
WORLDS = {
    "celestial": StateSpec((Field("mass", dynamic=False), POSITION, VELOCITY)),
    "line": StateSpec((POSITION, VELOCITY), space=1),
    "still plane": StateSpec((Field("charge", dynamic=False), POSITION), space=2),  # no velocities
    "positions alone": StateSpec((POSITION,)),
    "warm plane": StateSpec((VELOCITY, Field("temperature", unit="K"), POSITION), space=2),  # a dynamic scalar
    "driven": StateSpec((POSITION, Field("push", "1o", dynamic=False), Field("dipole", "1o"), VELOCITY, Field("mass", dynamic=False))),
}
SCALES = {"mass": 4.0, "charge": 0.5, "position": 2.0, "velocity": 1.5, "temperature": 30.0, "push": 3.0, "dipole": 0.2}
STEP_SCALES = {"position": 0.02, "velocity": 0.3, "temperature": 1.5, "dipole": 0.05}


def context(world: str, bodies: int = 4) -> DataContext:
    spec = WORLDS[world]
    spec = spec.with_scales({name: SCALES[name] for name in spec.names})
    return DataContext(spec, DT, {f.name: STEP_SCALES[f.name] for f in spec.dynamic_fields}, (bodies,))


def trajectories(about: DataContext, batch: int = 3, steps: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """x0 (batch, body, channel) and a path (batch, time, body, channel) that drifts with the velocity and is kicked a little."""
    spec, generator = about.spec, torch.Generator().manual_seed(seed)

    def normal(width: int) -> Tensor:
        return torch.randn(batch, about.sites[0], width, dtype=torch.float64, generator=generator)

    x = torch.cat([spec[name].scale * normal(spec.width(name)) for name in spec.names], -1)
    states = [x]
    rates = {spec[f.rate_of].name: f.name for f in spec.fields if f.rate_of}
    for _ in range(steps):
        moved = {}
        for f in spec.dynamic_fields:
            drift = about.frame_dt * spec.get(x, rates[f.name]) if f.name in rates else 0.0
            kick = normal(spec.width(f))
            moved[f.name] = spec.get(x, f.name) + drift + about.step_scales[f.name] * (kick if f.is_vector else kick[..., 0])
        x = spec.advance(x, spec.pack_dynamic(**moved))
        states.append(x)
    return states[0], torch.stack(states[1:], 1)


def at_order_one(model: dict, about: DataContext) -> Transition:
    """A transition whose weights are of order one: at initialisation much is zero."""
    torch.manual_seed(0)
    transition = TRANSITIONS.parse(model).build(about).double()
    with torch.no_grad():
        for parameter in transition.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return transition


def particles(about: DataContext, seed: int = 0, **settings: object) -> ParticleTransition:
    """A small transition whose every parameter is away from its special starting value."""
    small = {"width": 8, "latent": 3, "hidden_vectors": 3, "backbone": {"name": "vector", "width": 8, "vectors": 4, "layers": 2}}
    small["integrator"] = {"steps": 3, "network": {"name": "pairwise", "width": 8}}
    if any(not f.is_vector for f in about.spec.dynamic_fields):
        small["emission"] = "diagonal"
    torch.manual_seed(seed)
    transition = ParticlesConfig.parse(small | settings).build(about).double()
    with torch.no_grad():
        for parameter in transition.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return transition
