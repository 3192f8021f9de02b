"""Broyden's method for many small systems of equations at once (Broyden, 1965): the derivative is learned from the steps."""

from __future__ import annotations

import torch
from torch import Tensor


class Broyden:
    """Solves error(v) = 0 in every row, where error(v) is roughly the way that v has to go.

    Minus the inverse derivative is ... (1 + u2 s2') (1 + u1 s1'), with a factor per step s.
    """

    def __init__(self) -> None:
        self._factors: list[tuple[Tensor, Tensor]] = []
        self._last: tuple[Tensor, Tensor] | None = None

    def step(self, error: Tensor) -> Tensor:
        """Return the next change of v, given its error (row, unknown): (row, unknown)."""
        if self._last is not None:
            step, before = self._last
            found = self._turned(before - error)  # should have been the step
            size = (step * found).sum(-1, keepdim=True)
            usable = size.abs() > torch.finfo(size.dtype).tiny
            self._factors.append((torch.where(usable, (step - found) / torch.where(usable, size, 1.0), 0.0), step))
        step = self._turned(error)
        self._last = step, error
        return step

    def keep(self, rows: Tensor) -> None:
        """Go on with some rows, a mask (row,)."""
        self._factors = [(u[rows], s[rows]) for u, s in self._factors]
        if self._last is not None:
            self._last = self._last[0][rows], self._last[1][rows]

    def _turned(self, vector: Tensor) -> Tensor:
        for u, s in self._factors:
            vector = vector + u * (s * vector).sum(-1, keepdim=True)
        return vector
