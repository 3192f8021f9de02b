"""A Normal law of the vector fields of a body of which some are known for certain."""

from __future__ import annotations

import math

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from epns_pyro.models.normal import Shape


class PartlyKnown(TorchDistribution):
    """x = loc + (L ⊗ I_space) e, e ~ Normal(0, 1), where rows of L that are zero leave a field known: its density is a Dirac delta.

    The density is with respect to length for fields that are not known, and to counting for those that are: 0 nats at their value.

    Parameters
    ----------
    loc : Tensor, (*batch, field * space)
    factor : Tensor, (*batch, field, field)
        L, lower triangular; a row of zeros for every field that is known.
    """

    arg_constraints = {"loc": constraints.real_vector}  # noqa: RUF012
    support = constraints.independent(constraints.real, 1)
    has_rsample = True

    def __init__(self, loc: Tensor, factor: Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.factor = loc, factor
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        per_field = self.factor.square().sum(-1)
        return per_field.repeat_interleave(self.loc.shape[-1] // per_field.shape[-1], -1)

    def expand(self, batch_shape: Shape, _instance: PartlyKnown | None = None) -> PartlyKnown:
        batch = torch.Size(batch_shape)
        return PartlyKnown(
            self.loc.expand(batch + self.loc.shape[-1:]),
            self.factor.expand(batch + self.factor.shape[-2:]),
            validate_args=False,
        )

    def rsample(self, sample_shape: Shape = torch.Size()) -> Tensor:  # noqa: B008  (the signature of torch.distributions)
        noise = torch.randn(self._extended_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + (self.factor @ noise.unflatten(-1, (self.factor.shape[-1], -1))).flatten(-2)

    def log_prob(self, value: Tensor) -> Tensor:
        residual = (value - self.loc).unflatten(-1, (self.factor.shape[-1], -1))
        known = self.factor.diagonal(dim1=-2, dim2=-1) == 0
        root = self.factor + torch.diag_embed(known.to(self.factor.dtype))
        noise = torch.linalg.solve_triangular(root.expand(*residual.shape[:-2], *root.shape[-2:]), residual, upper=False)
        right = ((residual == 0) | ~known[..., None]).flatten(-2).all(-1)
        return torch.where(right, noise_log_prob(noise, root, known), -torch.inf)


def noise_log_prob(noise: Tensor, factor: Tensor, known: Tensor) -> Tensor:
    """Log density, (*batch,), of x = loc + (L ⊗ I) e at the noise e (*batch, field, space), of the fields that are not known.

    `factor` (*batch, field, field) is L, with ones on its diagonal where a field is known.
    """
    space = noise.shape[-1]
    per_field = -0.5 * noise.square().sum(-1) - space * (factor.diagonal(dim1=-2, dim2=-1).log() + 0.5 * math.log(2 * math.pi))
    return torch.where(known, 0.0, per_field).sum(-1)
