"""Drawing the pixels of a batch image by image, in compiled code: the laws of this batch as the arrays that it reads.

On a CPU the tensors of a group of pixels are small, and what is between two of them takes far longer than they do.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn

from epns_pyro.backbones.tissues.base import Draft
from epns_pyro.later import later
from epns_pyro.models.tissues.interlacing import LabelField, surroundings
from epns_pyro.models.tissues.pixel_scores import CELL_RADIUS, ByClass, DraftMarginals, NeighbourScores, Readout
from epns_pyro.threads import share_out

if TYPE_CHECKING:
    from epns_pyro.models.tissues import compiled_draws
else:
    compiled_draws = later("epns_pyro.models.tissues.compiled_draws")


class ImageByImage:
    """Draws pixels of the images of a field; without it they are drawn group by group, all images at a time.

    Parameters
    ----------
    field : LabelField
        On a CPU.
    """

    def __init__(self, field: LabelField) -> None:
        self.field = field
        self._images, self._sites = field.tissue.flat.shape

    def classes(
        self, labels: Tensor, lost: Tensor, classes: range, draft: Draft, marginals: DraftMarginals, scores: NeighbourScores
    ) -> None:
        """Draw some classes of images labels (pixel,) in place, each given those before.

        `lost` (pixel,) are labels of pixels that are drawn otherwise, -1 for all others.
        """
        maps = np.arange(self.field.count) - 1  # class 0 has no earlier pixels
        self._draw(labels, lost[None], classes, draft, marginals, scores, slice(0, self.field.count - 1), maps, marginals.open, again=False)

    def sweeps(self, labels: Tensor, lost: Tensor, draft: Draft, marginals: DraftMarginals, scores: NeighbourScores) -> None:
        """Draw all pixels of images labels (pixel,) again in place, as often as there are rows in `lost` (sweep, pixel)."""
        groups = range(len(self.field.groups))
        maps, still = np.zeros(len(groups), np.int64), marginals.still_of_groups
        self._draw(labels, lost, groups, draft, marginals, scores, slice(-1, None), maps, still, again=True)

    def _draw(
        self,
        labels: Tensor,
        lost: Tensor,
        groups: range,
        draft: Draft,
        marginals: DraftMarginals,
        scores: NeighbourScores,
        own: slice,
        maps: np.ndarray,
        still: Tensor,
        *,
        again: bool,
    ) -> None:
        count, cells = len(maps), self.field.tissue.cells
        rows = scores.read(self.field, draft, self.field.pixels_of(range(self.field.count)))
        by_draft = compiled_draws.DraftArrays(
            _array(rows.cells[self._rows]),
            _array(rows.medium[self._pixels]),
            _array(rows.stays[self._rows]),
            _array(rows.outside[self._pixels].clamp_min(compiled_draws.NEVER)),
            _array(marginals.probability[self._rows]),
            _array(marginals.expected.view(self._images, cells, 3)),
            _array(marginals.mean_area.view(self._images, cells)[:, 0]),
            _array(still.view(self._images, cells, count)),
        )
        by_neighbours = compiled_draws.ScoreArrays(_array(_maps(scores.own, own)), _array(_maps(scores.kinds, own)), maps)
        uniform = torch.rand(len(lost), len(self._pixels), dtype=torch.float64).numpy()
        uniform_part = lost.view(len(lost), self._images, self._sites).numpy()
        pixels, images = self._arrays(count), labels.view(self._images, self._sites).numpy()
        readouts = _readout(scores.cell), _readout(scores.medium)

        def draw(first: int, last: int) -> None:
            compiled_draws.draw(
                images,
                uniform,
                uniform_part,
                pixels,
                by_draft,
                by_neighbours,
                *readouts,
                (first, last),
                (groups.start, groups.stop),
                again,
                scores.distances,
                CELL_RADIUS,
            )

        share_out(self._images, draw)

    def _arrays(self, groups: int) -> compiled_draws.PixelArrays:
        field, tissue, images = self.field, self.field.tissue, self._images
        group = field.classes // (field.count // groups)
        pixel = field.contested.order[self._pixels]
        sizes = torch.bincount(pixel // self._sites * groups + group[pixel], minlength=images * groups)
        ends = sizes.cumsum(0).view(images, groups)
        candidates = field.candidates
        rows_of_pixel = torch.bincount(self._pixel_of_row, minlength=len(pixel))
        arrays = (
            pixel % self._sites,
            torch.cat([(ends[:, :1] - sizes.view(images, groups)[:, :1]), ends], 1),
            group.view(images, self._sites),
            torch.nn.functional.pad(rows_of_pixel.cumsum(0), (1, 0)),
            candidates.cell[self._rows] % tissue.cells,
            candidates.offset[self._rows],
            field.labels.view(images, self._sites),
            torch.nn.functional.pad(tissue.types, (1, 0)),
            surroundings(tissue.lattice, field.neighbourhood, tissue.periodic),
        )
        return compiled_draws.PixelArrays(*(part.contiguous().numpy() for part in arrays))

    @cached_property
    def _pixels(self) -> Tensor:
        """The contested pixels, sorted by image and class."""
        order = self.field.contested.order
        return (order // self._sites * self.field.count + self.field.classes[order]).argsort(stable=True)

    @cached_property
    def _pixel_of_row(self) -> Tensor:
        """Place of every candidate's pixel among them."""
        return self._pixels.argsort()[self.field.pixel_of_candidate]

    @cached_property
    def _rows(self) -> Tensor:
        """The candidates, sorted by pixel."""
        return self._pixel_of_row.argsort(stable=True)


def _array(values: Tensor) -> np.ndarray:
    return values.detach().float().contiguous().numpy()


def _maps(linear: ByClass, own: slice) -> Tensor:
    return linear.shared + linear.own[own]


def _readout(readout: Readout) -> compiled_draws.ReadoutArrays:
    bent, out = (cast("nn.Linear", readout.bent[place]) for place in (1, 3))
    bias = (readout.direct.bias + out.bias).item()
    return compiled_draws.ReadoutArrays(
        _array(readout.direct.weight[0]), _array(bent.weight.mT), _array(bent.bias), _array(out.weight[0]), bias
    )
