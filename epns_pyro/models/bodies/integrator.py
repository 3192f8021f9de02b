"""A learned equation of motion, integrated in steps shorter than a frame.

    dy = rate(y) dt        for fields whose rate is a field, as that of a position is
    dy = a(x) dt           for all others: a is a small network of the state, evaluated at every step

The steps resolve what happens within a frame, such as a close encounter of two bodies; a network alone would have to learn the outcome of
every encounter. With forces between pairs the motion is that of a conservative system, of which
leapfrog keeps the energy (Hairer, Lubich and Wanner, Geometric Numerical Integration, chapter VI). Where forces change much from step to
step, a frame may be walked again in shorter ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Literal, NamedTuple

import pydantic
import torch
from torch import Tensor, nn

from epns_pyro.backbones import BACKBONES, BackboneConfig, Features
from epns_pyro.backbones.bodies.laws import Law
from epns_pyro.config import Config, one_of
from epns_pyro.context import DataContext
from epns_pyro.durations import along, relative
from epns_pyro.models.bodies.fields import BodyFields
from epns_pyro.models.bodies.state_by_state import StateByState
from epns_pyro.models.bodies.walks import Course, Walk, flattened, refined
from epns_pyro.models.transition import LawOfNature

START = 0.1  # the output of the network before training: a small force, so that a model starts from persistence


class Motion(NamedTuple):
    """The result of integrating the equation of motion over one frame.

    Parameters
    ----------
    change : Tensor, (*batch, body, dynamic channel)
        Change over the frame, relative to persistence.
    log_max_kick : Tensor, (*batch, body, kicked field)
        Logarithm of the largest velocity change in one step, in typical changes per frame. Where it is large, the end of the frame is
        sensitive to its start, and noise grows.
    memory : tuple of Tensor, each (*batch, ...)
        What the next frame starts from, beside its state; empty where that is all.
    doubt : Tensor, (*batch, body, channel), optional
        Further signs of how far the frame may be wrong, and of how well it is known where it started from.
    """

    change: Tensor
    log_max_kick: Tensor
    memory: tuple[Tensor, ...] = ()
    doubt: Tensor | None = None

    @property
    def signs(self) -> Tensor:
        """What the noise of the frame may depend on: (*batch, body, channel)."""
        return self.log_max_kick if self.doubt is None else torch.cat([self.log_max_kick, self.doubt], -1)


class Integrator(nn.Module):
    """Leapfrog: drift half a step, kick, drift, kick, ..., drift half a step; equivariant where its network is."""

    def __init__(self, config: IntegratorConfig, context: DataContext) -> None:
        super().__init__()
        self.steps, self.bodies = config.steps, BodyFields(context)
        self.refinements, self.tolerance = config.refinements, config.tolerance
        bodies, scales = self.bodies, context.step_scales
        # every field that no rate carries, and the unit of its kicks
        self.vectors, self.scalars = (
            {f.name: scales[f.name] for f in fields if f.name not in bodies.rates}
            for fields in (bodies.dynamic_vectors, bodies.dynamic_scalars)
        )
        self.network = bodies.build(config.network, *bodies.feature_counts, len(self.scalars), len(self.vectors), pairs=True).scale_output(
            START
        )

    @property
    def fields(self) -> int:
        """Number of fields that are kicked."""
        return len(self.vectors) + len(self.scalars)

    @property
    def signs(self) -> int:
        """Number of channels of a motion's signs."""
        return self.fields + (self.refinements > 0)

    def start(self, x: Tensor, mask: Tensor | None = None, near: tuple[Tensor, ...] = ()) -> tuple[Tensor, ...]:
        """Return the memory that the first frame starts from, for states x (*batch, body, channel): none.

        `near` is that of a law which differs little: it is corrected, in place of a search.
        """
        return ()

    def forward(self, x: Tensor, mask: Tensor | None = None, memory: tuple[Tensor, ...] = ()) -> Motion:
        """Integrate states x (*batch, body, channel) over one frame; bodies where a mask (*batch, body) is False act on no other."""
        walk = self._walk(x, mask)
        bodies, spec = self.bodies, self.bodies.spec
        change = bodies.to_free(walk.end) - bodies.to_free(bodies.persistence(x))
        change = bodies.as_differences(change, x, spec.advance(x, walk.end)) if bodies.differences else change
        return Motion(change, walk.log_max_kick, doubt=walk.log_error if self.refinements else None)

    def _walk(self, x: Tensor, mask: Tensor | None) -> Walk:
        """Walk over one frame, to the dynamic fields at its end."""
        if (found := self._state_by_state(x, mask)) is not None:
            return found
        if not self.refinements:
            return self._steps(x, mask, self.steps)
        states, there = flattened(x, mask)

        def walk(rows: Tensor | slice, steps: int) -> Walk:
            return self._steps(states[rows], None if there is None else there[rows], steps)

        return refined(walk, self.steps, self.refinements, self.tolerance).along(x.shape[:-2])

    def _state_by_state(self, x: Tensor, mask: Tensor | None) -> Walk | None:
        """Walk over one even frame in compiled code; None where it is not for it, as where more moves than bodies by their velocities."""
        bodies, spec, velocity = self.bodies, self.bodies.spec, self.kicked_velocity
        only = {f.name for f in spec.dynamic_fields} == {bodies.position, velocity}
        if not only or bodies.differences or spec.duration is not None:
            return None
        states, there = flattened(x, mask)
        by_state = StateByState.under(self, states, there)
        if by_state is None:
            return None
        walk = by_state.walk(spec.get(states, velocity), self.vectors[velocity], bodies.frame_dt).along(x.shape[:-2])
        moved, at_end = walk.end.chunk(2, -1)
        return walk._replace(end=spec.pack_dynamic(**{bodies.position: spec.get(x, bodies.position) + moved, velocity: at_end}))

    def _steps(self, x: Tensor, mask: Tensor | None, steps: int) -> Walk:
        """Drift half a step, kick, drift, kick, ..., drift half a step."""
        bodies, spec, step = self.bodies, self.bodies.spec, self.bodies.duration(x) / steps
        law, now, course = self._law(x, mask), bodies.dynamic_values(x), Course(mask, rough=self.refinements > 0)
        if bodies.differences:  # a backward difference is the velocity of half a frame ago
            now = self._kicked(x, now, law(now), 0.5)
        now = bodies.drifted(x, now, step / 2)
        for left in reversed(range(steps)):
            out = law(now)
            now = bodies.drifted(x, self._kicked(x, now, out, 1 / steps), step if left else step / 2)
            course.add(out)
        return course.walk(spec.pack_dynamic(**now))

    def remember(self, x: Tensor, motion: Motion, y: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return the memory after a frame that began in states x (*batch, body, channel) and brought y (*batch, body, dynamic channel).

        Bodies where a mask (*batch, body) is False, or that have left, NaN in y, count for nothing.
        """
        return motion.memory

    @property
    def kicked_velocity(self) -> str:
        """Name of the kicked velocity of the positions; "" where positions themselves are kicked."""
        name = self.bodies.rates.get(self.bodies.position, "")
        return name if name in self.vectors else ""

    @property
    def law(self) -> LawOfNature | None:
        """The law of nature that velocities follow; None where there is none that can be read."""
        if not (self.kicked_velocity and isinstance(self.network, Law)):
            return None
        if (read := self.network.read(list(self.vectors).index(self.kicked_velocity))) is None:
            return None
        scalars, position = self.bodies.scalars, self.bodies.spec[self.bodies.position]
        inertia = {scalars[i]: power for i, power in read.inertia.items() if i < len(scalars)}  # others have no name
        if len(inertia) < len(read.inertia):
            return None
        return LawOfNature(read.powers, read.screening / position.scale, inertia, position.unit)

    def acceleration(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return what the network does to velocities in states x (*batch, body, channel): (*batch, body, space), per unit of time."""
        kicks = self.network(self.bodies.positions(x), self.bodies.features(x, mask)).vectors
        return kicks[..., list(self.vectors).index(self.kicked_velocity), :] * (self.vectors[self.kicked_velocity] / self.bodies.frame_dt)

    def _law(self, x: Tensor, mask: Tensor | None) -> Callable[[Mapping[str, Tensor]], Features]:
        """Return the network as a function of the dynamic fields, by name, of what else states x hold: that is read once per frame."""
        bodies, spec = self.bodies, self.bodies.spec
        if any(spec[name].dynamic for name in bodies.scalars):

            def law(now: Mapping[str, Tensor]) -> Features:
                there = spec.advance(x, spec.pack_dynamic(**now))
                return self.network(bodies.positions(there), bodies.features(there, mask))

            return law
        network, scale = self.network.at(bodies.features(x, mask)), spec[bodies.position].scale
        return lambda now: network(now[bodies.position] / scale, bodies.arrows(x, now))

    def _kicked(self, x: Tensor, now: Mapping[str, Tensor], out: Features, share: float) -> dict[str, Tensor]:
        """Change every field that no rate carries by what acts on it for a share of a frame."""
        spec, units, longer = self.bodies.spec, self.vectors | self.scalars, relative(self.bodies.spec, x)
        changed = dict(now)
        for (name, unit), change in zip(units.items(), [*out.vectors.unbind(-2), *out.scalars.unbind(-1)], strict=True):
            change = change if longer is None else along(spec[name], longer) * change
            changed[name] = torch.add(now[name], change, alpha=share * unit)
        return changed


class IntegratorConfig(Config):
    """A learned equation of motion for the first guess."""

    steps: int = pydantic.Field(default=10, ge=1, le=1000, description="integration steps per frame")
    velocity: Literal["recorded", "inferred"] = pydantic.Field(
        default="recorded",
        description="of positions alone: recorded: as their difference half a frame late; inferred: so that the frame before is met",
    )
    iterations: int = pydantic.Field(default=3, ge=0, le=100, description="with velocity inferred: iterations, beside the last")
    refinements: int = pydantic.Field(
        default=0, ge=0, le=4, description="how often a frame may be walked again in a quarter of the step, where forces change much"
    )
    tolerance: float = pydantic.Field(
        default=0.1, gt=0, description="with refinements: largest change of a step's kick to the next, in typical changes per frame"
    )
    network: Annotated[BackboneConfig, one_of(BACKBONES)] = pydantic.Field(default="pairwise", validate_default=True)

    def build(self, context: DataContext) -> Integrator:
        """Make the integrator for the data at hand."""
        from epns_pyro.models.bodies.inferred import InferredIntegrator  # it builds on this module

        return (InferredIntegrator if self.velocity == "inferred" else Integrator)(self, context)
