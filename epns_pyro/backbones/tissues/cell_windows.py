"""The default network: one convolution pass over the lattice, shared by all cells, then a small window around every cell.

The shared pass does not read labels. Features of a pixel: its type, which of its eight neighbours belong to the same cell, the area of
that cell, and its position in the cell. Every cell adds its type and area, its age where that is known, and, in its window, two masks: its
own pixels, and those of the other cells of its type.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import pydantic
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from epns_pyro.backbones.tissues.base import GRIDS, Draft, GridConfig, GridNetwork, GridSignature
from epns_pyro.backbones.tissues.convolutions import DilatedStack, LocalBasis, Pointwise, padded, to_rows
from epns_pyro.backbones.tissues.tissue import AREA_FEATURES, WALL, Crops, Size, Tissue, area_features

DEFAULT_WINDOW, SMALLEST_WINDOW = 15, 7  # pixels: without a measured reach, and the minimum
NEIGHBOURS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))


class CellWindows(GridNetwork):
    """A network on windows around cells. Rows of h: the pixels of the lattice, then the places of every cell's window."""

    equivariant: ClassVar[bool] = True

    def __init__(self, signature: GridSignature, latent: int, config: CellWindowsConfig) -> None:
        super().__init__()
        self.config, self.types, self.ages = config, signature.types, signature.ages
        width = self.width = config.width
        self.side = config.window or window_for(signature.reach, signature.lattice)
        self.basis = LocalBasis(config.nodes, config.spacing or self.side / (config.nodes + 1))
        self.context = DilatedStack(1 + signature.types + 1 + len(NEIGHBOURS) + AREA_FEATURES + 2, width, config.dilations)
        self.cell = nn.Linear(signature.types + 1 + AREA_FEATURES * (1 + signature.ages), width)
        self.own = nn.Conv2d(2, width, config.kernel)
        self.local = nn.Sequential(*(Pointwise(width) for _ in range(config.depth)))
        self.changed = nn.Conv2d(4, width, config.kernel)
        self.became = nn.Embedding(signature.types + 1, width)
        self.compare = nn.Sequential(*(Pointwise(width) for _ in range(config.depth)))
        self.write = nn.Linear(latent, self.basis.size * width, bias=False)
        self.summary_width = self.innovation_width = self.basis.size * width

    # -- the four parts ------------------------------------------------------------------------------------------------------

    def window(self, lattice: Size) -> Size:
        return Size(self.side, self.side)

    def crops(self, tissue: Tissue) -> Crops:
        return tissue.crops(self.window(tissue.lattice))

    def hidden(self, tissue: Tissue) -> Tensor:
        image = pixel_features(tissue, self.types, self.own.weight.dtype)
        lattice = to_rows(self.context(image.reshape(-1, *image.shape[-3:]), periodic=tissue.periodic))
        lattice = lattice.reshape(*tissue.batch, *lattice.shape[-2:])
        windows = self.crops(tissue).read(lattice) + self._masks(self.own, tissue, tissue) + self._cells(tissue)[..., None, :]
        return torch.cat([lattice, self.local(windows).flatten(-3, -2)], -2)

    def summary(self, tissue: Tissue, h: Tensor) -> Tensor:
        return self._read(tissue, self._windows(tissue, h))

    def draft(self, tissue: Tissue, h: Tensor, z: Tensor) -> Draft:
        written = self.basis.write(self.write(z), self._offsets(tissue))
        return Draft(self._windows(tissue, h) + written, h[..., : tissue.lattice.pixels, :])

    def innovation(self, tissue: Tissue, h: Tensor, following: Tissue) -> Tensor:
        crops = self.crops(tissue)
        became = self.became(tissue.type_of_pixels(following.flat))
        rows = self._windows(tissue, h) + self._masks(self.changed, tissue, tissue, following) + crops.read(became)
        return self._read(tissue, self.compare(rows))

    # -- helpers -------------------------------------------------------------------------------------------------------------

    def _read(self, tissue: Tissue, rows: Tensor) -> Tensor:
        """Features of cells (*batch, cell, node * channel) from those of the places of their windows (*batch, cell, place, channel)."""
        return self.basis.read(rows * self.crops(tissue).counted[..., None], self._offsets(tissue))

    def _offsets(self, tissue: Tissue) -> Tensor:
        """Position of the places of a window relative to the cell's centre, (place, 2)."""
        size = self.window(tissue.lattice)
        return torch.cartesian_prod(*(torch.arange(side, device=tissue.labels.device) - side // 2 for side in size))

    def _windows(self, tissue: Tissue, h: Tensor) -> Tensor:
        """The rows of h that belong to windows: (*batch, cell, place, channel)."""
        return h[..., tissue.lattice.pixels :, :].unflatten(-2, (tissue.cells, -1))

    def _cells(self, tissue: Tissue) -> Tensor:
        """Features of a cell that do not depend on its surroundings: (*batch, cell, channel)."""
        dtype = self.cell.weight.dtype
        kinds = F.one_hot(tissue.types, self.types + 1).to(dtype)
        ages = [area_features(tissue.known_ages.to(dtype))] if self.ages else []
        return self.cell(torch.cat([kinds, area_features(tissue.areas.to(dtype)), *ages], -1))

    def _masks(self, conv: nn.Conv2d, tissue: Tissue, *images: Tissue) -> Tensor:
        """Convolve the mask of each cell and that of the other cells of its type: (*batch, cell, place, channel).

        The masks of several images, all in the windows of the first.
        """
        size = self.window(tissue.lattice).grown(self.config.kernel // 2)
        crops = tissue.crops(size)
        masks = torch.stack([mask for image in images for mask in self_and_kin(tissue, crops, image.flat)], -2)
        rows = to_rows(conv(masks.reshape(-1, masks.shape[-2], *size).to(conv.weight.dtype)))
        return rows.reshape(*masks.shape[:-2], *rows.shape[-2:])


def window_for(reach: float | None, lattice: Size) -> int:
    """Return the odd side of a window that holds all pixels within `reach` of a cell's centre, no larger than the lattice needs."""
    if reach is None:
        return DEFAULT_WINDOW
    pixels = math.ceil(reach + 0.5)  # the middle pixel of a cell is up to half a pixel from its centre
    return max(SMALLEST_WINDOW, min(2 * pixels + 1, max(lattice) // 2 * 2 + 1))


def self_and_kin(tissue: Tissue, crops: Crops, flat: Tensor) -> tuple[Tensor, Tensor]:
    """Return masks of a cell, and of the other cells of its type, in its window of an image (*batch, pixel): each (*batch, cell, place)."""
    names = torch.arange(1, tissue.cells + 1, device=flat.device)[:, None]
    own = crops.labels(flat) == names
    kin = crops.labels(tissue.type_of_pixels(flat)) == tissue.types.clamp_min(1)[..., None]
    return own, kin & ~own


def pixel_features(tissue: Tissue, types: int, dtype: torch.dtype) -> Tensor:
    """Return features of pixels that do not depend on labels: (*batch, channel, y, x).

    Channels: whether it is on the lattice, one per type with the medium first, which of its eight neighbours belong to the same cell, the
    cell's area (`area_features`), and the pixel's position relative to the cell's centre in cell radii.
    """
    lattice, flat = tissue.lattice, tissue.flat
    kinds = F.one_hot(tissue.type_of_pixels(flat), types + 1).mT.to(dtype).unflatten(-1, tuple(lattice))
    around = padded(tissue.labels[..., None, :, :] - WALL, 1, periodic=tissue.periodic)[..., 0, :, :] + WALL
    y, x = lattice
    same = [around[..., 1 + dy : 1 + dy + y, 1 + dx : 1 + dx + x] == tissue.labels for dy, dx in NEIGHBOURS]
    owner = owner_features(tissue, dtype).mT.unflatten(-1, tuple(lattice))
    return torch.cat([torch.ones_like(kinds[..., :1, :, :]), kinds, torch.stack(same, -3).to(dtype), owner], -3)


def owner_features(tissue: Tissue, dtype: torch.dtype) -> Tensor:
    """Return the area of a pixel's cell and the pixel's position in it, in radii: (*batch, pixel, AREA_FEATURES + 2)."""
    height, width = tissue.lattice
    areas = tissue.areas.to(dtype)
    radius = (areas / torch.pi).sqrt()
    table = torch.cat([area_features(areas), radius[..., None], tissue.centres.to(dtype)], -1)
    table = F.pad(table, (0, 0, 1, 0))  # (*batch, label, feature); the medium has zeros
    of_pixel = table.gather(-2, tissue.flat[..., None].expand(*tissue.flat.shape, table.shape[-1]))
    areas, radius, *centre = of_pixel.split([AREA_FEATURES, 1, 1, 1], -1)
    pixel = torch.arange(height * width, device=tissue.flat.device)[:, None]
    place = []
    for position, middle, size in zip((pixel // width, pixel % width), centre, (height, width), strict=True):
        offset = position - middle
        if tissue.periodic:
            offset = (offset + size // 2) % size - size // 2
        place.append(torch.tanh(offset / radius.clamp_min(1.0) / 2) * (tissue.flat > 0)[..., None])
    return torch.cat([areas, *place], -1)


@GRIDS.register("windows")
class CellWindowsConfig(GridConfig):
    """Shared features of the lattice and a window around every cell: the default.

    At the next step a cell can take pixels in its window, and keep those that it has; elsewhere it has the probability of the emission's
    floor.
    """

    name: Literal["windows"] = "windows"
    width: int = pydantic.Field(default=32, gt=0, description="channels of all features")
    window: int | None = pydantic.Field(
        default=None, ge=3, description="side of the window around a cell, pixels; null: as large as the cells in the training set need"
    )
    kernel: int = pydantic.Field(default=7, ge=3, description="side of the kernel on a cell's own mask, pixels")
    dilations: tuple[pydantic.PositiveInt, ...] = pydantic.Field(
        default=(1, 2, 4), description="dilations of the shared layers on the lattice"
    )
    depth: int = pydantic.Field(default=2, ge=1, description="layers on the features of a window")
    nodes: int = pydantic.Field(default=5, ge=1, description="latents are read and written on nodes x nodes points around the cell")
    spacing: float | None = pydantic.Field(default=None, gt=0, description="pixels between these points; null: the points span the window")

    @pydantic.model_validator(mode="after")
    def _odd(self) -> CellWindowsConfig:
        if even := [key for key, side in (("window", self.window), ("kernel", self.kernel)) if side is not None and side % 2 == 0]:
            raise ValueError(f"{' and '.join(even)}: a side must be odd, so that it has a middle")
        return self

    def build(self, signature: GridSignature, latent: int) -> CellWindows:
        return CellWindows(signature, latent, self)

    def doubt(self, signature: GridSignature) -> str:
        if self.window is None or signature.reach is None or self.window // 2 >= math.floor(signature.reach + 0.5):  # offsets are integers
            return ""
        needed = window_for(signature.reach, signature.lattice)
        return (
            f"model.network.window is {self.window} pixels, and cells of the training set reach {signature.reach:.1f} pixels from their "
            f"centre in a step: they cannot take pixels outside of the window; {needed} or null, which measures it, would hold them"
        )
