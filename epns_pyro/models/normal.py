"""Normal laws whose draws never raise."""

from __future__ import annotations

import pyro.distributions
import torch
from torch import Tensor


class Normal(pyro.distributions.Normal):
    """A Normal that answers parameters which are not finite with a draw that is not finite, where PyTorch's raises.

    One run of an ensemble that diverges must not end all others; nor does a draw wait for the device, as PyTorch's check does.
    """

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008  (the signature of torch.distributions)
        with torch.no_grad():
            return self.rsample(sample_shape)
