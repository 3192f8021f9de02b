"""Which transitions have an equation of motion that can be fitted before training, and what becomes of it then."""

from __future__ import annotations

from torch import nn

from epns_pyro.backbones.bodies.laws import Law
from epns_pyro.derived import has_hidden_states
from epns_pyro.errors import ConfigError
from epns_pyro.models import Transition
from epns_pyro.models.bodies.inferred import InferredIntegrator
from epns_pyro.models.bodies.integrator import Integrator
from epns_pyro.models.bodies.particles import ParticleTransition
from epns_pyro.models.symplectic.potentials import PairPotential
from epns_pyro.models.symplectic.transition import SymplecticTransition

LARGEST_LAW = 1000  # parameters: the method solves systems of so many equations
DEFAULT_WINDOWS = 400  # that a law is fitted to
NO_LAW = "training.motion_windows: the model has no equation of motion to fit: set it to 0"


def require_integrator(transition: Transition) -> Integrator:
    """Return the integrator of a transition, whose law can be fitted.

    Raises
    ------
    ConfigError
        If it has none, or one of too many parameters.
    """
    integrator = transition.integrator if isinstance(transition, ParticleTransition) else None
    if integrator is None:
        raise ConfigError(NO_LAW)
    _require_few(integrator.network, "use model.integrator.network=central")
    return integrator


def require_potential(transition: Transition) -> tuple[SymplecticTransition, PairPotential]:
    """Return a symplectic transition and its potential, which can be fitted.

    Raises
    ------
    ConfigError
        If it is none, has no pair potential, or one of too many parameters.
    """
    if not isinstance(transition, SymplecticTransition):
        raise ConfigError(NO_LAW)
    if not isinstance(transition.potential, PairPotential):
        raise ConfigError("training.motion_windows: only a pair potential can be fitted: set it to 0, or use model.potential=pair")
    _require_few(transition.potential, "lower model.potential.width or model.potential.copies")
    return transition, transition.potential


def _require_few(law: nn.Module, way_out: str) -> None:
    if (count := _numbers(law)) > LARGEST_LAW:
        raise ConfigError(
            f"training.motion_windows: the law has {count} parameters, at most {LARGEST_LAW} can be fitted: set it to 0, or {way_out}"
        )


def _numbers(law: nn.Module) -> int:
    return sum(p.numel() for p in law.parameters())


def windows_to_fit(transition: Transition, asked: int | None) -> int:
    """Return the number of windows that the equation of motion of a transition is fitted to before training: 0 for none.

    Where nothing was asked for, a pair potential is fitted, and a law of nature of bodies whose states are recorded.

    Raises
    ------
    ConfigError
        If windows were asked for, and there is no law that can be fitted.
    """
    if asked is None:
        return DEFAULT_WINDOWS if _is_fitted_by_default(transition) else 0
    if asked:
        _require_law(transition)
    return asked


def _require_law(transition: Transition) -> nn.Module:
    if isinstance(transition, SymplecticTransition):
        return require_potential(transition)[1]
    return require_integrator(transition).network


def _is_fitted_by_default(transition: Transition) -> bool:
    try:
        law = _require_law(transition)
    except ConfigError:
        return False
    return isinstance(law, PairPotential) or (isinstance(law, Law) and not has_hidden_states(transition.spec))


def too_large(transition: Transition) -> str:
    """Say that a law of nature has too many numbers to be fitted, and so is left to training; "" where it has not."""
    integrator = transition.integrator if isinstance(transition, ParticleTransition) else None
    if integrator is None or not isinstance(integrator.network, Law) or has_hidden_states(transition.spec):
        return ""
    if (count := _numbers(integrator.network)) <= LARGEST_LAW:
        return ""
    return (
        f"warning: the law has {count:,} numbers, and at most {LARGEST_LAW:,} are fitted before training: it is left to training, "
        "which takes thousands of steps (--steps); fewer classes of bodies have fewer numbers"
    )


def is_held(transition: Transition) -> bool:
    """Return whether a law stays as it was fitted: velocities are inferred, or frames walked again: systems of hardly any noise.

    Others are trained on with their noise.
    """
    integrator = transition.integrator if isinstance(transition, ParticleTransition) else None
    return integrator is not None and (isinstance(integrator, InferredIntegrator) or integrator.refinements > 0)


def hold(transition: Transition) -> None:
    """Take a law that is going to be fitted out of training where it stays as it was fitted."""
    if is_held(transition):
        require_integrator(transition).requires_grad_(False)
