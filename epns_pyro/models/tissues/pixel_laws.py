"""The laws of single pixels, many at a time, and noise that moves with the image."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from epns_pyro.models.tissues.interlacing import LabelField, PixelBatch

Noise = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


class PixelLaws(NamedTuple):
    """Categorical laws of a batch of pixels, over the medium, the candidate cells, and a present owner outside of its own window.

    Parameters
    ----------
    field : LabelField
    pixels : PixelBatch
    cells : Tensor, (row,)
        Scores: logarithms of probabilities that need not sum to one.
    medium, outside : Tensor, (pixel,)
    """

    field: LabelField
    pixels: PixelBatch
    cells: Tensor
    medium: Tensor
    outside: Tensor

    @property
    def total(self) -> Tensor:
        """Logarithm of the sum of all probabilities, (pixel,)."""
        return _logsumexp(torch.logaddexp(self.medium, self.outside), self.pixels.pixel_of_candidate, self.cells)

    def score(self, labels: Tensor) -> Tensor:
        """Return the score of the label that every pixel of the batch has in an image (pixel of the lattice,): (pixel,)."""
        field, pixels = self.field, self.pixels
        value = labels[pixels.pixel]
        score = torch.where(value == 0, self.medium, torch.where(value == field.labels[pixels.pixel], self.outside, -math.inf))
        chosen = value[pixels.pixel_of_candidate] == field.candidates.name[pixels.rows]
        return score.index_put((pixels.pixel_of_candidate[chosen],), self.cells[chosen])

    def draw(self, noise: Noise | None = None) -> Tensor:
        """Return a label for every pixel of the batch, (pixel,): with Gumbel noise a draw, without it the most probable one."""
        field, pixels = self.field, self.pixels
        cells, medium, outside = noise(self.cells, self.medium, self.outside) if noise else (self.cells, self.medium, self.outside)
        best = torch.maximum(medium, outside).scatter_reduce(0, pixels.pixel_of_candidate, cells, "amax")
        new = torch.where(medium >= best, 0, field.labels[pixels.pixel])
        wins = cells >= best[pixels.pixel_of_candidate]
        return new.index_put((pixels.pixel_of_candidate[wins],), field.candidates.name[pixels.rows][wins])


def random_gumbel(cells: Tensor, medium: Tensor, outside: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Add Gumbel noise of the global generator to scores."""
    return cells + _gumbel(torch.rand_like(cells)), medium + _gumbel(torch.rand_like(medium)), outside + _gumbel(torch.rand_like(outside))


class HashedNoise:
    """Gumbel noise that is a function of the images: of what changes in each, and of where a pixel is in its tissue.

    It is another one for other images, for another `seed`, and for every `turn`; relabelling cells and shifting an image moves it with
    them. So what is drawn with it is a function of the images with their symmetries, and random all the same.

    Parameters
    ----------
    field : LabelField
    labels : Tensor, (pixel,)
        The images.
    seed : int or Tensor, (image,)
    """

    def __init__(self, field: LabelField, labels: Tensor, seed: int | Tensor = 0) -> None:
        self.field = field
        lattice = field.tissue.lattice.pixels
        changed = torch.where(labels == field.labels, 0, _mixed(field.place)).view(-1, lattice).sum(-1)
        self.key = _mixed(_mixed(changed + seed).repeat_interleave(lattice) + field.place)

    def of(self, pixels: PixelBatch, turn: int) -> Noise:
        """Return the noise of a batch of pixels when they are drawn for the `turn`-th time."""
        here = self.key[pixels.pixel] + turn
        offset = self.field.candidates.offset[pixels.rows]
        rows = _mixed(here[pixels.pixel_of_candidate] + (offset[:, 0] * 4096 + offset[:, 1]) * 8 + 1)

        def add(cells: Tensor, medium: Tensor, outside: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            medium_noise, outside_noise = _mixed(here + 2), _mixed(here + 3)
            return cells + _hashed(rows, cells), medium + _hashed(medium_noise, medium), outside + _hashed(outside_noise, outside)

        return add


def _mixed(x: Tensor) -> Tensor:
    """Mix the bits of int64 numbers: the output function of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014); overflow wraps."""
    x = x * -7046029254386353131  # so that neighbouring numbers start far apart
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def _hashed(key: Tensor, scores: Tensor) -> Tensor:
    return _gumbel(((key >> 11) & 0x1FFFFFFFFFFFFF).double() * 2.0**-53).to(scores)


def _gumbel(uniform: Tensor) -> Tensor:
    tiny = torch.finfo(uniform.dtype).tiny
    return -(-uniform.clamp_min(tiny).log()).clamp_min(tiny).log()


def _logsumexp(start: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """log(exp(start) + sum of exp(value) over the values whose `index` is this place): (place,)."""
    peak = start.detach().scatter_reduce(0, index, values.detach(), "amax")
    return peak + ((start - peak).exp().index_add(0, index, (values - peak[index]).exp())).log()
