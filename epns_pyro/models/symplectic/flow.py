"""The map of one frame: sub-steps B A O A B, kicks inside it, and the covariance that it transports.

    dq = v dt,   dv = -grad U(q) / m dt - gamma v dt + sigma dW

One sub-step of length h: v -= (h/2) grad U / m; q += (h/2) v; v *= exp(-gamma h); q += (h/2) v; v -= (h/2) grad U / m (Leimkuhler and
Matthews, Molecular Dynamics, chapter 7). With p = m v every part is a shear of phase space, or scales momenta, so that the Jacobian M of a
frame of length D satisfies M' J M = exp(-gamma D) J for any weights of U. Without friction the map is also reversible, and its energy
oscillates without a trend.

A kick v_i += c_i is a shear as well if c does not depend on positions. Kicks whose size depends on where other bodies are would be none.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from epns_pyro.models.symplectic.potentials import Landscape

Grade = Literal["free-flight", "body", "system"]


class Kick(NamedTuple):
    """A change of velocities (*batch, body, space) at a time within the frame, as a fraction of it."""

    time: float
    change: Tensor


class Covariance(NamedTuple):
    """Covariance of positions and velocities, float64: each (*batch, body, d, d), or (*batch, body * space, body * space) of a system.

    Of bodies in free flight d is 1: all axes of space are alike.
    """

    position: Tensor
    cross: Tensor  # rows: positions, columns: velocities
    velocity: Tensor

    def matrix(self, *, positions_first: bool = True) -> Tensor:
        """Return one matrix, (..., 2 row, 2 row): all positions before all velocities, or the other way round."""
        rows = [[self.position, self.cross], [self.cross.mT, self.velocity]]
        if not positions_first:
            rows = [row[::-1] for row in rows[::-1]]
        return torch.cat([torch.cat(row, -1) for row in rows], -2)


@dataclass(frozen=True)
class Flow:
    """The map of one frame for bodies whose attributes are known.

    Parameters
    ----------
    landscape : Landscape
    mass : Tensor, (*batch, body)
    duration : Tensor (*batch, body) or float
        Length of the frame.
    steps : int
        Sub-steps of the frame.
    friction : Tensor, (), optional
        gamma, per unit of time; None: none.
    """

    landscape: Landscape
    mass: Tensor
    duration: Tensor | float
    steps: int
    friction: Tensor | None = None

    def __call__(self, q: Tensor, v: Tensor, kicks: Sequence[Kick] = ()) -> tuple[Tensor, Tensor]:
        """Map positions and velocities (*batch, body, space) over a frame."""
        *_, end = self.path(q, v, kicks)
        return end

    def path(self, q: Tensor, v: Tensor, kicks: Sequence[Kick] = ()) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield positions, and the velocities with which they are left, at the start and after every sub-step.

        The last velocities are those at the end of the frame; all others have had the kicks of both neighbouring sub-steps.
        """
        half = 0.5 * self._step(q) / self.mass[..., None]
        v = v + half * self.landscape.forces(q)
        yield q, v
        for number in range(self.steps):
            q, v = self._drift(q, v, number, kicks)
            v = v + (half if number == self.steps - 1 else 2 * half) * self.landscape.forces(q)
            yield q, v

    def _drift(self, q: Tensor, v: Tensor, number: int, kicks: Sequence[Kick]) -> tuple[Tensor, Tensor]:
        """Move freely for sub-step `number`, with the friction at its middle and the kicks that fall into it at their times."""
        step, since = self._step(q), 0.0
        times = [self.steps * kick.time - number for kick in kicks]
        events: list[tuple[float, Tensor | None]] = [(t, kick.change) for t, kick in zip(times, kicks, strict=True) if 0 <= t < 1]
        if self.friction is not None:
            events = sorted([*events, (0.5, None)], key=lambda event: event[0])
        for time, change in events:
            q, since = q + (time - since) * step * v, time
            v = self._decay(step) * v if change is None else v + change
        return q + (1 - since) * step * v, v

    def covariance(self, places: Sequence[Tensor], sigma: Tensor, grade: Grade) -> Covariance:
        """Transport the covariance of white noise sigma (*batch, body), velocity per root of time, along the map without noise.

        The state at the start is known. Per sub-step P <- A P A' + Q, A its Jacobian, Q the noise of free flight over it: exact in free
        flight, of second order in the sub-step otherwise, and of first order in the noise.

        Parameters
        ----------
        places : sequence of Tensor, (*batch, body, space)
            Positions along the map without noise, as `path` yields them.
        sigma : Tensor, (*batch, body)
        grade : {"free-flight", "body", "system"}
            No forces; forces on a body with all others where they would be without noise; all bodies together.
        """
        q = places[0]
        step, variance = self._step(q).double(), sigma.double()[..., None].square()
        step = step.expand(*q.shape[:-1], 1)
        if grade == "free-flight" and self.friction is None:
            whole = step * self.steps
            moments = (whole**3 / 3, whole**2 / 2, whole)
            return Covariance(*(torch.diag_embed(variance * moment) for moment in moments))
        decay = torch.ones_like(step) if self.friction is None else self._decay(step)
        gained = variance * (step if self.friction is None else (1 - decay.square()) / (2 * self.friction.double()))
        tides: list[Tensor | None]
        if grade == "free-flight":
            tides = [None] * (self.steps + 1)
        else:
            tides = [self._tide(at, grade) for at in places]
            step, decay, gained = (value.expand(*q.shape) for value in (step, decay, gained))
            if grade == "system":
                step, decay, gained = (value.flatten(-2) for value in (step, decay, gained))
        noise = Covariance(*(torch.diag_embed(gained * moment) for moment in (step**2 / 3, step / 2, torch.ones_like(step))))
        rows = step[..., None]
        found = Covariance(*(torch.zeros_like(part) for part in noise))
        for before, after in itertools.pairwise(tides):
            found = _kicked(found, before, rows / 2)
            found = _damped(_drifted(found, rows / 2), decay)
            found = _drifted(found, rows / 2)
            found = Covariance(*(one + other for one, other in zip(found, noise, strict=True)))
            found = _kicked(found, after, rows / 2)
        return found

    def _tide(self, q: Tensor, grade: Grade) -> Tensor:
        """Return minus the derivative of accelerations by positions, float64, as a matrix per body or of the system."""
        if grade == "body":
            return (self.landscape.own_curvature(q) / self.mass[..., None, None]).double()
        whole = self.landscape.curvature(q) / self.mass[..., None, None, None]
        return whole.flatten(-4, -3).flatten(-2).double()

    def _step(self, like: Tensor) -> Tensor:
        """Length of a sub-step, to go with (*batch, body, space)."""
        return torch.as_tensor(self.duration, dtype=like.dtype, device=like.device)[..., None] / self.steps

    def _decay(self, step: Tensor) -> Tensor:
        friction = torch.zeros((), dtype=step.dtype) if self.friction is None else self.friction.to(step.dtype)
        return torch.exp(-friction * step)


def _kicked(found: Covariance, tide: Tensor | None, time: Tensor) -> Covariance:
    """Transport through v -= time * tide q."""
    if tide is None:
        return found
    turn = time * tide
    crossed, moved = turn @ found.cross, turn @ found.position
    velocity = found.velocity - crossed - crossed.mT + moved @ turn.mT
    return Covariance(found.position, found.cross - moved.mT, velocity)


def _drifted(found: Covariance, time: Tensor) -> Covariance:
    """Transport through q += time * v; `time` (..., row, 1) is that of the body of a row."""
    gained = time * found.cross.mT
    position = found.position + gained + gained.mT + time * found.velocity * time.mT
    return Covariance(position, found.cross + time * found.velocity, found.velocity)


def _damped(found: Covariance, decay: Tensor) -> Covariance:
    """Transport through v *= decay (..., row)."""
    columns = decay[..., None, :]
    return Covariance(found.position, found.cross * columns, decay[..., None] * found.velocity * columns)


def gauss_nodes(count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the Gauss-Legendre nodes of the unit interval and their weights.

    Kicks of variance w_k sigma^2 D at the times t_k D have the moments of white noise up to degree 2 count - 1.
    """
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return tuple(((1 + nodes) / 2).tolist()), tuple((weights / 2).tolist())
