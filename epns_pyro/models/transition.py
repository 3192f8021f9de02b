"""One step of a stochastic system: forward model, prior, emission, and the amortised posterior that trains them.

    h  = f(x)                 deterministic, equivariant
    z  ~ p(z | h)             diagonal Normal, invariant
    x' ~ p(x' | h, z)         its law is equivariant
    z  ~ q(z | h, x')         diagonal Normal, invariant: for training, smoothing and importance sampling only

Distributions describe the DYNAMIC channels of a state; static fields are given and copied.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from pyro.distributions import Independent
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from epns_pyro.config import Config, Registry
from epns_pyro.context import DataContext
from epns_pyro.state import Field, StateSpec

TRANSITIONS = Registry("model")


class Transition(nn.Module, ABC):
    """What a step needs; `EPNSModel` and `EPNSGuide` unroll it over time.

    All methods take any number of leading batch dimensions. `x` is a full state (*batch, *site, channel), `h` is what `forward_model`
    returned for it (*batch, *hidden), `z` are latents (*batch, entity, latent).
    """

    spec: StateSpec
    hidden_event_dim: int
    latent_fields: tuple[Field, ...] = ()  # how the symmetry acts on the latents of an entity; (): not at all
    chunk: ClassVar[int] = 4096  # states that evaluation and sampling pass through the networks at a time

    @property
    def state_event_dim(self) -> int:
        return len(self.spec.sites) + 1

    @abstractmethod
    def forward_model(self, x: Tensor) -> Tensor:
        """h = f(x), equivariant: (*batch, *hidden)."""

    @abstractmethod
    def prior(self, x: Tensor, h: Tensor) -> Independent:
        """p(z | h) = Normal(mu(h), sigma(h)), event (entity, latent)."""

    @abstractmethod
    def emission(self, x: Tensor, h: Tensor, z: Tensor) -> TorchDistribution:
        """p(x' | h, z) over the dynamic channels, event (*site, dynamic channel); `.mean` is what mean feedback feeds back."""

    @abstractmethod
    def posterior(self, x: Tensor, h: Tensor, x_next: Tensor) -> Independent:
        """q(z | h, x') = Normal(mu(h, x'), sigma(h, x')), event (entity, latent); x_next is a full state."""


class TransitionConfig(Config, ABC):
    """What a user can choose about a transition; `build` makes it for the data at hand."""

    name: str

    @abstractmethod
    def build(self, context: DataContext) -> Transition: ...


def bounded_exp(x: Tensor) -> Tensor:
    """Return exp(x) with x bent smoothly into (-5, 5), so that a scale can neither vanish nor explode."""
    return torch.exp(5 * torch.tanh(x / 5))
