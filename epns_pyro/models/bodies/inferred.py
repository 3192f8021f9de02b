"""An equation of motion for recordings of positions alone: the velocity is inferred from them, frame after frame.

A backward difference is the mean velocity of the last frame, not the velocity at its end. The velocity at the end of a frame is the one
from which the equation of motion, run backward over the frame, lands on the position at its start:

    v <- v + (moved(v) + way) / dt,    moved(v): where leapfrog goes backward from v;  way: from the position before to the present one

a fixed point that is exact for the true law, since leapfrog is its own inverse. A frame that went as foreseen ends with this velocity, so
nothing is to be solved; where it went otherwise, in a recording or by the model's own draw, the search starts from there. A velocity that
is kept from what was foreseen does not fit the place that was reached: of bodies that swing around each other, an error of their phase
would send them off with a velocity that they never have in that place, and the noise, fitted to such errors, would throw bodies about.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from epns_pyro.backbones import Features
from epns_pyro.context import DataContext
from epns_pyro.errors import ConfigError
from epns_pyro.models.bodies.broyden import Broyden
from epns_pyro.models.bodies.integrator import Integrator, IntegratorConfig, Motion
from epns_pyro.models.bodies.state_by_state import StateByState
from epns_pyro.models.bodies.walks import Course, Walk, flattened, largest, refined

SIGNS = 2  # numbers that say how far a frame may be wrong: how strong forces were, and the error from the length of the steps
DOUBTS = SIGNS + 2  # those of the frame in which a velocity was found, how far that missed, and whether it was carried along
FOUND = 1e-4  # velocities that miss by less than so many typical changes are found
LOST = 0.1  # those that miss by more are not
DIGITS = 8  # last digits of a velocity, up to which it is solved for


class InferredIntegrator(Integrator):
    """Leapfrog from an inferred velocity, in as many steps as a frame needs."""

    def __init__(self, config: IntegratorConfig, context: DataContext) -> None:
        super().__init__(config, context)
        bodies = self.bodies
        velocities = [name for name, of in bodies.differences.items() if of == bodies.position]
        if [*self.vectors, *self.scalars] != velocities:
            kicked = ", ".join([*self.vectors, *self.scalars])
            raise ConfigError(
                "integrator: velocity 'inferred' is for recordings of positions alone, whose velocity is a difference; "
                f"found {kicked} as what changes: use velocity 'recorded'"
            )
        if bodies.spec.duration is not None:
            raise ConfigError("integrator: velocity 'inferred' needs even frames, found uneven ones: use velocity 'recorded'")
        (self.velocity,) = velocities
        self.reads_vectors = self.network.signature.in_vectors > 0 and self.network.reads_vectors
        self.iterations = config.iterations

    @property
    def signs(self) -> int:
        return SIGNS + DOUBTS

    def forward(self, x: Tensor, mask: Tensor | None = None, memory: tuple[Tensor, ...] = ()) -> Motion:
        """Integrate states x (*batch, body, channel) over one frame.

        The memory holds the lead of the velocity and the doubt about it; by default they are inferred. That of the motion is the lead
        after a frame that went as foreseen.
        """
        lead, doubt = memory or self.start(x, mask)
        mean = self.bodies.spec.get(x, self.velocity)
        moved, velocity, walk = self._walk_from(x, mask, mean + lead, 1)
        following = moved / self.bodies.frame_dt
        lead = velocity - following
        if mask is not None:
            lead = lead * mask[..., None]
        return Motion(following - mean, walk.log_max_kick, (lead,), torch.cat([walk.log_error, doubt], -1))

    def remember(self, x: Tensor, motion: Motion, y: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Infer the lead anew, from where the frame led: the motion's own is where the search starts, and its end if that was foreseen.

        Kept, it would be that of another way. Of two bodies that swing around each other, an error of their phase would make it a velocity
        that they never have in the place where they are.
        """
        (lead,) = motion.memory
        if mask is not None:
            mask = mask & y.isfinite().all(-1)
            y = torch.where(mask[..., None], y, self.bodies.spec.dynamic(x))
        after = self.bodies.spec.advance(x, y)
        return self._inferred(after, mask, lead.expand(*after.shape[:-1], -1), carried=True)

    def start(self, x: Tensor, mask: Tensor | None = None, near: tuple[Tensor, ...] = ()) -> tuple[Tensor, ...]:
        """Infer by how much the velocity leads its mean over the frame that ends in x: (*batch, body, space), and the doubt about it."""
        if near:
            return self._corrected(x, mask, near[0], carried=False)
        mean = self.bodies.spec.get(x, self.velocity)
        with torch.no_grad():
            first = self._forces(x, mask)(torch.zeros_like(mean), mean).vectors[..., 0, :] * self.vectors[self.velocity] / 2
        return self._inferred(x, mask, first, carried=False)

    def _inferred(self, x: Tensor, mask: Tensor | None, first: Tensor, *, carried: bool) -> tuple[Tensor, ...]:
        """Search the lead from a first guess (*batch, body, space); the gradient is that of the last correction."""
        with torch.no_grad():
            best = self._meet(x, mask, first)
        return self._corrected(x, mask, best, carried=carried)

    def _corrected(self, x: Tensor, mask: Tensor | None, lead: Tensor, *, carried: bool) -> tuple[Tensor, ...]:
        """Correct leads once, and return them and the doubts about them.

        Doubts, (*batch, body, 4), are the logarithms of the largest kick in the frame before, of the error from the length of the steps,
        and of how far the place before it was missed, and 1 for a lead that was carried along: where bodies met in that frame, no
        velocity may lead there, or several, of which a search that starts from nothing may find the wrong one.
        """
        mean = self.bodies.spec.get(x, self.velocity)
        moved, _, walk = self._walk_from(x, mask, mean + lead, -1)
        error = mean + moved / self.bodies.frame_dt
        missed = error.detach().square().sum(-1) / self.vectors[self.velocity] ** 2
        found = torch.stack([(1 + missed / FOUND**2).log() / 2, torch.full_like(missed, carried)], -1)
        doubt = torch.cat([walk.log_max_kick, walk.log_error, found], -1)
        lead = lead + torch.where((missed < LOST**2)[..., None], error, 0.0)  # a step that the search has tried in vain is not taken
        return (lead, doubt) if mask is None else (lead * mask[..., None], doubt * mask[..., None])

    def _meet(self, x: Tensor, mask: Tensor | None, lead: Tensor) -> Tensor:
        """Return leads (*batch, body, space) from which a walk backward meets the place before, as nearly as the iterations allow.

        Broyden's method, with v <- v + error as its first step; a state that is met to the last digits is left alone, and so is one that is
        found and comes no closer.
        """
        (states, there), (lead_of, _) = flattened(x, mask), flattened(lead, None)
        flat, walk = lead_of.clone(), self._walks(states, there)
        best, least = flat.clone(), flat.new_full(flat.shape[:1], torch.inf)
        mean = self.bodies.spec.get(states, self.velocity)
        digits = (DIGITS * torch.finfo(x.dtype).eps) ** 2 * (mean.square().sum(-1).amax(-1) + self.vectors[self.velocity] ** 2)
        found = (FOUND * self.vectors[self.velocity]) ** 2
        rows, solver = torch.arange(len(flat), device=x.device), Broyden()
        for _ in range(self.iterations):
            moved, _ = walk(mean[rows] + flat[rows], -1, rows).end.chunk(2, -1)
            error = mean[rows] + moved / self.bodies.frame_dt
            if there is not None:
                error = error * there[rows][..., None]
            missed, before = largest(error, None), least[rows]
            better = missed < before
            best[rows[better]], least[rows[better]] = flat[rows[better]], missed[better]
            stalled = (before < found) & (missed > before / 4)  # in a long walk rounding alone is more than the last digits
            go_on = (missed > digits[rows]) & ~stalled
            if not go_on.any():
                break
            flat[rows] += solver.step(error.flatten(1)).view_as(error)
            rows = rows[go_on]
            solver.keep(go_on)
        return best.view_as(lead)

    # -- walking over a frame ------------------------------------------------------------------------------------------------

    def _walk_from(self, x: Tensor, mask: Tensor | None, velocity: Tensor, direction: int) -> tuple[Tensor, Tensor, Walk]:
        """Walk from x (*batch, body, channel) with a velocity (*batch, body, space), backward for direction -1.

        Returns the way, the velocity at its end, both (*batch, body, space), and the walk.
        """
        (states, there), (start, _) = flattened(x, mask), flattened(velocity, None)
        found = self._walks(states, there)(start, direction, None).along(x.shape[:-2])
        moved, velocity = found.end.chunk(2, -1)
        return moved, velocity, found

    def _walks(self, x: Tensor, mask: Tensor | None) -> Callable[[Tensor, int, Tensor | None], Walk]:
        """Return walks from states x (state, body, channel), or some rows of them, with a velocity (row, body, space) in a direction."""
        by_state = StateByState.under(self, x, mask)

        def walk(velocity: Tensor, direction: int, rows: Tensor | None) -> Walk:
            if by_state is not None and not velocity.requires_grad:
                return by_state.walk(velocity, self.vectors[self.velocity], direction * self.bodies.frame_dt, rows)
            states, there = (x, mask) if rows is None else (x[rows], None if mask is None else mask[rows])

            def again(some: Tensor | slice, steps: int) -> Walk:
                return self._steps_from(states[some], None if there is None else there[some], velocity[some], direction, steps)

            return refined(again, self.steps, self.refinements, self.tolerance)

        return walk

    def _steps_from(self, x: Tensor, mask: Tensor | None, velocity: Tensor, direction: int, steps: int) -> Walk:
        """Drift half a step, kick, drift, kick, ..., drift half a step."""
        step, kick = direction * self.bodies.frame_dt / steps, direction * self.vectors[self.velocity] / steps
        forces, course = self._forces(x, mask), Course(mask)
        moved = velocity * (step / 2)
        for left in reversed(range(steps)):
            force = forces(moved, velocity)
            velocity = torch.add(velocity, force.vectors[..., 0, :], alpha=kick)
            moved = torch.add(moved, velocity, alpha=step if left else step / 2)
            course.add(force)
        return course.walk(torch.cat([moved, velocity], -1))

    def _forces(self, x: Tensor, mask: Tensor | None) -> Callable[[Tensor, Tensor], Features]:
        """Return the force field of states x, as its only vector, in typical changes per frame: of the way from there and the velocity."""
        bodies, scale = self.bodies, self.bodies.spec[self.bodies.position].scale
        place, features = bodies.positions(x), bodies.features(x, mask)
        if not self.reads_vectors:
            network = self.network.at(features)
            return lambda moved, velocity: network(torch.add(place, moved, alpha=1 / scale), features.vectors)

        def force(moved: Tensor, velocity: Tensor) -> Features:
            spec = bodies.spec
            changed = {bodies.position: spec.get(x, bodies.position) + moved, self.velocity: velocity}
            there = spec.advance(x, spec.pack_dynamic(**{f.name: changed.get(f.name, spec.get(x, f.name)) for f in spec.dynamic_fields}))
            return self.network(bodies.positions(there), bodies.features(there, mask))

        return force
