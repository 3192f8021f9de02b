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

LOWEST = -700.0  # of which the exponential is still a number
ROUNDING = 6755399441055744.0  # 1.5 * 2**52: added to a number it leaves its integer in the last digits
ROUNDING_BITS = 0x4338000000000000  # of that number
LOG2, LOG2_HIGH, LOG2_LOW = math.log(2), 0.693147180369123816490, 1.90821492927058770002e-10
HALF = 0x3FE6A09E667F3BCD  # the bits of the root of 1/2
EXPONENT = 52  # place of the exponent in the bits of a number

# The inner loops: inlined, without reference counting of arrays, and over pairs, so that one instruction does several of them. The caller
# owns the arrays.
hot = njit(cache=True, error_model="numpy", fastmath={"contract", "nsz", "arcp"}, forceinline=True, _nrt=False)  # type: ignore[call-overload]


@njit(cache=True, error_model="numpy", nogil=True)
def walk(place, states, law: CentralForces, unit, steps, refinements, tolerance, velocity, moved, strength, roughness, error):
    """Walk some states over a frame, as `walks.refined` does; backward where steps are negative.

    place is (state, body, space), states (row,) says which of them; `unit` is the velocity that a force of one brings in a frame. The
    velocity (row, body, space) becomes that at the end. Sets moved (row, body, space), strength and error (row, body), roughness (row,).
    """
    bodies, space = place.shape[1:]
    (lengths, heads), pairs = law.halves.shape, bodies * (bodies - 1) // 2
    by_body, by_pair = np.empty((4, bodies, space)), np.empty((space + lengths + 4, pairs))
    strengths, ends = np.empty((2, heads, pairs)), np.empty((2, pairs), np.uint64)
    start, direction = np.empty((bodies, space)), 1 if steps > 0 else -1
    for row, state in enumerate(states):
        start[:] = velocity[row]
        there = _pairs(law, state, strengths, ends)
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
                by_body,
                by_pair,
                strengths,
                ends,
                there,
            )
            if not roughness[row] > tolerance:
                break
            count *= FACTOR


@hot
def _pairs(law, state, strengths, ends):
    """Set the bodies of all pairs of a state that are there, ends (2, pair), and what they do to each other, strengths (2, head, pair).

    Returns their number.
    """
    bodies, count = law.there.shape[1], 0
    for i in range(bodies):
        for j in range(i + 1, bodies):
            if law.there[state, i] and law.there[state, j]:
                ends[0, count], ends[1, count] = i, j
                for head in range(strengths.shape[1]):
                    strengths[0, head, count] = law.strengths[state, i, j - 1, head]  # the others of a body are without itself
                    strengths[1, head, count] = law.strengths[state, j, i, head]
                count += 1
    return count


@hot
def _steps(place, velocity, law, state, kick, step, count, moved, strength, error, by_body, by_pair, strengths, ends, pairs):
    """Drift half a step, kick, drift, kick, ..., drift half a step; returns the roughness."""
    bodies, space = place.shape
    now, force, last, turn = by_body
    rough = 0.0
    for i in range(bodies):
        strength[i], error[i] = 0.0, 0.0
        for k in range(space):
            moved[i, k] = velocity[i, k] * (step / 2)
    for number in range(count):
        for i in range(bodies):
            for k in range(space):
                now[i, k] = place[i, k] + moved[i, k]
        _pull(now, law, law.sides[state], by_pair, strengths, ends, pairs, force)
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
def _pull(place, law, sides, by_pair, strengths, ends, pairs, force):
    """Set the forces (body, space) on bodies at some place, in a box with some sides."""
    bodies, space = place.shape
    lengths, heads = law.halves.shape
    ways, logs = by_pair[:space], by_pair[space : space + lengths]
    squared, power, ours, theirs = by_pair[space + lengths :]
    for pair in range(pairs):
        squared[pair], ours[pair], theirs[pair] = 0.0, 0.0, 0.0
    for k in range(space):
        way, side = ways[k], sides[k]
        for pair in range(pairs):
            way[pair] = place[ends[1, pair], k] - place[ends[0, pair], k]
        if side > 0:  # a periodic box: to the nearest image
            for pair in range(pairs):
                way[pair] -= side * np.rint(way[pair] / side)
        for pair in range(pairs):
            squared[pair] += way[pair] * way[pair]
    for length in range(lengths):
        _logarithms(squared, law.squares[length], logs[length], pairs)
    for head in range(heads):
        for pair in range(pairs):
            power[pair] = 0.0
        for length in range(lengths):
            half, log = law.halves[length, head], logs[length]
            for pair in range(pairs):
                power[pair] += half * log[pair]
        _exponentials(power, pairs)
        for pair in range(pairs):
            ours[pair] += strengths[0, head, pair] * power[pair]
            theirs[pair] += strengths[1, head, pair] * power[pair]
    if law.screening > 0:
        for pair in range(pairs):
            power[pair] = -law.screening * math.sqrt(squared[pair] + NEAREST)
        _exponentials(power, pairs)
        for pair in range(pairs):
            ours[pair] *= power[pair]
            theirs[pair] *= power[pair]
    for i in range(bodies):
        for k in range(space):
            force[i, k] = 0.0
    for k in range(space):
        way = ways[k]
        for pair in range(pairs):
            force[ends[0, pair], k] += ours[pair] * way[pair]
            force[ends[1, pair], k] -= theirs[pair] * way[pair]
    for i in range(bodies):
        if law.axes:
            for k in range(space):
                force[i, k] = max(min(force[i, k], law.largest), -law.largest)
        else:
            length = 0.0
            for k in range(space):
                length += force[i, k] * force[i, k]
            shorter = 1 / math.sqrt(math.hypot(length / law.largest**2, 1.0))
            for k in range(space):
                force[i, k] *= shorter


@hot
def _logarithms(values, more, out, count):
    """Set the logarithms of the sums of positive values (pair,) and a number, to the last digit: by 2 artanh((x - 1) / (x + 1))."""
    for pair in range(count):
        bits = np.float64(values[pair] + more).view(np.int64)
        exponent = (bits - HALF) >> EXPONENT
        rest = np.int64(bits - (exponent << EXPONENT)).view(np.float64) - 1.0  # between the roots of 1/2 and 2, less one
        x = rest / (2.0 + rest)
        z = x * x
        series = 1 / 19.0
        series = series * z + 1 / 17.0
        series = series * z + 1 / 15.0
        series = series * z + 1 / 13.0
        series = series * z + 1 / 11.0
        series = series * z + 1 / 9.0
        series = series * z + 1 / 7.0
        series = series * z + 1 / 5.0
        series = series * z + 1 / 3.0
        series = series * z + 1.0
        out[pair] = 2.0 * x * series + LOG2 * (np.int64(exponent + ROUNDING_BITS).view(np.float64) - ROUNDING)


@hot
def _exponentials(values, count):
    """Replace values (pair,) by their exponentials, to the last digit; of what is above STEEPEST by those of STEEPEST."""
    for pair in range(count):
        value = max(min(values[pair], STEEPEST), LOWEST)
        rounded = value / LOG2 + ROUNDING
        twos = rounded - ROUNDING
        x = (value - twos * LOG2_HIGH) - twos * LOG2_LOW
        series = 1 / 6227020800.0
        series = series * x + 1 / 479001600.0
        series = series * x + 1 / 39916800.0
        series = series * x + 1 / 3628800.0
        series = series * x + 1 / 362880.0
        series = series * x + 1 / 40320.0
        series = series * x + 1 / 5040.0
        series = series * x + 1 / 720.0
        series = series * x + 1 / 120.0
        series = series * x + 1 / 24.0
        series = series * x + 1 / 6.0
        series = series * x + 0.5
        series = series * x + 1.0
        series = series * x + 1.0
        values[pair] = series * np.int64((np.float64(rounded).view(np.int64) + 1023) << EXPONENT).view(np.float64)
