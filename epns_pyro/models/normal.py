"""A Normal distribution whose draws never raise, and masks of joint distributions."""

from __future__ import annotations

import pyro.distributions
import torch
from pyro.distributions import Independent
from pyro.distributions.torch_distribution import MaskedDistribution, TorchDistribution
from torch import Tensor

Shape = torch.Size | list[int] | tuple[int, ...]  # as the methods of torch.distributions take it


class Normal(pyro.distributions.Normal):
    """A Normal distribution that returns non-finite draws for non-finite parameters, where PyTorch's raises.

    One diverging member must not end an ensemble. And a draw does not wait for the device, as PyTorch's check does.
    """

    def sample(self, sample_shape: Shape = torch.Size()) -> Tensor:  # noqa: B008  (the signature of torch.distributions)
        with torch.no_grad():
            return self.rsample(sample_shape)


def unmasked(law: Independent) -> TorchDistribution:
    """Return the law per body or channel from which a joint law is built, without its mask."""
    return law.base_dist.base_dist if isinstance(law.base_dist, MaskedDistribution) else law.base_dist


def masked(law: Independent, mask: Tensor | None) -> Independent:
    """Return a joint law without the densities of entities where a mask (*batch, entity) is False; None keeps all."""
    if mask is None:
        return law
    dims = law.reinterpreted_batch_ndims
    return unmasked(law).mask(mask.view(*mask.shape, *[1] * (dims - 1))).to_event(dims)
