"""A Normal distribution with a full covariance: of all channels of a body, or of all bodies together."""

from __future__ import annotations

import math

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from epns_pyro.models.normal import Shape


class FullNormal(TorchDistribution):
    """x = loc + L e, e ~ Normal(0, 1), for an event of one axis (channel,) or of two (body, channel), flattened.

    A draw from a law that is not finite is not finite; nothing raises.

    Parameters
    ----------
    loc : Tensor, (*batch, channel) or (*batch, body, channel)
    factor : Tensor, (*batch, size, size)
        L, lower triangular with a positive diagonal; its batch dimensions say which axes are the event.
    there : Tensor, (*batch, body), optional
        With an event (body, channel): bodies that count. The factor is that of the covariance in which all others are independent of
        them, with variance one.
    """

    arg_constraints = {}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, factor: Tensor, event_dim: int = 1, there: Tensor | None = None) -> None:
        self.loc, self.factor, self.there = loc, factor, there
        super().__init__(loc.shape[: loc.dim() - event_dim], loc.shape[loc.dim() - event_dim :], validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return self.factor.square().sum(-1).view(*self.factor.shape[:-2], *self.event_shape).expand_as(self.loc)

    def expand(self, batch_shape: Shape, _instance: FullNormal | None = None) -> FullNormal:
        batch = torch.Size(batch_shape)
        there = None if self.there is None else self.there.expand(*batch, -1)
        factor = self.factor.expand(*batch, *self.factor.shape[-2:])
        return FullNormal(self.loc.expand(batch + self.event_shape), factor, len(self.event_shape), there)

    def rsample(self, sample_shape: Shape = torch.Size()) -> Tensor:  # noqa: B008  (the signature of torch.distributions)
        shape = self._extended_shape(sample_shape)
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + (self.factor @ self._flat(noise)[..., None])[..., 0].view(shape)

    def standardise(self, value: Tensor) -> Tensor:
        """Return e, the standard Normal noise that makes `value`, in the shape of the event."""
        residual = value - self.loc
        if self.there is not None:
            residual = torch.where(self.there[..., None], residual, 0.0)
        flat = self._flat(residual)[..., None]
        factor = self.factor.expand(*flat.shape[:-2], *self.factor.shape[-2:])
        return torch.linalg.solve_triangular(factor, flat, upper=False)[..., 0].view(residual.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        squared = self._flat(self.standardise(value)).square().sum(-1)
        log_volume = self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        count = self.event_shape.numel() if self.there is None else self.there.sum(-1) * self.event_shape[-1]
        return -0.5 * squared - log_volume - 0.5 * count * math.log(2 * math.pi)

    def _flat(self, value: Tensor) -> Tensor:
        return value.flatten(value.dim() - len(self.event_shape))


def factor_of(covariance: Tensor) -> Tensor:
    """Return the Cholesky factor of covariances (*batch, size, size); the identity where there is none.

    That is so where a state has left all bounds; one such member must not end an ensemble or a training.
    """
    factor, failed = torch.linalg.cholesky_ex(covariance)
    sound = (failed == 0) & factor.isfinite().all(-1).all(-1)
    if bool(sound.all()):
        return factor
    eye = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    return torch.linalg.cholesky_ex(torch.where(sound[..., None, None], covariance, eye)).L
