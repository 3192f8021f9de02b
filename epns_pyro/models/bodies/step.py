"""Base of the steps of particle models: which bodies are scored, and which are present afterwards."""

from __future__ import annotations

from pyro.distributions import Independent
from torch import Tensor

from epns_pyro.models.bodies.fields import BodyFields
from epns_pyro.models.transition import Carry, Observed, Step


class BodyStep(Step):
    """A step of bodies of which some may be absent, NaN in the carry.

    Attributes
    ----------
    bodies : BodyFields
    x : Tensor, (*batch, body, channel)
        The present state, with zeros for bodies that are absent.
    mask : Tensor, (*batch, body), optional
        Which bodies are present; None if the data have no absent bodies.
    """

    bodies: BodyFields
    x: Tensor
    mask: Tensor | None

    def observe(self, emission: Independent, x_next: Tensor) -> Observed:
        """Score all bodies that are present before and after the step."""
        return self.bodies.observe(emission, self.x, x_next, self.mask)

    def advance(self, y: Tensor, following: Tensor | None = None) -> Carry:
        """Advance to y; without an observed next state, the bodies of the current state stay."""
        return super().advance(self.bodies.entering_and_leaving(self.spec.wrap_dynamic(self.x, y), self.mask, following), following)
