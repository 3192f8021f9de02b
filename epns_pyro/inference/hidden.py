"""The evidence bounds of recordings that are not the state, and the state at the end of one.

All steps of a recording are scored at once, from the states that the guide draws. Stock Pyro on `epns_pyro.models.hidden.programs` gives
the same numbers and gradients from the same noise; a test holds the two together. All values are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from epns_pyro.durations import with_durations
from epns_pyro.errors import ConfigError, require_positive
from epns_pyro.inference.compiled import compiled_bound
from epns_pyro.inference.elbo import Bounds, Loss, Noise, Objective, elbo_step, weighted
from epns_pyro.inference.rollout import Block, stream_seed
from epns_pyro.models import Feedback, Transition
from epns_pyro.models.hidden.laws import noise_log_prob
from epns_pyro.models.hidden.recording import MORE_SWEEPS, Frames, recording_of
from epns_pyro.models.hidden.smoother import PathLaw
from epns_pyro.presence import presence
from epns_pyro.state import StateSpec


class HiddenObjective(nn.Module):
    """The negative ELBO of a recording per transition, as the trainer minimises it; see `epns_pyro.inference.elbo.Objective`."""

    def __init__(self, transition: Transition) -> None:
        super().__init__()
        self.transition = transition

    def forward(
        self,
        x0: Tensor,
        path: Tensor,
        *,
        kl_weight: float = 1.0,
        free_bits: float = 0.0,
        noise: Noise = torch.randn_like,
        share: Callable[[Tensor], Tensor] = lambda mean: mean,
    ) -> Loss:
        """Evaluate the objective on what was recorded, x0 (batch, body, channel) and path (batch, time, body, channel)."""
        log_likelihood, kl = bound_parts(self.transition, x0, path, noise)
        return weighted(log_likelihood.mean() / path.shape[1], kl.mean(0), kl_weight, free_bits, share)


def bound_parts(transition: Transition, x0: Tensor, path: Tensor, noise: Noise = torch.randn_like) -> tuple[Tensor, Tensor]:
    """Return the parts of the ELBO of recordings from one draw: all but the KL of the latents (batch,), and that KL of every step.

    The second is (batch * time, entity, latent).
    """
    recording = recording_of(transition)
    frames = recording.read(torch.cat([x0[:, None], path], 1))
    law = recording.infer(transition, frames)
    e = noise(frames.evidence.values.to(x0.dtype))
    fields = law.path(e)
    x = recording.state(frames, slice(None), fields)
    bound = elbo_step(transition.step(transition.carries(x[:, 0], x[:, 1:])), x[:, 1:].flatten(0, 1), noise)
    steps = bound.log_likelihood.unflatten(0, path.shape[:2]).sum(1)
    return steps + around(transition, frames, law, e, fields), bound.kl


def objective(transition: Transition, feedback: Feedback, *, compiled: bool = False) -> nn.Module:
    """Return what is minimised in training: of recorded states, with compiled steps on request, or of recordings of hidden ones.

    Raises
    ------
    ConfigError
        If what cannot be compiled is asked for.
    """
    if transition.recording is None:
        return Objective(transition, feedback, compiled_bound(transition) if compiled else None)
    if compiled:
        raise ConfigError("training.compile: expected false where states are hidden, found true: their steps are not of one graph")
    return HiddenObjective(transition)


def around(transition: Transition, frames: Frames, law: PathLaw, e: Tensor, fields: Tensor) -> Tensor:
    """log p(x_0) + sum_t log p(y_t | x_t) - log q(x_{0:T} | y), what the bound has beside its steps: (*sample, batch).

    Parameters
    ----------
    e, fields : Tensor, (*sample, batch, time, body, field, space)
        Noise, and the fields of states that the guide makes of it.
    """
    recording, evidence = recording_of(transition), frames.evidence
    q = torch.where(evidence.there, noise_log_prob(e.double(), law.factor, law.known), 0.0)
    y = fields.flatten(-2).to(frames.x.dtype)
    measured = torch.where(frames.scored, recording.law(y).log_prob(recording.values(frames)), 0.0)
    at = frames.entry[:, None, :, None].expand(*y.shape[:-3], 1, -1, y.shape[-1])
    entry = torch.where(evidence.there.any(1), recording.entry_law(frames).log_prob(y.gather(-3, at).squeeze(-3)), 0.0)
    return entry.sum(-1) + measured.sum((-2, -1)) - q.sum((-2, -1)).to(y.dtype)


# -- several draws -----------------------------------------------------------------------------------------------------------


class Draws(NamedTuple):
    """Paths that a recording may be of.

    Parameters
    ----------
    log_weight : Tensor, (sample, batch)
        log p(x, z, y) - log q(x, z): their mean is the ELBO, and exp of them are importance weights.
    log_likelihood, kl : Tensor, (sample, batch)
        log_weight with the KL of the latents left out, and the KL.
    last : Tensor, (sample, batch, body, channel)
        Full states at the last frame.
    """

    log_weight: Tensor
    log_likelihood: Tensor
    kl: Tensor
    last: Tensor


@torch.no_grad()
def draw_paths(transition: Transition, x: Tensor, num_samples: int, *, forecast: bool = False) -> Draws:
    """Draw paths, and weigh them, given recordings (batch, time, body, channel); with `forecast` see `Recording.read`."""
    recording = recording_of(transition)
    parts = [
        _draw(transition, recording.read(some, forecast=forecast), num_samples)
        for some in x.split(max(1, transition.block_size // max(1, x.shape[1] - 1)))
    ]
    return Draws(*(torch.cat(part, 1) for part in zip(*parts, strict=True)))


def _draw(transition: Transition, frames: Frames, num_samples: int) -> Draws:
    recording = recording_of(transition)
    law = recording.infer(transition, frames, sweeps=MORE_SWEEPS)
    batch, steps = frames.x.shape[0], frames.x.shape[1] - 1
    at_once = max(1, transition.block_size // max(1, batch * steps))
    blocks = []
    for start in range(0, num_samples, at_once):
        count = min(at_once, num_samples - start)
        e = torch.randn(count, *frames.evidence.values.shape, dtype=frames.x.dtype, device=frames.x.device)
        fields = law.path(e)
        x = recording.state(frames, slice(None), fields).expand(count, *frames.x.shape)
        rest = around(transition, frames, law, e, fields)
        if not steps:
            blocks.append(Draws(rest, rest, torch.zeros_like(rest), x[:, :, -1]))
            continue
        flat = x.flatten(0, 1)
        log_likelihood, kl, weight = [], [], []
        carries = transition.carries(flat[:, 0], flat[:, 1:]).split(transition.block_size)
        for carry, following in zip(carries, flat[:, 1:].flatten(0, 1).split(transition.block_size), strict=True):
            step = transition.step(carry)
            posterior, prior = step.posterior(following), step.prior
            z = posterior.sample()
            seen, value = step.observe(step.emission(z), following)
            log_likelihood.append(seen.log_prob(value))
            kl.append(torch.distributions.kl_divergence(posterior.base_dist, prior.base_dist).sum((-2, -1)))
            weight.append(log_likelihood[-1] + prior.log_prob(z) - posterior.log_prob(z))
        summed = [torch.cat(part).unflatten(0, (count, batch, steps)).sum(-1) for part in (weight, log_likelihood, kl)]
        blocks.append(Draws(summed[0] + rest, summed[1] + rest, summed[2], x[:, :, -1]))
    return Draws(*(torch.cat(part) for part in zip(*blocks, strict=True)))


@torch.no_grad()
def recording_bounds(transition: Transition, x0: Tensor, path: Tensor, *, num_samples: int = 1) -> Bounds:
    """Estimate the ELBO and the IWAE bound of log p(y_{1:T} | y_0) with `num_samples` paths of states; each (batch,), nats."""
    require_positive(num_samples=num_samples)
    draws = draw_paths(transition, torch.cat([x0[:, None], path], 1), num_samples)
    likelihood, kl = draws.log_likelihood.mean(0), draws.kl.mean(0)
    return Bounds(likelihood - kl, draws.log_weight.logsumexp(0) - math.log(num_samples), likelihood, kl)


@torch.no_grad()
def infer_last(transition: Transition, x: Tensor, members: int, *, candidates: int = 4) -> Tensor:
    """Draw states at the last frame of recordings (batch, time, body, channel): (member, batch, body, channel).

    Of `candidates` paths per member, drawn by the guide, members are chosen by importance weights, which are cut off at sqrt(number)
    times their mean so that none takes all (Ionides 2008).
    """
    require_positive(members=members)
    count = candidates * members
    draws = draw_paths(transition, x, count, forecast=True)
    weight = torch.softmax(draws.log_weight.double().nan_to_num(nan=-torch.inf), 0)
    weight = weight.clamp_max(count**-0.5) + 1e-300
    edges = (weight / weight.sum(0)).cumsum(0).mT.contiguous()  # (batch, count)
    points = (torch.arange(members, device=x.device) + torch.rand(len(edges), 1, device=x.device)) / members
    chosen = torch.searchsorted(edges, points.double()).clamp_max(count - 1).mT  # systematic: (member, batch)
    shuffled = torch.rand(chosen.shape, device=x.device).argsort(0)  # members do not say which candidate they were
    chosen = chosen.gather(0, shuffled)
    return draws.last.gather(0, chosen[(...,) + (None,) * (draws.last.dim() - 2)].expand(members, *draws.last.shape[1:]))


def durations_alone(spec: StateSpec, inferred: Tensor, schedule: Tensor) -> Tensor:
    """Return a schedule (trajectory, time, body, channel) that says how long steps last, and that inferred bodies stay.

    Raises
    ------
    ConfigError
        If it says that bodies enter or leave: nobody has recorded the states of those that enter.
    """
    there = presence(spec, schedule)
    if spec.duration is None or (there != there[:, :1]).any():
        raise ConfigError("recorded entries: the states of bodies that enter are hidden: let the bodies of the frames given stay")
    return with_durations(spec, inferred[0][:, None].expand_as(schedule), schedule)


def recorded_blocks(transition: Transition, last: Tensor, blocks: Iterator[Block], *, seed: int) -> Iterator[Block]:
    """Turn blocks of futures into what would be recorded of them: recorded fields with their error, hidden fields as they are.

    Time 0 is the last frame given, `last` (trajectory, body, channel), where a body was detected in it.
    """
    recording, spec = recording_of(transition), transition.spec
    for block in blocks:
        generator = torch.Generator().manual_seed(stream_seed(seed, block.samples.start, block.trajectories.start, 1))
        states = torch.from_numpy(block.states)
        fields = recording.by_field(spec.dynamic(states))
        error = recording.noise.detach().cpu().to(fields.dtype)[:, None] * torch.randn(
            fields.shape, generator=generator, dtype=fields.dtype
        )
        seen = recording.by_field(spec.dynamic(last[block.trajectories].cpu()))
        known = torch.tensor(recording.recorded)[:, None] & seen.isfinite()
        fields = fields + error
        fields[:, :, 0] = torch.where(known, seen, fields[:, :, 0])
        yield block._replace(states=spec.advance(states, fields.flatten(-2)).numpy())
