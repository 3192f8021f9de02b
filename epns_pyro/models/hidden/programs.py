"""The Pyro program of recordings that are not the state: a state-space model, and a guide that infers its states.

    p(x_{0:T}, z_{1:T}, y_{1:T} | y_0) = p(x_0) prod_t p(z_t | h_t) p(x_t | h_t, z_t) p(y_t | x_t),   h_t = f(x_{t-1})     HiddenModel
    q(x_{0:T}, z_{1:T} | y_{0:T})      = prod_t q(x_t | x_{t+1}, y) prod_t q(z_t | h_t, x_t)                              HiddenGuide

The transition is that of recorded states, untouched. Model and guide have the signature of `epns_pyro.models.epns`, where x0 and path are
what was recorded: NaN where a body was not detected, and anything in the channels of a hidden field. Absent bodies have no density.
"""

from __future__ import annotations

import numpy as np
import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from epns_pyro.context import DataContext
from epns_pyro.errors import ShapeError
from epns_pyro.models.hidden.laws import PartlyKnown
from epns_pyro.models.hidden.recording import Frames, Recording, recording_of
from epns_pyro.models.normal import masked
from epns_pyro.models.program import PathProgram, trajectory_plate
from epns_pyro.models.transition import Transition
from epns_pyro.state import StateSpec


class _Hidden(PathProgram):
    """A transition and its recording, unrolled over time.

    With a context whose positions are measured from an origin, recordings are in the coordinates of the data, and sites are not.
    """

    absences = True  # a missed detection is no absence

    def __init__(self, transition: Transition, *, context: DataContext | None = None) -> None:
        super().__init__()
        self.transition = transition
        self.context = context if context and context.origin else None

    @property
    def spec(self) -> StateSpec:
        return self.transition.spec

    def _tensor(self, x: Tensor | np.ndarray) -> Tensor:
        return super()._tensor(self.context.to_local(torch.as_tensor(x)) if self.context else x)

    def _read(self, x0: Tensor, path: Tensor | None, horizon: int | None) -> tuple[Transition, Recording, Frames, int]:
        """Return the transition, its recording, the frames seen, and the steps to forecast beyond them."""
        seen = 0 if path is None else path.shape[path.dim() - len(self.spec.sites) - 2]
        self._start(x0, path, horizon if path is None else None)
        if horizon is not None and horizon < seen:
            raise ShapeError(f"horizon {horizon} is shorter than the path, {seen} steps: leave it out, or go on beyond the path")
        transition, ahead = self.transition, 0 if horizon is None else horizon - seen
        recording = recording_of(transition)
        x = x0[:, None] if path is None else torch.cat([x0[:, None], path], 1)
        return transition, recording, recording.read(x, forecast=ahead > 0), ahead


class HiddenModel(_Hidden):
    """p(x_{0:T}, z_{1:T}, y_{1:T} | y_0).

    Sites, in the plate ``trajectory``: ``x_0`` (body, dynamic channel), the state of every body in the frame that it enters in; per step t
    ``h_t`` (deterministic), ``z_t`` (entity, latent), ``x_t`` (body, dynamic channel), all latent; and ``y_t`` (body, recorded channel),
    observed as far as the path goes. With `horizon` beyond the path the model goes on to forecast.
    """

    def forward(self, x0: Tensor, path: Tensor | None = None, *, horizon: int | None = None) -> Tensor:
        """Sample or score a recording; return the full states (batch, body, channel) after the last step."""
        transition, recording, frames, ahead = self._read(x0, path, horizon)
        spec, evidence, values = transition.spec, frames.evidence, recording.values(frames)
        with trajectory_plate(spec, x0):
            entry = pyro.sample("x_0", masked(recording.entry_law(frames).to_event(1), evidence.there.any(1)))
            carry = transition.start(recording.state(frames, 0, recording.by_field(entry)))
            for t in pyro.markov(range(1, frames.x.shape[1] + ahead)):
                step = transition.step(carry)
                pyro.deterministic(f"h_{t}", step.h, event_dim=transition.hidden_event_dim)
                z = pyro.sample(f"z_{t}", step.prior)
                emission = step.emission(z)
                if t >= frames.x.shape[1]:
                    y, following = pyro.sample(f"x_{t}", emission), None
                    pyro.sample(f"y_{t}", recording.law(y).to_event(1))
                else:
                    drawn = pyro.sample(f"x_{t}", masked(emission, frames.stays[:, t - 1]))
                    y = torch.where(evidence.first[:, t, :, None], entry, drawn)
                    following = recording.state(frames, t, recording.by_field(y))
                    scored = masked(recording.law(y).to_event(1), frames.scored[:, t])
                    pyro.sample(f"y_{t}", scored, obs=values[:, t])
                carry = step.advance(y, following)
        return carry.x


class HiddenGuide(_Hidden):
    """q(x_{0:T}, z_{1:T} | y_{0:T}): states backwards in time, each given the one after it, then latents given the states."""

    def forward(self, x0: Tensor, path: Tensor | None = None, *, horizon: int | None = None) -> None:
        transition, recording, frames, _ = self._read(x0, path, horizon)
        spec, evidence = transition.spec, frames.evidence
        law = recording.infer(transition, frames)
        with trajectory_plate(spec, x0):
            states: list[Tensor] = []
            entry_mean, entry_root = law.centre[:, 0], law.root()[:, 0]
            for t in reversed(range(frames.x.shape[1])):
                mean, root = law.at(t, states[0] if states else None), law.root()[:, t]
                first = evidence.first[:, t, :, None, None]
                entry_mean, entry_root = torch.where(first, mean, entry_mean), torch.where(first, root, entry_root)
                if t:
                    y = pyro.sample(f"x_{t}", masked(_joint(mean, root, x0), frames.stays[:, t - 1]))
                    states.insert(0, recording.by_field(y).double())
            entry = recording.by_field(pyro.sample("x_0", masked(_joint(entry_mean, entry_root, x0), evidence.there.any(1))))
            carry = transition.start(recording.state(frames, 0, entry))
            for t in pyro.markov(range(1, frames.x.shape[1])):
                first = evidence.first[:, t, :, None, None]
                following = recording.state(frames, t, torch.where(first, entry, states[t - 1].to(entry.dtype)))
                step = transition.step(carry)
                pyro.sample(f"z_{t}", step.posterior(following))
                carry = step.advance(spec.dynamic(following), following)


def _joint(mean: Tensor, root: Tensor, like: Tensor) -> TorchDistribution:
    """The law of all bodies, of fields (batch, body, field, space) and their factors, in the precision of states."""
    return PartlyKnown(mean.flatten(-2).to(like.dtype), root.to(like.dtype), validate_args=False).to_event(1)
