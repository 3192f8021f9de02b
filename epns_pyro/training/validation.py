"""Validation: the ELBO on held-out transitions, in nats per transition, beside the oracle where it is known."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from epns_pyro.context import DataContext
from epns_pyro.data import Store
from epns_pyro.data.crops import cropped
from epns_pyro.inference.elbo import elbo_step
from epns_pyro.inference.hidden import bound_parts
from epns_pyro.models import Transition
from epns_pyro.presence import missing
from epns_pyro.state import StateSpec

ACTIVE = 0.01  # nats: a latent dimension with a smaller mean KL is unused
SEED = 20230514


@dataclass(frozen=True)
class Validation:
    """Numbers of one validation, nats per transition of the whole system.

    Parameters
    ----------
    elbo, log_likelihood, kl : float
        elbo = log_likelihood - kl, without annealing.
    active : int
        Latent dimensions of an entity whose mean KL is at least 0.01 nats.
    latent : int
        Latent dimensions per entity.
    oracle : float or None
        Score of the true transition density on the same transitions, where it is known.
    """

    elbo: float
    log_likelihood: float
    kl: float
    active: int
    latent: int
    oracle: float | None

    @property
    def gap(self) -> float | None:
        return None if self.oracle is None else self.oracle - self.elbo


class Validated(NamedTuple):
    """Numbers of a validation, and what they are means of: the ELBO of every transition or window, (transition,), in nats."""

    numbers: Validation
    elbos: Tensor


class Validator:
    """Validates a transition on the same transitions of the set `val`, with the same noise, every time; of large images on parts."""

    def __init__(
        self, store: Store, context: DataContext, transition: Transition, transitions: int, *, device: torch.device, crop: int | None = None
    ) -> None:
        self._transition = transition
        past, x, x_next = draw_with_past(store, "val", transitions, transition.earlier_frames)
        system = store.system
        self._oracle = float(system.transition_log_prob(x, x_next).mean()) if system.has_oracle else None
        self._past, self._x, self._x_next = (as_tensor(context.to_local(states), device) for states in (past, x, x_next))
        if crop is not None:
            shares = np.random.default_rng(SEED).random((len(x), 3))
            pairs = cropped(store.spec, torch.stack([self._x, self._x_next], 1), crop, shares)
            self._x, self._x_next = pairs.unbind(1)

    @torch.no_grad()
    def evaluate(self) -> Validated:
        likelihoods, divergences, block_size = [], [], self._transition.block_size
        with torch.random.fork_rng(devices=[self._x.device] if self._x.is_cuda else []):
            torch.manual_seed(SEED)
            blocks = (part.split(block_size) for part in (self._past, self._x, self._x_next))
            for past, x, x_next in zip(*blocks, strict=True):
                step = elbo_step(self._transition.step(self._transition.started(x, past)), x_next)
                likelihoods.append(step.log_likelihood)
                divergences.append(step.kl)
        return validated(torch.cat(likelihoods), torch.cat(divergences), self._oracle)


class RecordingValidator:
    """Validates a transition whose states are hidden on always the same windows of the set `val`, with always the same noise."""

    def __init__(
        self, store: Store, context: DataContext, transition: Transition, transitions: int, *, window: int, device: torch.device
    ) -> None:
        self._transition = transition
        self._windows = as_tensor(context.to_local(draw_windows(store, "val", transitions, window)), device)

    @torch.no_grad()
    def evaluate(self) -> Validated:
        steps = self._windows.shape[1] - 1
        likelihoods, divergences = [], []
        with torch.random.fork_rng(devices=[self._windows.device] if self._windows.is_cuda else []):
            torch.manual_seed(SEED)
            for x in self._windows.split(max(1, self._transition.block_size // steps)):
                rest, divergence = bound_parts(self._transition, x[:, 0], x[:, 1:])
                likelihoods.append(rest / steps)
                divergences.append(divergence)
        return validated(torch.cat(likelihoods), torch.cat(divergences), None)


def validated(likelihoods: Tensor, divergences: Tensor, oracle: float | None) -> Validated:
    """Return the numbers for log-likelihoods, (transition,) or means over (window,), and KL terms (transition, entity, latent)."""
    log_likelihood, kl = float(likelihoods.mean()), divergences.mean(0)
    numbers = Validation(
        elbo=log_likelihood - float(kl.sum()),
        log_likelihood=log_likelihood,
        kl=float(kl.sum()),
        active=int((kl.mean(0) >= ACTIVE).sum()),
        latent=kl.shape[-1],
        oracle=oracle,
    )
    per_row = divergences.sum((-2, -1)).unflatten(0, (len(likelihoods), -1)).mean(1)
    return Validated(numbers, (likelihoods - per_row).cpu())


def validator(
    store: Store,
    context: DataContext,
    transition: Transition,
    transitions: int,
    *,
    window: int,
    device: torch.device,
    crop: int | None = None,
) -> Validator | RecordingValidator:
    """Return what validates a transition on about so many transitions of `val`; hidden states are inferred in windows of a length."""
    if transition.recording is None:
        return Validator(store, context, transition, transitions, device=device, crop=crop)
    return RecordingValidator(store, context, transition, transitions, window=window, device=device)


def draw_windows(store: Store, split: str, count: int, window: int) -> np.ndarray:
    """Return windows (window, time + 1, *site, channel) of a set that follow each other, with about `count` transitions in all."""
    first, size = store.system.first_frame, store.size(split)
    steps = min(window, store.steps(split) - first)
    starts = np.arange(first, store.steps(split) + 1 - steps, steps)
    wanted = max(1, count // steps)
    rows = np.unique(np.linspace(0, size - 1, min(size, max(1, math.isqrt(wanted)))).astype(int))
    starts = starts[np.unique(np.linspace(0, len(starts) - 1, min(len(starts), max(1, wanted // len(rows)))).astype(int))]
    states = store.read(split, rows)
    return np.concatenate([states[:, start : start + steps + 1] for start in starts])


def draw_transitions(store: Store, split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose at most `count` transitions (x, x'), each (transition, *site, channel), evenly spread over trajectories and frames."""
    return draw_with_past(store, split, count, 0)[1:]


def draw_with_past(store: Store, split: str, count: int, earlier: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Choose transitions as `draw_transitions` does, with the frames before each: past (transition, time, *site, channel), x and x'.

    Before the first frame of a trajectory the past is NaN in all dynamic channels.
    """
    size, first = store.size(split), store.system.first_frame
    steps = store.steps(split) - first
    trajectories = np.unique(np.linspace(0, size - 1, min(size, max(1, math.isqrt(count)))).astype(int))
    frames = np.unique(np.linspace(0, steps - 1, min(steps, max(1, count // len(trajectories)))).astype(int))
    before = min(earlier, first)
    states = store.read(split, trajectories, start=first - before)
    frames = frames + before
    parts = (frames_before(store.spec, states, frames, earlier), states[:, frames], states[:, frames + 1])
    count = len(states) * len(frames)
    past, x, x_next = (part.reshape(count, *part.shape[2:]) for part in parts)
    return past, x, x_next


def frames_before(spec: StateSpec, states: np.ndarray, frames: np.ndarray, earlier: int) -> np.ndarray:
    """Return the `earlier` states before each of some frames (frame,) of trajectories (trajectory, time, *site, channel).

    Returns
    -------
    ndarray, (trajectory, frame, earlier, *site, channel)
        NaN in all dynamic channels before the first frame.
    """
    index = frames[:, None] + np.arange(-earlier, 0)
    before = states[:, index.clip(min=0)]
    known = (index >= 0).reshape(*index.shape, *[1] * (states.ndim - 2))
    return np.where(known, before, missing(spec, before)) if earlier else before


def as_tensor(x: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return states as the tensors that models take: float32, or int64 where all fields are labels and categories."""
    return torch.as_tensor(x).to(device, torch.float32 if np.issubdtype(x.dtype, np.floating) else torch.int64)
