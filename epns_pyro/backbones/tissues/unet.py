"""A small UNet on images of any size."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from epns_pyro.backbones.tissues.convolutions import LatticeConv


class DoubleConv(nn.Module):
    """Two 3 x 3 convolutions."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.first, self.second = LatticeConv(fan_in, fan_out), LatticeConv(fan_out, fan_out)

    def forward(self, image: Tensor, *, periodic: bool) -> Tensor:
        return self.second(F.silu(self.first(image, periodic=periodic)), periodic=periodic)


class UNet(nn.Module):
    """An encoder and decoder over several resolutions, each half of the one before (Ronneberger et al., MICCAI 2015).

    Sides that are not multiples of `2^(levels - 1)` are padded inside, periodically or with zeros.

    Parameters
    ----------
    fan_in, fan_out : int
        Channels.
    width : int
        Channels at full resolution; they double at every level.
    levels : int
    """

    def __init__(self, fan_in: int, fan_out: int, *, width: int, levels: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(levels)]
        self.multiple = 2 ** (levels - 1)
        self.enter = DoubleConv(fan_in, width)
        self.down = nn.ModuleList(DoubleConv(a, b) for a, b in itertools.pairwise(widths))
        self.up = nn.ModuleList(DoubleConv(a + b, a) for a, b in itertools.pairwise(widths))
        self.leave = nn.Conv2d(width, fan_out, 1)

    def forward(self, image: Tensor, *, periodic: bool) -> Tensor:
        """(batch, channel, y, x) -> (batch, channel, y, x)."""
        height, width = image.shape[-2:]
        image = self._complete(image, periodic=periodic)
        levels = [self.enter(image, periodic=periodic)]
        for layer in self.down:
            levels.append(layer(F.avg_pool2d(F.silu(levels[-1]), 2), periodic=periodic))
        image = levels.pop()
        for layer in reversed(self.up):
            fine = levels.pop()
            coarse = F.interpolate(F.silu(image), scale_factor=2.0, mode="nearest")
            image = layer(torch.cat([F.silu(fine), coarse], 1), periodic=periodic)
        return self.leave(F.silu(image))[..., :height, :width]

    def _complete(self, image: Tensor, *, periodic: bool) -> Tensor:
        """Pad both sides at their ends to whole multiples."""
        for axis in (-2, -1):
            size = image.shape[axis]
            missing = -size % self.multiple
            if missing and periodic:
                image = torch.cat([image, image.narrow(axis, 0, missing)], axis)
            elif missing:
                image = F.pad(image, (0, missing) if axis == -1 else (0, 0, 0, missing))
        return image
