"""Normal laws whose draws never raise, and laws of which a part is left out."""

from __future__ import annotations

import pyro.distributions
import torch
from pyro.distributions import Independent
from pyro.distributions.torch_distribution import MaskedDistribution, TorchDistribution
from torch import Tensor


class Normal(pyro.distributions.Normal):
    """A Normal that answers parameters which are not finite with a draw that is not finite, where PyTorch's raises.

    One run of an ensemble that diverges must not end all others; nor does a draw wait for the device, as PyTorch's check does.
    """

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008  (the signature of torch.distributions)
        with torch.no_grad():
            return self.rsample(sample_shape)


def unmasked(law: Independent) -> TorchDistribution:
    """Return the law of single bodies or channels that a joint law is made of, without its mask."""
    return law.base_dist.base_dist if isinstance(law.base_dist, MaskedDistribution) else law.base_dist


def masked(law: Independent, mask: Tensor | None) -> Independent:
    """Return a joint law without the densities of the entities that are False in a mask (*batch, entity); None leaves out none."""
    if mask is None:
        return law
    dims = law.reinterpreted_batch_ndims
    return unmasked(law).mask(mask.view(*mask.shape, *[1] * (dims - 1))).to_event(dims)
