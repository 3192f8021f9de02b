"""Revisions of a draft while an image is drawn: a look at all pixels that are drawn so far.

The scores of a pixel read the labels in a small square around it, which are few and far apart while the first classes are drawn. A revision
reads the unfinished image in the whole window of every cell, so that the pixels that follow agree on where the cell went and what its
shape is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from epns_pyro.backbones.tissues.base import Draft
from epns_pyro.backbones.tissues.convolutions import LatticeConv, Pointwise, to_image, to_rows
from epns_pyro.models.tissues.interlacing import LabelField

UNDRAWN = -2  # label of pixels that are not drawn yet; -1 is off the lattice
MASKS = 4
KERNEL = 7  # pixels: wide enough to see several drawn pixels when one in sixteen is drawn


class Revision(nn.Module):
    """draft' = draft + network(draft, drawn pixels): equivariant under relabelling and shifts.

    Parameters
    ----------
    width : int
        Channels of the draft.
    types : int
    start : int
        The classes before this one are drawn when the draft is revised.
    """

    def __init__(self, width: int, types: int, start: int) -> None:
        super().__init__()
        self.types, self.start = types, start
        self.masks = nn.Conv2d(MASKS, width, KERNEL, padding=KERNEL // 2)
        self.near = nn.Conv2d(width, width, 3, padding=1)
        self.cells = _small_change(width)
        self.kinds = LatticeConv(types + 2, width, KERNEL)
        self.medium = _small_change(width)

    def forward(self, field: LabelField, draft: Draft, labels: Tensor) -> Draft:
        """Revise a draft with one batch dimension; of the images labels (pixel,) only classes before `start` are read."""
        tissue, crops = field.tissue, field.crops
        drawn = torch.where(field.classes < self.start, labels, UNDRAWN).view(-1, tissue.lattice.pixels)
        kinds = torch.where(drawn >= 0, tissue.type_of_pixels(drawn), self.types + 1)

        own = crops.labels(drawn)
        kin = crops.labels(torch.where(drawn >= 0, kinds, UNDRAWN))
        names = torch.arange(1, tissue.cells + 1, device=drawn.device)[:, None]
        mine, related = own == names, kin == tissue.types.clamp_min(1)[..., None]
        masks = torch.stack([mine, related & ~mine, own > 0, own == 0], -2).to(draft.cells.dtype)
        rows = draft.cells + to_rows(self.masks(masks.flatten(0, 1).unflatten(-1, tuple(crops.size)))).view_as(draft.cells)
        image = to_image(F.silu(rows).flatten(0, 1), crops.size)
        rows = rows + to_rows(self.near(image)).view_as(rows)

        image = F.one_hot(kinds, self.types + 2).to(draft.medium.dtype).mT.unflatten(-1, tuple(tissue.lattice))
        lattice = draft.medium + to_rows(self.kinds(image, periodic=tissue.periodic))
        return Draft(draft.cells + self.cells(rows), draft.medium + self.medium(lattice))


def _small_change(width: int) -> nn.Sequential:
    """Return a perceptron on rows whose output is zero before training: an untrained revision changes nothing."""
    last = nn.Linear(width, width)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(Pointwise(width), nn.SiLU(), last)
