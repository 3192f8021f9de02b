"""What networks of earlier frames read and give: windows of frames in, features of the bodies in the last frame out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from epns_pyro.backbones.bodies.base import Features, Signature
from epns_pyro.config import Config, Registry

HISTORIES = Registry("history network")


@dataclass(frozen=True)
class Window:
    """The last frames of bodies, the present one last.

    Parameters
    ----------
    positions : Tensor, (*batch, time, body, space)
        In units of their scale.
    paths : Tensor, (*batch, time, body, space)
        Where a body was, seen from where it is now, in typical steps: small differences of large positions are formed before a network.
        Across the sides of a periodic box they go on.
    features : Features, (*batch, time, body, ...)
        All else of each frame. Its mask, (*batch, time, body), is True where a body is known; from there it is known up to the last frame.
        Everything else is finite, also where the mask is False.
    """

    positions: Tensor
    paths: Tensor
    features: Features

    @property
    def known(self) -> Tensor:
        """Which bodies are known in which frames, (*batch, time, body)."""
        mask = self.features.mask
        return torch.ones_like(self.positions[..., 0], dtype=torch.bool) if mask is None else mask


class HistoryNetwork(nn.Module, ABC):
    """A network f(window) -> features of the bodies in its last frame, equivariant under O(d), translations and permutations.

    Parameters
    ----------
    signature : Signature
        Of the features of a frame at the input, and of a body at the output.
    frames : int
        Frames of a window.
    """

    def __init__(self, signature: Signature, frames: int) -> None:
        super().__init__()
        self.signature, self.frames = signature, frames

    def largest(self, bodies: int) -> int:
        """Return how many numbers the largest tensor holds that one window of so many bodies needs on the way; by default 64 per pair."""
        return 64 * self.frames * bodies * max(1, bodies - 1)

    @abstractmethod
    def forward(self, window: Window) -> Features:
        """Compute the output channels of the signature from a window: (*batch, body, ...)."""


class HistoryNetworkConfig(Config, ABC):
    """Settings of a history network; `build` makes it for a signature and a number of frames."""

    name: str

    @abstractmethod
    def build(self, signature: Signature, frames: int) -> HistoryNetwork: ...
