"""PNS-UNet: one UNet on the image with a channel per label. NOT equivariant: it depends on labels and on positions."""

from __future__ import annotations

from typing import ClassVar, Literal

import pydantic
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from epns_pyro.backbones.tissues.base import GRIDS, Draft, GridConfig, GridNetwork, GridSignature
from epns_pyro.backbones.tissues.convolutions import to_image, to_rows
from epns_pyro.backbones.tissues.tissue import Crops, Size, Tissue
from epns_pyro.backbones.tissues.unet import UNet


class GridUNet(GridNetwork):
    """A UNet on one-hot labels. Rows of h: the pixels of the lattice."""

    equivariant: ClassVar[bool] = False

    def __init__(self, signature: GridSignature, latent: int, config: GridUNetConfig) -> None:
        super().__init__()
        self.signature = signature
        width = self.width = config.width
        labels, kinds = signature.cells + 1, signature.types + 1
        self.position = nn.Parameter(torch.zeros(signature.lattice.pixels, width))
        self.embed = nn.Linear(labels + kinds, width)
        self.encoder = UNet(width, width, width=width, levels=config.levels)
        self.write = nn.Linear(signature.cells * latent, width)
        self.decoder = UNet(width, width, width=width, levels=config.levels)
        self.became = nn.Linear(labels + kinds, width)
        self.compare = UNet(width, width, width=width, levels=config.levels)
        self.names = nn.Parameter(torch.randn(signature.cells, width))
        self.summary_width = self.innovation_width = 2 * width

    # -- the four parts ------------------------------------------------------------------------------------------------------

    def window(self, lattice: Size) -> Size:
        return lattice

    def crops(self, tissue: Tissue) -> Crops:
        return Crops.whole(tissue)

    def hidden(self, tissue: Tissue) -> Tensor:
        return self._run(self.encoder, self.embed(self._onehot(tissue, tissue)) + self.position, tissue)

    def summary(self, tissue: Tissue, h: Tensor) -> Tensor:
        return self._pool(h, tissue)

    def draft(self, tissue: Tissue, h: Tensor, z: Tensor) -> Draft:
        rows = self._run(self.decoder, h + self.write(z.flatten(-2))[..., None, :], tissue)
        return Draft(rows[..., None, :, :] + self.names[:, None, :], rows)

    def innovation(self, tissue: Tissue, h: Tensor, following: Tissue) -> Tensor:
        return self._pool(self._run(self.compare, h + self.became(self._onehot(tissue, following)), tissue), tissue)

    # -- helpers -------------------------------------------------------------------------------------------------------------

    def _onehot(self, tissue: Tissue, image: Tissue) -> Tensor:
        """Label and type of every pixel of an image: (*batch, pixel, label + type)."""
        labels = F.one_hot(image.flat, self.signature.cells + 1)
        return torch.cat([labels, F.one_hot(tissue.type_of_pixels(image.flat), self.signature.types + 1)], -1).to(self.embed.weight.dtype)

    def _run(self, network: UNet, rows: Tensor, tissue: Tissue) -> Tensor:
        image = to_image(rows.reshape(-1, *rows.shape[-2:]), tissue.lattice)
        return to_rows(network(image, periodic=tissue.periodic)).reshape(rows.shape)

    def _pool(self, rows: Tensor, tissue: Tissue) -> Tensor:
        """Mean over a cell's pixels, and over all pixels: (*batch, cell, 2 * width)."""
        own = (tissue.flat[..., None, :] == torch.arange(1, tissue.cells + 1, device=rows.device)[:, None]).to(rows.dtype)
        mine = own @ rows / tissue.areas.clamp_min(1)[..., None]
        return torch.cat([mine, rows.mean(-2, keepdim=True).expand_as(mine)], -1) + torch.cat([self.names, self.names], -1)


@GRIDS.register("unet")
class GridUNetConfig(GridConfig):
    """PNS-UNet: not equivariant, for ablation."""

    name: Literal["unet"] = "unet"
    width: int = pydantic.Field(default=32, gt=0, description="channels at full resolution; they double at every level")
    levels: int = pydantic.Field(default=4, ge=1, le=6, description="resolutions of the UNets")

    def build(self, signature: GridSignature, latent: int) -> GridUNet:
        return GridUNet(signature, latent, self)
