"""The Pyro program: a transition unrolled over time.

    p(x_{1:T}, z_{1:T} | x_0) = prod_t p(z_t | h_t) p(x_t | h_t, z_t),   h_t = f(x_{t-1})         EPNSModel
    q(z_{1:T} | x_{0:T})      = prod_t q(z_t | h_t, x_t)                                          EPNSGuide

Model and guide have one signature. With a path, its dynamic channels are observed; without one the model forecasts and the guide has no
sites, so that `Predictive(model, guide=guide, ...)` samples latents from the prior. Where a transition has a history, f reads the frames
before x_{t-1} too, as far as `past`, x0 and the path hold them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from epns_pyro.config import Choice
from epns_pyro.context import DataContext
from epns_pyro.errors import ShapeError
from epns_pyro.models.program import PathProgram, observed, trajectory_plate
from epns_pyro.models.shifted import Shifted
from epns_pyro.models.transition import Carry, Transition
from epns_pyro.state import StateSpec


class Feedback(Choice):
    """What becomes the start of the next step."""

    TEACHER = "teacher"  # the observed state
    PUSHFORWARD = "pushforward"  # the mean of the emission, detached: no gradient flows from step to step
    ANCESTRAL = "ancestral"  # a sample of the emission


class _Unrolled(PathProgram):
    """A transition unrolled over time, with its feedback along an observed path and the weight of the KL term.

    With a context whose positions are measured from an origin, states that go in and come out are in the coordinates of the data.
    """

    def __init__(
        self,
        transition: Transition,
        *,
        feedback: Feedback = Feedback.TEACHER,
        kl_weight: float = 1.0,
        context: DataContext | None = None,
    ) -> None:
        super().__init__()
        self.transition = transition
        self.context = context if context and context.origin else None
        self.feedback = Feedback(feedback)
        self.kl_weight = kl_weight

    @property
    def spec(self) -> StateSpec:
        return self.transition.spec

    @property
    def absences(self) -> bool:
        return self.transition.absences

    def _first(self, x0: Tensor, past: Tensor | None) -> Carry:
        """Return the carry at x0, after checking the past."""
        if past is None:
            return self.transition.start(x0)
        if past.dim() != x0.dim() + 1 or past.shape[:1] + past.shape[2:] != x0.shape:
            raise ShapeError(f"past: expected (batch, time, *site, channel) to go with x0 {tuple(x0.shape)}, found {tuple(past.shape)}")
        return self.transition.started(x0, past)

    def _tensor(self, x: Tensor | np.ndarray) -> Tensor:
        return super()._tensor(self.context.to_local(torch.as_tensor(x)) if self.context else x)

    def _weighted(self) -> AbstractContextManager[Any]:
        return poutine.scale(scale=self.kl_weight)


class EPNSModel(_Unrolled):
    """p(x_{1:T}, z_{1:T} | x_0) = prod_t Normal(z_t; mu(h_t), sigma(h_t)) p(x_t | h_t, z_t), h_t = f(x_{t-1}).

    Sites per step t = 1 .. T: ``h_t`` (deterministic), ``z_t`` (entity, latent), ``x_t`` (*site, dynamic channel), in the plate
    ``trajectory``; for cells that divide and die also ``e_t`` (label - 1), what happens to each. Values of absent bodies at ``x_t`` mean
    nothing, and have no likelihood; what the model returns has NaN there.

    Parameters
    ----------
    transition : Transition
    feedback : Feedback
        What is fed back along an observed path: TEACHER (default) or PUSHFORWARD. Without a path TEACHER means
        ANCESTRAL (the sample is fed back), and PUSHFORWARD is the published mean feedback.
    kl_weight : float
        Weight of the KL term in the objective (annealing); a likelihood needs 1.
    context : DataContext, optional
        Of a model whose positions are measured from an origin: then sites x_t are where the data are, in double precision.

    Attributes
    ----------
    schedule : Tensor, (batch, time, *site, channel), optional
        Recorded states after x0, to set before a forecast: they say who enters, where, and leaves, and how long steps last. Without it the
        bodies of x0 stay, and all steps last as long as its own.
    """

    schedule: Tensor | None = None

    def forward(self, x0: Tensor, path: Tensor | None = None, *, horizon: int | None = None, past: Tensor | None = None) -> Tensor:
        """Sample or score a path from full initial states (batch, *site, channel).

        Parameters
        ----------
        x0 : Tensor, (batch, *site, channel)
            Full initial states, static fields included.
        path : Tensor, (batch, time, *site, channel), optional
            The observed future; its length is the horizon.
        horizon : int, optional
            Number of steps to forecast if there is no path.
        past : Tensor, (batch, time, *site, channel), optional
            Recorded states before x0, for a transition with a history; NaN in all dynamic channels before the first of a recording.

        Returns
        -------
        Tensor, (batch, *site, channel)
            The state after the last step (with a path: the last observed state).
        """
        transition = self.transition  # looked up once: at every access Pyro registers every parameter
        steps = self._start(x0, path, horizon)
        spec, carry = transition.spec, self._first(x0, past)
        schedule = None if self.schedule is None else self._tensor(self.schedule)
        with trajectory_plate(spec, x0):
            for t in pyro.markov(range(1, steps + 1)):
                step = transition.step(carry)
                pyro.deterministic(f"h_{t}", step.h, event_dim=transition.hidden_event_dim)
                with self._weighted():
                    z = pyro.sample(f"z_{t}", step.prior)
                emission = step.emission(z)
                if step.events is not None:
                    seen = None if path is None else step.seen_events(observed(spec, path, t))
                    emission = step.after_events(emission, pyro.sample(f"e_{t}", step.events, obs=seen))
                if path is None:
                    following = None if schedule is None else observed(spec, schedule, t)
                    y = self._sample(f"x_{t}", emission)
                else:
                    following = observed(spec, path, t)
                    law, value = step.observe(emission, following)
                    self._sample(f"x_{t}", law, value)
                    y = spec.dynamic(following)
                carry = step.advance(emission.mean.detach() if self.feedback is Feedback.PUSHFORWARD else y, following)
        return self.context.to_global(carry.x) if self.context else carry.x

    def _sample(self, name: str, law: TorchDistribution, value: Tensor | None = None) -> Tensor:
        """Sample or observe a site in the coordinates of the data; return it in those of the model."""
        if self.context is None:
            return pyro.sample(name, law, obs=value)
        like = next(self.transition.parameters())
        shift = torch.as_tensor(self.context.shift(among_dynamic=True), device=like.device)
        there = pyro.sample(name, Shifted(law, shift, like.dtype), obs=None if value is None else value.double() + shift)
        return (there - shift).to(like.dtype)


class EPNSGuide(_Unrolled):
    """q(z_{1:T} | x_{0:T}) = prod_t Normal(z_t; mu(h_t, x_t), sigma(h_t, x_t)), h_t = f(x_{t-1}).

    It has the signature of the model. Without a path nothing is inferred, so it has no sample sites.
    """

    def forward(self, x0: Tensor, path: Tensor | None = None, *, horizon: int | None = None, past: Tensor | None = None) -> None:
        transition = self.transition
        steps = self._start(x0, path, horizon)
        spec, carry = transition.spec, self._first(x0, past)
        if path is None:
            return
        with trajectory_plate(spec, x0):
            for t in pyro.markov(range(1, steps + 1)):
                step, following = transition.step(carry), observed(spec, path, t)
                with self._weighted():
                    z = pyro.sample(f"z_{t}", step.posterior(following))
                fed = step.emission(z).mean.detach() if self.feedback is Feedback.PUSHFORWARD else spec.dynamic(following)
                carry = step.advance(fed, following)
