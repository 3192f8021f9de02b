"""Where a state goes by itself: a learned equation of motion, followed in steps shorter than a frame.

    dy = rate(y) dt        for fields whose rate is a field, as that of a position is
    dy = a(x) dt           for all others: a is a network of the state, small, for it is asked at every step

What happens within a frame, such as two bodies swinging around each other, is then the work of the steps and not of a network, which would
have to know the outcome of every encounter by heart. With forces between pairs the motion is that of a conservative system, of which
leapfrog keeps the energy (Hairer, Lubich and Wanner, Geometric Numerical Integration, chapter VI).
"""

from __future__ import annotations

import pydantic
from torch import Tensor, nn

from epns_pyro.backbones import BACKBONES, Signature
from epns_pyro.config import Config, choice
from epns_pyro.data.context import DataContext
from epns_pyro.models.bodies import Bodies


class Integrator(nn.Module):
    """Leapfrog: drift half a step, kick, drift, kick, ..., drift half a step; equivariant where its network is."""

    def __init__(self, config: IntegratorConfig, context: DataContext) -> None:
        super().__init__()
        self.steps, self.bodies = config.steps, Bodies(context)
        bodies, scales = self.bodies, context.step_scales
        self.vectors, self.scalars = (
            {f.name: scales[f.name] for f in fields if f.name not in bodies.rates} for fields in (bodies.moved, bodies.changed)
        )
        signature = Signature(*bodies.feature_counts, len(self.scalars), len(self.vectors), context.spec.space, context.sites[0])
        self.network = config.network.build(signature)

    def forward(self, x: Tensor) -> Tensor:
        """What a frame from x (*batch, body, channel) adds to persistence: (*batch, body, dynamic channel)."""
        step = self.bodies.frame_dt / self.steps
        end = self._drift(x, step / 2)
        for left in reversed(range(self.steps)):
            end = self._drift(self._kick(end), step if left else step / 2)
        return self.bodies.spec.dynamic(end) - self.bodies.persistence(x)

    def _drift(self, x: Tensor, dt: float) -> Tensor:
        return self.bodies.spec.advance(x, self.bodies.persistence(x, dt))

    def _kick(self, x: Tensor) -> Tensor:
        """Change every field that no rate carries by a(x), in units of its typical change from frame to frame."""
        spec = self.bodies.spec
        out = self.network(self.bodies.positions(x), self.bodies.features(x))
        change = dict(zip(self.vectors, out.vectors.unbind(-2), strict=True)) | dict(zip(self.scalars, out.scalars.unbind(-1), strict=True))
        unit = {name: scale / self.steps for name, scale in (self.vectors | self.scalars).items()}
        kicked = {f.name: spec.get(x, f.name) + (unit[f.name] * change[f.name] if f.name in unit else 0) for f in spec.dynamic_fields}
        return spec.advance(x, spec.pack_dynamic(**kicked))


class IntegratorConfig(Config):
    """A learned equation of motion that the first guess follows."""

    steps: int = pydantic.Field(default=10, ge=1, le=1000, description="per frame")
    network: choice(BACKBONES) = pydantic.Field(default="pairwise", validate_default=True)
