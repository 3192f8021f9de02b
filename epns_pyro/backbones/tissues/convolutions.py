"""Convolutions on lattices and on windows, and the local coordinate basis in which cells read and write features."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from epns_pyro.backbones.tissues.tissue import Size


def padded(image: Tensor, margin: int, *, periodic: bool) -> Tensor:
    """Extend images (*batch, channel, y, x) by `margin` pixels on every side, periodically or with zeros."""
    if not periodic:
        return F.pad(image, (margin,) * 4)
    for axis in (-2, -1):
        around = torch.arange(-margin, image.shape[axis] + margin, device=image.device) % image.shape[axis]
        image = image.index_select(axis, around)
    return image


class LatticeConv(nn.Module):
    """A convolution on whole lattices, (batch, channel, y, x) -> (batch, channel, y, x)."""

    def __init__(self, fan_in: int, fan_out: int, kernel: int = 3, *, dilation: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.margin = dilation * (kernel // 2)
        self.conv = nn.Conv2d(fan_in, fan_out, kernel, dilation=dilation, groups=groups)

    def forward(self, image: Tensor, *, periodic: bool) -> Tensor:
        return self.conv(padded(image, self.margin, periodic=periodic))


class DilatedStack(nn.Module):
    """Residual convolutions on the lattice, one per dilation: exactly equivariant under shifts; the dilations add up to the reach."""

    def __init__(self, fan_in: int, width: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.embed = LatticeConv(fan_in, width)
        self.layers = nn.ModuleList(LatticeConv(width, width, dilation=d) for d in dilations)

    def forward(self, image: Tensor, *, periodic: bool) -> Tensor:
        """(batch, channel, y, x) -> (batch, width, y, x)."""
        image = self.embed(image, periodic=periodic)
        for layer in self.layers:
            image = image + layer(F.silu(image), periodic=periodic)
        return image


def to_rows(image: Tensor) -> Tensor:
    """(batch, channel, y, x) -> (batch, pixel, channel)."""
    return image.flatten(-2).mT


def to_image(rows: Tensor, size: Size) -> Tensor:
    """(batch, pixel, channel) -> (batch, channel, y, x)."""
    return rows.mT.unflatten(-1, tuple(size))


class Pointwise(nn.Module):
    """A residual perceptron on every row: x + W2 silu(W1 silu(x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, rows: Tensor) -> Tensor:
        return rows + self.layers(rows)


class LocalBasis(nn.Module):
    """Bilinear hat functions on a square grid of nodes around a cell's centre: they pool a window for a cell and spread latents over it.

    Zero beyond (nodes + 1) / 2 * spacing pixels, so that what a cell reads does not depend on the size of its window.
    """

    ticks: Tensor

    def __init__(self, nodes: int, spacing: float) -> None:
        super().__init__()
        self.nodes, self.spacing = nodes, spacing
        self.register_buffer("ticks", (torch.arange(nodes) - (nodes - 1) / 2) * spacing, persistent=False)

    @property
    def size(self) -> int:
        return self.nodes**2

    def at(self, offsets: Tensor) -> Tensor:
        """Evaluate at offsets (place, 2): (place, node)."""
        hats = (1 - (offsets[:, :, None] - self.ticks).abs() / self.spacing).clamp_min(0)  # (place, axis, tick)
        return (hats[:, 0, :, None] * hats[:, 1, None, :]).flatten(1)

    def read(self, rows: Tensor, offsets: Tensor) -> Tensor:
        """Average features with the weights of the basis: (*batch, place, channel) -> (*batch, node * channel)."""
        return (self.at(offsets).mT @ rows).flatten(-2) / self.spacing**2

    def write(self, values: Tensor, offsets: Tensor) -> Tensor:
        """Spread values over the window: (*batch, node * channel) -> (*batch, place, channel)."""
        return self.at(offsets) @ values.unflatten(-1, (self.size, -1))
