"""Scores of the candidate cells of a pixel, given the pixels drawn before."""

from __future__ import annotations

import itertools
import math
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from epns_pyro.backbones.tissues.base import Draft
from epns_pyro.backbones.tissues.tissue import AREA_FEATURES, area_features
from epns_pyro.models.tissues.interlacing import LabelField, PixelBatch
from epns_pyro.models.tissues.pixel_laws import PixelLaws
from epns_pyro.models.tissues.revision import Revision

CELL_RADIUS = 3.0  # pixels: the unit of a cell's moments as network inputs
EXPECTATION_FEATURES = AREA_FEATURES + 7
EXPECTED = EXPECTATION_FEATURES + 3  # with the disc that `distance_features` reads
DISTANCE_FEATURES = 4


class DraftMarginals:
    """Expected area and centre of every cell: by the draft alone, and updated by the pixels drawn so far.

    Parameters
    ----------
    field : LabelField
    probability : Tensor, (row,)
        Marginal probability of every candidate by the draft alone.
    """

    def __init__(self, field: LabelField, probability: Tensor) -> None:
        self.field, self.probability = field, probability
        self.place = F.pad(field.candidates.offset.to(probability.dtype) / CELL_RADIUS, (1, 0), value=1.0)

    def past(self, labels: Tensor) -> Tensor:
        """Return the surplus of each cell from the pixels before each class of an image (pixel,): (cell, class, 3)."""
        surplus = self._per_class(self._surplus(labels, slice(None)))
        return surplus.cumsum(1) - surplus

    def surplus(self, labels: Tensor, pixels: PixelBatch) -> Tensor:
        """Return area and first moments of each cell from one batch of pixels, minus those expected from the draft: (cell, 1, 3)."""
        gained = self._surplus(labels, pixels.rows)
        cells = self.field.tissue.types.numel()
        return gained.new_zeros(cells, 3).index_add(0, self.field.candidates.cell[pixels.rows], gained)[:, None]

    def expectation(self, past: Tensor, classes: range) -> Tensor:
        """Return the expected area and centre of each cell before some classes are drawn: (cell, class, EXPECTED).

        Features: the expected area, also relative to the mean of all cells, and the expected centre, with pixels not drawn yet as in the
        draft; the surplus of the pixels drawn so far (`past`, (cell, class, 3)); and the standard deviation of the area not drawn yet.
        The last three are the disc of `distance_features`.
        """
        return self._features(past, self.open[:, classes.start : classes.stop])

    def expectation_of_group(self, others: Tensor, group: range) -> Tensor:
        """Return the same for a group of classes, (cell, 1, EXPECTED), with the surplus `others` (cell, 1, 3) of all others."""
        index = group.start // len(group)
        return self._features(others, self.still_of_groups[:, index : index + 1])

    def expectation_of_each(self, labels: Tensor, groups: range) -> Tensor:
        """Return the same for some groups, with all other pixels of images (pixel,): (cell, group, EXPECTED)."""
        surplus = self._per_class(self._surplus(labels, slice(None))).unflatten(1, (len(self.field.groups), -1)).sum(2)
        these = slice(groups.start, groups.stop)
        return self._features(surplus.sum(1, keepdim=True) - surplus[:, these], self.still_of_groups[:, these])

    def _features(self, past: Tensor, still: Tensor) -> Tensor:
        total = self.expected + past
        excess = (total[..., :1] - self.mean_area) / (1 + self.mean_area).sqrt()
        centre = total[..., 1:] / (1 + total[..., :1])
        disc = [total[..., 1:] * CELL_RADIUS / total[..., :1].clamp_min(1), (total[..., :1].clamp_min(1) / math.pi).sqrt()]
        return torch.cat([area_features(total[..., 0]), excess, centre, past / CELL_RADIUS, still, *disc], -1)

    def whole(self, labels: Tensor) -> Tensor:
        """Return the surplus of each cell from all pixels of an image (pixel,): (cell, 1, 3)."""
        return self._per_class(self._surplus(labels, slice(None))).sum(1, keepdim=True)

    def _surplus(self, labels: Tensor, rows: slice) -> Tensor:
        c = self.field.candidates
        drawn = (labels[c.pixel[rows]] == c.name[rows]).to(self.place.dtype) - self.probability[rows]
        return drawn[:, None] * self.place[rows]

    @cached_property
    def expected(self) -> Tensor:
        """Expected area, pixels outside of the window included, and first moments by the draft alone: (cell, 1, 3)."""
        p, owned = self.probability[:, None], self.field.owned[:, None].to(self.place.dtype)
        inside = self._per_class(torch.cat([p * self.place, owned], -1)).sum(1, keepdim=True)
        outside = self.field.tissue.areas.flatten()[:, None, None] - inside[..., 3:]
        return inside[..., :3] + F.pad(outside, (0, 2))

    @cached_property
    def mean_area(self) -> Tensor:
        """Mean present area of the cells in the same image: (cell, 1, 1)."""
        t = self.field.tissue
        mean = t.areas.sum(-1, keepdim=True).to(self.place.dtype) / t.present.sum(-1, keepdim=True).clamp_min(1)
        return mean.expand(t.areas.shape).flatten()[:, None, None]

    @cached_property
    def open(self) -> Tensor:
        """Standard deviation of the area in this and later classes, by the draft alone: (cell, class, 1)."""
        return _root(self._variance.flip(1).cumsum(1).flip(1))

    @cached_property
    def still_of_groups(self) -> Tensor:
        """Standard deviation of the area in each group of classes that sweeps draw again, by the draft alone: (cell, group, 1)."""
        return _root(self._variance.unflatten(1, (len(self.field.groups), -1)).sum(2))

    @cached_property
    def _variance(self) -> Tensor:
        """Variance of the area in each class, by the draft alone: (cell, class, 1)."""
        return self._per_class((self.probability * (1 - self.probability))[:, None])

    def _per_class(self, values: Tensor) -> Tensor:
        """Sum over candidates per cell and class: (row, channel) -> (cell, class, channel)."""
        cells, count = self.field.tissue.types.numel(), self.field.count
        slot = self.field.candidates.cell * count + self.field.class_of_row
        return values.new_zeros(cells * count, values.shape[-1]).index_add(0, slot, values).view(cells, count, -1)


def _root(variance: Tensor) -> Tensor:
    return variance.clamp_min(1e-20).sqrt()  # with a finite gradient at zero


class Readout(nn.Module):
    """A number per row: w . x + perceptron(x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.direct = nn.Linear(width, 1)
        self.bent = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, 1))

    def forward(self, rows: Tensor) -> Tensor:
        """(row, width) -> (row,)."""
        return (self.direct(rows) + self.bent(rows))[:, 0]


class ByClass(nn.Module):
    """A linear map per class, shared + own, for rows sorted by class; class 0 sees no earlier pixels and has none."""

    def __init__(self, fan_in: int, fan_out: int, later: int) -> None:
        super().__init__()
        self.shared = nn.Parameter(torch.randn(fan_in, fan_out) / fan_in**0.5)
        self.own = nn.Parameter(torch.zeros(later, fan_in, fan_out))

    def forward(self, rows: Tensor, sizes: list[int], classes: range) -> Tensor:
        """(row, fan_in) -> (row, fan_out), for `sizes[i]` rows of class `classes[i]`."""
        last = len(self.own)  # classes after it have its map
        later = (self.shared + self.own[min(max(classes.start - 1, 0), last - 1) : min(classes.stop - 1, last)]).unbind()
        weights = later if classes.start else (torch.zeros_like(self.shared), *later)
        return torch.cat([part @ weight for part, weight in zip(rows.split(sizes), weights, strict=True)])


class NeighbourScores(nn.Module):
    """Scores of the candidates of every pixel, given the pixels of the classes before its own.

    score(cell, pixel) = f(draft + nearby pixels of the cell and of other cells of its type + nearby types + expectation)

    The cell that has the pixel now gets a bonus. The expectation of a cell is its expected area and centre: from its pixels drawn so far,
    and from the draft's probabilities for the others. So the last pixels of a cell can correct an area that the first ones made too large
    or too small.

    Parameters
    ----------
    width : int
        Channels of the draft.
    types : int
    neighbourhood : int
        Side of the square of pixels that a pixel depends on.
    later : int
        Classes after the first that have weights of their own.
    distances : bool
        Whether a candidate sees how far the pixel is from the expected centre of the cell.
    detached : bool
        Whether the draft learns nothing from these scores, which then have a linear view of it.
    """

    def __init__(self, width: int, types: int, neighbourhood: int, later: int, *, distances: bool = False, detached: bool = False) -> None:
        super().__init__()
        self.types, self.neighbourhood, self.distances, self.detached = types, neighbourhood, distances, detached
        self.view = nn.ModuleList(nn.Linear(width, width) if detached else nn.Identity() for _ in Draft._fields)
        seen = 2 * neighbourhood**2 + EXPECTATION_FEATURES + distances * DISTANCE_FEATURES
        self.own = ByClass(seen, width, later)
        self.kinds = ByClass(neighbourhood**2 * (types + 1), 2 * width, later)
        self.cell, self.medium = Readout(width), Readout(width)
        stay = nn.Linear(width, 1)
        nn.init.constant_(stay.bias, 3.0)  # an untrained model changes little
        self.stay = nn.Sequential(nn.SiLU(), stay)

    def read(self, field: LabelField, draft: Draft, pixels: PixelBatch) -> DraftRows:
        """Read what the draft says of a batch of pixels; it has one batch dimension."""
        indices = field.candidates.place[pixels.rows], pixels.pixel
        rows = (part.flatten(0, -2).index_select(0, index) for part, index in zip(draft, indices, strict=True))
        cells, medium = (view(part.detach() if self.detached else part) for view, part in zip(self.view, rows, strict=True))
        bonus = self.stay(medium)[..., 0]
        stays = torch.where(field.owned[pixels.rows], bonus[pixels.pixel_of_candidate], 0.0)
        return DraftRows(cells, medium, stays, torch.where(field.outside[pixels.pixel], bonus, -math.inf))

    def laws(self, field: LabelField, draft: Draft, pixels: PixelBatch, *context: Tensor) -> PixelLaws:
        """Return the laws of a batch of pixels, by the draft alone or given (labels, expectation): see `given`."""
        return self.given(field, self.read(field, draft, pixels), pixels, *context)

    def given(
        self, field: LabelField, rows: DraftRows, pixels: PixelBatch, labels: Tensor | None = None, expectation: Tensor | None = None
    ) -> PixelLaws:
        """Return the laws of a batch of pixels.

        Parameters
        ----------
        field : LabelField
        rows : DraftRows
            What the draft says of these pixels.
        pixels : PixelBatch
        labels : Tensor, (pixel,)
            The images of the whole batch; a pixel reads only pixels of earlier classes. None: laws by the draft alone.
        expectation : Tensor, (cell, class, EXPECTED)
            Of the classes in `pixels`.
        """
        cells, medium, stays, outside = rows
        if labels is not None and expectation is not None and pixels.classes.stop > 1:
            seen, kinds = field.seen(labels, pixels)
            near_cells, near_medium = self._of_kinds(kinds, pixels).chunk(2, -1)
            cells = cells + near_cells.index_select(0, pixels.pixel_of_candidate) + self._of_cells(field, seen, kinds, expectation, pixels)
            medium = medium + near_medium
        return PixelLaws(field, pixels, self.cell(cells) + stays, self.medium(medium), outside)

    def _of_cells(self, field: LabelField, seen: Tensor, kinds: Tensor, expectation: Tensor, pixels: PixelBatch) -> Tensor:
        """Score candidates by the pixels of their cell, those of other cells of its type, and the expectation: (row, width)."""
        c, square = field.candidates, self.neighbourhood**2
        inputs = expectation.new_empty(len(pixels.pixel_of_candidate), self.own.shared.shape[0])
        # written in place: this is the largest table, and it has no gradient
        torch.eq(seen.index_select(0, pixels.pixel_of_candidate), c.name[pixels.rows, None].to(seen), out=inputs[:, :square])
        torch.eq(kinds.index_select(0, pixels.pixel_of_candidate), c.kind[pixels.rows, None].to(kinds), out=inputs[:, square : 2 * square])
        of_row = expectation[c.cell[pixels.rows], pixels.relative_class]
        inputs[:, 2 * square : 2 * square + EXPECTATION_FEATURES] = of_row[:, :EXPECTATION_FEATURES]
        if self.distances:
            inputs[:, 2 * square + EXPECTATION_FEATURES :] = distance_features(c.offset[pixels.rows], of_row[:, EXPECTATION_FEATURES:])
        return self.own(inputs, pixels.row_sizes, pixels.classes)

    def _of_kinds(self, kinds: Tensor, pixels: PixelBatch) -> Tensor:
        """Score contributions from the types of nearby pixels: (pixel, 2 * width)."""
        inputs = self.kinds.shared.new_empty(*kinds.shape, self.types + 1)
        torch.eq(kinds[..., None], torch.arange(self.types + 1, device=kinds.device).to(kinds), out=inputs)
        return self.kinds(inputs.flatten(-2), pixels.pixel_sizes, pixels.classes)


def distance_features(offset: Tensor, disc: Tensor) -> Tensor:
    """Say how far pixels are from where their candidate cells are expected: (row, DISTANCE_FEATURES).

    Parameters
    ----------
    offset : Tensor, (row, 2)
        Of the pixel from the present centre of the cell, pixels.
    disc : Tensor, (row, 3)
        The expected centre, from the same point, and the radius of a disc of the expected area, pixels.
    """
    centre, radius = disc[:, :2], disc[:, 2]
    here, before = ((offset - middle).square().sum(-1).add(1e-12).sqrt() for middle in (centre, 0.0))
    beyond = (here - radius) / CELL_RADIUS
    return torch.stack([here / CELL_RADIUS, beyond, beyond.square(), here - before], -1)


class DraftRows(NamedTuple):
    """What a draft says of a batch of pixels.

    Parameters
    ----------
    cells : Tensor, (row, width)
    medium : Tensor, (pixel, width)
    stays : Tensor, (row,)
        A bonus for the cell that has the pixel now.
    outside : Tensor, (pixel,)
        The score of a cell that has the pixel now outside of its window.
    """

    cells: Tensor
    medium: Tensor
    stays: Tensor
    outside: Tensor


class PixelScores(NeighbourScores):
    """The scores of pixels that are drawn class by class, and of those that sweeps draw again.

    Parameters
    ----------
    side : int
        Side of the dither pattern: 1, 2, 4, ...
    revisions : tuple of int
        Classes before which the draft is revised; see `epns_pyro.models.tissues.revision`.
    sweeps : int
        How often every pixel is drawn again, given all others.
    training_sweeps : int, optional
        The same in the law that training scores; None: as many.
    distances : bool
        See `NeighbourScores`.
    separate : bool
        Whether sweeps have weights of their own, `again`, which are fitted to recorded images.
    apart : int
        Least distance of pixels that a sweep draws at the same time.
    """

    def __init__(
        self,
        width: int,
        types: int,
        side: int,
        neighbourhood: int,
        revisions: tuple[int, ...] = (),
        sweeps: int = 0,
        training_sweeps: int | None = None,
        *,
        distances: bool = False,
        separate: bool = False,
        apart: int = 4,
    ) -> None:
        later = side**2 - 1 + (sweeps > 0 and not separate)  # pixels that are drawn again are a class after the last
        super().__init__(width, types, neighbourhood, later, distances=distances)
        self.side, self.sweeps, self.apart = side, sweeps, apart
        self.training_sweeps = sweeps if training_sweeps is None else min(sweeps, training_sweeps)
        self.revisions = nn.ModuleList(Revision(width, types, start) for start in revisions if start < side**2)
        self.again = NeighbourScores(width, types, neighbourhood, 1, distances=distances, detached=True) if sweeps and separate else None

    @property
    def classes(self) -> range:
        return range(self.side**2)

    @property
    def stages(self) -> list[tuple[range, Revision | None]]:
        """Classes that are scored with the same draft, and what revises it before they are."""
        revisions = [revision for revision in self.revisions if isinstance(revision, Revision)]
        bounds = itertools.pairwise([0, *(revision.start for revision in revisions), len(self.classes)])
        return [(range(*ends), revision) for ends, revision in zip(bounds, (None, *revisions), strict=True)]
