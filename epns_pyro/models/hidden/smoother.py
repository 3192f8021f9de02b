"""Infer the states of bodies from recordings of them in closed form, where their law is linear and Normal.

    x_t = A_t x_{t-1} + b_t + q_t,  q_t ~ Normal(0, Q_t)          y_t = x_t + r,  r ~ Normal(0, R), of the fields that are recorded

per body and axis, with the fields of a body (position, velocity) as the components of x: what is done to the field axis is the same for all
axes of space, so the result turns with its input. A Kalman filter goes forward, and the law of each state given the one after it goes
back (Rauch, Tung and Striebel 1965): together they are the exact law of a whole path given the recording. R may be zero: then a field is
known where it was recorded. Detections that are missing are left out of the update. Double precision, for covariances are differences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Evidence(NamedTuple):
    """What was recorded of bodies, (batch, time, body, ...).

    Parameters
    ----------
    values : Tensor, (batch, time, body, field, space)
        Recorded values; anything finite where there is none.
    seen : Tensor, (batch, time, body)
        Whether a body was detected in a frame.
    first : Tensor, (batch, time, body)
        Whether this is the frame that a body enters in.
    there : Tensor, (batch, time, body)
        Whether a body is there, detected or not.
    """

    values: Tensor
    seen: Tensor
    first: Tensor
    there: Tensor


class LinearLaw(NamedTuple):
    """A linear Normal law of the fields of a body.

    Parameters
    ----------
    matrix : Tensor, (batch, time - 1, body, field, field)
        A_t.
    offset : Tensor, (batch, time - 1, body, field, space)
        b_t.
    noise : Tensor, (batch, time - 1, body, field, field)
        Q_t, positive definite.
    error : Tensor, (field,)
        Variances of the recorded fields, the diagonal of R.
    recorded : tuple of bool
        Which fields are recorded.
    spread : Tensor, (field,)
        Variances of the fields of a body in its first frame, about its recorded position and about zero for what is hidden.
    """

    matrix: Tensor
    offset: Tensor
    noise: Tensor
    error: Tensor
    recorded: tuple[bool, ...]
    spread: Tensor


@dataclass(frozen=True)
class PathLaw:
    """The law of paths given a recording, backwards in time: x_t = centre_t + gain_t x_{t+1} + (factor_t ⊗ I) e.

    Parameters
    ----------
    centre : Tensor, (batch, time, body, field, space)
    gain, factor : Tensor, (batch, time, body, field, field)
        The gain is zero where the path of a body ends; the factor is lower triangular, with ones on the diagonal of known fields;
        the unit matrix for bodies that are absent.
    known : Tensor, (batch, time, body, field)
    """

    centre: Tensor
    gain: Tensor
    factor: Tensor
    known: Tensor

    def at(self, t: int, after: Tensor | None) -> Tensor:
        """Return the mean of x_t given x_{t+1} (*sample, batch, body, field, space): the same shape; None at the end."""
        mean = self.centre[:, t]
        return mean if after is None else mean + self.gain[:, t] @ after

    def root(self) -> Tensor:
        """The factor with rows of zeros for known fields: (batch, time, body, field, field)."""
        return torch.where(self.known[..., None], 0.0, self.factor)

    def path(self, noise: Tensor | None = None) -> Tensor:
        """Return the path that Normal noise (*sample, batch, time, body, field, space) makes, in that shape; by default the mean."""
        kicks = None if noise is None else self.root() @ noise.to(self.centre.dtype)
        after, states = None, []
        for t in reversed(range(self.centre.shape[1])):
            mean = self.at(t, after)
            after = mean if kicks is None else mean + kicks[..., t, :, :, :]
            states.append(after)
        return torch.stack(states[::-1], -4)


def smooth(evidence: Evidence, law: LinearLaw) -> PathLaw:
    """Return the law of paths given a recording, under a linear law."""
    values, matrix = evidence.values, law.matrix
    recorded = torch.tensor(law.recorded, device=values.device)
    entry_mean = torch.where(recorded[:, None], values, 0.0)
    entry_spread = torch.diag_embed(law.spread)
    means: list[Tensor] = []
    spreads: list[Tensor] = []
    predicted: list[tuple[Tensor, Tensor]] = []
    for t in range(values.shape[1]):
        first = evidence.first[:, t, :, None, None]
        if t:
            step = matrix[:, t - 1]
            ahead = step @ means[-1] + law.offset[:, t - 1]
            ahead_spread = step @ spreads[-1] @ step.mT + law.noise[:, t - 1]
            predicted.append((ahead, ahead_spread))
            mean, spread = torch.where(first, entry_mean[:, t], ahead), torch.where(first, entry_spread, ahead_spread)
        else:
            mean, spread = entry_mean[:, 0], entry_spread.expand(*values.shape[:1], values.shape[2], -1, -1)
        update = (evidence.seen[:, t] & ~evidence.first[:, t])[..., None, None]
        for k in range(len(law.recorded)):
            if law.recorded[k]:
                mean, spread = _updated(mean, spread, values[:, t, :, k], law.error[k], k, update)
        means.append(mean)
        spreads.append(spread)
    return _backwards(evidence, law, torch.stack(means, 1), torch.stack(spreads, 1), predicted)


def _updated(mean: Tensor, spread: Tensor, value: Tensor, error: Tensor, k: int, update: Tensor) -> tuple[Tensor, Tensor]:
    """Take in the recorded value (batch, body, space) of field k, where `update` (batch, body, 1, 1); an exact one leaves no variance."""
    column = spread[..., k : k + 1]
    gain = column / torch.where(update, column[..., k : k + 1, :] + error, 1.0)
    better = mean + gain * (value - mean[..., k, :])[..., None, :]
    left = spread - gain @ column.mT
    exact = torch.zeros_like(left, dtype=torch.bool)
    exact[..., k, :] = exact[..., :, k] = True
    left = torch.where(exact & (error == 0), 0.0, (left + left.mT) / 2)
    return torch.where(update, better, mean), torch.where(update, left, spread)


def _backwards(evidence: Evidence, law: LinearLaw, mean: Tensor, spread: Tensor, predicted: list[tuple[Tensor, Tensor]]) -> PathLaw:
    """Turn the results of the filter into laws of each state given the one after it, for all times at once."""
    eye = torch.eye(len(law.recorded), dtype=mean.dtype, device=mean.device)
    gain, centre, left = torch.zeros_like(spread), mean, spread
    if predicted:
        ahead, ahead_spread = (torch.stack(parts, 1) for parts in zip(*predicted, strict=True))
        goes_on = (evidence.there[:, :-1] & evidence.there[:, 1:])[..., None, None]
        through = law.matrix @ spread[:, :-1]
        back = torch.where(goes_on, torch.linalg.solve(ahead_spread, through).mT, 0.0)
        kept = eye - back @ law.matrix
        rest = kept @ spread[:, :-1] @ kept.mT + back @ law.noise @ back.mT
        gain = torch.cat([back, gain[:, -1:]], 1)
        centre = torch.cat([mean[:, :-1] - back @ ahead, mean[:, -1:]], 1)
        left = torch.cat([rest, spread[:, -1:]], 1)
    exact = (law.error == 0) & torch.tensor(law.recorded, device=mean.device)
    known = evidence.seen[..., None] & exact
    plain = known[..., :, None] | known[..., None, :] | ~evidence.there[..., None, None]
    factor = torch.linalg.cholesky_ex(torch.where(plain, eye, (left + left.mT) / 2))[0]
    centre = torch.where(known[..., None], evidence.values, centre)
    return PathLaw(centre, torch.where(known[..., None], 0.0, gain), factor, known)
