"""The equivariant discrete Fourier transform of paths of bodies: spectra of vectors, and the invariants of bodies and pairs in them.

    F_i(k) = sum_t exp(-2 pi i k t / T) X_i(t),   k = 1 .. floor(T / 2)

k = 0 is the mean, and for real paths the bins above T / 2 repeat those below. A rotation or reflection R acts on paths and spectra alike,
so |F_i|^2 and both parts of <F_i, F_j> are invariant.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Spectrum(NamedTuple):
    """Complex vectors F: real and imaginary part, each (*batch, bin, body, space)."""

    real: Tensor
    imaginary: Tensor

    def power(self) -> Tensor:
        """Return |F|^2 = sum of conj(F) F over space: (*batch, bin, body).

        Without the conjugate, bodies on circles would have none.
        """
        return (self.real.square() + self.imaginary.square()).sum(-1)

    def cross(self) -> Tensor:
        """Return <F_i, F_j> = sum of conj(F_i) F_j over space, real part and imaginary part: (2, *batch, bin, body i, body j).

        The imaginary part says which of the two is ahead: it changes sign with the order of the bodies, and with the direction of time.
        """
        real, imaginary = self
        return torch.stack([real @ real.mT + imaginary @ imaginary.mT, real @ imaginary.mT - imaginary @ real.mT])


def spectrum(paths: Tensor, bins: int | None = None) -> Spectrum:
    """Transform paths (*batch, time, body, space) into their bins 1 .. `bins`, by default those up to half of the frames."""
    frames = paths.shape[-3]
    k = torch.arange(1, (frames // 2 if bins is None else bins) + 1, device=paths.device)
    turns = k[:, None] * torch.arange(frames, device=paths.device) % frames  # exact, unlike the sine of a large angle
    angles = turns.to(paths.dtype) * (2 * math.pi / frames)
    return Spectrum(*(torch.einsum("kt,...tbs->...kbs", wave, paths) for wave in (angles.cos(), -angles.sin())))


def about_centroid(paths: Tensor, known: Tensor) -> Tensor:
    """Subtract the motion of the centroid from paths (*batch, time, body, space) that end at zero.

    The centroid moves from frame to frame by the mean step of the bodies that are known in both, (*batch, time, body): one that enters or
    leaves does not make it jump. Where all are known, paths change only by a constant if every frame is shifted by a vector of its own.
    """
    both = (known[..., 1:, :] & known[..., :-1, :]).to(paths)[..., None]
    steps = paths[..., 1:, :, :] - paths[..., :-1, :, :]
    mean = (steps * both).sum(-2, keepdim=True) / both.sum(-2, keepdim=True).clamp_min(1)
    back = -mean.flip(-3).cumsum(-3).flip(-3)
    moved = torch.cat([back, torch.zeros_like(paths[..., -1:, :1, :])], -3)
    return (paths - moved) * known.to(paths)[..., None]


def detrended(paths: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Fit a straight line to every path (*batch, time, body, space) over the frames where the body is known, (*batch, time, body).

    Returns
    -------
    left : Tensor, (*batch, time, body, space)
        What the line leaves; zero where the body is not known. A drift would fill all bins of the spectrum.
    slope : Tensor, (*batch, body, space)
        Of the line, per frame: the mean velocity.
    """
    weight = known.to(paths)[..., None]
    count = weight.sum(-3, keepdim=True).clamp_min(1)
    time = torch.arange(paths.shape[-3], dtype=paths.dtype, device=paths.device)[:, None, None]
    time = (time - (weight * time).sum(-3, keepdim=True) / count) * weight
    centred = (paths - (weight * paths).sum(-3, keepdim=True) / count) * weight
    slope = (time * centred).sum(-3, keepdim=True) / time.square().sum(-3, keepdim=True).clamp_min(0.25)  # 0.5 for two frames
    return centred - slope * time, slope[..., 0, :, :]
