"""How far cells reach in a step."""

from __future__ import annotations

import numpy as np
import pytest

from epns_pyro.systems.label_motion import step_reach


def square(side: int, top: int, left: int, label: int = 1, size: tuple[int, int] = (20, 24)) -> np.ndarray:
    image = np.zeros(size, np.int16)
    image[np.ix_(np.arange(top, top + side) % size[0], np.arange(left, left + side) % size[1])] = label
    return image


@pytest.mark.parametrize(("side", "move", "reach"), [(5, 0, 2), (5, 3, 5), (7, -2, 5), (6, 0, 2.5)])
def test_a_square_reaches_half_its_side_and_as_far_as_it_moves(side, move, reach):
    film = np.stack([square(side, 4, 8), square(side, 4, 8 + move)])
    np.testing.assert_allclose(step_reach(film, 1, periodic=False), [[reach]])


def test_around_the_edge_of_a_periodic_image():
    film = np.stack([square(5, 18, 22), square(5, 19, 23)])
    np.testing.assert_allclose(step_reach(film, 1, periodic=True), [[3]])
    assert step_reach(film, 1, periodic=False).max() > 10


def test_cells_that_come_and_go():
    film = np.stack([square(5, 4, 4), square(3, 10, 10, 2), square(3, 10, 10, 2)])
    reach = step_reach(film, 2, periodic=False)
    np.testing.assert_allclose(reach, [[2, np.nan], [np.nan, 1]])
