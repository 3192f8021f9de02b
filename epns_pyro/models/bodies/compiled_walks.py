"""Walks over a frame under central forces on a CPU, compiled: state by state, without Python between the steps.

The forces are those of `epns_pyro.backbones.bodies.central`, read from its parameters at every walk, and the walks those of
`epns_pyro.models.bodies.walks`; these modules are the reference, and tests compare the two. Positions are in units of their scale, time is
in frames, arithmetic in double precision.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from epns_pyro.backbones.bodies.central import NEAREST, STEEPEST
from epns_pyro.backbones.bodies.laws import CentralForces
from epns_pyro.models.bodies.walks import FACTOR, MIDPOINT

# The inner loops: inlined, and without reference counting of arrays. The caller owns the arrays.
hot = njit(cache=True, error_model="numpy", forceinline=True, _nrt=False)  # type: ignore[call-overload]


@njit(cache=True, error_model="numpy", nogil=True)
def walk(place, states, law: CentralForces, unit, steps, refinements, tolerance, velocity, moved, strength, roughness, error):
    """Walk some states over a frame, as `walks.refined` does; backward where steps are negative.

    place is (state, body, space), states (row,) says which of them; `unit` is the velocity that a force of one brings in a frame. The
    velocity (row, body, space) becomes that at the end. Sets moved (row, body, space), strength and error (row, body), roughness (row,).
    """
    bodies, space = place.shape[1:]
    work, logs = np.empty((4, bodies, space)), np.empty(len(law.squares))
    start, direction = np.empty((bodies, space)), 1 if steps > 0 else -1
    for row, state in enumerate(states):
        start[:] = velocity[row]
        count = abs(steps)
        for _ in range(refinements + 1):
            velocity[row] = start
            roughness[row] = _steps(
                place[state],
                velocity[row],
                law,
                state,
                unit * direction / count,
                direction / count,
                count,
                moved[row],
                strength[row],
                error[row],
                work,
                logs,
            )
            if not roughness[row] > tolerance:
                break
            count *= FACTOR


@hot
def _steps(place, velocity, law, state, kick, step, count, moved, strength, error, work, logs):
    """Drift half a step, kick, drift, kick, ..., drift half a step; returns the roughness."""
    bodies, space = place.shape
    now, force, last, turn = work
    rough = 0.0
    for i in range(bodies):
        strength[i], error[i] = 0.0, 0.0
        for k in range(space):
            moved[i, k] = velocity[i, k] * (step / 2)
    for number in range(count):
        for i in range(bodies):
            for k in range(space):
                now[i, k] = place[i, k] + moved[i, k]
        _pull(now, law, state, force, logs)
        drift = step if number < count - 1 else step / 2
        for i in range(bodies):
            squared, turned, bent = 0.0, 0.0, 0.0
            for k in range(space):
                f = force[i, k]
                squared += f * f
                change = f - last[i, k]
                turned += change * change
                difference = change - turn[i, k]
                bent += difference * difference
                last[i, k], turn[i, k] = f, change
                velocity[i, k] += kick * f
                moved[i, k] += drift * velocity[i, k]
            if not squared <= strength[i]:  # or no number
                strength[i] = squared
            if number > 0 and law.there[state, i] and not turned <= rough:
                rough = turned
            if number > 1:
                error[i] += math.sqrt(bent)
    for i in range(bodies):
        error[i] /= MIDPOINT * count
    return math.sqrt(rough) / count


@hot
def _pull(place, law, state, force, logs):
    """Set the forces (body, space) on the bodies of a state at some place."""
    bodies, space = place.shape
    lengths, heads = law.halves.shape
    for i in range(bodies):
        for k in range(space):
            force[i, k] = 0.0
    for i in range(bodies):
        if not law.there[state, i]:
            continue
        for j in range(i + 1, bodies):
            if not law.there[state, j]:
                continue
            squared = 0.0
            for k in range(space):
                way = _way(place[i, k], place[j, k], law.sides[state, k])
                squared += way * way
            for length in range(lengths):
                logs[length] = math.log(squared + law.squares[length])
            ours, theirs = 0.0, 0.0
            for head in range(heads):
                power = 0.0
                for length in range(lengths):
                    power += law.halves[length, head] * logs[length]
                value = math.exp(min(power, STEEPEST))
                ours += law.strengths[state, i, j - 1, head] * value  # the others of a body are without itself
                theirs += law.strengths[state, j, i, head] * value
            if law.screening > 0:
                weaker = math.exp(-math.sqrt(squared + NEAREST) * law.screening)
                ours *= weaker
                theirs *= weaker
            for k in range(space):
                way = _way(place[i, k], place[j, k], law.sides[state, k])
                force[i, k] += ours * way
                force[j, k] -= theirs * way
    for i in range(bodies):
        if law.axes:
            for k in range(space):
                force[i, k] = max(min(force[i, k], law.largest), -law.largest)
        else:
            squared = 0.0
            for k in range(space):
                squared += force[i, k] * force[i, k]
            shorter = 1 / math.sqrt(math.hypot(squared / law.largest**2, 1.0))
            for k in range(space):
                force[i, k] *= shorter


@hot
def _way(start, end, side):
    """From one coordinate to another: in a box of some side, or none, zero, to the nearest image."""
    way = end - start
    return way - side * np.round(way / side) if side > 0 else way
