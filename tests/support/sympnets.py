"""Symplectic layers as published, which know nothing of rotations or of bodies: a reference, and a defect that was published.

States are (q, p), positions first; J w = (w_p, -w_q).
"""

from __future__ import annotations

import torch
from phase_space import canonical
from torch import Tensor, nn


class RidgeLayer(nn.Module):
    """P: the flow of sum_k a_k (w . x)^k, k = 2 .. K: x + h (sum_k k a_k s^{k-1}) J w with s = w . x, which does not change."""

    def __init__(self, degrees: int, order: int = 4) -> None:
        super().__init__()
        self.w, self.a = nn.Parameter(torch.randn(2 * degrees)), nn.Parameter(torch.randn(order - 1))
        self.register_buffer("J", canonical(degrees))

    def forward(self, x: Tensor, h: float = 1.0) -> Tensor:
        s = x @ self.w
        slope = sum(k * a * s ** (k - 1) for k, a in enumerate(self.a, 2))
        return x + h * slope[..., None] * (self.J @ self.w)


class GradientLayer(nn.Module):
    """G: p -= h K (a tanh(K' q + b)), then the same for q with the other sign."""

    def __init__(self, degrees: int, width: int = 8) -> None:
        super().__init__()
        self.K, self.a, self.b = (nn.Parameter(torch.randn(2, *shape)) for shape in ((degrees, width), (width,), (width,)))

    def forward(self, x: Tensor, h: float = 1.0) -> Tensor:
        q, p = x.chunk(2, -1)
        p = p - h * (self.a[0] * torch.tanh(q @ self.K[0] + self.b[0])) @ self.K[0].T
        q = q + h * (self.a[1] * torch.tanh(p @ self.K[1] + self.b[1])) @ self.K[1].T
        return torch.cat([q, p], -1)


class GeneralisedRidgeLayer(nn.Module):
    """GR: the flow of f(z), z = A' p + B' q, which stays as it is if A' B is symmetric; `published`: with A B' symmetric instead.

    A = 1 + S1 S2 and B = S1 + S1 S2 S3 + S3 with symmetric S make A B' symmetric; their transposes make A' B so.
    """

    def __init__(self, degrees: int, size: float, published: bool = False) -> None:
        super().__init__()
        self.S = nn.Parameter(size * torch.randn(3, degrees, degrees))
        self.inner, self.outer = nn.Parameter(size * torch.randn(8, degrees)), nn.Parameter(size * torch.randn(8))
        self.published = published

    def forward(self, x: Tensor, h: float = 1.0) -> Tensor:
        one, two, three = self.S + self.S.mT
        A = torch.eye(len(one), dtype=x.dtype) + one @ two
        B = one + one @ two @ three + three
        if not self.published:
            A, B = A.T, B.T
        q, p = x.chunk(2, -1)
        z = p @ A + q @ B
        slope = (self.outer * (1 - torch.tanh(z @ self.inner.T).square())) @ self.inner
        return torch.cat([q + h * slope @ A.T, p - h * slope @ B.T], -1)


def transvections(matrix: Tensor) -> list[tuple[Tensor, float]]:
    """(w, c) of quadratic P-layers T = 1 + c (J w) w' whose product, the first applied last, is a symplectic matrix (2 n, 2 n).

    T moves x to M x if J w = M x - x. With x' J M x away from zero it lowers the rank of M - 1 by one, and keeps what M keeps already
    (Dieudonne). So as many layers are needed as M - 1 has rank: 2 n for a general flow, and none fewer.
    """
    J, left, layers = canonical(len(matrix) // 2).to(matrix), matrix.clone(), []
    eye = torch.eye(len(matrix), dtype=matrix.dtype)
    for _ in range(len(matrix)):
        if (left - eye).abs().max() < 1e-11:
            break
        form = J @ (left - eye)  # x' J (M - 1) x is largest along an eigenvector of its symmetric part
        values, vectors = torch.linalg.eigh((form + form.T) / 2)
        x = vectors[:, values.abs().argmax()]
        way = left @ x - x
        w = -J @ way  # J w = way, for J J = -1
        c = float(1 / (w @ x))
        layers.append((w, c))
        left = (eye - c * torch.outer(J @ w, w)) @ left
    return layers
