"""Where a state goes by itself: a learned equation of motion, followed in steps shorter than a frame.

    dy = rate(y) dt        for fields whose rate is a field, as that of a position is
    dy = a(x) dt           for all others: a is a network of the state, small, for it is asked at every step

What happens within a frame, such as two bodies swinging around each other, is then the work of the steps and not of a network, which would
have to know the outcome of every encounter by heart. With forces between pairs the motion is that of a conservative system, of which
leapfrog keeps the energy (Hairer, Lubich and Wanner, Geometric Numerical Integration, chapter VI).
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import pydantic
import torch
from torch import Tensor, nn

from epns_pyro.backbones import BACKBONES, BackboneConfig, Features
from epns_pyro.config import Config, one_of
from epns_pyro.context import DataContext
from epns_pyro.models.bodies.fields import BodyFields

START = 0.1  # the output of the network before training: a small force, so that a model starts from persistence


class Motion(NamedTuple):
    """What a learned equation of motion says about a frame.

    Parameters
    ----------
    change : Tensor, (*batch, body, dynamic channel)
        What the frame adds to persistence.
    log_max_kick : Tensor, (*batch, body, kicked field)
        Logarithm of the strongest kick, in typical changes from frame to frame: where it is large, the end of the frame depends much
        on its start, and noise grows on the way.
    """

    change: Tensor
    log_max_kick: Tensor


class Integrator(nn.Module):
    """Leapfrog: drift half a step, kick, drift, kick, ..., drift half a step; equivariant where its network is."""

    def __init__(self, config: IntegratorConfig, context: DataContext) -> None:
        super().__init__()
        self.steps, self.bodies = config.steps, BodyFields(context)
        bodies, scales = self.bodies, context.step_scales
        # every field that no rate carries, and the unit of its kicks
        self.vectors, self.scalars = (
            {f.name: scales[f.name] for f in fields if f.name not in bodies.rates}
            for fields in (bodies.dynamic_vectors, bodies.dynamic_scalars)
        )
        self.network = bodies.build(config.network, *bodies.feature_counts, len(self.scalars), len(self.vectors)).scale_output(START)

    @property
    def fields(self) -> int:
        """Number of fields that are kicked."""
        return len(self.vectors) + len(self.scalars)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Motion:
        """Follow x (*batch, body, channel) through a frame; bodies that are False in a mask (*batch, body) act on no other."""
        bodies, step = self.bodies, self.bodies.frame_dt / self.steps
        start, strengths = x, []
        if bodies.differences:  # a backward difference is the velocity of half a frame ago
            start = self._kicked(x, self._ask(x, mask), self.steps / 2)
        end = self._drift(start, step / 2)
        for left in reversed(range(self.steps)):
            out = self._ask(end, mask)
            end = self._drift(self._kicked(end, out, 1.0), step if left else step / 2)
            strengths.append(torch.cat([out.vectors.square().sum(-1), out.scalars.square()], -1))
        change = bodies.to_free(bodies.spec.dynamic(end)) - bodies.to_free(bodies.persistence(x))
        return Motion(bodies.as_differences(change, x, end), (1 + torch.stack(strengths).amax(0)).log() / 2)

    def _ask(self, x: Tensor, mask: Tensor | None) -> Features:
        return self.network(self.bodies.positions(x), self.bodies.features(x, mask))

    def _drift(self, x: Tensor, dt: float) -> Tensor:
        return self.bodies.spec.advance(x, self.bodies.persistence(x, dt))

    def _kicked(self, x: Tensor, out: Features, kicks: float) -> Tensor:
        """Change every field that no rate carries, in units of its typical change from frame to frame; `kicks` times what a step does."""
        spec, units = self.bodies.spec, self.vectors | self.scalars
        changes = [*out.vectors.unbind(-2), *out.scalars.unbind(-1)]
        change = {name: kicks * unit / self.steps * c for (name, unit), c in zip(units.items(), changes, strict=True)}
        return spec.advance(x, spec.pack_dynamic(**{f.name: spec.get(x, f.name) + change.get(f.name, 0) for f in spec.dynamic_fields}))


class IntegratorConfig(Config):
    """A learned equation of motion that the first guess follows."""

    steps: int = pydantic.Field(default=10, ge=1, le=1000, description="per frame")
    network: Annotated[BackboneConfig, one_of(BACKBONES)] = pydantic.Field(default="pairwise", validate_default=True)
