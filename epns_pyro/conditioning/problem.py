"""A conditioning problem: checked input, as tensors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from epns_pyro.conditioning.gaussian import LogQuadratic, NormalLaw, exactly, normal_law
from epns_pyro.conditioning.observations import InitialNormal, Observations, require_real
from epns_pyro.conditioning.particles import Pinned, Potential, TransitionKernel, sampled
from epns_pyro.config import Choice
from epns_pyro.context import DataContext
from epns_pyro.durations import nominal
from epns_pyro.errors import ConfigError, ShapeError
from epns_pyro.models import Transition

MAX_STATE = 400  # numbers of a state: covariances of whole states are computed

Start = Tensor | np.ndarray | InitialNormal


class Proposal(Choice):
    """How particles are proposed at an observation."""

    AUTO = "auto"  # adapted where the emission is Normal
    ADAPTED = "adapted"  # towards the observation, in closed form, with look-ahead to the next observed frame
    FORECAST = "forecast"  # from the model, then weighted: the bootstrap filter


@dataclass(frozen=True)
class Problem:
    """A checked conditioning problem, as tensors.

    Parameters
    ----------
    x0 : Tensor, (particle, *site, channel)
    law : NormalLaw
        Of the dynamic channels of the initial states.
    measured : list of LogQuadratic
        log p(y_t | x) at t = 0 .. T.
    observed : frozenset of int
        Frames with a measurement, and the last where the end is known.
    end : Pinned, optional
        The state of the last frame, where it is known.
    past : Tensor, (particle, time, *site, channel), optional
        Recorded states before x0.
    """

    kernel: TransitionKernel
    x0: Tensor
    law: NormalLaw
    measured: list[LogQuadratic]
    observed: frozenset[int]
    end: Pinned | None = None
    past: Tensor | None = None

    @property
    def steps(self) -> int:
        return len(self.measured) - 1

    @property
    def targets(self) -> list[Potential]:
        """Return what is known of the states of frames 1 .. T: their measurements, and the end if it is known."""
        last = self.measured[-1] if self.end is None else self.end
        return [*self.measured[1:-1], last]

    @property
    def looks_ahead(self) -> bool:
        """Return whether there are enough particles to fit a linear step to them."""
        return len(self.x0) >= 2 * (self.law.mean.shape[-1] + 1)


def build_problem(
    transition: Transition,
    context: DataContext,
    x0: Start,
    observations: Observations,
    particles: int,
    end: Tensor | np.ndarray | None = None,
    past: Tensor | None = None,
) -> Problem:
    """Check the input and convert it to float64 tensors, with positions relative to the origin of the context."""
    if particles < 1:
        raise ConfigError(f"expected at least one particle, found {particles}")
    spec, kernel = transition.spec, TransitionKernel(transition)
    require_real(spec)
    parameter = next(transition.parameters(), torch.zeros(()))
    states, scale = _initial(transition, x0)
    rows = torch.arange(particles) * len(states) // particles
    states = context.to_local(states).to(parameter.device, parameter.dtype)[rows.to(parameter.device)]
    observations.check(spec, tuple(states.shape[1:-1]))
    flat = kernel.flat(states)
    if flat.shape[-1] > MAX_STATE:
        raise ConfigError(f"states of at most {MAX_STATE} numbers can be conditioned, found {flat.shape[-1]}")
    law = exactly(flat)
    if scale is not None:
        law = NormalLaw(flat, torch.diag(torch.as_tensor(scale, device=flat.device).flatten()).expand(particles, -1, -1))
    values, noise = (
        torch.as_tensor(a, dtype=torch.float64, device=flat.device).flatten(1)
        for a in (context.to_local(observations.values, among_dynamic=True), observations.noise)
    )
    measured = [LogQuadratic.of_measurement(v, s) for v, s in zip(values, noise, strict=True)]
    observed = frozenset(observations.frames.tolist())
    pinned = None
    if end is not None:
        if observations.steps in observed:
            raise ShapeError(f"step {observations.steps} is both observed and known as the end: leave its observations out")
        known = torch.as_tensor(end)
        spec.check(known, what="the end")
        if known.shape not in (states.shape[1:], (1, *states.shape[1:])):
            raise ShapeError(f"the end: expected one state {tuple(states.shape[1:])}, found {tuple(known.shape)}")
        known = context.to_local(known).reshape(states.shape[1:]).to(states)
        if not torch.equal(spec.advance(known, spec.dynamic(states[0])), states[0]):
            raise ShapeError(
                f"the end: its static fields ({', '.join(f.name for f in spec.static_fields)}) differ from the initial state's"
            )
        pinned = Pinned(known, kernel.flat(known[None])[0])
        observed = observed | {observations.steps}
    if past is not None:
        past = past.to(states).expand(particles, *past.shape)
    return Problem(kernel, states, law, measured, observed, pinned, past)


def _initial(transition: Transition, x0: Start) -> tuple[Tensor, np.ndarray | None]:
    """States (state, *site, channel), and standard deviations (*site, dynamic channel) where the start is a Normal law.

    Observations count steps of nominal duration, so all of them last as long, whatever the step did that was recorded after the start.
    """
    spec = transition.spec
    scale = x0.flat_scale(spec) if isinstance(x0, InitialNormal) else None
    states = torch.as_tensor(x0.mean if isinstance(x0, InitialNormal) else x0)
    spec.check(states, what="the initial state")
    one = 1 + len(spec.sites)
    states = states[None] if states.dim() == one else states
    if states.dim() != one + 1 or (scale is not None and len(states) != 1):
        raise ShapeError(
            f"the initial state: expected one state ({', '.join(spec.sites)}, channel) or an ensemble (sample, {', '.join(spec.sites)}, "
            f"channel), found {tuple(states.shape)}"
        )
    return nominal(spec, states), scale


def complete(transition: Transition, x0: Start, observations: Observations | None, steps: int | None) -> Observations:
    """Return observations over the requested number of steps; empty ones if there are none."""
    if observations is None:
        if steps is None or steps < 1:
            raise ShapeError(f"without observations smoothing needs steps=, a number of at least 1, found {steps}")
        require_real(transition.spec)
        sites = _initial(transition, x0)[0].shape[1:-1]
        shape = (steps + 1, *sites, transition.spec.dynamic_channels)
        return Observations(np.full(shape, np.nan), np.ones(shape))
    if steps is not None and steps != observations.steps:
        raise ShapeError(f"steps {steps} contradicts the observations, which have {observations.steps}: leave it out")
    return observations


def adapts(problem: Problem, proposal: Proposal) -> bool:
    """Return whether to adapt the proposal to the observations."""
    if (proposal := Proposal(proposal)) is Proposal.AUTO:
        one = problem.kernel.transition.started(problem.x0[:1], None if problem.past is None else problem.past[:1])
        return normal_law(sampled(problem.kernel.transition.step(one))) is not None
    return proposal is Proposal.ADAPTED
