"""Relabelling of cells and the symmetries of a lattice, on states, on latents and on what is measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from epns_pyro.errors import ConfigError, ShapeError
from epns_pyro.state import Field, StateSpec
from epns_pyro.symmetry import Relabelling, RelabellingElement
from epns_pyro.systems.potts import CellsConfig

SYSTEM = CellsConfig(lattice=(9, 9), blocks=(2, 3), block_size=2, types=3, boundary="periodic", frame_mcs=3).build()
GROUP = Relabelling(6, shifts=True, turns=True)


@pytest.fixture(scope="module")
def trajectories():
    """States (trajectory = 3, time = 4, y, x, channel) of a periodic tissue of six cells."""
    return SYSTEM.simulate(SYSTEM.initial(3, np.random.default_rng(0)), 3, np.arange(3))


def test_cell_i_of_the_result_is_cell_permutation_i_of_the_argument(trajectories):
    x = trajectories[:, 0]
    g = RelabellingElement(np.array([2, 0, 1, 5, 4, 3]))
    moved = SYSTEM.spec.act(g, x)
    for i, source in enumerate(g.permutation):
        np.testing.assert_array_equal(moved[..., 0] == i + 1, x[..., 0] == source + 1)
    np.testing.assert_array_equal(moved[..., 1], x[..., 1])  # the type travels with the cell
    before, after = (SYSTEM.spec.entity_property(states, "type") for states in (x, moved))
    np.testing.assert_array_equal(after[:, 1:], before[:, 1 + g.permutation])
    z = np.random.default_rng(1).normal(size=(3, 6, 2))
    np.testing.assert_array_equal(g.act_latent(z), z[:, g.permutation])


@pytest.mark.parametrize(("channel", "name"), [(0, "cell"), (1, "type")])
@pytest.mark.parametrize("label", [-1, 100])
@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor])
def test_labels_and_types_that_there_are_not_are_refused(trajectories, channel, name, label, convert):
    x = trajectories.copy()
    SYSTEM.spec.check(convert(x))
    x[1, 2, 3, 4, channel] = label
    with pytest.raises(ShapeError, match=f"the state: '{name}' holds {label}, expected numbers from 0 to {SYSTEM.spec[name].size - 1}"):
        SYSTEM.spec.check(convert(x))


def test_the_medium_keeps_its_name(trajectories):
    moved = SYSTEM.spec.act(Relabelling(6).random(trajectories, np.random.default_rng(3)), trajectories)
    np.testing.assert_array_equal(moved[..., 0] == 0, trajectories[..., 0] == 0)


def test_shift_flip_and_transposition_move_pixels():
    spec, image = SYSTEM.spec, np.zeros((9, 9, 2), np.int16)
    image[1, 2] = 1
    g = RelabellingElement(np.arange(6), shift=(3, 8), flips=(True, False), transposed=True)
    moved = spec.act(g, image)
    assert np.argwhere(moved[..., 0]).tolist() == [[(2 + 8) % 9, 8 - (1 + 3)]]


def test_torch_and_numpy_act_alike(trajectories):
    rng = np.random.default_rng(4)
    for _ in range(20):
        g = GROUP.random(trajectories, rng)
        for x in (trajectories, trajectories.astype(np.float64)):
            moved = SYSTEM.spec.act(g, torch.as_tensor(x))
            assert moved.dtype == torch.as_tensor(x).dtype
            np.testing.assert_array_equal(moved.numpy(), SYSTEM.spec.act(g, x))
        z = rng.normal(size=(3, 6, 2))
        np.testing.assert_array_equal(g.act_latent(torch.as_tensor(z)).numpy(), g.act_latent(z))


def test_action_commutes_with_taking_the_dynamic_part(trajectories):
    g = GROUP.random(trajectories, np.random.default_rng(5))
    spec = SYSTEM.spec
    np.testing.assert_array_equal(spec.act_dynamic(g, spec.dynamic(trajectories)), spec.dynamic(spec.act(g, trajectories)))
    advanced = spec.advance(trajectories[:, 0], spec.dynamic(trajectories[:, 1]))
    np.testing.assert_array_equal(advanced, trajectories[:, 1])


def test_everything_measured_is_invariant(trajectories):
    rng = np.random.default_rng(6)
    before = SYSTEM.observables(trajectories)
    for _ in range(10):
        after = SYSTEM.observables(SYSTEM.spec.act(GROUP.random(trajectories, rng), trajectories))
        for name, observable in before.items():
            np.testing.assert_allclose(after[name].values, observable.values, rtol=1e-12, atol=1e-12, err_msg=name)


def test_random_elements_cover_what_was_asked_for():
    rng, square, oblong = np.random.default_rng(7), np.zeros((9, 9, 2)), np.zeros((9, 4, 2))
    still = [Relabelling(6).random(square, rng) for _ in range(50)]
    assert {(g.shift, g.flips, g.transposed) for g in still} == {((0, 0), (False, False), False)}
    assert len({tuple(g.permutation) for g in still}) > 30
    moving = [GROUP.random(square, rng) for _ in range(200)]
    assert len({(*g.flips, g.transposed) for g in moving}) == 8
    assert {g.shift[0] for g in moving} == set(range(9))
    assert not any(GROUP.random(oblong, rng).transposed for _ in range(50))


def test_groups_say_what_they_are():
    assert Relabelling(64).description == "S_64: relabelling of cells"
    assert GROUP.description == "S_6: relabelling of cells, shifts of the lattice, mirror images and quarter turns"
    assert SYSTEM.symmetry == Relabelling(6, shifts=True)
    assert CellsConfig().build().symmetry == Relabelling(64)


def test_a_vector_field_on_a_lattice_is_refused():
    spec = StateSpec((Field("cell", kind="label", size=7), Field("flow", "1o")), sites=("y", "x"), space=2)
    with pytest.raises(ConfigError, match="flow is a vector field"):
        spec.act(RelabellingElement(np.arange(6)), np.zeros((4, 4, 3)))
