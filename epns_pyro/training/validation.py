"""Validation: the ELBO on held-out transitions, in nats per transition, beside the oracle where it is known."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from epns_pyro.context import DataContext
from epns_pyro.data import Store
from epns_pyro.inference.elbo import elbo_step
from epns_pyro.inference.hidden import bound_parts
from epns_pyro.models import Transition

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


class Validator:
    """Validates a transition on the same transitions of the set `val`, with the same noise, every time."""

    def __init__(self, store: Store, context: DataContext, transition: Transition, transitions: int, *, device: torch.device) -> None:
        self._transition = transition
        x, x_next = draw_transitions(store, "val", transitions)
        system = store.system
        self._oracle = float(system.transition_log_prob(x, x_next).mean()) if system.has_oracle else None
        self._x, self._x_next = (as_tensor(context.to_local(states), device) for states in (x, x_next))

    @torch.no_grad()
    def evaluate(self) -> Validation:
        likelihoods, divergences, block_size = [], [], self._transition.block_size
        with torch.random.fork_rng(devices=[self._x.device] if self._x.is_cuda else []):
            torch.manual_seed(SEED)
            for x, x_next in zip(self._x.split(block_size), self._x_next.split(block_size), strict=True):
                step = elbo_step(self._transition.at(x), x_next)
                likelihoods.append(step.log_likelihood)
                divergences.append(step.kl)
        log_likelihood = float(torch.cat(likelihoods).mean())
        kl = torch.cat(divergences).mean(0)  # (entity, latent)
        return Validation(
            elbo=log_likelihood - float(kl.sum()),
            log_likelihood=log_likelihood,
            kl=float(kl.sum()),
            active=int((kl.mean(0) >= ACTIVE).sum()),
            latent=kl.shape[-1],
            oracle=self._oracle,
        )


class RecordingValidator:
    """Validates a transition whose states are hidden on always the same windows of the set `val`, with always the same noise."""

    def __init__(
        self, store: Store, context: DataContext, transition: Transition, transitions: int, *, window: int, device: torch.device
    ) -> None:
        self._transition = transition
        self._windows = as_tensor(context.to_local(draw_windows(store, "val", transitions, window)), device)

    @torch.no_grad()
    def evaluate(self) -> Validation:
        steps = self._windows.shape[1] - 1
        likelihoods, divergences = [], []
        with torch.random.fork_rng(devices=[self._windows.device] if self._windows.is_cuda else []):
            torch.manual_seed(SEED)
            for x in self._windows.split(max(1, self._transition.block_size // steps)):
                rest, divergence = bound_parts(self._transition, x[:, 0], x[:, 1:])
                likelihoods.append(rest / steps)
                divergences.append(divergence)
        log_likelihood, kl = float(torch.cat(likelihoods).mean()), torch.cat(divergences).mean(0)
        return Validation(
            elbo=log_likelihood - float(kl.sum()),
            log_likelihood=log_likelihood,
            kl=float(kl.sum()),
            active=int((kl.mean(0) >= ACTIVE).sum()),
            latent=kl.shape[-1],
            oracle=None,
        )


def validator(
    store: Store, context: DataContext, transition: Transition, transitions: int, *, window: int, device: torch.device
) -> Validator | RecordingValidator:
    """Return what validates a transition on about so many transitions of `val`; hidden states are inferred in windows of a length."""
    if transition.recording is None:
        return Validator(store, context, transition, transitions, device=device)
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
    size, first = store.size(split), store.system.first_frame
    steps = store.steps(split) - first
    trajectories = np.unique(np.linspace(0, size - 1, min(size, max(1, math.isqrt(count)))).astype(int))
    frames = np.unique(np.linspace(0, steps - 1, min(steps, max(1, count // len(trajectories)))).astype(int))
    states = store.read(split, trajectories, start=first)
    return states[:, frames].reshape(-1, *states.shape[2:]), states[:, frames + 1].reshape(-1, *states.shape[2:])


def as_tensor(x: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return states as the tensors that models take: float32, or int64 where all fields are labels and categories."""
    return torch.as_tensor(x).to(device, torch.float32 if np.issubdtype(x.dtype, np.floating) else torch.int64)
