"""Sweeps: after an image is drawn class by class, its pixels are drawn again, each given all others.

    x^0 ~ p(x' | h, z)                                      class by class
    x^k = x^{k-1} but in group c,  x^k_c ~ g(x_c | x^{k-1} outside of c, h, z)      group by group, several times

The first pixels of a class-by-class draw are drawn blind: what is around them comes later, and does not always fit. A coarse pixel of a
cell that never came there stays behind as a fragment. Sweeps take it back. The pixels of a group are
drawn independently, so they must be too far apart to depend on each other: as far as the scores of a pixel see, and, since a cell keeps its
area, farther than a cell is wide (`apart`).

**The density.** An image can be reached on many ways, so its density is a sum over them. The same g, used backwards, proposes a way:

    p(x') = E_q[ p(x^0) prod_k g(x^k_c | rest) / q(x^{k-1}_c | rest) ],    x^{k-1}_c ~ q(x_c | rest) = g(x_c | rest)

Both sides of a ratio have the same rest. The estimate is unbiased for any g, so its logarithm is a lower bound in expectation, as an
ELBO is. It is tight where g is the conditional law of p(x'), for then the sweeps are reversible. The gradient is that of p(x^0) and g on
the way that was proposed; q is held fixed.

**Training**, which is where gradients are recorded, is of one of two kinds. Where g has weights of its own, the first draw is fitted to
recorded images, and g too, by pseudo-likelihood: every pixel given all others (Besag 1975, Statistical analysis of non-lattice data). Else
it follows the gradient of the bound, of a law of fewer sweeps if `training_sweeps` says so. g and the first draw are the same in both laws,
and more sweeps come closer to the law whose conditionals g are.
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from epns_pyro.backbones.tissues.base import Draft
from epns_pyro.models.tissues.image_by_image import ImageByImage
from epns_pyro.models.tissues.interlacing import LabelField, PixelBatch
from epns_pyro.models.tissues.pixel_laws import HashedNoise, PixelLaws, random_gumbel
from epns_pyro.models.tissues.pixel_scores import DraftMarginals, DraftRows, PixelScores

PARTS = 4  # of the groups of an image; training fits sweeps to one of them


class Sweeps:
    """The sweeps of the images of a batch.

    Parameters
    ----------
    field : LabelField
    draft : Draft
        The first one: revised drafts have seen the pixels that are drawn again.
    marginals : DraftMarginals
    scores : PixelScores
    floor : float
        Weight of the uniform law in the law of a pixel; q is without it.
    """

    def __init__(self, field: LabelField, draft: Draft, marginals: DraftMarginals, scores: PixelScores, floor: float) -> None:
        self.field, self.marginals, self.scores, self.floor = field, marginals, scores, floor
        self.draft, self.laws = draft, scores.again or scores

    @cached_property
    def _groups(self) -> list[tuple[range, PixelBatch, DraftRows]]:
        """What is the same in every sweep."""
        found = ((group, self.field.given_others(group)) for group in self.field.groups)
        return [(group, pixels, self.laws.read(self.field, self.draft, pixels)) for group, pixels in found]

    def do(self, labels: Tensor, by_image: ImageByImage | None = None) -> Tensor:
        """Draw all pixels of images (pixel,) again, as often as there are sweeps."""
        labels, lost = labels.clone(), Lost(self.field, self.floor)
        if by_image is not None:
            uniform = torch.stack([lost.labels() for _ in range(self.scores.sweeps)])
            by_image.sweeps(labels, uniform, self.draft, self.marginals, self.laws)
            return labels
        surplus = self.marginals.whole(labels)
        for _ in range(self.scores.sweeps):
            uniform = lost.labels()
            for group, pixels, rows in self._groups:
                laws, others = self._given_others(group, pixels, rows, labels, surplus)
                pixel = pixels.pixel
                labels[pixel] = torch.where(uniform[pixel] < 0, laws.draw(random_gumbel), uniform[pixel])
                surplus = others + self.marginals.surplus(labels, pixels)
        return labels

    def undo(self, labels: Tensor, fixed: Tensor, seed: int | Tensor = 0) -> tuple[Tensor, Tensor]:
        """Draw a way on which images (pixel,) may have come.

        Parameters
        ----------
        labels : Tensor, (pixel,)
        fixed : Tensor, (pixel,)
            Pixels that stay as they are, and are not scored.
        seed : int or Tensor, (image,)

        Returns
        -------
        Tensor, (pixel,)
            The images before the sweeps.
        Tensor, (image,)
            Logarithm of the product of ratios.
        """
        field, lattice = self.field, self.field.tissue.lattice.pixels
        noise, labels, surplus = HashedNoise(field, labels, seed), labels.clone(), self.marginals.whole(labels)
        gained = self.draft.cells.new_zeros(len(labels) // lattice)
        for turn in range(self.scores.training_sweeps if torch.is_grad_enabled() else self.scores.sweeps):
            for group, pixels, rows in reversed(self._groups):
                laws, others = self._given_others(group, pixels, rows, labels, surplus)
                total = laws.total
                ahead = with_uniform(field, laws.score(labels) - total, self.floor, pixels.pixel)
                with torch.no_grad():
                    new = torch.where(fixed[pixels.pixel], labels[pixels.pixel], laws.draw(noise.of(pixels, turn)))
                    labels[pixels.pixel] = new
                    back = laws.score(labels) - total
                    surplus = others + self.marginals.surplus(labels, pixels)
                ratio = torch.where(fixed[pixels.pixel], 0.0, ahead - back)
                gained = gained.index_add(0, pixels.pixel // lattice, ratio)
        return labels, gained

    def fit(self, labels: Tensor, fixed: Tensor) -> Tensor:
        """Estimate the pseudo-likelihood of images (pixel,) from one part of the groups, which the images choose: nats, (image,)."""
        count = len(self.field.groups)
        size = max(1, count // PARTS)
        start = int((labels != self.field.labels).sum()) % (count // size) * size
        return self.pseudo_likelihood(labels, fixed, range(start, start + size)) * (count / size)

    def pseudo_likelihood(self, labels: Tensor, fixed: Tensor, groups: range) -> Tensor:
        """Score the pixels of some groups of images (pixel,), each given all others; `fixed` ones (pixel,) are left out: nats, (image,)."""
        field = self.field
        pixels, expectation = field.each_given_others(groups), self.marginals.expectation_of_each(labels, groups)
        laws = self.laws.laws(field, self.draft, pixels, labels, expectation)
        score = with_uniform(field, laws.score(labels) - laws.total, self.floor, pixels.pixel)
        score = torch.where(fixed[pixels.pixel], 0.0, score)
        lattice = field.tissue.lattice.pixels
        return score.new_zeros(len(labels) // lattice).index_add(0, pixels.pixel // lattice, score)

    def _given_others(self, group: range, pixels: PixelBatch, rows: DraftRows, labels: Tensor, surplus: Tensor) -> tuple[PixelLaws, Tensor]:
        """Return the laws of a group of pixels, and the surplus (cell, 1, 3) of all others, given that of the whole image."""
        others = surplus - self.marginals.surplus(labels, pixels)
        return self.laws.given(self.field, rows, pixels, labels, self.marginals.expectation_of_group(others, group)), others


class Lost:
    """Pixels that are drawn from the uniform law over the medium and the cells that are present."""

    def __init__(self, field: LabelField, floor: float) -> None:
        there = field.tissue.present
        self._names = torch.nn.functional.pad(1 + there.long().sort(dim=-1, descending=True, stable=True).indices, (1, 0))
        self._count, self._shape, self._floor = 1 + there.sum(-1, keepdim=True), field.tissue.flat.shape, floor

    def labels(self) -> Tensor:
        """Draw which pixels are lost and what they become: a label, or -1, (pixel,)."""
        device = self._names.device
        rank = torch.rand(*self._shape, device=device) * self._count
        lost = torch.rand(self._shape.numel(), device=device, dtype=torch.float64) < self._floor
        return torch.where(lost, self._names.gather(-1, rank.long()).flatten(), -1)


def with_uniform(field: LabelField, score: Tensor, floor: float, pixel: Tensor | None = None) -> Tensor:
    """Mix laws of pixels with the uniform one: log((1 - floor) exp(score) + floor / labels), for all pixels or those named."""
    count = 1 + field.tissue.present.sum(-1)
    image = torch.arange(len(field.labels), device=score.device) if pixel is None else pixel
    uniform = math.log(floor) - count.to(score.dtype).log()
    return torch.logaddexp(score + math.log1p(-floor), uniform[image // field.tissue.lattice.pixels])
