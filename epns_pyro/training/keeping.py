"""Which state of a training is kept: the newest that validation cannot tell from the best.

Most of the error of a validation ELBO is in a few transitions, such as close encounters. By its mean alone a state may be kept that was
only luckier there than all states after it, which were trained for longer and at lower learning rates. So a later state is kept unless it
is worse than the best one by more than a standard error of the difference, transition by transition: the one-standard-error rule of Breiman
et al. (Classification and Regression Trees, 1984), for the time of training.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Keeper:
    """Decides which state is kept.

    Attributes
    ----------
    best : Tensor or None, (transition,)
        ELBO of every validated transition, in nats, of the state with the best mean so far.
    kept : float
        Mean ELBO of the state that is kept.
    """

    def __init__(self) -> None:
        self.best: Tensor | None = None
        self.kept = -torch.inf

    def resume(self, best: Tensor | None, kept: float) -> None:
        """Go on from a checkpoint; without the ELBOs of transitions means are compared until a state is better.

        Raises
        ------
        ValueError
            If these are not ELBOs of transitions.
        """
        if best is not None and not (best.ndim == 1 and best.is_floating_point() and best.isfinite().all()):
            raise ValueError("expected finite numbers, one for each transition")
        self.best, self.kept = best, kept

    def takes(self, elbos: Tensor, *, later: bool) -> bool:
        """Return whether to keep a state with these ELBOs (transition,), and remember it.

        Parameters
        ----------
        later : bool
            Whether the kept state was trained at all: persistence, where training starts from, is kept unless a state is better.
        """
        mean = float(elbos.mean())
        if not math.isfinite(mean):
            return False
        taken = mean > self.kept or (later and self.best is not None and _alike(elbos, self.best))
        if self.best is None or mean > float(self.best.mean()):
            self.best = elbos
        if taken:
            self.kept = mean
        return taken


def _alike(elbos: Tensor, best: Tensor) -> bool:
    """Return whether the mean is at most a standard error below that of the best state, on the same transitions."""
    if len(elbos) != len(best) or len(elbos) < 2:
        return False
    lost = best - elbos
    return bool(lost.mean() <= lost.std() / len(lost) ** 0.5)
