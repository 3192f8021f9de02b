"""Label images as inputs of networks: areas and centres of cells, and windows that move with the cells.

Relabelling cells permutes the cell axis of every result and changes nothing else. On a periodic lattice, shifting the image shifts every
result exactly: all arithmetic on positions is in integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

WALL = -1  # label of pixels off the lattice
FREQUENCIES = (1.0, 2.0, 4.0, 8.0, 16.0)
AREA_FEATURES = 2 * len(FREQUENCIES)


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
        The centre of a cell is computed from pixels within this distance: fragments farther away do not move it.
    ages : Tensor, (*batch, cell), optional
        int64; frames since the first one of the cell, where they are known.
    """

    labels: Tensor
    types: Tensor
    periodic: bool
    reach: int
    ages: Tensor | None = None

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
        """Labels with the lattice flattened, (*batch, pixel)."""
        return self.labels.flatten(-2)

    @cached_property
    def rows(self) -> Tensor:
        """Number of pixels of every label in every row of the lattice, (*batch, label, y)."""
        return self._projection(self.labels, self.lattice.height, self.lattice.width)

    @cached_property
    def columns(self) -> Tensor:
        """Number of pixels of every label in every column of the lattice, (*batch, label, x)."""
        return self._projection(self.labels.mT, self.lattice.width, self.lattice.height)

    @cached_property
    def areas(self) -> Tensor:
        """Area of every cell in pixels, (*batch, cell)."""
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

    @property
    def known_ages(self) -> Tensor:
        """Ages of cells, (*batch, cell); 0 where they are not known."""
        return torch.zeros_like(self.types) if self.ages is None else self.ages

    @cached_property
    def origin(self) -> Tensor:
        """The pixel in the middle of all borders between cells, (*batch, 2 = y, x): the reference point of the interlacing pattern.

        It moves with the image. An image that is unchanged by some shift of a periodic lattice has no such point.
        """
        border = torch.zeros_like(self.labels)
        for axis, side in ((-2, self.lattice.height), (-1, self.lattice.width)):
            differs = self.labels != self.labels.roll(-1, axis)
            border += differs if self.periodic else differs.index_fill(axis, torch.tensor([side - 1], device=differs.device), False)
        counts = zip((border.sum(-1), border.sum(-2)), self.lattice, strict=True)
        return torch.stack([middle(c, size // 2, periodic=self.periodic) for c, size in counts], -1)

    def type_of_pixels(self, labels: Tensor) -> Tensor:
        """Look up the type of every label of an image (*batch, pixel), 0 for the medium and for the wall."""
        table = torch.nn.functional.pad(self.types, (1, 0))
        batch = torch.broadcast_shapes(labels.shape[:-1], table.shape[:-1])
        return table.expand(*batch, -1).gather(-1, labels.clamp_min(0).expand(*batch, -1))

    def with_labels(self, labels: Tensor) -> Tissue:
        """Return the same cells with other pixels, labels (*batch, y, x); types are kept."""
        return Tissue(labels, self.types, self.periodic, self.reach, self.ages)

    def crops(self, size: Size) -> Crops:
        """Return windows of `size` around the cells."""
        return Crops.around(self, size)

    def _projection(self, labels: Tensor, size: int, across: int) -> Tensor:
        # counts per (label, row): one scatter for the whole batch
        batch, n = labels.shape[:-2], self.cells + 1
        row = torch.arange(size, device=labels.device).repeat_interleave(across)
        slot = (labels.reshape(*batch, -1) * size + row).long()
        counts = torch.zeros(*batch, n * size, dtype=torch.int64, device=labels.device)
        return counts.scatter_add_(-1, slot, torch.ones_like(slot)).unflatten(-1, (n, size))


def middle(counts: Tensor, reach: int, *, periodic: bool) -> Tensor:
    """Return the middle of pixels from their counts per position, (*batch, size) -> (*batch,).

    It maximises sum over pixels of max(0, reach^2 - d^2), d the distance: for pixels within reach of each other that is the mean, rounded.
    Ties are broken by arbitrary weights of the distances, never by the origin of a periodic lattice. All sums are of integers and exact in
    float64.
    """
    size = counts.shape[-1]
    position = torch.arange(size, device=counts.device)
    distance = position - position[:, None]  # (candidate, pixel)
    if periodic:
        distance = (distance + size // 2) % size - size // 2
    near = distance.abs() < reach
    arbitrary = (distance * 2654435761) % 2**32 // 2**16
    closeness, order = (counts.double() @ (w * near).double().mT for w in (reach**2 - distance.square(), arbitrary))
    best = closeness == closeness.amax(-1, keepdim=True)
    return torch.where(best, order, -1.0).argmax(-1)


@dataclass(frozen=True)
class Crops:
    """One window per cell.

    Parameters
    ----------
    index : Tensor, (*batch, cell, place)
        The pixel of the lattice at every place of the window, places row by row; an arbitrary pixel where a place is off the lattice.
    inside : Tensor, (*batch, cell, place)
        Whether the place is on the lattice.
    counted : Tensor, (*batch, cell, place)
        The same, but if a window is larger than a periodic lattice every pixel counts once.
    start : Tensor, (*batch, cell, 2 = y, x)
        Position of the first place relative to the cell's centre, pixels.
    size : Size
    """

    index: Tensor
    inside: Tensor
    counted: Tensor
    start: Tensor
    size: Size

    @classmethod
    def around(cls, tissue: Tissue, size: Size) -> Crops:
        """Return windows centred on the cells."""
        return cls.at(tissue, tissue.centres - torch.tensor(size, device=tissue.labels.device) // 2, size)

    @classmethod
    def frames(cls, tissue: Tissue, multiple: int) -> Crops:
        """Return windows that hold the whole lattice, with the cell's centre a multiple of `multiple` from their corner.

        So the pooling of a network that halves the resolution moves with the cell. Sides are multiples of `multiple`.
        """
        sides = torch.tensor(tissue.lattice, device=tissue.labels.device)
        if tissue.periodic:
            size = Size(*(side + -side % multiple for side in tissue.lattice))
            half = torch.tensor([side // 2 // multiple * multiple for side in size], device=sides.device)
            return cls.at(tissue, tissue.centres - half, size)
        size = Size(*(side + (multiple - 1) + -(side + multiple - 1) % multiple for side in tissue.lattice))
        return cls.at(tissue, -(-tissue.centres % multiple), size)

    @classmethod
    def whole(cls, tissue: Tissue) -> Crops:
        """Return the whole lattice as the window of every cell."""
        return cls.at(tissue, torch.zeros_like(tissue.centres), tissue.lattice)

    @classmethod
    def at(cls, tissue: Tissue, corner: Tensor, size: Size) -> Crops:
        """Return windows of `size` whose first places are at `corner` (*batch, cell, 2 = y, x)."""
        positions, inside, once = [], [], []
        for axis, (side, limit) in enumerate(zip(size, tissue.lattice, strict=True)):
            step = torch.arange(side, device=corner.device)
            position = corner[..., axis, None] + step  # (*batch, cell, side)
            positions.append(position % limit if tissue.periodic else position.clamp(0, limit - 1))
            inside.append(torch.ones_like(position, dtype=torch.bool) if tissue.periodic else (position >= 0) & (position < limit))
            once.append((step - (side - limit) // 2) % max(side, limit) < limit if tissue.periodic else step >= 0)
        index = positions[0][..., :, None] * tissue.lattice.width + positions[1][..., None, :]
        on_lattice = (inside[0][..., :, None] & inside[1][..., None, :]).flatten(-2)
        counted = on_lattice & (once[0][:, None] & once[1]).flatten()
        return cls(index.flatten(-2), on_lattice, counted, corner - tissue.centres, size)

    @property
    def grid(self) -> Tensor:
        """Position of every place relative to the first: (place, 2 = y, x)."""
        return torch.cartesian_prod(*(torch.arange(side, device=self.index.device) for side in self.size))

    def labels(self, flat: Tensor) -> Tensor:
        """Read images (*batch, pixel) in the windows, `WALL` off the lattice: (*batch, cell, place)."""
        batch = torch.broadcast_shapes(flat.shape[:-1], self.index.shape[:-2])
        index = self.index.expand(*batch, -1, -1)
        read = flat.expand(*batch, -1).gather(-1, index.flatten(-2)).unflatten(-1, index.shape[-2:])
        return torch.where(self.inside, read, WALL)

    def read(self, features: Tensor) -> Tensor:
        """Read features (*batch, pixel, channel) in the windows, arbitrary off the lattice: (*batch, cell, place, channel)."""
        batch = torch.broadcast_shapes(features.shape[:-2], self.index.shape[:-2])
        features, index = features.expand(*batch, -1, -1), self.index.expand(*batch, -1, -1)
        rows = torch.nn.functional.embedding(flat_index(index.flatten(-2), features.shape[-2]), features.flatten(0, -2))
        return rows.unflatten(0, index.shape)


def flat_index(index: Tensor, pixels: int) -> Tensor:
    """Number the pixels of a whole batch: (*batch, any) -> (batch * any,)."""
    batch = index.shape[:-1]
    start = torch.arange(batch.numel(), device=index.device) * pixels
    return (index + start.view(*batch, 1)).flatten()


def area_features(areas: Tensor) -> Tensor:
    """Encode areas in pixels (*any) as sines and cosines of their logarithm: (*any, AREA_FEATURES).

    Cells of 5 pixels and of 5,000 are distinguished from others a few per cent larger, without a scale from the data.
    """
    phase = areas.clamp_min(0).log1p()[..., None] * areas.new_tensor(FREQUENCIES)
    return torch.cat([phase.sin(), phase.cos()], -1)
