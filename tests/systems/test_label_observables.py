"""Observables of label images against plain loops, on random images and on shapes whose numbers are known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from plain_potts import neighbours_of
from scipy import ndimage

from epns_pyro.errors import ShapeError
from epns_pyro.systems import label_observables as labels
from epns_pyro.systems.lattice import square_lattice

N, TYPES = 6, np.array([0, 1, 2, 3, 3, 1, 2])
SHAPE = (7, 9)
GEOMETRIES = list(itertools.product((4, 8), (False, True)))


def random_images(seed=0):
    """Two trajectories of three blobby frames: (2, 3, *SHAPE)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, N + 1, (2, 3, 4, 5))
    return coarse.repeat(2, -2).repeat(2, -1)[..., : SHAPE[0], : SHAPE[1]]


def lattice(neighbours=4, periodic=False, shape=SHAPE):
    return square_lattice(*shape, neighbours=neighbours, periodic=periodic)


def plain_components(image, key, periodic):
    """Flood fill, one pixel at a time."""
    seen, count = np.zeros(image.shape, bool), 0
    for start in np.ndindex(image.shape):
        if seen[start] or key[image[start]] == 0:
            continue
        count, stack = count + 1, [start]
        while stack:
            pixel = stack.pop()
            if not seen[pixel]:
                seen[pixel] = True
                stack += [q for q in neighbours_of(*pixel, image.shape, 4, periodic) if q and key[image[q]] == key[image[start]]]
    return count


@pytest.mark.parametrize(("neighbours", "periodic"), GEOMETRIES)
def test_lattice_knows_each_pair_of_neighbours_once(neighbours, periodic):
    table = lattice(neighbours, periodic)
    for p, (y, x) in enumerate(np.ndindex(SHAPE)):
        expected = [table.wall if q is None else q[0] * SHAPE[1] + q[1] for q in neighbours_of(y, x, SHAPE, neighbours, periodic)]
        assert sorted(table.neighbour[p]) == sorted(expected)
    half = neighbours // 2
    pairs = [frozenset((p, q)) for p in range(table.pixels) for q in table.neighbour[p, :half].tolist() if q != table.wall]
    assert len(pairs) == len(set(pairs)) == ((table.neighbour != table.wall).sum()) // 2


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("key", [TYPES, np.arange(N + 1)], ids=["types", "labels"])
def test_components_are_those_of_a_flood_fill(key, periodic):
    for seed in range(10):
        cells = random_images(seed)
        found = labels.components(cells, np.broadcast_to(key, (2, N + 1)), lattice(periodic=periodic))
        expected = [[plain_components(image, key, periodic) for image in frames] for frames in cells]
        np.testing.assert_array_equal(found, expected)


def test_components_agree_with_scipy_on_noise():
    image = np.random.default_rng(1).integers(0, 2, (1, 1, 60, 50))
    found = labels.components(image, np.array([[0, 1]]), lattice(shape=(60, 50)))
    assert found[0, 0] == ndimage.label(image[0, 0])[1]


@pytest.mark.parametrize(("neighbours", "periodic"), GEOMETRIES)
def test_contacts_are_those_of_a_plain_loop(neighbours, periodic):
    cells = random_images()
    found = labels.contacts(cells, np.stack([TYPES, TYPES]), lattice(neighbours, periodic), 4)
    edges = labels.contacts(cells, np.stack([TYPES, TYPES]), lattice(4, periodic), 4)
    np.testing.assert_array_equal(found[..., :2, :, :], edges)
    expected = np.zeros((2, 3, 4, 4))
    for trajectory, time in np.ndindex(2, 3):
        image = cells[trajectory, time]
        for y, x in np.ndindex(SHAPE):
            for other in neighbours_of(y, x, SHAPE, neighbours, periodic):
                if other is not None and image[other] != image[y, x]:
                    expected[trajectory, time, *sorted((TYPES[image[y, x]], TYPES[image[other]]))] += 0.5
    np.testing.assert_array_equal(found.sum(2), expected)


def test_areas_and_changes_are_counts():
    cells = random_images()
    assert labels.areas(cells, N)[1, 2].tolist() == [(cells[1, 2] == label).sum() for label in range(1, N + 1)]
    changed = labels.changed_pixels(cells)
    assert changed[:, 0].tolist() == [0, 0]
    assert changed[0, 2] == (cells[0, 2] != cells[0, 1]).sum()


def test_centres_and_gyration_radius_without_wrapping():
    cells = random_images(3)
    found = labels.centres(cells, N, lattice())
    for label in range(1, N + 1):
        here = np.argwhere(cells[1, 1] == label)
        np.testing.assert_allclose(found[1, 1, label - 1], here.mean(0) if len(here) else [np.nan] * 2)
    tissue = np.argwhere(cells[0, 2] > 0)
    assert labels.gyration_radius(cells, lattice())[0, 2] == pytest.approx(np.sqrt(tissue.var(0).sum()))


@pytest.mark.parametrize("shift", [(0, 0), (5, 6), (3, 7), (6, 8)])
def test_periodic_positions_do_not_depend_on_where_the_edge_is(shift):
    image = np.zeros(SHAPE, int)
    image[1:3, 2:5] = 1
    image[2, 5] = 1  # centre (10.5 + ... ) / 7, away from the pixels' own
    table = lattice(periodic=True)
    y, x = np.argwhere(image == 1).mean(0) + shift
    moved = np.roll(image, shift, (0, 1))[None, None]
    np.testing.assert_allclose(labels.centres(moved, 1, table)[0, 0, 0], [y % SHAPE[0], x % SHAPE[1]])
    assert labels.gyration_radius(moved, table)[0, 0] == pytest.approx(np.sqrt(np.argwhere(image == 1).var(0).sum()))


@pytest.mark.parametrize("periodic", [False, True])
def test_paths_add_up_and_wrap(periodic):
    image = np.zeros(SHAPE, int)
    image[3, 4] = 1
    steps = [(0, 0), (0, 3), (0, 3), (2, 0)]
    places = np.cumsum(steps, axis=0)
    cells = np.stack([np.roll(image, place, (0, 1)) for place in places])[None]
    displacement, travelled = labels.paths(labels.centres(cells, 1, lattice(periodic=periodic)), lattice(periodic=periodic))
    if periodic:
        np.testing.assert_allclose(travelled[0, :, 0], [0, 3, 6, 8])
        np.testing.assert_allclose(displacement[0, :, 0], np.hypot(*places.T))
    else:  # from column 7 back to column 1 is 6
        np.testing.assert_allclose(travelled[0, :, 0], [0, 3, 9, 11])
        np.testing.assert_allclose(displacement[0, :, 0], [0, 3, 3, np.hypot(3, 2)])


def test_a_cell_that_vanishes_stays_where_it_was():
    cells = np.zeros((1, 4, *SHAPE), int)
    cells[0, 0, 1, 1] = cells[0, 1, 1, 3] = cells[0, 3, 2, 3] = 1  # away in frame 2, back in frame 3
    where = labels.centres(cells, 2, lattice())
    assert np.isnan(where[0, 2, 0]).all()
    displacement, travelled = labels.paths(where, lattice())
    np.testing.assert_allclose(travelled[0, :, 0], [0, 2, 2, 3])
    np.testing.assert_allclose(displacement[0, :, 0], [0, 2, 2, np.hypot(1, 2)])
    assert not travelled[0, :, 1].any(), "a cell that is never there has not moved"


def test_an_image_without_cells_has_no_radius():
    empty = np.zeros((1, 1, *SHAPE), int)
    assert np.isnan(labels.gyration_radius(empty, lattice())).all()
    assert np.isnan(labels.gyration_radius(empty, lattice(periodic=True))).all()
    assert labels.components(empty, np.array([[0, 1]]), lattice()).tolist() == [[0]]


def test_any_number_of_batch_dimensions_and_none_of_the_data():
    cells = random_images()
    stacked = np.stack([cells, cells])[:, :, ::2]  # not contiguous
    stacked.flags.writeable = False
    np.testing.assert_array_equal(labels.areas(stacked, N)[1], labels.areas(cells[:, ::2], N))
    assert labels.components(stacked, np.broadcast_to(TYPES, (2, 2, N + 1)), lattice()).shape == (2, 2, 2)
    assert labels.contacts(cells[:0], np.zeros((0, N + 1), int), lattice(), 4).shape == (0, 3, 2, 4, 4)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (random_images() + 1, r"expected labels in 0 \.\. 6, found 1 \.\. 7"),
        (random_images() - 1, r"expected labels in 0 \.\. 6, found -1 \.\. 5"),
        (random_images() * 1.0, r"expected integers \(\*batch, time, y, x\), found float64"),
        (random_images()[0, 0], r"expected integers \(\*batch, time, y, x\), found int64 \(7, 9\)"),
    ],
    ids=["too many cells", "negative", "float", "no time"],
)
def test_images_that_are_none_are_refused(cells, message):
    with pytest.raises(ShapeError, match=message):
        labels.areas(cells, N)
