"""Walks over a frame, again in shorter steps where the force changes much between two steps, as where two bodies meet.

A map of leapfrog whose steps are chosen by where it starts is symplectic piecewise only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from epns_pyro.backbones import Features

EXACT = 1e-6  # smaller errors from the length of the steps, in typical changes, are none
MIDPOINT = 24  # the midpoint rule errs by a 24th of the second difference of what it integrates
FACTOR = 4  # a frame is walked again in so many times as many steps


class Walk(NamedTuple):
    """Where a walk over one frame has led, and how the force went, in typical changes per frame.

    Parameters
    ----------
    end : Tensor, (*state, body, channel)
        What it has led to.
    strength : Tensor, (*state, body, kicked field)
        Largest squared kick.
    roughness : Tensor, (*state)
        Largest change of all that is kicked in a body from one step to the next.
    error : Tensor, (*state, body)
        Of all that is kicked, from the length of the steps.
    """

    end: Tensor
    strength: Tensor
    roughness: Tensor
    error: Tensor

    def along(self, batch: torch.Size) -> Walk:
        """Return this walk of a flat batch of states along their batch."""
        return Walk(*(part.reshape((*batch, *part.shape[1:])) for part in self))

    @property
    def log_max_kick(self) -> Tensor:
        """Logarithms of the largest kicks, (*state, body, kicked field)."""
        return (1 + self.strength).log() / 2

    @property
    def log_error(self) -> Tensor:
        """Logarithms of the errors, (*state, body, 1)."""
        return (1 + (self.error / EXACT) ** 2).log()[..., None] / 2


class Course:
    """How the force goes along a walk, step after step.

    Parameters
    ----------
    mask : Tensor, (*state, body), optional
        Which bodies are there.
    rough : bool
        Whether to measure how much the force changes, too; else roughness and errors are zero.
    """

    def __init__(self, mask: Tensor | None, *, rough: bool = True) -> None:
        self._mask, self._rough = mask, rough
        self._strengths: list[Tensor] = []
        self._last: Tensor | None = None
        self._turn: Tensor | None = None

    def add(self, force: Features) -> None:
        """Go on with the force of the next step."""
        self._strengths.append(torch.cat([force.vectors.square().sum(-1), force.scalars.square()], -1))
        if not self._rough:
            return
        now = torch.cat([force.vectors.flatten(-2), force.scalars], -1).detach()
        if self._last is None:
            self._error, self._roughness = torch.zeros_like(now[..., 0]), torch.zeros_like(now[..., 0, 0])
        else:
            before, self._turn = self._turn, now - self._last
            self._roughness = torch.maximum(self._roughness, largest(self._turn, self._mask))
            if before is not None:
                self._error += (self._turn - before).norm(dim=-1)
        self._last = now

    def walk(self, end: Tensor) -> Walk:
        """Return the walk that has led to an end in these steps."""
        steps, strength = len(self._strengths), torch.stack(self._strengths).amax(0)
        if not self._rough:
            return Walk(end, strength, torch.zeros_like(strength[..., 0, 0]), torch.zeros_like(strength[..., 0]))
        return Walk(end, strength, self._roughness.sqrt() / steps, self._error / (MIDPOINT * steps))


def refined(walk: Callable[[Tensor | slice, int], Walk], steps: int, refinements: int, tolerance: float) -> Walk:
    """Walk over a frame in some steps, and up to `refinements` times again in shorter ones where it was rougher than `tolerance`.

    `walk` goes from which states, an index along a flat batch, and the number of steps, to a walk of these states.
    """
    found = walk(slice(None), steps)
    roughness, rows = found.roughness, torch.arange(len(found.roughness), device=found.roughness.device)
    for _ in range(refinements):
        rows = rows[roughness > tolerance]
        if not len(rows):
            break
        steps *= FACTOR
        again = walk(rows, steps)
        found = Walk(*(whole.index_copy(0, rows, part) for whole, part in zip(found, again, strict=True)))
        roughness = again.roughness
    return found


def flattened(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return states x (*batch, body, channel) and which bodies are there, (*batch, body), along a flat batch."""
    rows = x.reshape(-1, *x.shape[-2:])
    return rows, None if mask is None else mask.expand(x.shape[:-1]).reshape(rows.shape[:-1])


def largest(vectors: Tensor, mask: Tensor | None) -> Tensor:
    """Return the largest squared length of vectors (*state, body, channel) over the bodies that are there: (*state)."""
    squared = vectors.square().sum(-1)
    return (squared if mask is None else squared * mask).amax(-1)
