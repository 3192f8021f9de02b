"""Principal axes: the eigendecomposition against LAPACK, its derivative, and states where the axes are not unique."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from epns_pyro.backbones.bodies.base import Features, Signature
from epns_pyro.backbones.bodies.frames import FramesConfig, jacobi_eigh, principal_axes

DRAWS = 100_000


def points(space: int, dtype: torch.dtype = torch.float64, draws: int = DRAWS) -> Tensor:
    """Centred states (draw, body, space), among them flat, collinear, coincident, badly scaled and nearly isotropic ones."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    r = normal(draws, 5, space)
    block = draws // 10
    r[:block, :, 0] = 0
    r[block : 2 * block, :, 1:] = 0
    r[2 * block : 2 * block + 10] = 0
    scales = 10 ** (6 * torch.rand(block, 1, space, dtype=torch.float64, generator=generator) - 6)
    turns = torch.linalg.qr(normal(block, space, space)).Q
    r[3 * block : 4 * block] = (r[3 * block : 4 * block] * scales) @ turns
    isotropic = torch.linalg.qr(normal(block, 5, 5)).Q[..., :space]
    r[4 * block : 5 * block] = isotropic * (1 + 1e-7 * normal(block, 1, space))
    r = r - r.mean(-2, keepdim=True)
    return r.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("space", [1, 2, 3])
def test_the_eigendecomposition_is_that_of_lapack(space, dtype):
    r = points(space, dtype)
    matrix = r.mT @ r
    values, axes = jacobi_eigh(matrix)
    size = matrix.diagonal(dim1=-2, dim2=-1).sum(-1)
    present = size > 0
    tolerance = dict(rtol=0, atol=20 * torch.finfo(dtype).eps)
    one = torch.eye(space, dtype=dtype)
    torch.testing.assert_close(axes.mT @ axes, one.expand_as(axes), **tolerance)
    torch.testing.assert_close(values[present], torch.linalg.eigvalsh(matrix[present]).flip(-1) / size[present, None], **tolerance)
    torch.testing.assert_close((axes @ values.diag_embed() @ axes.mT)[present], matrix[present] / size[present, None, None], **tolerance)
    assert (values[:, 1:] <= values[:, :-1]).all()
    assert torch.equal(axes[~present], one.expand_as(axes[~present]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_axes_and_their_gradients_are_finite_whatever_the_state(dtype):
    r = points(3, dtype).requires_grad_()
    axes = principal_axes(r)
    (axes * torch.arange(9, dtype=dtype).view(3, 3)).sum().backward()
    assert axes.isfinite().all()
    assert r.grad.isfinite().all()


def test_gradients_are_those_of_finite_differences():
    r = points(3, draws=100)[60:64].requires_grad_()
    signs = principal_axes(r.detach()).sum(-2, keepdim=True).sign()  # a convention that small changes do not move
    assert torch.autograd.gradcheck(lambda r: principal_axes(r) * signs, r)


def test_frame_averages_are_finite_whatever_the_state():
    torch.manual_seed(0)
    network = FramesConfig(width=4, layers=1).build(Signature(1, 1, 1, 1)).double()
    r = points(3, draws=2000).requires_grad_()
    features = Features(torch.ones_like(r[..., :1]), r.detach().flip(-2)[..., None, :])
    out = network(r, features)
    (out.scalars.sum() + out.vectors.sum()).backward()
    assert out.scalars.isfinite().all()
    assert out.vectors.isfinite().all()
    assert r.grad.isfinite().all()


def test_the_average_does_not_depend_on_the_signs_of_the_axes(monkeypatch):
    torch.manual_seed(0)
    network = FramesConfig(width=4, layers=1).build(Signature(1, 1, 2, 1)).double()
    r = points(3, draws=100)[60:]
    features = Features(torch.ones_like(r[..., :1]), r.flip(-2)[..., None, :])
    before = network(r, features)
    monkeypatch.setattr("epns_pyro.backbones.bodies.frames.principal_axes", lambda x: principal_axes(x) * torch.tensor([1.0, -1.0, -1.0]))
    after = network(r, features)
    torch.testing.assert_close(after.scalars, before.scalars, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(after.vectors, before.vectors, rtol=1e-12, atol=1e-13)
