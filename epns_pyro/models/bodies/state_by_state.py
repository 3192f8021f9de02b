"""Walking over a frame state by state, in compiled code: tensors of few bodies are small, and what is between two of them takes longer.

Only where no gradient is asked for, as also in training a model whose law is held, on a CPU, and under central forces between all pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from epns_pyro.backbones.bodies.laws import CentralForces, Law
from epns_pyro.later import later
from epns_pyro.models.bodies.walks import Walk
from epns_pyro.threads import share_out

if TYPE_CHECKING:
    from epns_pyro.models.bodies import compiled_walks
    from epns_pyro.models.bodies.integrator import Integrator
else:
    compiled_walks = later("epns_pyro.models.bodies.compiled_walks")


@dataclass(frozen=True)
class StateByState:
    """Walks states over a frame, as `walks.refined` does.

    Parameters
    ----------
    integrator : Integrator
        Whose steps they are.
    forces : CentralForces
        Of all states.
    place : numpy.ndarray, (state, body, space)
        Where bodies are, in units of the scale of positions.
    """

    integrator: Integrator
    forces: CentralForces
    place: np.ndarray

    @classmethod
    def under(cls, integrator: Integrator, x: Tensor, mask: Tensor | None) -> StateByState | None:
        """Return the walks of states x (state, body, channel) under the law of an integrator; None where it is not for compiled code."""
        network, bodies = integrator.network, integrator.bodies
        if torch.compiler.is_compiling() or x.device.type != "cpu" or not isinstance(network, Law):
            return None
        if torch.is_grad_enabled() and any(part.requires_grad for part in (x, *bodies.parameters(), *network.parameters())):
            return None
        features = bodies.features(x, mask)
        forces = network.central_forces(features)
        return None if forces is None else cls(integrator, forces, _array(bodies.positions(x)))

    def walk(self, velocity: Tensor, unit: float, frame: float, rows: Tensor | None = None) -> Walk:
        """Walk over a frame, to the way and the velocity at its end.

        Parameters
        ----------
        velocity : Tensor, (row, body, space)
        unit : float
            The velocity that a force of one brings in a frame.
        frame : float
            Duration of a frame, negative to go backward.
        rows : Tensor of int, (row,), optional
            The states; by default all.
        """
        scale = self.integrator.bodies.spec[self.integrator.bodies.position].scale
        to_frames, steps = abs(frame) / scale, self.integrator.steps
        now = _array(velocity * to_frames)
        states = np.arange(len(now)) if rows is None else rows.numpy()
        moved, strength, error, roughness = np.empty_like(now), np.empty(now.shape[:2]), np.empty(now.shape[:2]), np.empty(len(now))

        def work(first: int, last: int) -> None:
            compiled_walks.walk(
                self.place,
                states[first:last],
                self.forces,
                unit * to_frames,
                steps if frame > 0 else -steps,
                self.integrator.refinements,
                self.integrator.tolerance,
                now[first:last],
                moved[first:last],
                strength[first:last],
                roughness[first:last],
                error[first:last],
            )

        share_out(len(now), work)
        end = np.concatenate([scale * moved, now / to_frames], -1)
        return Walk(*(torch.from_numpy(part).to(velocity.dtype) for part in (end, strength[..., None], roughness, error)))


def _array(values: Tensor) -> np.ndarray:
    return values.double().contiguous().numpy()
