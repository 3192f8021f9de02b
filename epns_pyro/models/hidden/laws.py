"""A Normal law of the vector fields of a body of which some are known for certain."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import constraints

from epns_pyro.models.bodies.emissions import CoupledNormal


class PartlyKnown(CoupledNormal):
    """x = loc + (L ⊗ I_space) e, e ~ Normal(0, 1), where rows of L that are zero leave a field known: its density is a Dirac delta.

    The density is with respect to length for fields that are not known, and to counting for those that are: 0 nats at their value.
    """

    arg_constraints = {"loc": constraints.real_vector}  # noqa: RUF012

    def log_prob(self, value: Tensor) -> Tensor:
        residual = self._by_field(value - self.loc)
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
