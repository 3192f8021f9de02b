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
from epns_pyro.models.tissues.interlacing import LabelField, PixelBatch
from epns_pyro.models.tissues.pixel_scores import DraftMarginals, PixelScores

ABSENT = -60.0  # log probability of the label of an absent cell: finite, and too small to change a sum of probabilities


class LabelImage(TorchDistribution):
    """p(x' | h, z) = prod_k prod_{i in class k} [(1 - floor) Categorical(scores of i given the classes before k) + floor Uniform].

    A pixel's candidates are the medium, the cell that has it now, and the cells whose window holds it. The uniform part covers the
    medium and all cells that are present; it keeps the likelihood finite where a cell appears elsewhere. An absent cell has practically
    no probability (`ABSENT`); `given_new` is the law given where such cells appear.

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
    """

    arg_constraints = {}  # noqa: RUF012
    support = constraints.independent(constraints.nonnegative_integer, 3)

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
        """Score images (*batch, y, x, 1): nats, (*batch,)."""
        return self.pixel_log_prob(value).sum(-1)

    def pixel_log_prob(self, value: Tensor) -> Tensor:
        """Score every pixel given earlier classes: nats, (*batch, pixel)."""
        batch = torch.broadcast_shapes(self.batch_shape, value.shape[:-3])
        field, first = self._flat(batch)
        labels = value[..., 0].flatten(-2).long().expand(*batch, -1).flatten()
        score = torch.where(labels == 0, 0.0, -math.inf).to(first.cells.dtype)
        for classes, draft, marginals in self._stages(field, first, labels):
            pixels = field.pixels_of(classes)
            context: tuple[Tensor, ...] = ()
            if marginals is not None:
                past = marginals.past(labels)[:, classes.start : classes.stop]
                context = (labels, marginals.expectation(past, classes))
            cells, medium, outside = self._candidates(field, draft, pixels, *context)
            total = _logsumexp(torch.logaddexp(medium, outside), pixels.pixel_of_candidate, cells)
            value = labels[pixels.pixel]
            part = torch.where(value == 0, medium, torch.where(value == field.labels[pixels.pixel], outside, -math.inf))
            chosen = value[pixels.pixel_of_candidate] == field.candidates.name[pixels.rows]
            part = part.index_put((pixels.pixel_of_candidate[chosen],), cells[chosen])
            score = score.index_put((pixels.pixel,), part - total)
        there = torch.nn.functional.pad(field.tissue.present, (1, 0), value=True)
        uniform = (math.log(self.floor) - there.sum(-1, keepdim=True).to(score.dtype).log()).expand(-1, self.tissue.lattice.pixels)
        likely = torch.logaddexp(score + math.log1p(-self.floor), uniform.flatten())
        possible = there.gather(-1, labels.view(len(there), -1)).flatten()
        return torch.where(possible, likely, 0.0 if self.leave_out_new else ABSENT).view(*batch, -1)

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
        return LabelField(tissue, crops, self.scores.side, self.scores.neighbourhood), Draft(cells, medium)

    def _stages(self, field: LabelField, draft: Draft, labels: Tensor) -> Iterator[tuple[range, Draft, DraftMarginals | None]]:
        """Iterate over the classes that share a draft, with this draft and its marginals.

        Of the images `labels` (pixel,) a stage reads the classes before its own; they may be drawn in place while this goes on.
        """
        for classes, revision in self.scores.stages:
            if revision is not None:
                draft = revision(field, draft, labels)
            yield classes, draft, self._marginals(field, draft, classes.start, labels) if len(self.scores.classes) > 1 else None

    def _marginals(self, field: LabelField, draft: Draft, start: int = 0, labels: Tensor | None = None) -> DraftMarginals:
        """Return the marginals that the draft alone gives to the classes from `start`; the pixels of earlier classes are known."""
        pixels, c = field.pixels_of(range(start, len(self.scores.classes))), field.candidates
        with torch.set_grad_enabled(
            torch.is_grad_enabled() and start > 0
        ):  # those of the first draft are the law of class 0: learned there
            cells, medium, outside = self._candidates(field, draft, pixels)
            total = _logsumexp(torch.logaddexp(medium, outside), pixels.pixel_of_candidate, cells)
            marginal = (cells - total[pixels.pixel_of_candidate]).exp()
        if labels is not None and start:
            drawn = slice(0, pixels.rows.start)
            marginal = torch.cat([(labels[c.pixel[drawn]] == c.name[drawn]).to(marginal), marginal])
        return DraftMarginals(field, marginal)

    def _candidates(self, field: LabelField, draft: Draft, pixels: PixelBatch, *context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores of cells (row,), of the medium and of present owners outside their windows (pixel,), in the order of the pixel batch."""
        cells, medium = self.scores(field, draft, pixels, *context)
        bonus = self.scores.stay(draft.medium.flatten(0, -2).index_select(0, pixels.pixel))[..., 0]
        cells = cells + torch.where(field.owned[pixels.rows], bonus[pixels.pixel_of_candidate], 0.0)
        return cells, medium, torch.where(field.outside[pixels.pixel], bonus, -math.inf)

    # -- drawing -----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, sample_shape: Shape = torch.Size()) -> Tensor:  # noqa: B008  (the signature of torch.distributions)
        batch = torch.Size((*sample_shape, *self.batch_shape))
        field, draft = self._flat(batch)
        there = field.tissue.present
        names = torch.nn.functional.pad(1 + there.long().sort(dim=-1, descending=True, stable=True).indices, (1, 0))
        rank = torch.rand(*field.tissue.flat.shape, device=names.device) * (1 + there.sum(-1, keepdim=True))
        lost = torch.rand(field.labels.shape, device=names.device, dtype=torch.float64) < self.floor
        return self._image(self._draw(field, draft, torch.where(lost, names.gather(-1, rank.long()).flatten(), -1)), batch)

    @property
    @torch.no_grad()
    def mode(self) -> Tensor:
        """The most probable label of every pixel given the most probable labels of earlier classes, (*batch, y, x, 1)."""
        return self._image(self._draw(*self._flat(self.batch_shape)), self.batch_shape)

    @property
    def mean(self) -> Tensor:
        """The state that mean feedback uses: labels have no mean, so it is the mode, as published."""
        return self.mode

    def _draw(self, field: LabelField, first: Draft, uniform: Tensor | None = None) -> Tensor:
        """Draw labels (pixel,) class by class; where `uniform` (pixel,) is not -1 it gives the label; without it take the most probable."""
        labels = torch.zeros_like(field.labels) if uniform is None else uniform.clamp_min(0)
        for classes, draft, marginals in self._stages(field, first, labels):
            past, before = draft.cells.new_zeros(field.tissue.types.numel(), 1, 3), None
            context: tuple[Tensor, ...] = ()
            for k in classes:
                pixels = field.pixels_of(range(k, k + 1))
                if before is not None and marginals is not None:
                    past = past + marginals.surplus(labels, before)
                if marginals is not None and k:
                    context = (labels, marginals.expectation(past, pixels.classes))
                before = pixels
                cells, medium, outside = self._candidates(field, draft, pixels, *context)
                if uniform is not None:
                    cells, medium, outside = (s + _gumbel(s) for s in (cells, medium, outside))
                best = torch.maximum(medium, outside).scatter_reduce(0, pixels.pixel_of_candidate, cells, "amax")
                new = torch.where(medium >= best, 0, field.labels[pixels.pixel])
                wins = cells >= best[pixels.pixel_of_candidate]
                new = new.index_put((pixels.pixel_of_candidate[wins],), field.candidates.name[pixels.rows][wins])
                if uniform is not None:
                    new = torch.where(uniform[pixels.pixel] < 0, new, uniform[pixels.pixel])
                labels[pixels.pixel] = new
        return labels

    def _image(self, labels: Tensor, batch: torch.Size) -> Tensor:
        return labels.view(*batch, *self.event_shape)


def _gumbel(like: Tensor) -> Tensor:
    tiny = torch.finfo(like.dtype).tiny
    return -(-torch.rand_like(like).clamp_min(tiny).log()).clamp_min(tiny).log()


def _logsumexp(start: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """log(exp(start) + sum of exp(value) over the values whose `index` is this place): (place,)."""
    peak = start.detach().scatter_reduce(0, index, values.detach(), "amax")
    return peak + ((start - peak).exp().index_add(0, index, (values - peak[index]).exp())).log()
