"""An equation of motion for recordings of positions alone: the velocity is inferred from them, frame after frame.

A backward difference is the mean velocity of the last frame, not the velocity at its end. The velocity at the end of a frame is the one
from which the equation of motion, run backward over the frame, lands on the position at its start:

    v <- v + (moved(v) + way) / dt,    moved(v): where leapfrog goes backward from v;  way: from the position before to the present one

a fixed point that is exact for the true law, since leapfrog is its own inverse. A frame that went as foreseen ends with this velocity, so
nothing is to be solved; where it went otherwise, in a recording or by the model's own draw, the search starts from there. A velocity that
is kept from what was foreseen does not fit the place that was reached: of bodies that swing around each other, an error of their phase
would send them off with a velocity that they never have in that place, and the noise, fitted to such errors, would throw bodies about.

Where the force changes much between two steps, as where two bodies meet, the frame is walked again in shorter steps. The map is then
symplectic piecewise only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from epns_pyro.context import DataContext
from epns_pyro.errors import ConfigError
from epns_pyro.models.bodies.broyden import Broyden
from epns_pyro.models.bodies.integrator import Integrator, IntegratorConfig, Motion

SIGNS = 2  # numbers that say how far a frame may be wrong: how strong forces were, and the error from the length of the steps
DOUBTS = SIGNS + 2  # those of the frame in which a velocity was found, how far that missed, and whether it was carried along
FOUND = 1e-4  # velocities that miss by less than so many typical changes are found
LOST = 0.1  # those that miss by more are not
EXACT = 1e-6  # smaller errors from the length of the steps, in typical changes, are none
MIDPOINT = 24  # the midpoint rule errs by a 24th of the second difference of what it integrates
DIGITS = 8  # last digits of a velocity, up to which it is solved for
FACTOR = 4  # a frame is walked again in so many times as many steps


class _Walk(NamedTuple):
    """Where a walk over one frame has led: the way and the velocity at its end, (state, body, space), and how the force went."""

    moved: Tensor
    velocity: Tensor
    strength: Tensor  # (state, body): largest squared kick, in typical changes per frame
    roughness: Tensor  # (state,): largest change of a velocity's kick from one step to the next, in typical changes
    error: Tensor  # (state, body): of the velocity, from the length of the steps, in typical changes

    @property
    def signs(self) -> Tensor:
        """Logarithms of the largest kick and of the error: (*batch, body, 2)."""
        return torch.stack([1 + self.strength, 1 + (self.error / EXACT) ** 2], -1).log() / 2


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
        self.refinements, self.tolerance, self.iterations = config.refinements, config.tolerance, config.iterations

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
        walk = self._walk(x, mask, mean + lead, 1.0)
        following = walk.moved / self.bodies.frame_dt
        lead = walk.velocity - following
        if mask is not None:
            lead = lead * mask[..., None]
        signs = walk.signs
        return Motion(following - mean, signs[..., :1], (lead,), torch.cat([signs[..., 1:], doubt], -1))

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
            first = self._forces(x, mask)(torch.zeros_like(mean), mean) * self.vectors[self.velocity] / 2
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
        walk = self._walk(x, mask, mean + lead, -1.0)
        error = mean + walk.moved / self.bodies.frame_dt
        missed = error.detach().square().sum(-1) / self.vectors[self.velocity] ** 2
        doubt = torch.stack([*walk.signs.unbind(-1), (1 + missed / FOUND**2).log() / 2, torch.full_like(missed, carried)], -1)
        lead = lead + torch.where((missed < LOST**2)[..., None], error, 0.0)  # a step that the search has tried in vain is not taken
        return (lead, doubt) if mask is None else (lead * mask[..., None], doubt * mask[..., None])

    def _largest(self, vectors: Tensor, mask: Tensor | None) -> Tensor:
        squared = vectors.square().sum(-1)
        return (squared if mask is None else squared * mask).amax(-1)

    def _meet(self, x: Tensor, mask: Tensor | None, lead: Tensor) -> Tensor:
        """Return leads (*batch, body, space) from which a walk backward meets the place before, as nearly as the iterations allow.

        Broyden's method, with v <- v + error as its first step; a state that is met to the last digits is left alone, and so is one that is
        found and comes no closer.
        """
        flat = lead.reshape(-1, *lead.shape[-2:]).clone()
        best, least = flat.clone(), flat.new_full(flat.shape[:1], torch.inf)
        x, there = x.reshape(-1, *x.shape[-2:]), None if mask is None else mask.expand(x.shape[:-1]).reshape(len(flat), -1)
        mean = self.bodies.spec.get(x, self.velocity)
        digits = (DIGITS * torch.finfo(x.dtype).eps) ** 2 * (mean.square().sum(-1).amax(-1) + self.vectors[self.velocity] ** 2)
        found = (FOUND * self.vectors[self.velocity]) ** 2
        rows, solver = torch.arange(len(flat), device=x.device), Broyden()
        for _ in range(self.iterations):
            present = None if there is None else there[rows]
            error = mean[rows] + self._walk(x[rows], present, mean[rows] + flat[rows], -1.0).moved / self.bodies.frame_dt
            if present is not None:
                error = error * present[..., None]
            missed, before = self._largest(error, None), least[rows]
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

    def _walk(self, x: Tensor, mask: Tensor | None, velocity: Tensor, direction: float) -> _Walk:
        """Walk from x (*batch, body, channel) with a velocity (*batch, body, space); again in shorter steps where it was rough."""
        batch = x.shape[:-2]
        x, velocity = x.reshape(-1, *x.shape[-2:]), velocity.reshape(-1, *velocity.shape[-2:])
        mask = None if mask is None else mask.expand(*batch, -1).reshape(-1, mask.shape[-1])
        steps, rows = self.steps, torch.arange(len(x), device=x.device)
        walk = self._steps(x, mask, velocity, direction * steps)
        roughness = walk.roughness
        for _ in range(self.refinements):
            rows = rows[roughness > self.tolerance]
            if not len(rows):
                break
            steps *= FACTOR
            again = self._steps(x[rows], None if mask is None else mask[rows], velocity[rows], direction * steps)
            walk = _Walk(*(whole.index_copy(0, rows, part) for whole, part in zip(walk, again, strict=True)))
            roughness = again.roughness
        return _Walk(*(part.unflatten(0, batch) if batch else part[0] for part in walk))

    def _steps(self, x: Tensor, mask: Tensor | None, velocity: Tensor, steps: float) -> _Walk:
        """Drift half a step, kick, drift, kick, ..., drift half a step; backward for a negative number of steps."""
        step, kick = self.bodies.frame_dt / steps, self.vectors[self.velocity] / steps
        forces, count = self._forces(x, mask), abs(round(steps))
        moved, last, turn = velocity * (step / 2), None, None
        strength, roughness = velocity.new_zeros(velocity.shape[:-1]), velocity.new_zeros(len(velocity))
        error = torch.zeros_like(strength)
        for left in reversed(range(count)):
            force = forces(moved, velocity)
            velocity = torch.add(velocity, force, alpha=kick)
            moved = torch.add(moved, velocity, alpha=step if left else step / 2)
            with torch.no_grad():
                if last is not None:
                    before, turn = turn, force - last
                    roughness = torch.maximum(roughness, self._largest(turn, mask))
                    if before is not None:
                        error += (turn - before).norm(dim=-1)
                last = force.detach()
            strength = torch.maximum(strength, force.square().sum(-1))
        return _Walk(moved, velocity, strength, roughness.sqrt() / count, error / (MIDPOINT * count))

    def _forces(self, x: Tensor, mask: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the force field of states x: a function of the way from there and of the velocity, in typical changes per frame."""
        bodies, scale = self.bodies, self.bodies.spec[self.bodies.position].scale
        place, features = bodies.positions(x), bodies.features(x, mask)
        if not self.reads_vectors:
            network = self.network.at(features)
            return lambda moved, velocity: network(torch.add(place, moved, alpha=1 / scale), features.vectors).vectors[..., 0, :]

        def force(moved: Tensor, velocity: Tensor) -> Tensor:
            spec = bodies.spec
            changed = {bodies.position: spec.get(x, bodies.position) + moved, self.velocity: velocity}
            there = spec.advance(x, spec.pack_dynamic(**{f.name: changed.get(f.name, spec.get(x, f.name)) for f in spec.dynamic_fields}))
            return self.network(bodies.positions(there), bodies.features(there, mask)).vectors[..., 0, :]

        return force
