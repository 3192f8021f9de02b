"""Frame averaging (Puny et al., ICLR 2022): any network becomes O(d)-equivariant by averaging over the PCA frames of its input.

For positions r with centroid c, the frames are the orthonormal eigenvectors U of sum_i (r_i - c)(r_i - c)^T, sorted by eigenvalue, with
all 2^d choices of sign. f(x) = mean_F F . g(F^T x) is equivariant for every g. Where eigenvalues coincide (a measure-zero set) the
frames are not unique: the output is finite, but it depends on which frames are chosen.
"""

from __future__ import annotations

import itertools
from typing import Any, ClassVar, Literal

import pydantic
import torch
from torch import Tensor, nn

from epns_pyro.backbones.bodies.base import BACKBONES, Backbone, BackboneConfig, Features, Signature, centroid
from epns_pyro.backbones.bodies.graphs import GraphConfig
from epns_pyro.backbones.bodies.message_passing import MessagePassingConfig

SWEEPS = 4  # quadratic convergence: after four sweeps all off-diagonal entries of 300,000 random matrices were below 1e-20


def jacobi_eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues, descending, and eigenvectors of symmetric matrices (*batch, d, d), d <= 3.

    Cyclic Jacobi rotations (Golub & Van Loan, Matrix Computations, section 8.5): branch-free and of fixed length, so a GPU never waits
    for the host, and orthogonal to rounding even where eigenvalues are close. No gradient: see `principal_axes`.
    """
    a, size = matrix, matrix.shape[-1]
    a = a / a.diagonal(dim1=-2, dim2=-1).sum(-1).clamp_min(torch.finfo(a.dtype).tiny)[..., None, None]
    one = torch.eye(size, dtype=a.dtype, device=a.device)
    v = one.expand_as(a)
    planes = [(p, q, one[p].outer(one[p]) + one[q].outer(one[q]), one[p].outer(one[q])) for p, q in itertools.combinations(range(size), 2)]
    for p, q, plane, turn in planes * (SWEEPS if size > 2 else 1):
        # the smaller of the two angles that make a_pq zero; where it is zero and a_pp = a_qq, none
        angle = torch.atan(2 * a[..., p, q] / (a[..., q, q] - a[..., p, p])).nan_to_num() / 2
        cosine, sine = angle.cos()[..., None, None], angle.sin()[..., None, None]
        rotation = torch.addcmul(torch.addcmul(one - plane, cosine, plane), sine, turn - turn.mT)
        a = rotation.mT @ a @ rotation
        v = v @ rotation
    values, order = a.diagonal(dim1=-2, dim2=-1).sort(-1, descending=True)
    return values, v.gather(-1, order[..., None, :].expand_as(v))


class _PrincipalAxes(torch.autograd.Function):
    """Eigenvectors with the exact derivative dU = U (F o (U^T dA U)), F_ij = 1 / (l_j - l_i), bounded where eigenvalues meet."""

    @staticmethod
    def forward(ctx: Any, covariance: Tensor) -> Tensor:
        values, axes = jacobi_eigh(covariance)
        trace = covariance.diagonal(dim1=-2, dim2=-1).sum(-1).clamp_min(torch.finfo(covariance.dtype).tiny)
        ctx.save_for_backward(values, axes, trace)
        return axes

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        values, axes, trace = ctx.saved_tensors
        gap = values[..., None, :] - values[..., :, None]
        floor = torch.finfo(values.dtype).eps ** 0.5
        factor = gap / (gap.square() + floor**2)
        inner = factor * (axes.mT @ grad)
        sensitivity = axes @ inner @ axes.mT / trace[..., None, None]
        return (sensitivity + sensitivity.mT) / 2


def principal_axes(centred: Tensor) -> Tensor:
    """Return the PCA axes, as columns, of points (*batch, body, space) with centroid zero: (*batch, space, space).

    Finite, orthonormal and differentiable with a finite gradient for every input, degenerate ones included.
    """
    return _PrincipalAxes.apply(centred.mT @ centred)


class FrameAveraged(Backbone):
    """Average F . network(F^T x) over the 2^d frames F, all in one batch."""

    equivariant: ClassVar[bool] = True
    signs: Tensor

    def __init__(self, signature: Signature, network: Backbone) -> None:
        super().__init__(signature)
        self.network = network
        signs = torch.tensor(list(itertools.product([1.0, -1.0], repeat=signature.space)))
        self.register_buffer("signs", signs[:, None, :], persistent=False)  # (frame, 1, space)

    def largest(self, bodies: int) -> int:
        return len(self.signs) * self.network.largest(bodies)

    @property
    def last_layers(self) -> tuple[nn.Linear, ...]:
        return self.network.last_layers

    def evaluate(self, positions: Tensor, features: Features) -> Features:
        mask, pairs = features.mask, features.pairs
        centred = positions - centroid(positions, mask)
        axes = principal_axes(centred if mask is None else centred * mask[..., None])
        frames = axes[..., None, :, :] * self.signs  # (*batch, frame, space, axis)
        batch = (*centred.shape[:-2], len(self.signs))
        inside = self.network(
            centred[..., None, :, :] @ frames,
            Features(
                features.scalars[..., None, :, :].expand(*batch, *features.scalars.shape[-2:]),
                features.vectors[..., None, :, :, :] @ frames[..., None, :, :],
                None if mask is None else mask[..., None, :].expand(*batch, -1),
                None if pairs is None else pairs[..., None, :, :, :].expand(*batch, *pairs.shape[-3:]),
            ),
        )
        return Features(inside.scalars.mean(-3), (inside.vectors @ frames.mT[..., None, :, :]).mean(-4))


@BACKBONES.register("frames")
class FramesConfig(BackboneConfig):
    """FA-GNN: frame-averaged message passing, the published network."""

    name: Literal["frames"] = "frames"
    width: int = pydantic.Field(default=64, gt=0, description="channels of hidden layers")
    layers: int = pydantic.Field(default=3, gt=0, description="rounds of messages")
    graph: GraphConfig = GraphConfig()

    def build(self, signature: Signature) -> FrameAveraged:
        network = MessagePassingConfig(width=self.width, layers=self.layers, graph=self.graph)
        return FrameAveraged(signature, network.build(signature))
