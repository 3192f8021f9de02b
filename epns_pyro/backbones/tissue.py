"""Label images as networks see them: which cell is where, and windows that move with the cells.

Nothing here depends on what a label is called: renaming cells permutes the cell axis of every result. On a periodic lattice shifting the
image shifts every result, exactly: all arithmetic on positions is done in whole numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

WALL = -1  # label of what lies off the lattice


class Size(NamedTuple):
    """Pixels of a lattice or a window."""

    height: int
    width: int

    @property
    def pixels(self) -> int:
        return self.height * self.width

    def grown(self, margin: int) -> Size:
        return Size(self.height + 2 * margin, self.width + 2 * margin)


@dataclass(frozen=True)
class Tissue:
    """A batch of label images.

    Parameters
    ----------
    labels : Tensor, (*batch, y, x)
        int64; 0 is the medium, 1 .. n are cells.
    types : Tensor, (*batch, cell)
        int64; the type of cell i + 1, 1 .. types, and 0 where the cell is absent.
    periodic : bool
    reach : int
        A cell's centre is that of the pixels within this distance: a fragment further away does not move it.
    """

    labels: Tensor
    types: Tensor
    periodic: bool
    reach: int

    @property
    def lattice(self) -> Size:
        return Size(*self.labels.shape[-2:])

    @property
    def batch(self) -> torch.Size:
        return self.labels.shape[:-2]

    @property
    def cells(self) -> int:
        return self.types.shape[-1]

    @cached_property
    def flat(self) -> Tensor:
        """Labels (*batch, pixel)."""
        return self.labels.flatten(-2)

    @cached_property
    def rows(self) -> Tensor:
        """Pixels of every label in every row of the lattice, (*batch, label, y)."""
        return self._projection(self.labels, self.lattice.height, self.lattice.width)

    @cached_property
    def columns(self) -> Tensor:
        """Pixels of every label in every column of the lattice, (*batch, label, x)."""
        return self._projection(self.labels.mT, self.lattice.width, self.lattice.height)

    @cached_property
    def areas(self) -> Tensor:
        """Pixels of every cell, (*batch, cell)."""
        return self.rows[..., 1:, :].sum(-1)

    @property
    def present(self) -> Tensor:
        """Whether a cell has a pixel, (*batch, cell)."""
        return self.areas > 0

    @cached_property
    def centres(self) -> Tensor:
        """The pixel in the middle of every cell, (*batch, cell, 2 = y, x); (0, 0) for the absent."""
        parts = [middle(p[..., 1:, :], self.reach, periodic=self.periodic) for p in (self.rows, self.columns)]
        return torch.stack(parts, -1)

    @cached_property
    def origin(self) -> Tensor:
        """The pixel in the middle of all cells, (*batch, 2 = y, x): the reference point of the interlacing pattern."""
        sides = zip((self.rows, self.columns), self.lattice, strict=True)
        parts = [middle(p[..., 1:, :].sum(-2), size // 2, periodic=self.periodic) for p, size in sides]
        return torch.stack(parts, -1)

    def type_of_pixels(self, labels: Tensor) -> Tensor:
        """Look up the type of every label of an image (*batch, pixel), 0 for the medium and for the wall."""
        table = torch.nn.functional.pad(self.types, (1, 0))
        batch = torch.broadcast_shapes(labels.shape[:-1], table.shape[:-1])
        return table.expand(*batch, -1).gather(-1, labels.clamp_min(0).expand(*batch, -1))

    def with_labels(self, labels: Tensor) -> Tissue:
        """Return the same cells in other places, labels (*batch, y, x); types are kept."""
        return Tissue(labels, self.types, self.periodic, self.reach)

    def crops(self, size: Size) -> Crops:
        """Windows of `size` around the cells."""
        return Crops.around(self, size)

    def _projection(self, labels: Tensor, size: int, across: int) -> Tensor:
        # counts per (label, row): one scatter for the whole batch
        batch, n = labels.shape[:-2], self.cells + 1
        row = torch.arange(size, device=labels.device).repeat_interleave(across)
        slot = (labels.reshape(*batch, -1) * size + row).long()
        counts = torch.zeros(*batch, n * size, dtype=torch.int64, device=labels.device)
        return counts.scatter_add_(-1, slot, torch.ones_like(slot)).unflatten(-1, (n, size))


def middle(counts: Tensor, reach: int, *, periodic: bool) -> Tensor:
    """Return the position in the middle of pixels that are counted by position, (*batch, size) -> (*batch,).

    It maximises sum over pixels of max(0, reach^2 - d^2), d the distance: for pixels within reach of each other that is the mean, rounded.
    Ties are broken by the sign of d, and never by where the numbering of a periodic lattice begins.
    """
    size = counts.shape[-1]
    position = torch.arange(size, device=counts.device)
    distance = position - position[:, None]  # (candidate, pixel)
    if periodic:
        distance = (distance + size // 2) % size - size // 2
    near = distance.abs() < reach
    weight = ((reach**2 - distance.square()) * 2**20 + distance) * near  # whole numbers: exact in float64
    return (counts.double() @ weight.double().mT).argmax(-1)


@dataclass(frozen=True)
class Crops:
    """One window per cell, around its centre.

    Parameters
    ----------
    index : Tensor, (*batch, cell, place)
        The pixel of the lattice at every place of the window, places row by row; of some pixel where a place is off the lattice.
    inside : Tensor, (*batch, cell, place)
        Whether the place is on the lattice.
    size : Size
    offsets : Tensor, (place, 2 = y, x)
        Position relative to the centre, pixels.
    """

    index: Tensor
    inside: Tensor
    size: Size
    offsets: Tensor

    @classmethod
    def around(cls, tissue: Tissue, size: Size) -> Crops:
        device, lattice = tissue.labels.device, tissue.lattice
        axes, positions = [], []
        for axis, (side, limit) in enumerate(zip(size, lattice, strict=True)):
            offset = torch.arange(side, device=device) - side // 2
            position = tissue.centres[..., axis, None] + offset  # (*batch, cell, side)
            axes.append(offset)
            positions.append(position % limit if tissue.periodic else position)
        y, x = positions[0][..., :, None], positions[1][..., None, :]
        inside = (y >= 0) & (y < lattice.height) & (x >= 0) & (x < lattice.width)
        index = y.clamp(0, lattice.height - 1) * lattice.width + x.clamp(0, lattice.width - 1)
        offsets = torch.cartesian_prod(*axes)
        return cls(index.flatten(-2), inside.flatten(-2), size, offsets)

    def labels(self, flat: Tensor) -> Tensor:
        """Read images (*batch, pixel) in the windows, `WALL` off the lattice: (*batch, cell, place)."""
        batch = torch.broadcast_shapes(flat.shape[:-1], self.index.shape[:-2])
        index = self.index.expand(*batch, -1, -1)
        read = flat.expand(*batch, -1).gather(-1, index.flatten(-2)).unflatten(-1, index.shape[-2:])
        return torch.where(self.inside, read, WALL)

    def read(self, features: Tensor) -> Tensor:
        """Read features (*batch, pixel, channel) in the windows, of any pixel off the lattice: (*batch, cell, place, channel)."""
        batch = torch.broadcast_shapes(features.shape[:-2], self.index.shape[:-2])
        features, index = features.expand(*batch, -1, -1), self.index.expand(*batch, -1, -1)
        rows = torch.nn.functional.embedding(flat_index(index.flatten(-2), features.shape[-2]), features.flatten(0, -2))
        return rows.unflatten(0, index.shape)


def flat_index(index: Tensor, pixels: int) -> Tensor:
    """Number the pixels of a whole batch: (*batch, any) -> (batch * any,)."""
    batch = index.shape[:-1]
    start = torch.arange(batch.numel(), device=index.device) * pixels
    return (index + start.view(*batch, 1)).flatten()
