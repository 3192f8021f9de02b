"""Laws in the coordinates of the data, of a model that measures from an origin near them.

Single precision cannot tell apart two positions that are close to each other and far from zero: at 5.6e6 its numbers are 0.5 apart.
"""

from __future__ import annotations

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

Shape = torch.Size | list[int] | tuple[int, ...]


class Shifted(TorchDistribution):
    """x + shift, x of a law in the precision of its model; draws and values are in double precision.

    Parameters
    ----------
    base : TorchDistribution, event (*site, channel)
    shift : Tensor, (channel,), float64
    dtype : torch.dtype
        Of the base.
    """

    arg_constraints = {}  # noqa: RUF012
    support = constraints.independent(constraints.real, 2)

    def __init__(self, base: TorchDistribution, shift: Tensor, dtype: torch.dtype) -> None:
        self.base, self._shift, self._dtype = base, shift, dtype
        self.has_rsample = base.has_rsample
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.base.mean.double() + self._shift

    def expand(self, batch_shape: Shape, _instance: Shifted | None = None) -> Shifted:
        return Shifted(self.base.expand(batch_shape), self._shift, self._dtype)

    def rsample(self, sample_shape: Shape = torch.Size()) -> Tensor:  # noqa: B008  (the signature of torch.distributions)
        return self.base.rsample(sample_shape).double() + self._shift

    def sample(self, sample_shape: Shape = torch.Size()) -> Tensor:  # noqa: B008
        return self.base.sample(sample_shape).double() + self._shift

    def log_prob(self, value: Tensor) -> Tensor:
        return self.base.log_prob((value - self._shift).to(self._dtype))
