"""Squares of large label images, around random cells.

A part of a film is a film: cells are cut by its border, enter and leave there, and beyond it nothing is known. So a model that sees parts
in training learns the law of the whole, and its steps take as long as the part is large.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from epns_pyro.errors import ConfigError
from epns_pyro.state import StateSpec


def check_crop(spec: StateSpec) -> None:
    """Raise ConfigError unless states are label images whose parts are such images again."""
    if len(spec.sites) != 2 or spec.periodic or all(field.kind != "label" for field in spec.dynamic_fields):
        raise ConfigError("training.crop is for label images that are not periodic: leave it out (null)")


def cropped(spec: StateSpec, films: Tensor, side: int, shares: np.ndarray) -> Tensor:
    """Cut a square out of every film, around a random pixel of a cell of its first image.

    Parameters
    ----------
    spec : StateSpec
    films : Tensor, (film, time, y, x, channel)
    side : int
        Of the square, pixels; an image that is smaller along an axis is kept there.
    shares : ndarray, (film, 3)
        Random numbers from 0 to 1: which pixel, and how far down and to the right of the corner of the square it is.

    Returns
    -------
    Tensor, (film, time, y', x', channel)
        At the border of an image the square lies inside, so the cell is anywhere in it.
    """
    height, width = films.shape[2:4]
    size = min(side, height), min(side, width)
    label = next(field.name for field in spec.dynamic_fields if field.kind == "label")
    parts = []
    for film, (which, *within) in zip(films, shares, strict=True):
        inside = (spec.get(film[0], label) > 0).flatten().nonzero()[:, 0]
        pixel = int(inside[int(which * len(inside))]) if len(inside) else int(which * height * width)
        places = zip(divmod(pixel, width), within, size, (height, width), strict=True)
        top, left = (min(max(at - int(share * part), 0), whole - part) for at, share, part, whole in places)
        parts.append(film[:, top : top + size[0], left : left + size[1]])
    return torch.stack(parts)
