"""What happens to every cell in a step: it stays, dies or divides, and the law of these events.

    p(e | x) = prod over cells Categorical(e_i; stays, dies, divides along direction 0, 1, ...)

A cell that divides is cut by a line through its centre of mass, across one of `DIRECTIONS` directions. The directions have a von Mises law
on axes, on these points: exp(k u . (cos 2 psi, sin 2 psi)), where u is the elongation of the cell, a vector along its long axis with the
angle doubled. The network gives the chance of each event, and k. Its first guess are the rates in the training set.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional as F

from epns_pyro.backbones.tissues.tissue import Tissue
from epns_pyro.models.normal import Shape

logger = logging.getLogger(__name__)

DIRECTIONS = 16  # of divisions, evenly spaced over half a turn
UNKNOWN, STAYS, DIES, DIVIDES = -1, 0, 1, 2  # DIVIDES + d: along direction d; UNKNOWN: seen, and not scored
IMPOSSIBLE = -math.inf
ON_THE_LINE = 1e-6  # of a pixel times an area, which are whole numbers along an axis


@dataclass(frozen=True)
class Halves:
    """The two halves of every cell, cut across each direction.

    Parameters
    ----------
    tissue : Tissue
        With one batch dimension.
    """

    tissue: Tissue

    @cached_property
    def _moments(self) -> Tensor:
        """Sums over the pixels of every label of 1, dy, dx, dy^2, dx^2 and dy dx: (batch, label, 6), int64, 0 for the medium."""
        dy, dx = self.offsets.unbind(-1)
        parts = torch.stack([torch.ones_like(dy), dy, dx, dy * dy, dx * dx, dy * dx], -1) * (self.tissue.flat > 0)[..., None]
        return per_cell(parts, self.tissue)

    @cached_property
    def offsets(self) -> Tensor:
        """Position of every pixel relative to the middle of its cell: (batch, pixel, 2 = y, x), int64."""
        tissue = self.tissue
        middle = F.pad(tissue.centres, (0, 0, 1, 0)).gather(1, tissue.flat[..., None].expand(-1, -1, 2))
        return from_point(tissue, middle)

    @cached_property
    def elongation(self) -> Tensor:
        """Return (sxx - syy, 2 sxy) / (sxx + syy) of every cell, from the variances and the covariance of its pixels: (batch, cell, 2).

        0 for a round cell; of length 1, along the doubled angle of its long axis, for a thin one.
        """
        area, y, x, yy, xx, xy = self._moments[:, 1:].double().unbind(-1)
        yy, xx, xy = area * yy - y * y, area * xx - x * x, area * xy - y * x
        return torch.stack([xx - yy, 2 * xy], -1) / (xx + yy).clamp_min(1.0)[..., None]

    @cached_property
    def second(self) -> Tensor:
        """Whether a pixel is in the second half of its cell, for each direction: (batch, pixel, direction)."""
        area, y, x = self._moments[..., :3].double().gather(1, self.tissue.flat[..., None].expand(-1, -1, 3)).unbind(-1)
        dy, dx = self.offsets.double().unbind(-1)
        along = directions(dy)
        return (area * dx - x)[..., None] * along.cos() + (area * dy - y)[..., None] * along.sin() < -ON_THE_LINE

    @cached_property
    def possible(self) -> Tensor:
        """Whether both halves of a cell have pixels, for each direction: (batch, cell, direction)."""
        second = per_cell((self.second & (self.tissue.flat > 0)[..., None]).long(), self.tissue)[:, 1:]
        return (second > 0) & (second < self.tissue.areas[..., None])


def from_point(tissue: Tissue, point: Tensor) -> Tensor:
    """Return the position of every pixel relative to a point (batch, pixel, 2 = y, x) of its own: (batch, pixel, 2), int64."""
    height, width = tissue.lattice
    pixel = torch.arange(height * width, device=tissue.labels.device)
    offset = torch.stack([pixel // width, pixel % width], -1) - point
    if tissue.periodic:
        sides = torch.tensor([height, width], device=offset.device)
        offset = (offset + sides // 2) % sides - sides // 2
    return offset


def per_cell(values: Tensor, tissue: Tissue) -> Tensor:
    """Sum values of pixels (batch, pixel, channel) over the pixels of every label: (batch, label, channel)."""
    total = values.new_zeros(len(values), tissue.cells + 1, values.shape[-1])
    return total.scatter_add(1, tissue.flat[..., None].expand(values.shape), values)


def directions(like: Tensor) -> Tensor:
    """Return the angles of the directions, from x towards y: (direction,)."""
    return math.pi / DIRECTIONS * torch.arange(DIRECTIONS, device=like.device, dtype=like.dtype)


def event_scores(chances: Tensor, focus: Tensor, halves: Halves) -> Tensor:
    """Return log p(e) of every cell: (batch, cell, DIVIDES + DIRECTIONS).

    Parameters
    ----------
    chances : Tensor, (batch, cell, 3)
        Scores of staying, dying and dividing: logarithms of probabilities that need not sum to one.
    focus : Tensor, (batch, cell)
        k, how strongly divisions follow the long axis.
    halves : Halves
        A direction across which one half of a cell has no pixel is impossible.
    """
    angle = directions(focus)
    aligned = halves.elongation.to(focus) @ torch.stack([(2 * angle).cos(), (2 * angle).sin()])
    along = torch.where(halves.possible, focus[..., None] * aligned, IMPOSSIBLE)
    divisible = halves.possible.any(-1, keepdim=True)
    along = torch.where(divisible, along, 0.0)
    stays, dies, divides = chances.unbind(-1)
    three = torch.stack([stays, dies, torch.where(divisible[..., 0], divides, IMPOSSIBLE)], -1).log_softmax(-1)
    return torch.cat([three[..., :DIVIDES], three[..., DIVIDES:] + along.log_softmax(-1)], -1)


@cache
def say_that_no_labels_are_left() -> None:
    """Warn once in a process, not at every step of every member."""
    logger.warning("no labels are left for cells that divide, which stay: give the store more room for cells")


class Events(TorchDistribution):
    """p(e | x) = prod over cells Categorical(e_i): what happens to the cells in a step.

    Values are `STAYS`, `DIES` and `DIVIDES` + direction, (*batch, label - 1); cells that are not there stay. `UNKNOWN` is never drawn and
    scores 0: what happened to this cell was seen, but is nothing that the law knows. Where there are fewer than two free labels for every
    cell that divides, some chosen at random stay: a store has to reserve labels enough.

    Parameters
    ----------
    scores : Tensor, (*batch, cell, DIVIDES + DIRECTIONS)
        log p(e) of cells that are there.
    names : Tensor, (*batch, cell)
        Their labels, 0 for places without a cell.
    free : Tensor, (*batch, label)
        Which labels are free, with label 0.
    """

    arg_constraints = {}  # noqa: RUF012
    support = constraints.independent(constraints.integer_interval(UNKNOWN, DIVIDES + DIRECTIONS - 1), 1)

    def __init__(self, scores: Tensor, names: Tensor, free: Tensor, batch_shape: torch.Size | None = None) -> None:
        self.scores, self.names, self.free = scores, names, free
        super().__init__(batch_shape or scores.shape[:-2], torch.Size((free.shape[-1] - 1,)), validate_args=False)

    def expand(self, batch_shape: Shape, _instance: Events | None = None) -> Events:
        return Events(self.scores, self.names, self.free, torch.Size(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Score events (*batch, label - 1): nats, (*batch,)."""
        batch = torch.broadcast_shapes(self.batch_shape, value.shape[:-1])
        scores, names = self.scores.expand(*batch, -1, -1), self.names.expand(*batch, -1)
        event = F.pad(value.long(), (1, 0)).expand(*batch, -1).gather(-1, names)
        score = scores.gather(-1, event.clamp_min(0)[..., None])[..., 0]
        return torch.where((names > 0) & (event != UNKNOWN), score, 0.0).sum(-1)

    @torch.no_grad()
    def sample(self, sample_shape: Shape = torch.Size()) -> Tensor:  # noqa: B008  (the signature of torch.distributions)
        batch = torch.Size((*sample_shape, *self.batch_shape))
        scores, names = self.scores.expand(*batch, -1, -1), self.names.expand(*batch, -1)
        noise = -torch.rand_like(scores).clamp_min(torch.finfo(scores.dtype).tiny).log()
        event = torch.where(names > 0, (scores.exp() / noise).argmax(-1), STAYS)
        lot = torch.where(event >= DIVIDES, torch.rand(event.shape, device=event.device), 2.0)
        place = lot.argsort(-1).argsort(-1)
        room = self.free.sum(-1).expand(batch)[..., None] // 2
        kept = torch.where((event >= DIVIDES) & (place >= room), STAYS, event)
        if not torch.equal(kept, event):
            say_that_no_labels_are_left()
        return F.one_hot(names, self.free.shape[-1]).mul(kept[..., None]).sum(-2)[..., 1:]
