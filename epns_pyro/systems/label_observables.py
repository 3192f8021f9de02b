"""Summaries of label images: areas, components, contacts, centres, paths. Compiled, parallel over frames.

Images `cells` are integers (*batch, time, y, x): 0 is the medium, 1 .. n are cells. A table `types` (*batch, label) gives the type of
each label, 0 for the medium and for labels that a trajectory does not use. A cell may disappear (area 0) or split into fragments.
Lengths are in pixels.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange

from epns_pyro.errors import ShapeError
from epns_pyro.systems.lattice import MOST_LABELS, Lattice
from epns_pyro.threads import limited

# -- from states to labels -------------------------------------------------------------------------------------------------


@limited(None)
def read_states(x: np.ndarray, cells: int, types: int, *, typed: bool = False, what: str = "the state") -> tuple[np.ndarray, np.ndarray]:
    """Split states (*batch, time, y, x, channel = cell and type) into images and the table of types.

    `typed` refuses cells without a type; a forecast may contain some, if a cell that had disappeared comes back.

    Returns
    -------
    images : numpy.ndarray, (*batch, time, y, x), uint16
    types : numpy.ndarray, (*batch, label = cells + 1), uint8
        The type of each cell anywhere in its trajectory, 0 for a label that never occurs.

    Raises
    ------
    ShapeError
        If a label or type is not a whole number in its range, a cell has two types, or the medium has one.
    """
    *batch, time, height, width, _ = x.shape
    images = np.empty((math.prod(batch), time, height * width), np.uint16)
    table = np.zeros((math.prod(batch), cells + 1), np.uint8)
    x = np.require(x.reshape(*images.shape, 2), requirements=["C", "W"])
    fault = _read(x, images, table, types, typed)
    if fault.any():
        trajectory = int(np.flatnonzero(fault)[0])
        place, why = divmod(int(fault[trajectory]) - 1, len(_FAULTS))
        frame, pixel = divmod(place, height * width)
        label, kind = x[trajectory, frame, pixel]
        seen = table[trajectory, int(label)] if why == len(_FAULTS) - 1 else 0
        reason = _FAULTS[why].format(label=label, kind=kind, cells=cells, types=types, seen=seen)
        raise ShapeError(f"{what}: trajectory {trajectory}, frame {frame}, pixel {divmod(pixel, width)}: {reason}")
    return images.reshape(*batch, time, height, width), table.reshape(*batch, cells + 1)


_FAULTS = (
    "expected a cell label in 0 .. {cells} (0 is the medium), found {label}",
    "expected a type in 0 .. {types}, found {kind}",
    "expected type 0 for the medium (label 0), found {kind}",
    "expected a type in 1 .. {types} for cell {label}, found 0, which is that of the medium",
    "expected one type per cell, found {kind} where cell {label} has been of type {seen} before",
)


@njit(cache=True, parallel=True)
def _read(x, images, table, types, typed):
    fault = np.zeros(x.shape[0], np.int64)
    for i in prange(x.shape[0]):
        fault[i] = _read_trajectory(x[i], images[i], table[i], types, typed)
    return fault


@njit(cache=True)
def _read_trajectory(x, images, table, types, typed):
    """Fill images and table; return 0, or for the first fault 1 + its position * number of faults + its index in `_FAULTS`."""
    for t in range(x.shape[0]):
        for p in range(x.shape[1]):
            label, kind, why = x[t, p, 0], x[t, p, 1], -1
            if not (label >= 0 and label < table.size and label == np.floor(label)):
                why = 0
            elif not (kind >= 0 and kind <= types and kind == np.floor(kind)):
                why = 1
            elif label == 0 and kind != 0:
                why = 2
            elif label != 0 and kind == 0 and typed:
                why = 3
            elif kind != 0 and table[int(label)] != 0 and table[int(label)] != kind:
                why = 4
            if why >= 0:
                return 1 + (t * x.shape[1] + p) * 5 + why
            images[t, p] = int(label)
            if kind != 0:
                table[int(label)] = int(kind)
    return 0


# -- areas and components ----------------------------------------------------------------------------------------------------


@limited(None)
def areas(cells: np.ndarray, n: int) -> np.ndarray:
    """Pixels of each cell 1 .. n: (*batch, time, cell)."""
    frames = _frames(cells, n + 1)
    return _areas(frames, n).reshape(*cells.shape[:-2], n)


@njit(cache=True, parallel=True)
def _areas(frames, n):
    out = np.zeros((frames.shape[0], n), np.int64)
    for f in prange(frames.shape[0]):
        for label in frames[f]:
            if label > 0:
                out[f, label - 1] += 1
    return out


@limited(None)
def components(cells: np.ndarray, key: np.ndarray, lattice: Lattice) -> np.ndarray:
    """Count the connected components of pixels whose labels have the same key: (*batch, time).

    `key` (*batch, label) gives the key of every label, 0 for pixels that are ignored. With the types as keys the components are the
    clusters of cells of one type, with the labels as keys they are the fragments of cells. Pixels that are neighbours in `lattice` connect.
    """
    frames, keys = _frames(cells, key.shape[-1]), _per_frame(key, cells)
    return _components(frames, keys, lattice).reshape(cells.shape[:-2])


@njit(cache=True, parallel=True)
def _components(frames, keys, lattice):
    out = np.zeros(frames.shape[0], np.int64)
    for f in prange(frames.shape[0]):
        out[f] = _count_components(frames[f], keys[f], lattice)
    return out


@njit(cache=True)
def _count_components(image, key, lattice):
    """Count components by union-find: start with one per pixel, and subtract one for each union."""
    pixels = image.size
    region, parent, count = np.empty(pixels, key.dtype), np.empty(pixels, np.uint32), 0
    for p in range(pixels):
        region[p], parent[p] = key[image[p]], p
        count += region[p] != 0
    for p in range(pixels):
        if region[p] == 0:
            continue
        for direction in range(lattice.neighbour.shape[1] // 2):
            q = lattice.neighbour[p, direction]
            if q != pixels and region[q] == region[p]:
                a, b = _root(parent, np.uint32(p)), _root(parent, q)
                if a != b:
                    parent[max(a, b)] = min(a, b)
                    count -= 1
    return count


@njit(cache=True)
def _root(parent, p):
    while parent[p] != p:
        parent[p] = parent[parent[p]]
        p = parent[p]
    return p


# -- contacts ----------------------------------------------------------------------------------------------------------------


@limited(None)
def contacts(cells: np.ndarray, types: np.ndarray, lattice: Lattice, kinds: int) -> np.ndarray:
    """Count neighbouring pixel pairs with different labels, by direction and by their types a <= b.

    The contact energy of the Potts model is the sum of J * contacts over all directions of the lattice; the first two alone are the pairs
    that share an edge.

    Returns
    -------
    numpy.ndarray, (*batch, time, direction, type = kinds, type = kinds)
        Upper triangular in the types.
    """
    frames, keys = _frames(cells, types.shape[-1]), _per_frame(types, cells)
    counts = _contacts(frames, keys, lattice, kinds)
    return counts.reshape(*cells.shape[:-2], *counts.shape[1:])


@njit(cache=True, parallel=True)
def _contacts(frames, keys, lattice, kinds):
    directions = lattice.neighbour.shape[1] // 2
    out = np.zeros((frames.shape[0], directions, kinds, kinds), np.int64)
    for f in prange(frames.shape[0]):
        image, kind = frames[f], keys[f]
        for p in range(image.size):
            for direction in range(directions):
                q = lattice.neighbour[p, direction]
                if q != image.size and image[q] != image[p]:
                    a, b = kind[image[p]], kind[image[q]]
                    out[f, direction, min(a, b), max(a, b)] += 1
    return out


@limited(None)
def changed_pixels(cells: np.ndarray) -> np.ndarray:
    """Count pixels whose label differs from that of the frame before: (*batch, time), 0 in the first frame."""
    out = np.zeros(cells.shape[:-2], np.int64)
    out[..., 1:] = np.count_nonzero(cells[..., 1:, :, :] != cells[..., :-1, :, :], axis=(-2, -1))
    return out


# -- positions ---------------------------------------------------------------------------------------------------------------


@limited(None)
def centres(cells: np.ndarray, n: int, lattice: Lattice) -> np.ndarray:
    """Centre of mass of each cell: (*batch, time, cell, 2 = y, x), NaN where a cell is absent.

    On a periodic lattice it is the mean of the pixels' images nearest to their circular mean (Bai and Breen 2008): the centre of mass of
    any cell that spans less than half of the lattice, and for all others a point that moves along when the lattice is shifted.
    """
    frames = _frames(cells, n + 1)
    return _centres(frames, n, lattice).reshape(*cells.shape[:-2], n, 2)


@njit(cache=True, parallel=True)
def _centres(frames, n, lattice):
    out = np.empty((frames.shape[0], n, 2))
    for f in prange(frames.shape[0]):
        _centres_of_frame(frames[f], lattice, out[f])
    return out


@njit(cache=True, error_model="numpy")
def _centres_of_frame(image, lattice, out):
    height, width, periodic, labels = lattice.height, lattice.width, lattice.periodic, out.shape[0] + 1
    middle, total, area = np.zeros((labels, 2)), np.zeros((labels, 2)), np.zeros(labels)
    if periodic:
        _circular_means(image, height, width, middle)
    for y in range(height):
        for x in range(width):
            label = image[y * width + x]
            if label != 0:
                area[label] += 1
                total[label, 0] += _nearest(y - middle[label, 0], height, periodic)
                total[label, 1] += _nearest(x - middle[label, 1], width, periodic)
    for label in range(1, labels):  # an absent cell: 0 / 0 = NaN
        y, x = middle[label, 0] + total[label, 0] / area[label], middle[label, 1] + total[label, 1] / area[label]
        out[label - 1, 0] = y % height if periodic else y
        out[label - 1, 1] = x % width if periodic else x


@njit(cache=True)
def _circular_means(image, height, width, middle):
    """Direction of the mean of the pixels' points on the circle, y and x apart, as a coordinate: middle (label, 2)."""
    sine, cosine = np.zeros(middle.shape), np.zeros(middle.shape)
    for y in range(height):
        for x in range(width):
            label = image[y * width + x]
            if label != 0:
                sine[label, 0] += math.sin(2.0 * math.pi * y / height)
                sine[label, 1] += math.sin(2.0 * math.pi * x / width)
                cosine[label, 0] += math.cos(2.0 * math.pi * y / height)
                cosine[label, 1] += math.cos(2.0 * math.pi * x / width)
    for label in range(len(middle)):
        middle[label, 0] = _angle_to_coordinate(sine[label, 0], cosine[label, 0], height)
        middle[label, 1] = _angle_to_coordinate(sine[label, 1], cosine[label, 1], width)


@njit(cache=True)
def _angle_to_coordinate(sine, cosine, size):
    return math.atan2(sine, cosine) * size / (2.0 * math.pi)


@njit(cache=True)
def _nearest(difference, period, periodic):
    """Return the image of a difference of coordinates that is nearest to zero."""
    return difference - period * np.floor(difference / period + 0.5) if periodic else difference


@limited(None)
def paths(centres: np.ndarray, lattice: Lattice) -> tuple[np.ndarray, np.ndarray]:
    """Return how far each cell has moved, from centres (*batch, time, cell, 2): (displacement, travelled), each (*batch, time, cell).

    `displacement` is the distance from where the cell was first seen, `travelled` the sum of its displacements per frame. A cell
    that has disappeared stays where it was last seen.
    """
    *batch, time, cell, _ = centres.shape
    displacement, travelled = _paths(centres.reshape(-1, time, cell, 2), lattice)
    return displacement.reshape(*batch, time, cell), travelled.reshape(*batch, time, cell)


@njit(cache=True, parallel=True)
def _paths(centres, lattice):
    displacement, travelled = np.zeros(centres.shape[:3]), np.zeros(centres.shape[:3])
    for i in prange(centres.shape[0]):
        for c in range(centres.shape[2]):
            y, x = centres[i, 0, c, 0], centres[i, 0, c, 1]
            away_y, away_x, length = 0.0, 0.0, 0.0
            for t in range(1, centres.shape[1]):
                step_y = _nearest(centres[i, t, c, 0] - y, lattice.height, lattice.periodic)
                step_x = _nearest(centres[i, t, c, 1] - x, lattice.width, lattice.periodic)
                if not math.isnan(step_y):
                    away_y += step_y
                    away_x += step_x
                    length += math.hypot(step_y, step_x)
                if not math.isnan(centres[i, t, c, 0]):
                    y, x = centres[i, t, c, 0], centres[i, t, c, 1]
                displacement[i, t, c] = math.hypot(away_y, away_x)
                travelled[i, t, c] = length
    return displacement, travelled


@limited(None)
def gyration_radius(cells: np.ndarray, lattice: Lattice) -> np.ndarray:
    """Root mean square distance of the cells' pixels from their common centre: (*batch, time), NaN for an image without cells.

    On a periodic lattice the images of the pixels are those that `centres` uses.
    """
    return _gyration_radius(_frames(cells, MOST_LABELS), lattice).reshape(cells.shape[:-2])


@njit(cache=True, parallel=True)
def _gyration_radius(frames, lattice):
    out = np.empty(frames.shape[0])
    for f in prange(frames.shape[0]):
        rows, columns = np.zeros(lattice.height), np.zeros(lattice.width)
        for y in range(lattice.height):
            for x in range(lattice.width):
                if frames[f, y * lattice.width + x] != 0:
                    rows[y] += 1
                    columns[x] += 1
        out[f] = math.sqrt(_variance(rows, lattice.periodic) + _variance(columns, lattice.periodic))
    return out


@njit(cache=True, error_model="numpy")
def _variance(weight, periodic):
    """Variance of a coordinate 0 .. size - 1 with weights (size,), NaN without any; on a circle, of the images nearest to the mean."""
    size, middle = weight.size, 0.0
    total, first, second, sine, cosine = 0.0, 0.0, 0.0, 0.0, 0.0
    if periodic:
        for i in range(size):
            sine += weight[i] * math.sin(2.0 * math.pi * i / size)
            cosine += weight[i] * math.cos(2.0 * math.pi * i / size)
        middle = _angle_to_coordinate(sine, cosine, size)
    for i in range(size):
        offset = _nearest(i - middle, size, periodic)
        total += weight[i]
        first += weight[i] * offset
        second += weight[i] * offset**2
    return max(second / total - (first / total) ** 2, 0.0)


# -- shapes ------------------------------------------------------------------------------------------------------------------


def _frames(cells: np.ndarray, labels: int) -> np.ndarray:
    """Images (*batch, time, y, x) as one list of compact frames (frame, pixel); raise ShapeError unless all labels are below `labels`."""
    if cells.ndim < 3 or not np.issubdtype(cells.dtype, np.integer):
        raise ShapeError(f"label images: expected integers (*batch, time, y, x), found {cells.dtype} {cells.shape}")
    if cells.size and (cells.min() < 0 or cells.max() >= labels):
        raise ShapeError(f"label images: expected labels in 0 .. {labels - 1}, found {cells.min()} .. {cells.max()}")
    return np.require(cells, np.uint16, ["C", "W"]).reshape(math.prod(cells.shape[:-2]), math.prod(cells.shape[-2:]))


def _per_frame(table: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """A table (*batch, label) repeated for every frame of (*batch, time, y, x): (frame, label)."""
    return np.repeat(table.reshape(-1, table.shape[-1]).astype(np.uint16), cells.shape[-3], axis=0)
