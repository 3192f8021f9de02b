"""The law of a label image: every pixel gets the label of the medium or of a cell near it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from epns_pyro.backbones.tissues.base import Draft
from epns_pyro.backbones.tissues.tissue import Crops, Tissue
from epns_pyro.models.normal import Shape
from epns_pyro.models.tissues.image_by_image import ImageByImage
from epns_pyro.models.tissues.interlacing import LabelField
from epns_pyro.models.tissues.pixel_laws import random_gumbel
from epns_pyro.models.tissues.pixel_scores import DraftMarginals, PixelScores
from epns_pyro.models.tissues.sweeps import Lost, Sweeps, with_uniform

ABSENT = -60.0  # log probability of the label of an absent cell: finite, and too small to change a sum of probabilities


class LabelImage(TorchDistribution):
    """p(x' | h, z) = prod_k prod_{i in class k} [(1 - floor) Categorical(scores of i given the classes before k) + floor Uniform].

    With sweeps this is the law of a first image, whose pixels are then drawn again (see `epns_pyro.models.tissues.sweeps`). A pixel's
    candidates are the medium, the cell that has it now, and the cells whose window holds it. The uniform part covers the medium and all
    cells that are present; it keeps the likelihood finite where a cell appears elsewhere. An absent cell has practically no probability
    (`ABSENT`); `given_new` is the law given where such cells appear.

    Parameters
    ----------
    tissue : Tissue
        The present image.
    crops : Crops
    draft : Draft
        It may have sample dimensions before the batch dimensions of the tissue.
    scores : PixelScores
    floor : float
        Weight of the uniform part.
    leave_out_new : bool
        Whether pixels of cells that are not there add nothing to the log-likelihood, in place of `ABSENT` each.

    Attributes
    ----------
    seed : int or Tensor, (image,)
        Of the noise with which sweeps are undone.
    compiled : bool
        Whether a CPU draws image by image, in compiled code; else all images together, group by group, as other devices do. The law is the
        same, the random numbers are others.
    """

    arg_constraints = {}  # noqa: RUF012
    support = constraints.independent(constraints.nonnegative_integer, 3)
    seed: int | Tensor = 0
    compiled: bool = True

    def __init__(
        self,
        tissue: Tissue,
        crops: Crops,
        draft: Draft,
        scores: PixelScores,
        floor: float,
        batch_shape: torch.Size | None = None,
        *,
        leave_out_new: bool = False,
    ) -> None:
        self.leave_out_new = leave_out_new
        self.tissue, self.crops, self.draft, self.scores, self.floor = tissue, crops, draft, scores, floor
        batch = torch.broadcast_shapes(tissue.batch, draft.cells.shape[:-3], draft.medium.shape[:-2])
        super().__init__(batch_shape or batch, torch.Size((*tissue.lattice, 1)), validate_args=False)

    def expand(self, batch_shape: Shape, _instance: LabelImage | None = None) -> LabelImage:
        parts = self.tissue, self.crops, self.draft, self.scores, self.floor
        return LabelImage(*parts, torch.Size(batch_shape), leave_out_new=self.leave_out_new)

    def given_new(self) -> LabelImage:
        """Return the law of the other pixels, given those of cells that appear: no cell is born under the model."""
        return LabelImage(self.tissue, self.crops, self.draft, self.scores, self.floor, self.batch_shape, leave_out_new=True)

    # -- scoring -----------------------------------------------------------------------------------------------------------

    def log_prob(self, value: Tensor) -> Tensor:
        """Score images (*batch, y, x, 1): nats, (*batch,).

        With sweeps it is the logarithm of an unbiased estimate, so a lower bound in expectation. Where gradients are recorded and sweeps
        have weights of their own it is the score of the first draw, and its gradient is also that of the fit of the sweeps.
        """
        batch = torch.broadcast_shapes(self.batch_shape, value.shape[:-3])
        field, first = self._flat(batch)
        labels = value[..., 0].flatten(-2).long().expand(*batch, -1).flatten()
        there, marginals = self._possible(field, labels), self._marginals(field, first)
        gained: Tensor | float = 0.0
        if self.scores.again is not None and torch.is_grad_enabled():
            fit = self._sweeps(field, first, marginals).fit(labels, ~there)
            gained = fit - fit.detach()  # its gradient alone: the value is that of the first draw
        elif self.scores.sweeps:
            labels, gained = self._sweeps(field, first, marginals).undo(labels, ~there, self.seed)
        return (self._scores(field, first, labels, marginals).view(*batch, -1).sum(-1).flatten() + gained).view(batch)

    def pixel_log_prob(self, value: Tensor) -> Tensor:
        """Score every pixel of images as they are before the sweeps, given earlier classes: nats, (*batch, pixel)."""
        batch = torch.broadcast_shapes(self.batch_shape, value.shape[:-3])
        field, first = self._flat(batch)
        labels = value[..., 0].flatten(-2).long().expand(*batch, -1).flatten()
        return self._scores(field, first, labels, self._marginals(field, first)).view(*batch, -1)

    def _scores(self, field: LabelField, first: Draft, labels: Tensor, marginals: DraftMarginals) -> Tensor:
        """Score every pixel of images (pixel,), given earlier classes: (pixel,)."""
        score = torch.where(labels == 0, 0.0, -math.inf).to(first.cells.dtype)
        for classes, draft, of_stage in self._stages(field, first, labels, marginals):
            pixels = field.pixels_of(classes)
            context: tuple[Tensor, ...] = ()
            if len(self.scores.classes) > 1:
                past = of_stage.past(labels)[:, classes.start : classes.stop]
                context = (labels, of_stage.expectation(past, classes))
            laws = self.scores.laws(field, draft, pixels, *context)
            score = score.index_put((pixels.pixel,), laws.score(labels) - laws.total)
        likely = with_uniform(field, score, self.floor)
        return torch.where(self._possible(field, labels), likely, 0.0 if self.leave_out_new else ABSENT)

    @staticmethod
    def _possible(field: LabelField, labels: Tensor) -> Tensor:
        """Pixels whose label is of the medium or of a cell that is there: (pixel,)."""
        there = torch.nn.functional.pad(field.tissue.present, (1, 0), value=True)
        return there.gather(-1, labels.view(len(there), -1)).flatten()

    def _sweeps(self, field: LabelField, first: Draft, marginals: DraftMarginals) -> Sweeps:
        return Sweeps(field, first, marginals, self.scores, self.floor)

    def _flat(self, batch: torch.Size) -> tuple[LabelField, Draft]:
        """Flatten sample and batch dimensions into one."""
        t, c, d = self.tissue, self.crops, self.draft
        labels = t.labels.expand(*batch, -1, -1).reshape(-1, *t.lattice)
        tissue = Tissue(labels, t.types.expand(*batch, -1).reshape(len(labels), -1), t.periodic, t.reach)
        windows = (len(labels), *c.index.shape[-2:])
        index, inside, counted = (part.expand(*batch, -1, -1).reshape(windows) for part in (c.index, c.inside, c.counted))
        crops = Crops(index, inside, counted, c.start.expand(*batch, -1, -1).reshape(*windows[:2], 2), c.size)
        cells = d.cells.expand(*batch, -1, -1, -1).reshape(*windows, -1)
        medium = d.medium.expand(*batch, -1, -1).reshape(len(labels), t.lattice.pixels, -1).contiguous()  # read once per class
        return LabelField(tissue, crops, self.scores.side, self.scores.neighbourhood, self.scores.apart), Draft(cells, medium)

    def _stages(
        self, field: LabelField, draft: Draft, labels: Tensor, marginals: DraftMarginals
    ) -> Iterator[tuple[range, Draft, DraftMarginals]]:
        """Iterate over the classes that share a draft, with this draft and its marginals.

        Of the images `labels` (pixel,) a stage reads the classes before its own; they may be drawn in place while this goes on.
        """
        for classes, revision in self.scores.stages:
            if revision is not None:
                draft = revision(field, draft, labels)
                marginals = self._marginals(field, draft, classes.start, labels)
            yield classes, draft, marginals

    def _marginals(self, field: LabelField, draft: Draft, start: int = 0, labels: Tensor | None = None) -> DraftMarginals:
        """Return the marginals that the draft alone gives to the classes from `start`; the pixels of earlier classes are known."""
        c = field.candidates
        if len(self.scores.classes) == 1:  # nothing is drawn before: nobody asks
            return DraftMarginals(field, draft.cells.new_zeros(len(c.pixel)))
        pixels = field.pixels_of(range(start, len(self.scores.classes)))
        with torch.set_grad_enabled(
            torch.is_grad_enabled() and start > 0
        ):  # those of the first draft are the law of class 0: learned there
            laws = self.scores.laws(field, draft, pixels)
            marginal = (laws.cells - laws.total[pixels.pixel_of_candidate]).exp()
        if labels is not None and start:
            drawn = slice(0, pixels.rows.start)
            marginal = torch.cat([(labels[c.pixel[drawn]] == c.name[drawn]).to(marginal), marginal])
        return DraftMarginals(field, marginal)

    # -- drawing -----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, sample_shape: Shape = torch.Size()) -> Tensor:  # noqa: B008  (the signature of torch.distributions)
        batch = torch.Size((*sample_shape, *self.batch_shape))
        field, draft = self._flat(batch)
        by_image, marginals = self._by_image(field), self._marginals(field, draft)
        labels = self._draw(field, draft, marginals, Lost(field, self.floor), by_image)
        if self.scores.sweeps:
            labels = self._sweeps(field, draft, marginals).do(labels, by_image)
        return self._image(labels, batch)

    @torch.no_grad()
    def swept(self, value: Tensor) -> Tensor:
        """Draw the pixels of images (*batch, y, x, 1) again, as sweeps do after the first draw."""
        batch = torch.broadcast_shapes(self.batch_shape, value.shape[:-3])
        labels = value[..., 0].flatten(-2).long().expand(*batch, -1).flatten()
        field, draft = self._flat(batch)
        return self._image(self._sweeps(field, draft, self._marginals(field, draft)).do(labels, self._by_image(field)), batch)

    @property
    @torch.no_grad()
    def mode(self) -> Tensor:
        """The most probable label of every pixel given the most probable labels of earlier classes, (*batch, y, x, 1); without sweeps."""
        field, draft = self._flat(self.batch_shape)
        return self._image(self._draw(field, draft, self._marginals(field, draft)), self.batch_shape)

    @property
    def mean(self) -> Tensor:
        """The state that mean feedback uses: labels have no mean, so it is the mode, as published."""
        return self.mode

    def _by_image(self, field: LabelField) -> ImageByImage | None:
        return ImageByImage(field) if self.compiled and field.labels.device.type == "cpu" else None

    def _draw(
        self, field: LabelField, first: Draft, marginals: DraftMarginals, lost: Lost | None = None, by_image: ImageByImage | None = None
    ) -> Tensor:
        """Draw labels (pixel,) class by class, `lost` pixels from the uniform law; without it take the most probable."""
        uniform = None if lost is None else lost.labels()
        labels = torch.zeros_like(field.labels) if uniform is None else uniform.clamp_min(0)
        for classes, draft, of_stage in self._stages(field, first, labels, marginals):
            if by_image is not None and uniform is not None:
                by_image.classes(labels, uniform, classes, draft, of_stage, self.scores)
                continue
            past, before = draft.cells.new_zeros(field.tissue.types.numel(), 1, 3), None
            context: tuple[Tensor, ...] = ()
            for k in classes:
                pixels = field.pixels_of(range(k, k + 1))
                if before is not None:
                    past = past + of_stage.surplus(labels, before)
                if k:
                    context = (labels, of_stage.expectation(past, pixels.classes))
                before = pixels
                new = self.scores.laws(field, draft, pixels, *context).draw(None if uniform is None else random_gumbel)
                if uniform is not None:
                    new = torch.where(uniform[pixels.pixel] < 0, new, uniform[pixels.pixel])
                labels[pixels.pixel] = new
        return labels

    def _image(self, labels: Tensor, batch: torch.Size) -> Tensor:
        return labels.view(*batch, *self.event_shape)
