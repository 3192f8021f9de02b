"""Ancestral sampling of futures, in blocks of limited size."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import pyro
import torch
from torch import Tensor

from epns_pyro.machine import threads_for
from epns_pyro.models import Feedback, Transition
from epns_pyro.models.transition import Carry

Sampler = Callable[[Carry], Carry]  # the carry before a step -> a sample of that after it


class Block(NamedTuple):
    """Part of an ensemble: states (sample, trajectory, time, *site, channel) of the given ranges."""

    samples: slice
    trajectories: slice
    states: np.ndarray
    times: slice = slice(0, None)


@torch.no_grad()
def rollout_blocks(
    transition: Transition,
    x0: Tensor,
    *,
    steps: int,
    members: int,
    seed: int,
    feedback: Feedback = Feedback.ANCESTRAL,
    block_size: int | None = None,
    schedule: Tensor | None = None,
    past: Tensor | None = None,
    inferred: Tensor | None = None,
    sampler: Sampler | None = None,
    only: Container[int] | None = None,
    span: int | None = None,
) -> Iterator[Block]:
    """Sample futures of x0 block by block; the initial state is time 0.

    Parameters
    ----------
    x0 : Tensor, (trajectory, *site, channel)
    steps, members : int
        Length of the futures, and samples per initial state.
    seed : int
        Every block has its own random stream, made from (seed, block): it is the same whatever was sampled before.
    feedback : Feedback
        ANCESTRAL samples the emission; PUSHFORWARD feeds its mean back, as published, and then the ensemble is not a sample of the
        model whose likelihood is reported.
    block_size : int, optional
        States per block; the default is the transition's. Memory is bounded by block_size x (span + 1) states.
    schedule : Tensor, (trajectory, time, *site, channel), optional
        Recorded states after x0, which say who enters, where, and leaves, and how long steps last. Without it the bodies of x0 stay, and
        all steps last as long as the first.
    past : Tensor, (trajectory, time, *site, channel), optional
        Recorded states before x0, for models that remember more than a state.
    inferred : Tensor, (member, trajectory, *site, channel), optional
        The state that every member starts from; by default x0 for all.
    sampler : callable, optional
        In place of `sample_step`, where a sample is fed back and there is no schedule.
    only : container of int, optional
        Numbers of the blocks to sample, counted from 0 along trajectories, then samples; all by default.
    span : int, optional
        Steps that a block is yielded in, one part after the other; by default all at once. It changes no number.
    """
    if (feedback := Feedback(feedback)) is Feedback.TEACHER:
        raise ValueError("a forecast has no observed states to feed back")
    block_size = block_size or transition.at_once(x0)
    width = min(len(x0), block_size)
    height = max(1, block_size // width)
    blocks = [(s, t) for s in range(0, members, height) for t in range(0, len(x0), width)]
    for number, (s, t) in enumerate(blocks):
        if only is not None and number not in only:
            continue
        samples, trajectories = slice(s, min(s + height, members)), slice(t, min(t + width, len(x0)))
        start = x0[trajectories]
        same = start.expand(samples.stop - samples.start, *start.shape) if inferred is None else inferred[samples, trajectories]
        x, rng = same.flatten(0, 1), None
        # A member that diverges must not stop the rollout of the others: from there on it is recorded as NaN, and no longer moved.
        finite = torch.ones(len(x), dtype=torch.bool, device=x.device)
        absent = x.isnan() if x.is_floating_point() else None  # bodies that are not there; those of the initial state stay
        for first in range(0, steps, span or steps):
            states = [] if first else [x.cpu()]
            with pyro.validation_enabled(False), _stream(x0, rng), threads_for(little=transition.is_little(len(start))):
                if rng is None:
                    torch.manual_seed(stream_seed(seed, number))
                    if past is None:
                        carry = transition.start(x)
                    else:
                        carry = _for_members(transition.started(start, past[trajectories]), samples.stop - samples.start)
                for t in range(first, min(steps, first + (span or steps))):
                    if schedule is not None:
                        seen = schedule[trajectories, t].expand(samples.stop - samples.start, *start.shape).flatten(0, 1)
                        absent = seen.isnan()
                        following = sample_step(transition, carry, feedback, seen)
                    elif sampler is not None and feedback is Feedback.ANCESTRAL:
                        following = sampler(carry)
                    else:
                        following = sample_step(transition, carry, feedback)
                    if absent is not None:
                        finite = finite & (following.x.isfinite() | absent).flatten(1).all(1)
                        following = following.where(finite, carry)
                        states.append(torch.where(finite.view(-1, *[1] * (x.dim() - 1)), following.x, torch.nan).cpu())
                    else:
                        states.append(following.x.cpu())
                    carry = following
                rng = _state(x0)
            path = torch.stack(states, 1).unflatten(0, (samples.stop - samples.start, len(start))).numpy()
            begin = first + 1 if first else 0
            yield Block(samples, trajectories, path, slice(begin, begin + path.shape[2]))


def _state(like: Tensor) -> Tensor:
    """Return the state of the generator of random numbers where `like` is."""
    return torch.cuda.get_rng_state(like.device) if like.is_cuda else torch.get_rng_state()


@contextmanager
def _stream(like: Tensor, rng: Tensor | None) -> Iterator[None]:
    """Leave the random numbers of others as they are; go on from a state of the generator, if there is one."""
    with torch.random.fork_rng(devices=[like.device] if like.is_cuda else []):
        if rng is not None:
            torch.cuda.set_rng_state(rng, like.device) if like.is_cuda else torch.set_rng_state(rng)
        yield


def sample_step(transition: Transition, carry: Carry, feedback: Feedback = Feedback.ANCESTRAL, seen: Tensor | None = None) -> Carry:
    """Sample a step from a carry; `seen`, (*batch, *site, channel), is the recorded state after it, which says who enters and leaves."""
    step = transition.step(carry)
    emission = step.emission(step.prior.sample())
    return step.advance(emission.sample() if feedback is Feedback.ANCESTRAL else emission.mean, seen)


@torch.no_grad()
def sample_one_step(transition: Transition, x0: Tensor, members: int, seed: int, *, past: Tensor | None = None) -> Tensor:
    """Sample one step of each state: (sample, trajectory, 2, *site, channel), x0 first.

    What a step says of the state alone is worked out once for all members, which pays where one state is large. x0 (trajectory, *site,
    channel) and past (trajectory, time, *site, channel) are those of `rollout_blocks`.
    """
    paths = []
    with torch.random.fork_rng(devices=[x0.device] if x0.is_cuda else []), pyro.validation_enabled(False):
        torch.manual_seed(seed)
        for i, x in enumerate(x0):
            step = transition.step(transition.started(x[None], None if past is None else past[i : i + 1]))
            size = max(1, transition.at_once(x[None]))
            drawn = [step.emission(step.prior.sample((len(some),))).sample() for some in torch.arange(members).split(size)]
            before = x.expand(members, 1, *x.shape)
            paths.append(torch.stack([before, transition.spec.advance(before, torch.cat(drawn))], 2))
    return torch.cat(paths, 1)


def _for_members(carry: Carry, members: int) -> Carry:
    """Return a carry (trajectory, ...) once per member: (member * trajectory, ...)."""
    return carry.map(lambda part: part.expand(members, *part.shape).flatten(0, 1))


def stream_seed(seed: int, *place: int) -> int:
    """Return the seed of the random stream of a place, such as the number of a block."""
    return int(np.random.SeedSequence((seed, *place)).generate_state(1, np.uint64)[0] >> 1)
