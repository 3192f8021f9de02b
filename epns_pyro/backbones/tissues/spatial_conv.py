"""SpatialConv-GNN, the published network: every cell is a node whose features are a whole grid.

    m   = conv(mean over cells of n_c)        the message, the same for all cells
    n_c <- n_c + UNet(n_c, m)                 the node update

A cell's grid is centred on the cell, so that the pooling of the UNet moves with it. Its cost is cells x lattice; that of the default
network is cells x window. For comparison.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import pydantic
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from epns_pyro.backbones.tissues.base import GRIDS, Draft, GridConfig, GridNetwork, GridSignature
from epns_pyro.backbones.tissues.convolutions import LatticeConv, to_image, to_rows
from epns_pyro.backbones.tissues.tissue import AREA_FEATURES, Crops, Size, Tissue, area_features, flat_index
from epns_pyro.backbones.tissues.unet import UNet


class SpatialConvLayer(nn.Module):
    """One round of messages on grids (*batch, cell, place, width)."""

    def __init__(self, width: int, levels: int) -> None:
        super().__init__()
        self.message = LatticeConv(width, width)
        self.update = UNet(2 * width, width, width=width, levels=levels)

    def forward(self, grids: Tensor, tissue: Tissue, crops: Crops) -> tuple[Tensor, Tensor]:
        """Return the new grids (*batch, cell, place, width) and the message (*batch, pixel, width)."""
        message = self.message(_images(mean_over_cells(grids, tissue, crops), tissue.lattice), periodic=tissue.periodic)
        message = to_rows(message).reshape(*grids.shape[:-3], tissue.lattice.pixels, -1)
        nodes = torch.cat([grids, crops.read(message) * crops.inside[..., None]], -1)
        update = to_rows(self.update(_images(nodes, crops.size), periodic=tissue.periodic)).reshape(grids.shape)
        return (grids + update) * crops.inside[..., None], message


class SpatialConv(GridNetwork):
    """A network with a grid per cell. Rows of h: the messages on the lattice, then the places of every cell's grid."""

    equivariant: ClassVar[bool] = True

    def __init__(self, signature: GridSignature, latent: int, config: SpatialConvConfig) -> None:
        super().__init__()
        self.types, self.multiple = signature.types, 2 ** (config.levels - 1)
        width = self.width = config.embedding
        self.embed = nn.Linear(1 + signature.types + 1, width)
        self.size = nn.Linear(AREA_FEATURES, width)
        self.encoder = nn.ModuleList(SpatialConvLayer(width, config.levels) for _ in range(config.layers))
        self.write = nn.Linear(latent, width)
        self.decoder = SpatialConvLayer(width, config.levels)
        self.became = nn.Linear(1 + signature.types + 1, width)
        self.compare = SpatialConvLayer(width, config.levels)
        self.summary_width = self.innovation_width = 2 * width

    # -- the four parts ------------------------------------------------------------------------------------------------------

    def window(self, lattice: Size) -> Size:
        return lattice

    def crops(self, tissue: Tissue) -> Crops:
        return Crops.frames(tissue, self.multiple)

    def hidden(self, tissue: Tissue) -> Tensor:
        crops = self.crops(tissue)
        dtype = self.embed.weight.dtype
        area = self.size(area_features(tissue.areas.to(dtype)))[..., None, :]
        grids = (self.embed(self._masks(tissue, tissue, crops)) + area) * crops.inside[..., None]
        for layer in self.encoder:
            grids, message = layer(grids, tissue, crops)
        return torch.cat([message, grids.flatten(-3, -2)], -2)

    def summary(self, tissue: Tissue, h: Tensor) -> Tensor:
        return self._pool(self._grids(tissue, h), tissue)

    def draft(self, tissue: Tissue, h: Tensor, z: Tensor) -> Draft:
        grids = self._grids(tissue, h) + self.write(z)[..., None, :]
        grids, message = self.decoder(grids, tissue, self.crops(tissue))
        return Draft(grids, h[..., : tissue.lattice.pixels, :] + message)

    def innovation(self, tissue: Tissue, h: Tensor, following: Tissue) -> Tensor:
        crops = self.crops(tissue)
        grids = self._grids(tissue, h) + self.became(self._masks(tissue, following, crops))
        return self._pool(self.compare(grids, tissue, crops)[0], tissue)

    # -- helpers -------------------------------------------------------------------------------------------------------------

    def _grids(self, tissue: Tissue, h: Tensor) -> Tensor:
        return h[..., tissue.lattice.pixels :, :].unflatten(-2, (tissue.cells, -1))

    def _masks(self, tissue: Tissue, image: Tissue, crops: Crops) -> Tensor:
        """A cell's own mask and the types of all pixels of an image, in the cell's grid: (*batch, cell, place, channel)."""
        dtype = self.embed.weight.dtype
        names = torch.arange(1, tissue.cells + 1, device=tissue.labels.device)[:, None]
        kinds = F.one_hot(tissue.type_of_pixels(image.flat), self.types + 1).to(dtype)
        return torch.cat([(crops.labels(image.flat) == names).to(dtype)[..., None], crops.read(kinds)], -1) * crops.inside[..., None]

    def _pool(self, grids: Tensor, tissue: Tissue) -> Tensor:
        """Mean over a cell's pixels, and sum over the whole grid per pixel of the cell: (*batch, cell, 2 * width)."""
        crops = self.crops(tissue)
        names = torch.arange(1, tissue.cells + 1, device=tissue.labels.device)[:, None]
        own = (crops.labels(tissue.flat) == names) & crops.counted
        area = tissue.areas.clamp_min(1)[..., None]
        sums = [(grids * where[..., None]).sum(-2) / area for where in (own, crops.counted)]
        return torch.cat(sums, -1)


def mean_over_cells(grids: Tensor, tissue: Tissue, crops: Crops) -> Tensor:
    """Average over the cells that are present, per pixel of the lattice: (*batch, cell, place, channel) -> (*batch, pixel, channel)."""
    batch, channels, pixels = grids.shape[:-3], grids.shape[-1], tissue.lattice.pixels
    counted = (crops.counted & tissue.present[..., None])[..., None]
    index = flat_index(crops.index.expand(grids.shape[:-1]).flatten(-2), pixels)
    total = grids.new_zeros(batch.numel() * pixels, channels).index_add(0, index, (grids * counted).reshape(-1, channels))
    return total.view(*batch, pixels, channels) / tissue.present.sum(-1).clamp_min(1)[..., None, None]


def _images(rows: Tensor, size: Size) -> Tensor:
    return to_image(rows.reshape(-1, *rows.shape[-2:]), size)


@GRIDS.register("spatial-conv")
class SpatialConvConfig(GridConfig):
    """SpatialConv-GNN as published: an embedding of 32 channels on a whole grid per cell."""

    name: Literal["spatial-conv"] = "spatial-conv"
    embedding: int = pydantic.Field(default=32, gt=0, description="channels of a cell's grid")
    layers: int = pydantic.Field(default=1, ge=1, description="rounds of messages of the forward model; the other networks have one")
    levels: int = pydantic.Field(default=3, ge=1, le=6, description="resolutions of the UNets")

    def build(self, signature: GridSignature, latent: int) -> SpatialConv:
        return SpatialConv(signature, latent, self)
