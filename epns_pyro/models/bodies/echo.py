"""What stays of the last miss: the noise of a step as a moving average of order one.

    x_{t+1} - foreseen_t = m_t = e_t + theta(s_{t-1}) e_{t-1} min(1, s_t / s_{t-1}),   e_t: new at every step, of size s_t

A velocity that is a difference of positions holds half of the kick of the frame before: theta is 2 - sqrt(3) = 0.27 then. An equation of
motion that is nearly right errs in much the same way in the next frame. Independent noise of the same size spreads too slowly: ensembles
become over-confident (Box and Jenkins, Time Series Analysis, chapter 3). This spreads at most sqrt(2) times as fast; an autoregression
has no such bound, and where errors of a law come and go on the way, ensembles become far too wide with it.

Where bodies meet, misses are larger by orders of magnitude, and of another kind: on the way in a law errs in one sense, on the way out in
the other, so a part of a miss is taken back. Hence theta depends on the size of the noise: tanh(a + b log s). Accidents do not stay at all,
nor does a small miss become a large one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

RARE = 4.0  # sizes of the noise
SMALLEST, FOLDS = 1e-6, 7.0  # of a typical change; e-folds from the middle of sizes to a typical change


class Echo(nn.Module):
    """The expected miss of a frame, given that of the last; nothing is expected before training.

    Parameters
    ----------
    widths : Tensor, (field,)
        Channels of every predicted field; each has its own theta, between -1 and 1.
    units : Tensor, (field,)
        Typical changes of these fields, in which sizes are measured.

    Notes
    -----
    The memory, (*batch, body, 2 * channel + 1), holds e and s of the last frame, and 1 if they are known, else zeros. What is carried along
    gets no gradient.
    """

    widths: Tensor
    units: Tensor

    def __init__(self, widths: Tensor, units: Tensor) -> None:
        super().__init__()
        self.register_buffer("widths", widths, persistent=False)
        self.register_buffer("units", units, persistent=False)
        self.raw = nn.Parameter(torch.zeros(len(widths)))
        self.slope = nn.Parameter(torch.zeros(len(widths)))
        self.channels = int(widths.sum())

    def theta(self, size: Tensor) -> Tensor:
        """How much stays of a miss where the noise had this size: both (*batch, body, channel)."""
        units, raw, slope = (part.repeat_interleave(self.widths, output_size=self.channels) for part in (self.units, self.raw, self.slope))
        return torch.tanh(raw + slope * (1 + (size / units).clamp_min(SMALLEST).log() / FOLDS))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        state_dict.setdefault(f"{prefix}slope", torch.zeros_like(self.slope))  # runs of earlier versions have none
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def start(self, x: Tensor) -> Tensor:
        """Return the memory at the start, of states x (*batch, body, channel): nothing is known."""
        return x.new_zeros(*x.shape[:-1], 2 * self.channels + 1)

    def expected(self, memory: Tensor, size: Tensor) -> Tensor:
        """Return the miss that is expected in a frame whose noise has this size: both (*batch, body, channel)."""
        new, before, known = memory.split([self.channels, self.channels, 1], -1)
        before = torch.where(known > 0, before, size)
        return self.theta(before) * new * (size / before).clamp_max(1.0)

    def known(self, memory: Tensor) -> Tensor:
        """Return 1 where there is something to expect it from, else 0: (*batch, body, 1)."""
        return memory[..., -1:]

    def remember(self, memory: Tensor, missed: Tensor, size: Tensor, there: Tensor | None = None) -> Tensor:
        """Return the memory after a frame that was missed by so much, where the noise has this size: both (*batch, body, channel).

        Bodies that were not there before it and after it, (*batch, body), are forgotten.
        """
        with torch.no_grad():
            new = usual(missed - self.expected(memory, size), size)
            memory = torch.cat([new, size.expand_as(new), torch.ones_like(new[..., :1])], -1)
            return memory if there is None else torch.where(there[..., None], memory, 0.0)

    def along(self, missed: Tensor, size: Tensor, there: Tensor) -> Tensor:
        """Return the misses that are expected along paths that begin without memory, of misses (path, frame, body, channel).

        Sizes of the noise are alike; bodies that were not there, (path, frame, body), are forgotten.
        """
        staying = self.theta(size[:, :-1]) * (size[:, 1:] / size[:, :-1]).clamp_max(1.0) * there[:, :-1, :, None]
        expected = [torch.zeros_like(missed[:, 0])]
        for frame in range(missed.shape[1] - 1):
            new = usual(missed[:, frame] - expected[-1], size[:, frame])
            expected.append(staying[:, frame] * new)
        return torch.stack(expected, 1)


def usual(missed: Tensor, size: Tensor) -> Tensor:
    """Shrink misses of a body (..., channel) of more than `RARE` times the usual size, the more the larger they are."""
    return missed / (1 + ((missed / size).square().mean(-1, keepdim=True) / RARE**2).square())
