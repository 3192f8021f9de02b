"""A network for chiral systems: equivariant under rotations but not under reflections."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from epns_pyro.backbones.bodies.base import AroundNetwork, Backbone, Features

if TYPE_CHECKING:
    from epns_pyro.backbones.bodies.edges import Around


class Handed(AroundNetwork):
    """Combine vectors of an equivariant network in ways that are not symmetric under reflections.

    In 2 dimensions u + J w, J a rotation by 90 degrees; in 3 dimensions u + w x s; in 1 dimension nothing can be combined.
    """

    equivariant: ClassVar[bool] = False

    def __init__(self, network: Backbone) -> None:
        nn.Module.__init__(self)
        signature = network.signature
        self.network = network
        self.signature = replace(signature, out_vectors=signature.out_vectors // self.vectors(signature.space))

    @staticmethod
    def vectors(space: int) -> int:
        """Return how many vectors of the inner network are needed for one output vector."""
        return space

    def evaluate(self, positions: Tensor, features: Features) -> Features:
        return self._combined(self.network(positions, features))

    def look(self, positions: Tensor, features: Features) -> Around | None:
        return self.network.look(positions, features)

    def at(self, features: Features) -> Callable[[Tensor, Tensor], Features]:
        network = self.network.at(features)
        return lambda positions, vectors: self._combined(network(positions, vectors))

    def _combined(self, out: Features) -> Features:
        parts = out.vectors.unflatten(-2, (self.vectors(self.signature.space), -1)).unbind(-3)
        if len(parts) == 1:
            return Features(out.scalars, parts[0])
        plain, *rest = parts
        if len(rest) == 1:
            return Features(out.scalars, plain + quarter_turn(rest[0]))
        return Features(out.scalars, plain + torch.linalg.cross(*rest))


def quarter_turn(vectors: Tensor) -> Tensor:
    """Rotate vectors of the plane (..., 2) by 90 degrees."""
    x, y = vectors.unbind(-1)
    return torch.stack([-y, x], -1)
