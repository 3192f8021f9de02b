"""The order in which the pixels of an image are drawn, and which earlier pixels each of them depends on.

    p(x' | h, z) = prod_k prod_{i in class k} Categorical(x'_i; h, z, x' on the classes before k)

The classes are those of an ordered dither: a coarse grid of pixels first, then those in the gaps, and so on. With one class the pixels are
independent, as published. With several, a pixel depends on its neighbours in earlier classes: the law itself keeps cells connected and
of the right size, and sampling is exact: samples come from the law that is scored.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from epns_pyro.backbones.tissues.tissue import Crops, Size, Tissue


def dither(side: int) -> Tensor:
    """Ranks 0 .. side^2 - 1 of the pixels of a square (side, side), a power of two: each rank is as far as possible from those before it.

    Bayer (1973), An optimum method for two-level rendition of continuous-tone pictures.
    """
    if side == 1:
        return torch.zeros(1, 1, dtype=torch.int64)
    coarse = 4 * dither(side // 2)
    return torch.cat([torch.cat([coarse, coarse + 2], 1), torch.cat([coarse + 3, coarse + 1], 1)], 0)


def places(tissue: Tissue) -> tuple[Tensor, Tensor]:
    """Return the rows (*batch, y) and columns (*batch, x) of the lattice, counted from the middle of the tissue."""
    found = []
    for axis, size in enumerate(tissue.lattice):
        position = torch.arange(size, device=tissue.labels.device) - tissue.origin[..., axis, None]
        found.append((position + size // 2) % size - size // 2 if tissue.periodic else position)
    return found[0], found[1]


def pixel_classes(tissue: Tissue, side: int) -> Tensor:
    """Return the class of every pixel, (*batch, pixel): the dither pattern, with its origin in the middle of the tissue."""
    y, x = (position % side for position in places(tissue))
    return dither(side).to(y.device)[y[..., :, None], x[..., None, :]].flatten(-2)


@dataclass(frozen=True)
class Rows:
    """Indices into another list, sorted by class; `bounds[k]` is the start of class k."""

    order: Tensor
    bounds: tuple[int, ...]

    @classmethod
    def by_class(cls, classes: Tensor, count: int) -> Rows:
        """Sort the indices of a list of classes (any,)."""
        sizes = torch.bincount(classes, minlength=count)
        return cls(classes.argsort(stable=True), (0, *sizes.cumsum(0).tolist()))

    def of(self, classes: range) -> slice:
        return slice(self.bounds[classes.start], self.bounds[classes.stop])

    def sizes(self, classes: range) -> list[int]:
        return [self.bounds[k + 1] - self.bounds[k] for k in classes]


@dataclass(frozen=True)
class Candidates:
    """All pairs of a pixel and a cell that can take it next, as lists (row,) sorted by the class of the pixel.

    Parameters
    ----------
    rows : Rows
    pixel, cell, place : Tensor, (row,)
        Numbered over the whole batch: pixels of lattices, cells, and places of windows.
    name, kind : Tensor, (row,)
        Label and type of the cell.
    offset : Tensor, (row, 2)
        Of the pixel from the cell's centre, pixels.
    """

    rows: Rows
    pixel: Tensor
    cell: Tensor
    place: Tensor
    name: Tensor
    kind: Tensor
    offset: Tensor


class PixelBatch(NamedTuple):
    """The pixels of some classes and their candidates, which are drawn or scored together.

    Parameters
    ----------
    classes : range
    rows : slice
        Of the candidates.
    row_sizes, pixel_sizes : list of int
        By class.
    pixel : Tensor, (pixel,)
        Contested pixels, sorted by class.
    pixel_of_candidate : Tensor, (row,)
        Place of every candidate's pixel in `pixel`.
    relative_class : Tensor, (row,)
        Class of every candidate's pixel, counted from the first of `classes`.
    around, known : Tensor, (pixel, neighbourhood^2)
        Pixels in the square around each pixel, and which of them belong to earlier classes.
    """

    classes: range
    rows: slice
    row_sizes: list[int]
    pixel: Tensor
    pixel_sizes: list[int]
    pixel_of_candidate: Tensor
    relative_class: Tensor
    around: Tensor
    known: Tensor


class LabelField:
    """The present images of a batch, with the candidates and the classes of their pixels.

    Parameters
    ----------
    tissue : Tissue
        The present image, with one batch dimension.
    crops : Crops
        Windows that hold the pixels a cell can take.
    side, neighbourhood : int
        Sides of the dither pattern, and of the square of pixels that a pixel depends on.
    apart : int
        Least distance of the pixels of a group: at least out of that square, and at most `side`.
    """

    def __init__(self, tissue: Tissue, crops: Crops, side: int, neighbourhood: int, apart: int = 1) -> None:
        self.tissue, self.crops, self.count, self.neighbourhood = tissue, crops, side**2, neighbourhood
        self.apart = max(apart, neighbourhood // 2 + 1)
        self.classes = pixel_classes(tissue, side).flatten()
        self.labels = tissue.flat.flatten()

    @cached_property
    def place(self) -> Tensor:
        """A number for every pixel by its place in the tissue, (pixel,): it moves with the image."""
        y, x = places(self.tissue)
        return (y[..., :, None] * 65_536 + x[..., None, :]).flatten()

    @cached_property
    def candidates(self) -> Candidates:
        _, cells, places = self.crops.index.shape
        possible = (self.crops.counted & self.tissue.present[..., None]).flatten().nonzero()[:, 0]
        pixel = (self.crops.index + self._starts[:, None, None]).flatten()[possible]
        rows = Rows.by_class(self.classes[pixel], self.count)
        place, pixel = possible[rows.order], pixel[rows.order]
        cell = place // places
        offset = self.crops.start.flatten(0, -2)[cell] + self.crops.grid[place % places]
        return Candidates(rows, pixel, cell, place, 1 + cell % cells, self.tissue.types.flatten()[cell], offset)

    @cached_property
    def contested(self) -> Rows:
        """Pixels that some cell can have next, because of its window or because it has them now; all others stay medium."""
        reached = torch.zeros_like(self.labels).index_fill(0, self.candidates.pixel, 1)
        pixel = ((reached > 0) | (self.labels > 0)).nonzero()[:, 0]
        rows = Rows.by_class(self.classes[pixel], self.count)
        return Rows(pixel[rows.order], rows.bounds)

    def pixels_of(self, classes: range) -> PixelBatch:
        """Return the pixels and candidates of some classes."""
        c, rows, here = self.candidates, self.candidates.rows.of(classes), self.contested.of(classes)
        of_row = self.class_of_row[rows] - classes.start
        around, known, _ = (table[here] for table in self._surroundings)
        pixel, sizes = self.contested.order[here], self.contested.sizes(classes)
        return PixelBatch(
            classes, rows, c.rows.sizes(classes), pixel, sizes, self.pixel_of_candidate[rows] - here.start, of_row, around, known
        )

    @property
    def groups(self) -> list[range]:
        """All classes, in groups of pixels that do not depend on each other, in the order in which a sweep draws them again."""
        apart = 1
        while apart < self.apart and apart**2 < self.count:
            apart *= 2
        size = self.count // apart**2  # a group is a coarser pattern, whose ranks are those of the finer one, divided
        return [range(start, start + size) for start in range(0, self.count, size)]

    def given_others(self, group: range) -> PixelBatch:
        """Return the pixels and candidates of a group of classes, all other pixels known: as of a class after the last."""
        batch = self.pixels_of(group)
        here = self.contested.of(group)
        classes = self.classes[batch.around]
        known = self._surroundings[2][here] & ((classes < group.start) | (classes >= group.stop))
        return batch._replace(
            classes=range(self.count, self.count + 1),
            row_sizes=[batch.rows.stop - batch.rows.start],
            pixel_sizes=[len(batch.pixel)],
            relative_class=torch.zeros_like(batch.relative_class),
            known=known,
        )

    def each_given_others(self, groups: range) -> PixelBatch:
        """Return the pixels and candidates of some groups, each as `given_others` does; `relative_class` is the place of the group."""
        size = self.count // len(self.groups)
        batch, group = self.pixels_of(range(groups.start * size, groups.stop * size)), self.classes // size
        here = self.contested.of(batch.classes)
        return batch._replace(
            classes=range(self.count, self.count + 1),
            row_sizes=[batch.rows.stop - batch.rows.start],
            pixel_sizes=[len(batch.pixel)],
            relative_class=batch.relative_class // size,
            known=self._surroundings[2][here] & (group[batch.around] != group[batch.pixel, None]),
        )

    @cached_property
    def owned(self) -> Tensor:
        """Whether a candidate has its pixel now, (row,)."""
        return self.labels[self.candidates.pixel] == self.candidates.name

    @cached_property
    def outside(self) -> Tensor:
        """Pixels that a cell has outside of its own window, (pixel,): of large cells and of fragments."""
        reached = torch.zeros_like(self.labels).index_add(0, self.candidates.pixel, self.owned.long())
        return (self.labels > 0) & (reached == 0)

    @property
    def _starts(self) -> Tensor:
        return torch.arange(len(self.tissue.labels), device=self.labels.device) * self.tissue.lattice.pixels

    def seen(self, labels: Tensor, pixels: PixelBatch) -> tuple[Tensor, Tensor]:
        """Return labels of an image (pixel,) around each pixel of a batch, and their types, -1 if not drawn yet: (pixel, neighbourhood^2).

        Both are int32, because these tables are large.
        """
        label = labels[pixels.around]
        first = pixels.pixel // self.tissue.lattice.pixels * self._types_by_label.shape[-1]
        kind = self._types_by_label.flatten()[label + first[:, None]]
        return torch.where(pixels.known, label.int(), -1), torch.where(pixels.known, kind.int(), -1)

    @cached_property
    def _types_by_label(self) -> Tensor:
        return torch.nn.functional.pad(self.tissue.types, (1, 0))

    @cached_property
    def class_of_row(self) -> Tensor:
        """Class of every candidate's pixel, (row,)."""
        return self.classes[self.candidates.pixel]

    @cached_property
    def pixel_of_candidate(self) -> Tensor:
        """Index of each candidate's pixel among the contested pixels, (row,)."""
        order = self.contested.order
        rank = torch.zeros_like(self.labels).scatter(0, order, torch.arange(len(order), device=order.device))
        return rank[self.candidates.pixel]

    @cached_property
    def _surroundings(self) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels around each contested pixel, which of them belong to earlier classes, and which are on the lattice.

        Each is (contested, neighbourhood^2).
        """
        pixel = self.contested.order
        inner = pixel % self.tissue.lattice.pixels
        table = surroundings(self.tissue.lattice, self.neighbourhood, self.tissue.periodic).to(inner.device)[inner]
        around = table.clamp_min(0) + (pixel - inner)[:, None]
        return around, (table >= 0) & (self.classes[around] < self.classes[pixel, None]), table >= 0


@lru_cache(maxsize=16)
def surroundings(lattice: Size, neighbourhood: int, periodic: bool) -> Tensor:
    """Return the square of pixels around every pixel of a lattice: (pixel, neighbourhood^2), -1 off the lattice."""
    height, width = lattice
    step = torch.arange(neighbourhood) - neighbourhood // 2
    pixel = torch.arange(lattice.pixels)
    y, x = pixel[:, None] // width + step.repeat_interleave(neighbourhood), pixel[:, None] % width + step.repeat(neighbourhood)
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return torch.where(inside | periodic, (y % height) * width + x % width, -1)
