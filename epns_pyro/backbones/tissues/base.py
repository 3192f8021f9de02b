"""The base class of networks on label images: their inputs, outputs and equivariance under relabelling of cells."""

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
    """Declare what a network on label images takes from the data: types, labels, size of the lattice, and reach of cells.

    `reach`: largest distance along y or x from a cell's centre to its pixels in the next frame; None where it was not measured. `ages`:
    whether tissues say how old cells are.
    """

    types: int
    cells: int
    lattice: Size
    reach: float | None = None
    ages: bool = False


class Draft(NamedTuple):
    """Features of the next image, before its pixels are drawn.

    Parameters
    ----------
    cells : Tensor, (*batch, cell, place, channel)
        For every cell and place of its window: features that score this pixel for the cell.
    medium : Tensor, (*batch, pixel, channel)
        The same for the medium.
    """

    cells: Tensor
    medium: Tensor


class GridNetwork(nn.Module, ABC):
    """A network on label images, in the four parts that a transition needs; `width` is the number of channels of all features.

    If it is equivariant, relabelling the cells permutes the cell axes of its results and changes nothing else.
    """

    equivariant: ClassVar[bool]
    width: int
    summary_width: int  # features per cell of `summary`
    innovation_width: int  # features per cell of `innovation`

    @abstractmethod
    def window(self, lattice: Size) -> Size:
        """Return the size of the windows that hold all candidate pixels of a cell at the next step."""

    @abstractmethod
    def crops(self, tissue: Tissue) -> Crops:
        """Return the windows of all cells."""

    @abstractmethod
    def hidden(self, tissue: Tissue) -> Tensor:
        """Compute h = f(x), (*batch, row, width); the meaning of the rows is private to the network."""

    @abstractmethod
    def summary(self, tissue: Tissue, h: Tensor) -> Tensor:
        """Compute features of every cell from h: (*batch, cell, summary_width)."""

    @abstractmethod
    def draft(self, tissue: Tissue, h: Tensor, z: Tensor) -> Draft:
        """Compute features of the next image for latents z (*sample, *batch, cell, latent)."""

    @abstractmethod
    def innovation(self, tissue: Tissue, h: Tensor, following: Tissue) -> Tensor:
        """Compute features of every cell in the next image: (*batch, cell, innovation_width)."""


class GridConfig(Config, ABC):
    """Settings of a network on label images; `build` makes the network."""

    name: str

    @abstractmethod
    def build(self, signature: GridSignature, latent: int) -> GridNetwork: ...

    def doubt(self, signature: GridSignature) -> str:
        """Say which setting does not suit the data, though it can be trained with; "" for none."""
        return ""
