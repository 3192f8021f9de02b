"""Observables of tracks: displacements, turning angles, velocity autocorrelation, polarisation, nearest neighbours.

Arrays are (..., time, body, space) of vectors in float64, NaN for absent bodies. Every number is computed from the bodies for which it
is defined, and NaN if there are none. At time t it uses only frames up to t.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from epns_pyro.geometry import Space

TIME, BODY = -3, -2
MANY = 100  # bodies; with more, a tree is faster than all pairs (for 1,000 it takes 0.6 ms instead of 10 ms)

# -- over the bodies that are there ----------------------------------------------------------------------------------------


def total(values: np.ndarray) -> np.ndarray:
    """Sum over the bodies that are present: (..., body) -> (...), NaN if there are none."""
    return np.where(np.isnan(values).all(-1), np.nan, np.nansum(values, axis=-1))


def mean(values: np.ndarray) -> np.ndarray:
    """Mean over the bodies that are present: (..., body) -> (...), NaN if there are none."""
    return total(values) / np.maximum((~np.isnan(values)).sum(-1), 1)


def deviation(values: np.ndarray) -> np.ndarray:
    """Standard deviation over the bodies that are there: (..., body) -> (...), NaN where there are fewer than two."""
    many = (~np.isnan(values)).sum(-1) > 1
    about = values - mean(values)[..., None]
    return np.where(many, np.sqrt(mean(about**2)), np.nan)


def mean_vector(vectors: np.ndarray) -> np.ndarray:
    """Mean vector over the bodies that are present: (..., body, space) -> (..., space)."""
    return mean(np.moveaxis(vectors, BODY, -1))


def rms(vectors: np.ndarray) -> np.ndarray:
    """Root mean square length over the bodies that are present: (..., body, space) -> (...)."""
    return np.sqrt(mean((vectors**2).sum(-1)))


# -- ways ------------------------------------------------------------------------------------------------------------------


def steps(space: Space, position: np.ndarray) -> np.ndarray:
    """Return the step of every body from the frame before: (..., time, body, space), NaN if it was absent before.

    The first frame has no step, so it gets the step of the second.
    """
    if position.shape[TIME] == 1:
        return np.where(np.isnan(position), np.nan, 0.0)
    way = space.displacement(position[..., :-1, :, :], position[..., 1:, :, :])
    return np.concatenate([way[..., :1, :, :], way], axis=TIME)


def ways_from_start(space: Space, position: np.ndarray) -> np.ndarray:
    """Return the displacement of every body since the first frame: (..., time, body, space), NaN if it was absent then.

    In a box it is the sum of the steps, each to the nearest image, so that it can exceed the box. While a body is absent, the
    displacement is to the image nearest to where it was last seen.
    """
    if not space.periodic:
        return position - position[..., :1, :, :]
    there = ~np.isnan(position).any(-1, keepdims=True)
    frames = np.arange(position.shape[TIME])[:, None, None]
    seen = np.maximum.accumulate(np.where(there, frames, 0), axis=TIME)
    last = np.take_along_axis(position, seen, axis=TIME)
    way = np.cumsum(space.displacement(last[..., :-1, :, :], last[..., 1:, :, :]), axis=TIME)
    return np.where(there, np.concatenate([last[..., :1, :, :] - last[..., :1, :, :], way], axis=TIME), np.nan)


def straightness(space: Space, position: np.ndarray) -> np.ndarray:
    """Return the length of the way from the start over that of the path there: (..., time, body), 1 straight on, near 0 back again.

    It is 1 for a body that has not moved, and NaN for one that was away in between.
    """
    path = np.cumsum(np.linalg.norm(steps(space, position)[..., 1:, :, :], axis=-1), axis=-2)
    path = np.concatenate([0 * position[..., :1, :, 0], path], axis=-2)
    away = np.linalg.norm(ways_from_start(space, position), axis=-1)
    return np.where(path == 0, 1.0, away / np.where(path == 0, 1.0, path))


def mean_squared_displacement(space: Space, position: np.ndarray) -> np.ndarray:
    """Return the mean squared displacement over half of the time so far: (..., time), averaged over bodies and over all starts until then.

    At frame t the lag is ceil(t / 2) frames. The average over starts tells more of one long path than its two ends do.
    """
    place = ways_from_start(space, position) if space.periodic else position
    return _over_half(place, lambda before, after: ((after - before) ** 2).sum(-1), 0.0)


def lagged_autocorrelation(moves: np.ndarray) -> np.ndarray:
    """Return the velocity autocorrelation over half of the time so far: (..., time), mean of v(s) . v(s + lag) over mean of |v(s)|^2.

    Means are over bodies and all starts s until then, of bodies that are there at both ends; the lag at frame t is ceil(t / 2) frames.
    """
    along = _over_half(moves, lambda before, after: (before * after).sum(-1), 1.0)
    square = _over_half(moves, lambda before, after: np.where(np.isnan(after).any(-1), np.nan, (before**2).sum(-1)), 1.0)
    return along / np.where(square == 0, 1.0, square)


def _over_half(vectors: np.ndarray, product: Callable[[np.ndarray, np.ndarray], np.ndarray], first: float) -> np.ndarray:
    """Average a product of vectors (..., time, body, space) a lag apart over bodies and starts: (..., time), `first` at frame 0."""
    frames = vectors.shape[TIME]
    out = np.full((*vectors.shape[:TIME], frames), np.nan)
    out[..., 0] = np.where(np.isnan(vectors[..., 0, :, :]).all((-2, -1)), np.nan, first)
    for lag in range(1, frames // 2 + 1):
        values = product(vectors[..., :-lag, :, :], vectors[..., lag:, :, :])  # (..., start, body)
        sums, known = np.cumsum(np.nansum(values, -1), -1), np.cumsum((~np.isnan(values)).sum(-1), -1)
        for t in range(2 * lag - 1, min(2 * lag, frames - 1) + 1):
            count = known[..., t - lag]
            out[..., t] = np.where(count > 0, sums[..., t - lag] / np.maximum(count, 1), np.nan)
    return out


# -- directions ------------------------------------------------------------------------------------------------------------


def turning_angle(moves: np.ndarray) -> np.ndarray:
    """Return the mean angle between the moves of bodies and their moves one frame earlier: (..., time), rad, between 0 and pi.

    `moves` (..., time, body, space) are velocities or steps. The angle is 0 for a body at rest in one of the two frames, and for
    every body in the first frame. Velocities parallel up to rounding have an angle of about 1e-16, not 1e-8 as the arc cosine has.
    """
    heading = _unit(moves)
    before = np.concatenate([heading[..., :1, :, :], heading[..., :-1, :, :]], axis=TIME)
    angle = 2 * np.arctan2(np.linalg.norm(heading - before, axis=-1), np.linalg.norm(heading + before, axis=-1))
    at_rest = (heading == 0).all(-1) | (before == 0).all(-1)
    return mean(np.where(at_rest & ~np.isnan(angle), 0.0, angle))


def autocorrelation(moves: np.ndarray) -> np.ndarray:
    """Return the velocity autocorrelation with the start: mean of v(t) . v(0) over mean of |v(0)|^2, (..., time), no unit.

    Both means are over the bodies that are present now and at the start. It is 1 at the start, and 0 if all of them started at rest.
    """
    start = moves[..., :1, :, :]
    along = (moves * start).sum(-1)
    square = mean(np.where(np.isnan(along), np.nan, (start**2).sum(-1)))
    return mean(along) / np.where(square == 0, 1.0, square)


def polarisation(moves: np.ndarray) -> np.ndarray:
    """Return the length of the mean direction of moves: (..., time), 1 if all are parallel; a body at rest counts as zero."""
    return np.linalg.norm(mean_vector(_unit(moves)), axis=-1)


def _unit(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length == 0, 1.0, length)


# -- pairs -----------------------------------------------------------------------------------------------------------------


def nearest_neighbours(space: Space, position: np.ndarray) -> np.ndarray:
    """Return the distance of every body to its nearest neighbour: (..., time, body), NaN for a body that is absent or alone."""
    return (_by_trees if position.shape[BODY] > MANY else _by_pairs)(space, position)


def _by_pairs(space: Space, position: np.ndarray) -> np.ndarray:
    nearest = np.full(position.shape[:-1], np.nan)
    for i in range(position.shape[BODY] - 1):  # one body at a time: all pairs at once do not fit in memory
        distance = np.linalg.norm(space.displacement(position[..., i : i + 1, :], position[..., i + 1 :, :]), axis=-1)
        nearest[..., i] = np.fmin(nearest[..., i], np.fmin.reduce(distance, axis=-1))
        nearest[..., i + 1 :] = np.fmin(nearest[..., i + 1 :], distance)
    return nearest


def _by_trees(space: Space, position: np.ndarray) -> np.ndarray:
    nearest = np.full(position.shape[:-1], np.nan)
    sides = np.asarray(space.box) if space.sides is None else np.broadcast_to(space.sides, (*position.shape[:BODY], 1, space.dim))
    for frame in np.ndindex(position.shape[:BODY]):
        there = np.isfinite(position[frame]).all(-1)
        if there.sum() > 1:
            place, box = position[frame][there], None
            if space.periodic:
                box = sides if space.sides is None else sides[frame][0]
                place = place - box * np.floor(place / box)
                place = np.where(place >= box, 0.0, place)  # rounding can put it on the upper side, which a tree refuses
            from scipy.spatial import KDTree  # takes a second to import

            itself_and_next, _ = KDTree(place, boxsize=box).query(place, k=2)
            nearest[frame][there] = itself_and_next[:, 1]
    return nearest
