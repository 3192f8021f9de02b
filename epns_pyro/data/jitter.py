"""Errors of localisation that are added to the recorded positions of windows, so that a model does not rely on their exactness.

Tracks set by hand and interpolated are smooth; those of a detector jitter. A model that has seen smooth tracks alone is too sure of the
next step of others, and takes their jitter for speed. If some bodies jitter, and the state remembers some frames, then a model learns to
tell from these how exact a track is. Every body has a level of its own: in one and the same recording, who stands hardly jitters, and who
walks does.
"""

from __future__ import annotations

import numpy as np
import torch

from epns_pyro.data.stores import Store
from epns_pyro.derived import displaced, has_positions_alone, memory_frames
from epns_pyro.errors import ConfigError

EXACT = 0.25  # share of bodies in windows that are left as they are
SMALLEST = 0.1  # of the largest level, the least of a body that jitters


class Jitter:
    """Draws errors: independent between axes, bodies and frames, Normal, with a level of its own for every body in every window.

    Parameters
    ----------
    store : Store
        Whose velocities are differences of positions.
    largest : float
        The largest standard deviation of an error per axis, in the unit of the position. Levels are log-uniform below it.

    Raises
    ------
    ConfigError
        If the states of the store are not made of positions that were recorded without error, at even frames.
    """

    def __init__(self, store: Store, largest: float) -> None:
        if not has_positions_alone(spec := store.spec):
            raise ConfigError(
                "training.jitter: needs recorded positions alone, at even frames, with velocities that are their differences; "
                "for positions with an error that is to be learned there is `noise`"
            )
        self._spec, self._frame_dt, self._largest = spec, store.frame_dt, largest
        self.earlier = memory_frames(spec) - 1  # frames before a state that it remembers, but for that of the first difference

    def __call__(self, windows: torch.Tensor, numbers: np.ndarray, seeds: np.ndarray) -> torch.Tensor:
        """Return windows whose positions have errors.

        Parameters
        ----------
        windows : Tensor, (batch, time, *site, channel)
            Of the first `earlier` states only the positions are right afterwards.
        numbers : numpy.ndarray, (batch, time)
            Where the states are in their trajectory; negative before its beginning.
        seeds : numpy.ndarray, (batch,)
            One per window, so that its errors do not depend on which windows a process has.
        """
        x = windows.cpu().double().numpy()
        x[numbers < 0] = np.nan  # so that the first velocity stands in for earlier ones, as in the recording
        shape = (x.shape[1] + 1, *x.shape[2:-1], self._spec.space)
        moves = np.stack([self._errors(np.random.default_rng(seed), shape) for seed in seeds])
        return torch.from_numpy(displaced(self._spec, x, moves, self._frame_dt)).to(windows)

    def _errors(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        bodies = shape[1:-1]
        level = np.where(rng.random(bodies) >= EXACT, self._largest * SMALLEST ** rng.random(bodies), 0.0)
        return level[..., None] * rng.standard_normal(shape)
