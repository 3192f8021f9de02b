"""Evidence bounds of a transition, computed directly: h once per step, shared by prior, posterior and emission.

Standard Pyro, TraceMeanField_ELBO()(EPNSModel, EPNSGuide), gives the same numbers and gradients from the same noise; a test
compares the two. All values are in nats.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import kl_divergence

from epns_pyro.errors import require_positive
from epns_pyro.models import Feedback, Transition
from epns_pyro.models.normal import unmasked
from epns_pyro.models.transition import Carry, Step

Noise = Callable[[Tensor], Tensor]  # like (batch, entity, latent) -> standard Normal noise of that shape


class StepBound(NamedTuple):
    """The parts of the ELBO of one step: log p(x' | h, z) (batch,), KL(q || p) (batch, entity, latent), and the emission."""

    log_likelihood: Tensor
    kl: Tensor
    emission: TorchDistribution


def elbo_step(step: Step, x_next: Tensor, noise: Noise = torch.randn_like) -> StepBound:
    """Compute the ELBO of one step, log_likelihood - kl.sum((-2, -1)), with z drawn from the posterior.

    Parameters
    ----------
    step : Step
    x_next : Tensor, (*batch, *site, channel)
    noise : callable
    """
    posterior, prior = step.posterior(x_next), step.prior
    normal = unmasked(posterior)
    emission = step.emission(normal.loc + normal.scale * noise(normal.loc))
    law, value = step.observe(emission, x_next)
    return StepBound(law.log_prob(value), kl_divergence(posterior.base_dist, prior.base_dist), emission)


class Bound(NamedTuple):
    """The ELBO of a step in two parts: log p(x' | h, z) (batch,), and KL(q || p) (batch, entity, latent)."""

    log_likelihood: Tensor
    kl: Tensor


def bound_and_carry(
    transition: Transition, carry: Carry, following: Tensor, noise: Noise, feed: Feedback | None
) -> tuple[Bound, Carry | None]:
    """Return the ELBO of the step from a carry to the states that follow and, with feedback, the carry of the next step."""
    step = transition.step(carry)
    found = elbo_step(step, following, noise)
    bound = Bound(found.log_likelihood, found.kl)
    if feed is None:
        return bound, None
    fed = transition.spec.dynamic(following) if feed is Feedback.TEACHER else found.emission.mean.detach()
    return bound, step.advance(fed, following)


BoundOf = Callable[[Carry, Tensor, Noise, Feedback | None], tuple[Bound, Carry | None]]  # `bound_and_carry` of one transition


class Loss(NamedTuple):
    """The objective of a minibatch and its parts, per transition, means over batch and time.

    Parameters
    ----------
    loss : Tensor, ()
        -(log likelihood) + kl_weight * (KL, free bits applied): what is minimised.
    log_likelihood, kl : Tensor, ()
        The two parts of the ELBO, without annealing and free bits.
    """

    loss: Tensor
    log_likelihood: Tensor
    kl: Tensor


class Objective(nn.Module):
    """The negative ELBO along a window of a path, as the trainer minimises it.

    A module, so that data-parallel wrappers see the forward pass. `bound` is `bound_and_carry` of the transition, by default as it is.
    """

    def __init__(self, transition: Transition, feedback: Feedback = Feedback.PUSHFORWARD, bound: BoundOf | None = None) -> None:
        super().__init__()
        if (feedback := Feedback(feedback)) is Feedback.ANCESTRAL:
            raise ValueError("along an observed path either the observed state or the mean is fed back, not a sample")
        self.transition, self.feedback = transition, feedback
        self._bound = bound or functools.partial(bound_and_carry, transition)

    def forward(
        self,
        x0: Tensor,
        path: Tensor,
        *,
        past: Tensor | None = None,
        kl_weight: float = 1.0,
        free_bits: float = 0.0,
        noise: Noise = torch.randn_like,
        share: Callable[[Tensor], Tensor] = lambda mean: mean,
    ) -> Loss:
        """Evaluate the objective.

        Parameters
        ----------
        x0 : Tensor, (batch, *site, channel)
        path : Tensor, (batch, time, *site, channel)
        past : Tensor, (batch, time, *site, channel), optional
            Recorded states before x0, for a transition with a history.
        kl_weight : float
            Weight of the KL term (annealing).
        free_bits : float
            Nats per entity: a latent dimension whose mean KL over the global minibatch is below this counts as this, without gradient.
        noise : callable
        share : callable
            Averages a tensor over processes.
        """
        transition, steps = self.transition, path.shape[1]
        carry, likelihoods, divergences = transition.started(x0, past), [], []
        for t in range(steps):
            bound, following = self._bound(carry, path[:, t], noise, self.feedback if t + 1 < steps else None)
            carry = following or carry
            likelihoods.append(bound.log_likelihood.mean())
            divergences.append(bound.kl.flatten(0, -3).mean(0))
        log_likelihood = torch.stack(likelihoods).mean()
        kl = torch.stack(divergences).mean(0)  # (entity, latent)
        return weighted(log_likelihood, kl, kl_weight, free_bits, share)


def weighted(log_likelihood: Tensor, kl: Tensor, kl_weight: float, free_bits: float, share: Callable[[Tensor], Tensor]) -> Loss:
    """Return the objective, given its log likelihood () and KL (entity, latent), means over batch and time; see `Objective`."""
    counted = per_dimension = kl.mean(0)
    if free_bits:
        counted = torch.where(share(per_dimension.detach()) > free_bits, per_dimension, free_bits)
    return Loss(kl_weight * kl.shape[0] * counted.sum() - log_likelihood, log_likelihood.detach(), kl.detach().sum())


# -- bounds along a path -----------------------------------------------------------------------------------------------------


class Bounds(NamedTuple):
    """Teacher-forced bounds of a path, summed over its steps: each (batch,), nats.

    The state is fully observed, so log p(x_{1:T} | x_0) is a sum over steps, and every step has its own importance samples: the IWAE
    bound stays tight however long the path is.
    """

    elbo: Tensor
    iwae: Tensor
    log_likelihood: Tensor
    kl: Tensor


@torch.no_grad()
def path_bounds(
    transition: Transition, x0: Tensor, path: Tensor, *, num_samples: int = 1, block_size: int | None = None, past: Tensor | None = None
) -> Bounds:
    """Estimate the ELBO and the IWAE bound (Burda et al., ICLR 2016) of paths with `num_samples` latents per step.

    Parameters
    ----------
    x0 : Tensor, (batch, *site, channel)
    path : Tensor, (batch, time, *site, channel)
    num_samples : int
    block_size : int, optional
        Transitions x samples evaluated at a time; bounds the memory.
    past : Tensor, (batch, time, *site, channel), optional
        Recorded states before x0, for a transition with a history.
    """
    require_positive(num_samples=num_samples)
    batch, steps = path.shape[:2]
    block_size, rows = block_size or transition.at_once(x0), []
    for step, x_next in _steps(transition, x0, path, max(1, block_size // num_samples), past):
        posterior, prior = step.posterior(x_next), step.prior
        at_once = max(1, block_size // len(x_next))
        scored = []
        for start in range(0, num_samples, at_once):
            z = posterior.sample((min(at_once, num_samples - start),))
            law, value = step.observe(step.emission(z), x_next)
            log_likelihood = law.log_prob(value)
            scored.append(torch.stack([log_likelihood, log_likelihood + prior.log_prob(z) - posterior.log_prob(z)]))
        log_likelihood, log_weight = torch.cat(scored, 1)  # (sample, transition)
        kl = kl_divergence(posterior.base_dist, prior.base_dist).sum((-2, -1))
        iwae = log_weight.logsumexp(0) - math.log(num_samples)
        rows.append(torch.stack([log_likelihood.mean(0) - kl, iwae, log_likelihood.mean(0), kl], -1))
    return Bounds(*torch.cat(rows).unflatten(0, (batch, steps)).sum(1).unbind(-1))


@torch.no_grad()
def latent_kl(transition: Transition, x0: Tensor, path: Tensor, *, block_size: int | None = None, past: Tensor | None = None) -> Tensor:
    """Return the mean KL(q || p) of every latent dimension along paths, teacher-forced: (entity, latent), nats per transition."""
    total, count = torch.zeros(()), 0
    for step, x_next in _steps(transition, x0, path, block_size or transition.at_once(x0), past):
        total = total + kl_divergence(step.posterior(x_next).base_dist, step.prior.base_dist).sum(0)
        count += len(x_next)
    return total / count


def log_density(transition: Transition, x0: Tensor, path: Tensor, z: Tensor, past: Tensor | None = None) -> Tensor:
    """Return log p(x_{1:T}, z_{1:T} | x_0) of given latents z (batch, time, entity, latent): (batch,), nats."""
    total, carry = x0.new_zeros(len(x0)), transition.started(x0, past)
    for t in range(path.shape[1]):
        step, following = transition.step(carry), path[:, t]
        law, value = step.observe(step.emission(z[:, t]), following)
        total = total + step.prior.log_prob(z[:, t]) + law.log_prob(value)
        carry = step.advance(transition.spec.dynamic(following), following)
    return total


def _steps(transition: Transition, x0: Tensor, path: Tensor, block_size: int, past: Tensor | None) -> Iterator[tuple[Step, Tensor]]:
    """Iterate, in blocks, over all teacher-forced steps of the paths and the states after them, flattened."""
    blocks = zip(transition.carries(x0, path, past).split(block_size), path.flatten(0, 1).split(block_size), strict=True)
    return ((transition.step(carry), x_next) for carry, x_next in blocks)
