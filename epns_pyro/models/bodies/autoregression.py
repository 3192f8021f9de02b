"""A part of the first guess that is linear in the velocities of the state: of recorded positions, those of the last steps.

Bodies that go on, turn back or slow down do so in this part from the start, where least squares on the training set put it. The same
weights for all bodies and axes: what is linear and turns with the recording is a sum of vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from epns_pyro.derived import has_positions_alone, velocity_fields
from epns_pyro.errors import ConfigError
from epns_pyro.models.bodies.fields import BodyFields


class Autoregression(nn.Module):
    """Adds a linear combination of velocities to every free vector; at first nothing.

    Attributes
    ----------
    weights : Parameter, (free vector, velocity)
    """

    def __init__(self, bodies: BodyFields) -> None:
        super().__init__()
        self._spec, self._velocities = bodies.spec, velocity_fields(bodies.spec)
        if not has_positions_alone(self._spec):
            raise ConfigError("autoregression: is for positions recorded without errors at even frames: set model.autoregression to false")
        self.weights = nn.Parameter(torch.zeros(len(bodies.dynamic_vectors), len(self._velocities)))

    def forward(self, x: Tensor) -> Tensor:
        """Return what is added to the free vectors one step after states x (*batch, body, channel): (*batch, body, vector, space)."""
        return self.weights @ torch.stack([self._spec.get(x, name) for name in self._velocities], -2)
