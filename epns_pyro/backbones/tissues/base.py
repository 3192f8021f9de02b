"""What every network on label images shares: what goes in, what comes out, how it behaves when cells are renamed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from epns_pyro.backbones.tissues.tissue import Crops, Size, Tissue
from epns_pyro.config import Config, Registry

GRIDS = Registry("network for label images")


@dataclass(frozen=True)
class GridSignature:
    """What the data dictates to a network on label images: types, names of cells, size of the lattice, and how far cells reach.

    `reach`: within this distance of its centre, pixels along y and x, a cell stays in one step; None where it was not measured.
    """

    types: int
    cells: int
    lattice: Size
    reach: float | None = None


class Draft(NamedTuple):
    """Features from which the next image is drawn.

    Parameters
    ----------
    cells : Tensor, (*batch, cell, place, channel)
        For every cell and place of its window: what speaks for the pixel becoming the cell's.
    medium : Tensor, (*batch, pixel, channel)
        The same for the medium.
    """

    cells: Tensor
    medium: Tensor


class GridNetwork(nn.Module, ABC):
    """A network on tissues, in the four parts that a transition needs; `width` is the number of channels of all features.

    An equivariant one commutes with renaming cells: the cell axes of its results are permuted and nothing else changes.
    """

    equivariant: ClassVar[bool]
    width: int
    summary_width: int  # features per cell of `summary`
    innovation_width: int  # features per cell of `innovation`

    @abstractmethod
    def window(self, lattice: Size) -> Size:
        """Size of the windows in which a cell can have its pixels at the next step."""

    @abstractmethod
    def crops(self, tissue: Tissue) -> Crops:
        """The windows of the cells."""

    @abstractmethod
    def hidden(self, tissue: Tissue) -> Tensor:
        """h = f(x): (*batch, row, width); what the rows are is known to the network only."""

    @abstractmethod
    def summary(self, tissue: Tissue, h: Tensor) -> Tensor:
        """Features of every cell: (*batch, cell, summary_width)."""

    @abstractmethod
    def draft(self, tissue: Tissue, h: Tensor, z: Tensor) -> Draft:
        """Features of the next image, for latents z (*sample, *batch, cell, latent)."""

    @abstractmethod
    def innovation(self, tissue: Tissue, h: Tensor, following: Tissue) -> Tensor:
        """Features of what every cell became in the next image: (*batch, cell, innovation_width)."""


class GridConfig(Config, ABC):
    """What a user can choose about a network on label images; `build` makes it."""

    name: str

    @abstractmethod
    def build(self, signature: GridSignature, latent: int) -> GridNetwork: ...
