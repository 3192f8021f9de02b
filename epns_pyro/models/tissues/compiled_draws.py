"""Drawing the pixels of images on a CPU, compiled: image by image, without Python between the groups of pixels.

The laws are those of `epns_pyro.models.tissues.pixel_scores`, read from its parameters at every draw; that module is the reference, and
tests compare the two. A pixel is drawn by inversion, with one uniform number. Arithmetic is in single precision.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

FAST = {"reassoc", "contract", "nsz", "arcp"}  # no assumption that numbers are finite
NEVER = -1e30  # a score instead of minus infinity
FAR = -800.0  # of which the exponential is zero
FREQUENCIES = 5  # of `area_features`: 1, 2, 4, ...

# The inner loops: inlined, and without reference counting of arrays, which would dominate their cost. The caller owns the arrays.
hot = njit(cache=True, error_model="numpy", fastmath=FAST, forceinline=True, _nrt=False)  # type: ignore[call-overload]


class ReadoutArrays(NamedTuple):
    """Of a `Readout`: direct (width,), bent (width, hidden), bent_bias (hidden,), out (hidden,), and the sum of the two last biases."""

    direct: np.ndarray
    bent: np.ndarray
    bent_bias: np.ndarray
    out: np.ndarray
    bias: float


class ScoreArrays(NamedTuple):
    """Of a `NeighbourScores`, for some groups of pixels.

    Parameters
    ----------
    own : numpy.ndarray, (map, seen, width)
        Rows: the pixels of the cell, those of its type, the expectation, and distances.
    kinds : numpy.ndarray, (map, place * (types + 1), 2 * width)
    map_of_group : numpy.ndarray, (group,)
        Which of the maps a group has; -1: none, it is drawn by the draft alone.
    """

    own: np.ndarray
    kinds: np.ndarray
    map_of_group: np.ndarray


class PixelArrays(NamedTuple):
    """The contested pixels of a batch, sorted by image and class, and their candidates, sorted by pixel.

    Parameters
    ----------
    pixel : numpy.ndarray, (contested,)
        Number within the image.
    bounds : numpy.ndarray, (image, group + 1)
        The first pixel of every group.
    group : numpy.ndarray, (image, pixel)
        Group of every pixel of the lattice.
    first_row : numpy.ndarray, (contested + 1,)
        The first candidate of every pixel.
    cell : numpy.ndarray, (row,)
        Number of the candidate within the image, from 0.
    offset : numpy.ndarray, (row, 2)
        Of the pixel from the centre of the candidate, pixels.
    present : numpy.ndarray, (image, pixel)
        Labels of the present image.
    types : numpy.ndarray, (image, label)
    around : numpy.ndarray, (pixel, place)
        Pixels in the square around every pixel of the lattice, -1 off the lattice.
    """

    pixel: np.ndarray
    bounds: np.ndarray
    group: np.ndarray
    first_row: np.ndarray
    cell: np.ndarray
    offset: np.ndarray
    present: np.ndarray
    types: np.ndarray
    around: np.ndarray


class DraftArrays(NamedTuple):
    """What the draft says: `DraftRows`, in the order of `PixelArrays`, and the expectation of every cell.

    Parameters
    ----------
    cells, medium, stays, outside : numpy.ndarray
        (row, width), (contested, width), (row,) and (contested,).
    probability : numpy.ndarray, (row,)
        Of every candidate by the draft alone.
    expected : numpy.ndarray, (image, cell, 3)
        Area and first moments.
    mean_area : numpy.ndarray, (image,)
    still : numpy.ndarray, (image, cell, group)
        Standard deviation of the area that is not known when a group is drawn.
    """

    cells: np.ndarray
    medium: np.ndarray
    stays: np.ndarray
    outside: np.ndarray
    probability: np.ndarray
    expected: np.ndarray
    mean_area: np.ndarray
    still: np.ndarray


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def draw(
    labels: np.ndarray,
    uniform: np.ndarray,
    lost: np.ndarray,
    pixels: PixelArrays,
    draft: DraftArrays,
    scores: ScoreArrays,
    of_cell: ReadoutArrays,
    of_medium: ReadoutArrays,
    images: tuple[int, int],
    groups: tuple[int, int],
    again: bool,
    distances: bool,
    unit: float,
) -> None:
    """Draw groups of pixels in place, in turns.

    Parameters
    ----------
    labels : numpy.ndarray, (image, pixel)
    uniform : numpy.ndarray, (turn, contested)
    lost : numpy.ndarray, (turn, image, pixel)
        Labels of pixels that are drawn otherwise, -1 for the others.
    pixels, draft, scores : PixelArrays, DraftArrays, ScoreArrays
    of_cell, of_medium : ReadoutArrays
    images, groups : (int, int)
        The first, and the one after the last.
    again : bool
        Whether a pixel sees all pixels of other groups; else those of earlier ones.
    distances : bool
        Whether a candidate sees how far the pixel is from the expected centre of the cell.
    unit : float
        Of moments, pixels.
    """
    for image in range(images[0], images[1]):
        _draw_image(labels[image], uniform, lost, image, pixels, draft, scores, of_cell, of_medium, groups, again, distances, unit)


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def _draw_image(
    labels: np.ndarray,
    uniform: np.ndarray,
    lost: np.ndarray,
    image: int,
    pixels: PixelArrays,
    draft: DraftArrays,
    scores: ScoreArrays,
    of_cell: ReadoutArrays,
    of_medium: ReadoutArrays,
    groups: tuple[int, int],
    again: bool,
    distances: bool,
    unit: float,
) -> None:
    cells, most = draft.expected.shape[1], 0
    for i in range(pixels.bounds[image, groups[0]], pixels.bounds[image, groups[1]]):
        most = max(most, pixels.first_row[i + 1] - pixels.first_row[i])
    width, kinds = draft.cells.shape[1], scores.kinds.shape[1] // pixels.around.shape[1]
    surplus, terms, disc = np.zeros((cells, 3)), np.empty((cells, width), np.float32), np.empty((cells, 3), np.float32)
    expected, slot = np.full(cells, -1), np.full(cells, -1)
    near, of_kind = np.empty(2 * width, np.float32), np.empty((kinds, width), np.float32)
    x, score = np.empty((most + 1, width), np.float32), np.empty(most + 2)  # the last row of x is the medium
    work, activity = np.empty(width, np.float32), np.empty(max(len(of_cell.out), len(of_medium.out)), np.float32)
    if again:
        for i in range(pixels.bounds[image, groups[0]], pixels.bounds[image, groups[1]]):
            _count(surplus, labels, i, pixels, draft, unit, 1.0)
    for turn in range(len(uniform)):
        for group in range(groups[0], groups[1]):
            start, stop = pixels.bounds[image, group], pixels.bounds[image, group + 1]
            its_map = scores.map_of_group[group]
            if again:
                for i in range(start, stop):
                    _count(surplus, labels, i, pixels, draft, unit, -1.0)
            if its_map >= 0:
                for row in range(pixels.first_row[start], pixels.first_row[stop]):
                    cell = pixels.cell[row]
                    if expected[cell] != turn * groups[1] + group:
                        expected[cell] = turn * groups[1] + group
                        _expect(terms, disc, cell, surplus, draft, image, group, scores, its_map, 2 * pixels.around.shape[1], unit)
            for i in range(start, stop):
                pixel, first, rows = pixels.pixel[i], pixels.first_row[i], pixels.first_row[i + 1] - pixels.first_row[i]
                for k in range(width):
                    x[most, k] = draft.medium[i, k]
                for r in range(rows):
                    for k in range(width):
                        x[r, k] = draft.cells[first + r, k]
                if its_map >= 0:
                    for r in range(rows):
                        slot[pixels.cell[first + r]] = r
                    _look(x, near, of_kind, slot, labels, image, pixel, group, pixels, scores, its_map, again)
                    for k in range(width):
                        x[most, k] += near[width + k]
                    for r in range(rows):
                        cell = pixels.cell[first + r]
                        slot[cell] = -1
                        kind = pixels.types[image, cell + 1]
                        for k in range(width):
                            x[r, k] += near[k] + terms[cell, k] + of_kind[kind, k]
                        if distances:
                            _see(x, r, pixels.offset, first + r, disc, cell, scores.own, its_map, unit)
                score[0], score[1] = _read(x, most, of_medium, work, activity), draft.outside[i]
                for r in range(rows):
                    score[2 + r] = _read(x, r, of_cell, work, activity) + draft.stays[first + r]
                label = lost[turn, image, pixel]
                if label < 0:
                    chosen = _chosen(score, rows + 2, uniform[turn, i])
                    if chosen == 0:
                        label = 0
                    elif chosen == 1:
                        label = pixels.present[image, pixel]
                    else:
                        label = pixels.cell[first + chosen - 2] + 1
                labels[pixel] = label
            for i in range(start, stop):
                _count(surplus, labels, i, pixels, draft, unit, 1.0)


@hot
def _count(surplus: np.ndarray, labels: np.ndarray, i: int, pixels: PixelArrays, draft: DraftArrays, unit: float, sign: float) -> None:
    """Add to the surplus (cell, 3) what the candidates of a pixel gain by it."""
    label = labels[pixels.pixel[i]]
    for row in range(pixels.first_row[i], pixels.first_row[i + 1]):
        cell = pixels.cell[row]
        gained = sign * ((1.0 if label == cell + 1 else 0.0) - draft.probability[row])
        surplus[cell, 0] += gained
        surplus[cell, 1] += gained * pixels.offset[row, 0] / unit
        surplus[cell, 2] += gained * pixels.offset[row, 1] / unit


@hot
def _expect(
    terms: np.ndarray,
    disc: np.ndarray,
    cell: int,
    surplus: np.ndarray,
    draft: DraftArrays,
    image: int,
    group: int,
    scores: ScoreArrays,
    its_map: int,
    first: int,
    unit: float,
) -> None:
    """Say what the expectation of a cell adds to its candidates, and its disc: `DraftMarginals.expectation`."""
    own, width = scores.own, terms.shape[1]
    area = draft.expected[image, cell, 0] + surplus[cell, 0]
    y, x = draft.expected[image, cell, 1] + surplus[cell, 1], draft.expected[image, cell, 2] + surplus[cell, 2]
    for k in range(width):
        terms[cell, k] = 0
    phase = math.log1p(max(area, 0.0))
    sine, cosine = math.sin(phase), math.cos(phase)
    for f in range(FREQUENCIES):
        _term(terms, cell, own, its_map, first + f, sine)
        _term(terms, cell, own, its_map, first + FREQUENCIES + f, cosine)
        sine, cosine = 2 * sine * cosine, 1 - 2 * sine**2  # of twice the phase
    first += 2 * FREQUENCIES
    _term(terms, cell, own, its_map, first, (area - draft.mean_area[image]) / math.sqrt(1 + draft.mean_area[image]))
    _term(terms, cell, own, its_map, first + 1, y / (1 + area))
    _term(terms, cell, own, its_map, first + 2, x / (1 + area))
    _term(terms, cell, own, its_map, first + 3, surplus[cell, 0] / unit)
    _term(terms, cell, own, its_map, first + 4, surplus[cell, 1] / unit)
    _term(terms, cell, own, its_map, first + 5, surplus[cell, 2] / unit)
    _term(terms, cell, own, its_map, first + 6, draft.still[image, cell, group])
    known = max(area, 1.0)
    disc[cell, 0], disc[cell, 1], disc[cell, 2] = y * unit / known, x * unit / known, math.sqrt(known / math.pi)


@hot
def _term(terms: np.ndarray, row: int, weights: np.ndarray, its_map: int, weight: int, factor: float) -> None:
    single = np.float32(factor)
    for k in range(terms.shape[1]):
        terms[row, k] += single * weights[its_map, weight, k]


@hot
def _look(
    x: np.ndarray,
    near: np.ndarray,
    of_kind: np.ndarray,
    slot: np.ndarray,
    labels: np.ndarray,
    image: int,
    pixel: int,
    group: int,
    pixels: PixelArrays,
    scores: ScoreArrays,
    its_map: int,
    again: bool,
) -> None:
    """Add what a pixel sees around it: to its candidates (row, width), to all (2 * width,), and to those of a type (type, width)."""
    own, kinds, width, places = scores.own, scores.kinds, x.shape[1], pixels.around.shape[1]
    for k in range(2 * width):
        near[k] = 0
    for kind in range(len(of_kind)):
        for k in range(width):
            of_kind[kind, k] = 0
    for place in range(places):
        neighbour = pixels.around[pixel, place]
        if neighbour < 0:
            continue
        its_group = pixels.group[image, neighbour]
        if its_group == group or (its_group > group and not again):
            continue
        label = labels[neighbour]
        kind = pixels.types[image, label]
        seen = place * len(of_kind) + kind
        for k in range(2 * width):
            near[k] += kinds[its_map, seen, k]
        for k in range(width):
            of_kind[kind, k] += own[its_map, places + place, k]
        if label > 0:
            row = slot[label - 1]
            if row >= 0:
                for k in range(width):
                    x[row, k] += own[its_map, place, k]


@hot
def _see(
    x: np.ndarray, r: int, offset: np.ndarray, row: int, disc: np.ndarray, cell: int, own: np.ndarray, its_map: int, unit: float
) -> None:
    """Add what a candidate sees of distances: `distance_features`."""
    y, z = offset[row, 0], offset[row, 1]
    here = math.sqrt((y - disc[cell, 0]) ** 2 + (z - disc[cell, 1]) ** 2 + 1e-12)
    before = math.sqrt(y**2 + z**2 + 1e-12)
    beyond = (here - disc[cell, 2]) / unit
    last = own.shape[1]
    _term(x, r, own, its_map, last - 4, here / unit)
    _term(x, r, own, its_map, last - 3, beyond)
    _term(x, r, own, its_map, last - 2, beyond**2)
    _term(x, r, own, its_map, last - 1, here - before)


@hot
def _silu(value: np.float32) -> np.float32:
    """x / (1 + exp(-x)), by the rational approximation of tanh that Eigen uses: errors of 1e-6."""
    half = np.float32(0.5) * value
    t = min(max(half, np.float32(-9.0)), np.float32(9.0))
    s = t * t
    p = np.float32(-2.76076847742355e-16) * s + np.float32(2.00018790482477e-13)
    p = p * s + np.float32(-8.60467152213735e-11)
    p = p * s + np.float32(5.12229709037114e-08)
    p = p * s + np.float32(1.48572235717979e-05)
    p = p * s + np.float32(6.37261928875436e-04)
    p = p * s + np.float32(4.89352455891786e-03)
    q = np.float32(1.19825839466702e-06) * s + np.float32(1.18534705686654e-04)
    q = q * s + np.float32(2.26843463243900e-03)
    q = q * s + np.float32(4.89352518554385e-03)
    return half + half * t * p / q


@hot
def _read(x: np.ndarray, row: int, readout: ReadoutArrays, work: np.ndarray, activity: np.ndarray) -> float:
    """`Readout` of a row of x (row, width)."""
    width, hidden = x.shape[1], len(readout.out)
    total = np.float32(0)
    for k in range(width):
        total += x[row, k] * readout.direct[k]
        work[k] = _silu(x[row, k])
    for k in range(hidden):
        activity[k] = readout.bent_bias[k]
    for j in range(width):
        for k in range(hidden):
            activity[k] += work[j] * readout.bent[j, k]
    for k in range(hidden):
        total += _silu(activity[k]) * readout.out[k]
    return float(total + readout.bias)


@hot
def _chosen(score: np.ndarray, count: int, uniform: float) -> int:
    """Draw a place with probability exp(score), up to a factor, by inversion."""
    best = score[0]
    for k in range(count):
        best = max(best, score[k])
    total = 0.0
    for k in range(count):
        score[k] = math.exp(max(score[k] - best, FAR))
        total += score[k]
    left, chosen = uniform * total, 0
    for k in range(count):
        if score[k] > 0:
            chosen = k
            left -= score[k]
            if left < 0:
                break
    return chosen
