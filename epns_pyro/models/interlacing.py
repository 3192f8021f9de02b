"""The order in which the pixels of an image are drawn, and what a pixel learns from those drawn before it.

    p(x' | h, z) = prod_k prod_{i in class k} Categorical(x'_i; h, z, x' on the classes before k)

The classes are those of an ordered dither: a coarse grid of pixels first, then those in the gaps, and so on. With one class the pixels are
independent, as published. With several a pixel sees its neighbours of the classes before its own: cells stay whole and keep their size
because the law says so, and sampling is exact: what is sampled is what is scored.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from epns_pyro.backbones.grids import Draft
from epns_pyro.backbones.tissue import AREA_FEATURES, Crops, Size, Tissue, area_features

CELL_RADIUS = 3.0  # pixels; networks see the moments of a cell in units of it
HEADING_FEATURES = AREA_FEATURES + 7


def dither(side: int) -> Tensor:
    """Ranks 0 .. side^2 - 1 of the pixels of a square (side, side), a power of two: the next rank lies as far from those before as can be.

    Bayer (1973), An optimum method for two-level rendition of continuous-tone pictures.
    """
    if side == 1:
        return torch.zeros(1, 1, dtype=torch.int64)
    coarse = 4 * dither(side // 2)
    return torch.cat([torch.cat([coarse, coarse + 2], 1), torch.cat([coarse + 3, coarse + 1], 1)], 0)


def pixel_classes(tissue: Tissue, side: int) -> Tensor:
    """Class of every pixel, (*batch, pixel): the dither, laid out from the middle of the tissue."""
    ranks = dither(side).to(tissue.labels.device)
    place = []
    for axis, size in enumerate(tissue.lattice):
        position = torch.arange(size, device=ranks.device) - tissue.origin[..., axis, None]
        if tissue.periodic:
            position = (position + size // 2) % size - size // 2
        place.append(position % side)
    return ranks[place[0][..., :, None], place[1][..., None, :]].flatten(-2)


@dataclass(frozen=True)
class Rows:
    """Positions in another list, sorted by class: `bounds[k]` is where class k begins."""

    order: Tensor
    bounds: tuple[int, ...]

    @classmethod
    def by_class(cls, classes: Tensor, count: int) -> Rows:
        """Sort the positions of a list of classes (any,)."""
        sizes = torch.bincount(classes, minlength=count)
        return cls(classes.argsort(stable=True), (0, *sizes.cumsum(0).tolist()))

    def of(self, classes: range) -> slice:
        return slice(self.bounds[classes.start], self.bounds[classes.stop])

    def sizes(self, classes: range) -> list[int]:
        return [self.bounds[k + 1] - self.bounds[k] for k in classes]


@dataclass(frozen=True)
class Candidates:
    """All pairs of a pixel and a cell that can have it next, as lists (row,) sorted by the class of the pixel.

    Parameters
    ----------
    rows : Rows
    pixel, cell, place : Tensor, (row,)
        Numbered over the whole batch: pixels of lattices, cells, and places of windows.
    name : Tensor, (row,)
        Label of the cell.
    offset : Tensor, (row, 2)
        Of the pixel from the cell's centre, pixels.
    """

    rows: Rows
    pixel: Tensor
    cell: Tensor
    place: Tensor
    name: Tensor
    offset: Tensor


class LabelField:
    """Where everything is: the present image, its candidates and the classes of its pixels, for a whole batch at once.

    Parameters
    ----------
    tissue : Tissue
        The present image, with one batch dimension.
    crops : Crops
        Windows in which cells can have their pixels.
    side : int
        Of the dither.
    """

    def __init__(self, tissue: Tissue, crops: Crops, side: int) -> None:
        self.tissue, self.crops, self.count = tissue, crops, side**2
        self.classes = pixel_classes(tissue, side).flatten()
        self.labels = tissue.flat.flatten()

    @cached_property
    def candidates(self) -> Candidates:
        _, cells, places = self.crops.index.shape
        possible = (self.crops.counted & self.tissue.present[..., None]).flatten().nonzero()[:, 0]
        pixel = (self.crops.index + self._starts[:, None, None]).flatten()[possible]
        rows = Rows.by_class(self.classes[pixel], self.count)
        place, pixel = possible[rows.order], pixel[rows.order]
        cell = place // places
        offset = self.crops.start.flatten(0, -2)[cell] + self.crops.grid[place % places]
        return Candidates(rows, pixel, cell, place, 1 + cell % cells, offset)

    @cached_property
    def contested(self) -> Rows:
        """Pixels that a cell can have next, in its window or because it has them now; all others stay the medium's."""
        reached = torch.zeros_like(self.labels).index_fill(0, self.candidates.pixel, 1)
        pixel = ((reached > 0) | (self.labels > 0)).nonzero()[:, 0]
        rows = Rows.by_class(self.classes[pixel], self.count)
        return Rows(pixel[rows.order], rows.bounds)

    @cached_property
    def rank(self) -> Tensor:
        """Where each contested pixel stands in their order, (pixel,)."""
        order = self.contested.order
        return torch.zeros_like(self.labels).scatter(0, order, torch.arange(len(order), device=order.device))

    @cached_property
    def owned(self) -> Tensor:
        """Whether a candidate has its pixel now, (row,)."""
        return self.labels[self.candidates.pixel] == self.candidates.name

    @cached_property
    def stray(self) -> Tensor:
        """Pixels of cells outside of their own window, (pixel,): of large cells, and of fragments."""
        reached = torch.zeros_like(self.labels).index_add(0, self.candidates.pixel, self.owned.long())
        return (self.labels > 0) & (reached == 0)

    @property
    def _starts(self) -> Tensor:
        return torch.arange(len(self.tissue.labels), device=self.labels.device) * self.tissue.lattice.pixels

    def kinds(self, labels: Tensor) -> Tensor:
        """Types of the labels of an image, (pixel,)."""
        return self.tissue.type_of_pixels(labels.view(self.tissue.flat.shape)).flatten()

    def seen(self, values: Tensor, classes: range, sight: int) -> Tensor:
        """Values (pixel,) in the square around each contested pixel of some classes, -1 where its class cannot know: (row, sight^2)."""
        pixel = self.contested.order[self.contested.of(classes)]
        size = int(values.max()) + 1
        code = (self.classes * size + values).int()  # one number for both, so that one look is enough
        wall = code.new_full((1,), self.count * size)
        code = torch.cat([code, wall])[self.around(pixel, sight)]
        return torch.where(code < size * self.classes[pixel, None], code % size, -1)

    def around(self, pixel: Tensor, sight: int) -> Tensor:
        """The square of pixels around each pixel of a list, it in the middle: (row, sight^2); off the lattice the number of all pixels."""
        inner = pixel % self.tissue.lattice.pixels
        found = surroundings(self.tissue.lattice, sight, self.tissue.periodic).to(pixel.device)[inner]
        return torch.where(found < 0, len(self.labels), found + (pixel - inner)[:, None])


@lru_cache(maxsize=16)
def surroundings(lattice: Size, sight: int, periodic: bool) -> Tensor:
    """The square of pixels around every pixel of a lattice: (pixel, sight^2), -1 off the lattice."""
    height, width = lattice
    step = torch.arange(sight) - sight // 2
    pixel = torch.arange(lattice.pixels)
    y, x = pixel[:, None] // width + step.repeat_interleave(sight), pixel[:, None] % width + step.repeat(sight)
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return torch.where(inside | periodic, (y % height) * width + x % width, -1)


class Outlook:
    """What the draft alone says about every cell and, with the pixels drawn so far, where it is heading.

    Parameters
    ----------
    field : LabelField
    probability : Tensor, (row,)
        Of every candidate to have its pixel, by the draft alone.
    """

    def __init__(self, field: LabelField, probability: Tensor) -> None:
        self.field, self.probability = field, probability
        self.place = F.pad(field.candidates.offset.to(probability.dtype) / CELL_RADIUS, (1, 0), value=1.0)

    def heading(self, labels: Tensor, classes: range) -> Tensor:
        """Where each cell is heading before each class is drawn: (cell, class, HEADING_FEATURES).

        The area, also beside the mean of all cells, and the centre that it would have if its other pixels came as the draft says, how far
        the pixels drawn so far have gone beyond that, and the standard deviation of the area that is still open.
        """
        c = self.field.candidates
        before = slice(0, c.rows.bounds[classes.stop - 1])
        drawn = (labels[c.pixel[before]] == c.name[before]).to(self.place.dtype) - self.probability[before]
        surplus = self._per_class(drawn[:, None] * self.place[before], before)
        surplus = surplus.cumsum(1) - surplus
        total = self._expected + surplus
        excess = (total[..., :1] - self._mean_area) / (1 + self._mean_area).sqrt()
        centre = total[..., 1:] / (1 + total[..., :1])
        return torch.cat([area_features(total[..., 0]), excess, centre, surplus / CELL_RADIUS, self._open], -1)

    @cached_property
    def _expected(self) -> Tensor:
        """Area, with pixels outside of the window, and first moments by the draft alone: (cell, 1, 3)."""
        p, owned = self.probability[:, None], self.field.owned[:, None].to(self.place.dtype)
        inside = self._per_class(torch.cat([p * self.place, owned], -1), slice(None)).sum(1, keepdim=True)
        outside = self.field.tissue.areas.flatten()[:, None, None] - inside[..., 3:]
        return inside[..., :3] + F.pad(outside, (0, 2))

    @cached_property
    def _mean_area(self) -> Tensor:
        """Of the cells of the same image that are there, now: (cell, 1, 1)."""
        t = self.field.tissue
        mean = t.areas.sum(-1, keepdim=True) / t.present.sum(-1, keepdim=True).clamp_min(1)
        return mean.expand(t.areas.shape).flatten()[:, None, None].to(self.place.dtype)

    @cached_property
    def _open(self) -> Tensor:
        """Standard deviation of the area to be drawn from each class on, by the draft alone: (cell, class, 1)."""
        variance = self._per_class((self.probability * (1 - self.probability))[:, None], slice(None))
        return variance.flip(1).cumsum(1).flip(1).sqrt()

    def _per_class(self, values: Tensor, rows: slice) -> Tensor:
        """Sum over the candidates of every cell and class: (row, channel) -> (cell, class, channel)."""
        c, count = self.field.candidates, self.field.count
        slot = c.cell[rows] * count + self.field.classes[c.pixel[rows]]
        cells = self.field.tissue.types.numel()
        return values.new_zeros(cells * count, values.shape[-1]).index_add(0, slot, values).view(cells, count, -1)


class Readout(nn.Module):
    """A number per row, linear at first sight: w . x + perceptron(x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.direct = nn.Linear(width, 1)
        self.bent = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, 1))

    def forward(self, rows: Tensor) -> Tensor:
        """(row, width) -> (row,)."""
        return (self.direct(rows) + self.bent(rows))[:, 0]


class ByClass(nn.Module):
    """A matrix per class, shared + own, for rows that are sorted by class; class 0, which has been told nothing, has none."""

    def __init__(self, fan_in: int, fan_out: int, later: int) -> None:
        super().__init__()
        self.shared = nn.Parameter(torch.randn(fan_in, fan_out) / fan_in**0.5)
        self.own = nn.Parameter(torch.zeros(later, fan_in, fan_out))

    def forward(self, rows: Tensor, sizes: list[int], classes: range) -> Tensor:
        """(row, fan_in) -> (row, fan_out), for `sizes[i]` rows of class `classes[i]`."""
        weights = [torch.zeros_like(self.shared), *(self.shared + self.own).unbind()][classes.start : classes.stop]
        return torch.cat([part @ weight for part, weight in zip(rows.split(sizes), weights, strict=True)])


class PixelScores(nn.Module):
    """Scores of the candidates of every pixel, given the pixels of the classes before its own.

    score(cell, pixel) = f(draft + pixels of the cell and of its kin seen nearby + types seen nearby + where the cell is heading); who has
    the pixel now gets a bonus. A cell heads for the area and the centre that its pixels drawn so far and the outlook on the others, their
    probabilities by the draft alone, add up to: that is what lets the last pixels of a cell mend what the first ones did to its area.

    Parameters
    ----------
    width : int
        Channels of the draft.
    types : int
    side : int
        Of the dither: 1, 2, 4, ...
    sight : int
        Side of the square of pixels that a pixel sees.
    """

    def __init__(self, width: int, types: int, side: int, sight: int) -> None:
        super().__init__()
        self.types, self.side, self.sight = types, side, sight
        later = side**2 - 1
        self.own = ByClass(3 * sight**2 + HEADING_FEATURES, width, later)
        self.kinds = ByClass(sight**2 * (types + 1), 2 * width, later)
        self.cell, self.medium = Readout(width), Readout(width)
        self.stay = nn.Sequential(nn.SiLU(), nn.Linear(width, 1))
        with torch.no_grad():
            self.stay[-1].bias.fill_(3.0)  # an untrained model changes little

    @property
    def classes(self) -> range:
        return range(self.side**2)

    def forward(
        self, field: LabelField, draft: Draft, classes: range, labels: Tensor | None = None, outlook: Outlook | None = None
    ) -> tuple[Tensor, Tensor]:
        """Score the candidates of the pixels of some classes.

        Parameters
        ----------
        field : LabelField
        draft : Draft
            With one batch dimension.
        classes : range
        labels : Tensor, (pixel,)
            The image, of the whole batch; it is looked at only where a class comes before that of the pixel that looks. None: by the draft
            alone.
        outlook : Outlook

        Returns
        -------
        Tensor, (row,), and Tensor, (pixel,)
            Scores of cells and of the medium, in the order of `field.candidates` and `field.contested`.
        """
        part, here = field.candidates.rows.of(classes), field.contested.of(classes)
        cells = draft.cells.flatten(0, -2).index_select(0, field.candidates.place[part])
        medium = draft.medium.flatten(0, -2).index_select(0, field.contested.order[here])
        if labels is not None and classes.stop > 1:
            beside = field.rank[field.candidates.pixel[part]] - here.start
            kinds = field.seen(field.kinds(labels), classes, self.sight)
            near_cells, near_medium = self._kinds_seen(field, kinds, classes).chunk(2, -1)
            cells = (
                cells + self._own_seen(field, labels, kinds.index_select(0, beside), classes, outlook) + near_cells.index_select(0, beside)
            )
            medium = medium + near_medium
        return self.cell(cells), self.medium(medium)

    def _own_seen(self, field: LabelField, labels: Tensor, kinds: Tensor, classes: range, outlook: Outlook) -> Tensor:
        """What the pixels of a cell and of its kin that are drawn already say about its candidates: (row, width)."""
        rows = field.candidates.rows
        part, here = rows.of(classes), field.contested.of(classes)
        pixel, name, cell = field.candidates.pixel[part], field.candidates.name[part], field.candidates.cell[part]
        seen = field.seen(labels, classes, self.sight).index_select(0, field.rank[pixel] - here.start)
        own = seen == name[:, None]
        kin = (kinds == field.tissue.types.flatten()[cell, None]) & ~own
        heading = outlook.heading(labels, classes)[cell, field.classes[pixel]]
        masks = [mask.to(heading.dtype) for mask in (own, kin, (seen >= 0) & ~own & ~kin)]
        return self.own(torch.cat([*masks, heading], -1), rows.sizes(classes), classes)

    def _kinds_seen(self, field: LabelField, kinds: Tensor, classes: range) -> Tensor:
        """What the types of the pixels seen nearby say about a pixel: (pixel, 2 * width)."""
        told = (kinds[..., None] == torch.arange(self.types + 1, device=kinds.device)).flatten(-2).to(self.kinds.shared.dtype)
        return self.kinds(told, field.contested.sizes(classes), classes)
