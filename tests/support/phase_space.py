"""Phase space: how far a map is from symplectic, and symplectic transitions with random weights or a law that is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from epns_pyro.context import DataContext
from epns_pyro.models.symplectic.potentials import NEAREST, PairPotential
from epns_pyro.models.symplectic.transition import SymplecticConfig, SymplecticTransition
from epns_pyro.state import Field, StateSpec

DT = 0.1
MASS, POSITION = Field("mass", dynamic=False), Field("position", "1o", translates=True)
VELOCITY = Field("velocity", "1o", rate_of="position")
PhaseMap = Callable[[Tensor], Tensor]


def canonical(half: int) -> Tensor:
    """J = [[0, 1], [-1, 0]] of so many degrees of freedom, positions first."""
    one, zero = torch.eye(half, dtype=torch.float64), torch.zeros(half, half, dtype=torch.float64)
    return torch.cat([torch.cat([zero, one], 1), torch.cat([-one, zero], 1)], 0)


def jacobian(phase_map: PhaseMap, at: Tensor) -> Tensor:
    """M of a map of flat phase space (2 n,), positions first."""
    return torch.autograd.functional.jacobian(phase_map, at)


def symplectic_error(matrix: Tensor, factor: float = 1.0) -> float:
    """|M' J M - factor J|, relative to the size of the products that M is multiplied with itself in."""
    J = canonical(len(matrix) // 2)
    return float((matrix.T @ J @ matrix - factor * J).abs().max() / max(1.0, float(matrix.abs().max()) ** 2))


def in_phase_space(transition: SymplecticTransition, x: Tensor, step: PhaseMap) -> tuple[PhaseMap, Tensor]:
    """A map of states (body, channel) to dynamic channels as one of positions and momenta (2 n,), and where it starts."""
    spec, mass = transition.spec, transition.potential.masses(x)[:, None]
    shape = spec.get(x, "position").shape

    def phase_map(flat: Tensor) -> Tensor:
        q, p = (part.view(shape) for part in flat.chunk(2))
        y = step(spec.advance(x, transition.channels(q, p / mass)))
        return torch.cat([spec.get_dynamic(y, "position").flatten(), (mass * spec.get_dynamic(y, "velocity")).flatten()])

    return phase_map, torch.cat([spec.get(x, "position").flatten(), (mass * spec.get(x, "velocity")).flatten()])


def draw_error(transition: SymplecticTransition, x: Tensor, z: Tensor | None = None, factor: float = 1.0) -> float:
    """How far the map of a step from a state (body, channel) is from symplectic, for given latents; without them that without noise."""

    def step(x: Tensor) -> Tensor:
        one = transition.at(x)
        return one.h if z is None else one.emission(z).mean

    return symplectic_error(jacobian(*in_phase_space(transition, x, step)), factor)


def about(bodies: int, *, mass: bool = True, space: int = 3, scales: dict[str, float] | None = None) -> DataContext:
    spec = StateSpec((*((MASS,) if mass else ()), POSITION, VELOCITY), space=space)
    return DataContext(spec.with_scales(scales or {"position": 1.3}), DT, {"position": 0.02, "velocity": 0.3}, (bodies,))


def states(context: DataContext, batch: int | None = None, seed: int = 0) -> Tensor:
    """Bodies with masses between 0.5 and 1.5 at places and velocities of order one: (batch, body, channel) or (body, channel)."""
    spec, generator = context.spec, torch.Generator().manual_seed(seed)
    shape = (*(() if batch is None else (batch,)), *context.sites)
    x = torch.randn(*shape, spec.channels, dtype=torch.float64, generator=generator)
    for field in spec.static_fields:
        x[..., spec.slice(field.name)] = 0.5 + torch.rand(*shape, spec.width(field), dtype=torch.float64, generator=generator)
    return x


def symplectic(context: DataContext, seed: int = 0, size: float = 1.0, kind: type = SymplecticTransition, **settings: object):
    """A transition in float64, all of whose weights are Normal of a size: of order one, never those of the start."""
    torch.manual_seed(seed)
    transition = kind(SymplecticConfig.parse(settings), context).double()
    with torch.no_grad():
        for parameter in transition.potential.parameters():
            parameter.copy_(size * torch.randn_like(parameter))
        if isinstance(transition.potential, PairPotential):  # lengths of order one as well: two bodies at 0.01 are no random state
            transition.potential.radial.log_lengths.copy_(0.5 * torch.randn(6))
    return transition


@torch.no_grad()
def follow_gravity(transition: SymplecticTransition, constant: float, softening: float, sigma: float = 0.0) -> SymplecticTransition:
    """Set the weights of a pair potential to those of softened gravity, and the size of the noise."""
    potential = transition.potential
    for parameter in potential.parameters():
        parameter.zero_()
    length, unit = potential.length, potential.energy_unit
    potential.radial.log_lengths.fill_(math.log(math.sqrt((softening / length) ** 2 - NEAREST**2)))
    potential.radial.exponents[0, 0] = -1.0
    if potential.mass:
        potential.linear[0, 0] = -constant * potential.full[potential.mass].scale / (length * unit)
    else:
        potential.constant[0] = -2 * constant / (length * unit)
    if sigma:
        for parameter in (transition.sigma_net or torch.nn.Module()).parameters():
            parameter.zero_()
        transition.log_sigma.zero_()
        now = float(transition.sigma(torch.zeros(1, 1, transition.spec.channels, dtype=torch.float64)))
        transition.kick_unit *= sigma / now
    return transition
