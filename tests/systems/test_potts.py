"""The cellular system as its users meet it: configs, initial states, simulation from any label image, observables, errors."""

from __future__ import annotations

import numpy as np
import pytest
from plain_potts import energy_of

from epns_pyro.config import Config
from epns_pyro.errors import ConfigError, ShapeError
from epns_pyro.systems.base import SYSTEMS
from epns_pyro.systems.potts import CellsConfig

SMALL = CellsConfig(lattice=(14, 12), blocks=(2, 3), block_size=3, types=3, target_area=9.0, frame_mcs=4)


def states(images, types):
    """States (*batch, y, x, channel) of label images with the type of each label looked up in types (label,)."""
    images = np.asarray(images)
    return np.stack([images, np.asarray(types)[images]], -1)


# -- configs -------------------------------------------------------------------------------------------------------------------


def test_defaults_are_those_of_the_data_sheet():
    config = SYSTEMS.parse("cells")
    assert isinstance(config, CellsConfig)
    sheet = {
        "lattice": (72, 72),
        "blocks": (8, 8),
        "block_size": 5,
        "types": 4,
        "target_area": 25.0,
        "stiffness": 2.0,
        "temperature": 10.0,
        "neighbours": 8,
        "boundary": "no flux",
        "frame_mcs": 50,
        "burn_in": 1,
    }
    assert {name: getattr(config, name) for name in sheet} == sheet
    J = config.contact_matrix
    assert J.shape == (5, 5)
    assert (J[0, 0], J[1, 1], J[1, 2], J[0, 3], J[3, 0]) == (0, 6, 11, 16, 16)
    assert {k: (s.trajectories, s.steps, s.initial_states) for k, s in config.sets.items()} == {
        "train": (800, 60, None),
        "val": (100, 60, None),
        "test": (100, 60, None),
        "same_init": (2000, 60, 5),
    }
    small = CellsConfig.small()
    assert (small.lattice, small.cells, small.frame_mcs) == ((40, 40), 16, 20)
    assert {k: (s.trajectories, s.initial_states) for k, s in small.sets.items()} == {
        "train": (400, None),
        "val": (50, None),
        "test": (50, None),
        "same_init": (800, 2),
    }


@pytest.mark.parametrize(
    "config", [CellsConfig.small(), SMALL.override({"types": 1, "contact_energies": [[0, 3], [3, 1.5]]})], ids=["by kind", "matrix"]
)
def test_config_travels_as_plain_data(config):
    assert SYSTEMS.parse(config.model_dump(mode="json")) == config
    assert isinstance(SYSTEMS.parse({"name": "cells"}), Config)


def test_one_contact_energy_can_be_overridden():
    assert SMALL.override({"contact_energies.same": 2.5}).contact_matrix[2, 2] == 2.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"contact_energies": {"sam": 3}}, "unknown key 'sam': did you mean 'same'?"),
        ({"contact_energies": [[0, 1], [1, 0]]}, "4 types and the medium need a matrix of 5 rows, found 2"),
        ({"types": 1, "contact_energies": [[0, 2], [3, 1]]}, "expected a symmetric matrix, found [0][1] = 2 but [1][0] = 3"),
        ({"types": 1, "contact_energies": [[0, 2], [2, float("nan")]]}, "a square matrix of finite numbers, the medium first, found"),
        ({"contact_energies": [[0, 2], [3]]}, "a square matrix of finite numbers, the medium first, found [[0, 2], [3]]"),
        ({"contact_energies": 5}, "expected {same, different, medium} or a square matrix"),
        (
            {"lattice": (72, 30)},
            "8 blocks of 5 pixels need a lattice width of 40, found 30: enlarge lattice, or lower blocks or block_size",
        ),
        ({"lattice": (2, 9), "blocks": (1, 1), "block_size": 1, "boundary": "periodic"}, "a periodic lattice needs a height of 3 or more"),
        (
            {"blocks": (200, 200), "block_size": 1, "lattice": (200, 200)},
            "expected fewer than 32768 cells, found blocks (200, 200) = 40000",
        ),
        ({"plausible_area": (2, 1)}, "plausible_area: expected (low, high) with low < high, found (2.0, 1.0)"),
        ({"neighbours": 6}, "neighbours: input should be 4 or 8, found 6"),
        ({"boundary": "open"}, "boundary: input should be 'no flux' or 'periodic', found 'open'"),
        ({"temperature": -1.0}, "temperature: input should be greater than or equal to 0, found -1.0"),
        ({"types": 0}, "types: input should be greater than or equal to 1, found 0"),
        ({"tempreature": 1.0}, "unknown key 'tempreature': did you mean 'temperature'?"),
    ],
)
def test_impossible_configs_are_refused_in_one_line(change, message):
    with pytest.raises(ConfigError) as error:
        CellsConfig.parse(change, where="system cells")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# -- initial states ------------------------------------------------------------------------------------------------------------


def test_initial_states_are_centred_blocks_with_random_types():
    system = SMALL.build()
    x = system.initial(500, np.random.default_rng(1))
    system.spec.check(x)
    assert x.shape == (500, 14, 12, 2)
    cell, kind = x[0, ..., 0], system.spec.entity_property(x, "type")
    assert cell[4:10, 1:10].tolist() == np.array([[1, 2, 3], [4, 5, 6]]).repeat(3, 0).repeat(3, 1).tolist()
    assert (np.bincount(cell.ravel()) == [14 * 12 - 54, 9, 9, 9, 9, 9, 9]).all()
    assert (kind[:, 0] == 0).all()
    counts = np.bincount(kind[:, 1:].ravel(), minlength=4)
    assert counts[0] == 0
    assert np.abs(counts[1:] - 1000).max() < 5 * np.sqrt(3000 * 2 / 9)  # five standard deviations: 2e-6


def test_states_drawn_in_pieces_equal_states_drawn_at_once():
    system, pieces, whole = SMALL.build(), np.random.default_rng(2), np.random.default_rng(2)
    np.testing.assert_array_equal(np.concatenate([system.initial(1, pieces), system.initial(4, pieces)]), system.initial(5, whole))


# -- simulation ----------------------------------------------------------------------------------------------------------------


def test_simulation_starts_anywhere_and_keeps_types():
    system = SMALL.build()
    types = np.array([0, 3, 1, 1, 2, 0, 1])
    image = np.random.default_rng(3).choice([0, 1, 2, 3, 4, 6], (5, 14, 12))  # confetti; cell 5 does not exist
    x = system.simulate(states(image, types).astype(np.float64), 6, np.arange(5))
    assert x.shape == (5, 7, 14, 12, 2)
    np.testing.assert_array_equal(x[:, 0], states(image, types))
    np.testing.assert_array_equal(x[..., 1], types[x[..., 0]])
    assert not (x[..., 0] == 5).any()
    measured = system.observables(x)
    assert all(np.isfinite(observable.values).all() and observable.values.shape == (5, 7) for observable in measured.values())
    assert (measured["fragments"].values[:, 0] > 20).all()
    assert (measured["fragments"].values[:, -1] < measured["fragments"].values[:, 0]).all()
    assert (measured["hamiltonian"].values[:, -1] < measured["hamiltonian"].values[:, 0]).all()


def test_cells_that_vanish_stay_away_and_are_counted():
    # Contacts cost more than the area term can pay: the tissue dissolves.
    system = SMALL.override({"stiffness": 0.01, "contact_energies.medium": 40.0, "contact_energies.different": 40.0}).build()
    x = system.simulate(system.initial(4, np.random.default_rng(0)), 40, np.arange(4))
    area = np.array([[np.bincount(frame.ravel(), minlength=7)[1:] for frame in run] for run in x[..., 0]])
    gone = area == 0
    assert gone[:, -1].any()
    assert (gone == np.logical_or.accumulate(gone, axis=1)).all(), "a cell that has vanished cannot come back"
    measured = system.observables(x)
    np.testing.assert_allclose(measured["area_mean"].values, area.mean(-1))
    np.testing.assert_allclose(measured["area_sd"].values, area.std(-1))
    assert all(np.isfinite(o.values).all() for name, o in measured.items() if name != "gyration_radius")
    assert not system.alive(x)[:, -1].any()


@pytest.mark.parametrize("boundary", ["no flux", "periodic"])
def test_periodic_tissue_can_cross_the_edge(boundary):
    system = SMALL.override({"boundary": boundary}).build()
    x0 = system.initial(2, np.random.default_rng(0))
    x0 = np.roll(x0, 5, axis=1)  # astride the edge
    x = system.simulate(x0, 5, np.arange(2))
    measured = system.observables(x)
    if boundary == "periodic":
        centred = system.observables(np.roll(x, -5, axis=2))
        for name, observable in measured.items():
            np.testing.assert_allclose(observable.values, centred[name].values, rtol=1e-12, atol=1e-12, err_msg=name)
        assert (measured["fragments"].values[:, 0] == 0).all()
    else:
        assert (measured["fragments"].values[:, 0] == 3).all(), "three cells are cut by the edge"


# -- observables ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("neighbours", [4, 8])
@pytest.mark.parametrize("boundary", ["no flux", "periodic"])
def test_hamiltonian_is_that_of_the_plain_model(neighbours, boundary):
    config = SMALL.override({"neighbours": neighbours, "boundary": boundary})
    types = np.array([0, 3, 1, 1, 2, 2, 1])
    image = np.random.default_rng(5).integers(0, 7, (2, 3, 14, 12))
    found = config.build().observables(states(image, types))["hamiltonian"].values
    expected = [[energy_of(config)(frame, types) for frame in run] for run in image]
    np.testing.assert_allclose(found, expected)


def test_observables_of_a_tissue_of_blocks():
    system = SMALL.build()
    x = np.stack([states(system.initial(1, np.random.default_rng(0))[0, ..., 0], [0, 1, 1, 2, 3, 2, 2])] * 2)[None]
    x[0, 1] = np.roll(x[0, 0], 2, axis=0)  # down by two pixels, clear of the walls
    values = {name: observable.values[0].tolist() for name, observable in system.observables(x).items()}
    assert values["clusters"] == [3, 3]  # 1 1 2 / 3 2 2
    assert values["fragments"] == values["area_sd"] == [0, 0]
    assert values["area_mean"] == [9, 9]
    assert values["contact_same"] == [9, 9]  # pairs of blocks 1-2, 5-6 and 3-6 share edges of three pixels
    assert values["contact_different"] == [12, 12]
    assert values["contact_medium"] == [30, 30]
    assert values["perimeter"] == [12, 12]
    assert values["gyration_radius"] == pytest.approx([np.sqrt((36 - 1) / 12 + (81 - 1) / 12)] * 2)
    assert values["changed_pixels"] == [0, 54]  # two rows of nine at the top, in the middle and at the bottom
    assert values["displacement"] == values["distance_travelled"] == [0, 2]


def test_counts_are_marked_as_discrete():
    measured = SMALL.build().observables(SMALL.build().initial(1, np.random.default_rng(0))[:, None])
    discrete = {name for name, observable in measured.items() if observable.discrete}
    assert discrete == {"clusters", "fragments", "contact_same", "contact_different", "contact_medium", "changed_pixels"}
    assert all(np.issubdtype(measured[name].values.dtype, np.integer) for name in discrete)


def test_a_trajectory_dies_for_good_when_too_many_cells_have_the_wrong_size():
    # 64 cells of 25 pixels: 12 may be outside of [16, 30].
    system = CellsConfig().build()
    good = system.initial(1, np.random.default_rng(0))[0]

    def shrunk(cells, area):
        x = good.copy()
        for label in range(1, cells + 1):
            pixels = np.argwhere(x[..., 0] == label)[area:]
            x[pixels[:, 0], pixels[:, 1]] = 0
        return x

    runs = np.stack([[good, shrunk(12, 15), good], [good, shrunk(13, 15), good], [good, shrunk(64, 16), good]])
    assert system.alive(runs).tolist() == [[True, True, True], [True, False, False], [True, True, True]]
    grown = good.copy()
    grown[16:21, 15][:] = (1, good[16, 16, 1])  # cell 1 takes five pixels of medium: 30
    assert (grown[..., 0] == 1).sum() == 30
    strict = CellsConfig(implausible_share=0.0).build()
    assert strict.alive(grown[None, None]).all()
    grown[15, 16] = (1, good[16, 16, 1])
    assert not strict.alive(grown[None, None]).any()


def test_the_true_simulator_stays_alive():
    system = CellsConfig.small().build()
    x = system.simulate(system.initial(20, np.random.default_rng(0)), 20, np.arange(20))
    assert system.alive(x).all()


def test_a_forecast_may_bring_back_a_cell_whose_type_is_lost():
    system = SMALL.build()
    image = np.zeros((1, 2, 14, 12), int)
    image[0, :, 3:6, 3:6], image[0, 1, 8, 8] = 1, 2
    types = np.array([0, 1, 0, 0, 0, 0, 0])  # cell 2 was not there when types were looked up
    values = {name: o.values[0].tolist() for name, o in system.observables(states(image, types)).items()}
    assert values["area_mean"] == [9, 9]
    assert values["clusters"] == [1, 1]
    with pytest.raises(
        ShapeError, match=r"the initial state: trajectory 0, frame 0, pixel \(8, 8\): expected a type in 1 \.\. 3 for cell 2"
    ):
        system.simulate(states(image, types)[:, 1], 1, np.arange(1))


# -- errors --------------------------------------------------------------------------------------------------------------------

BLOCKS = SMALL.build().initial(2, np.random.default_rng(0))


def spoiled(channel, value, dtype=np.float64):
    x = BLOCKS.astype(dtype)
    x[1, 5, 2, channel] = value
    return x


@pytest.mark.parametrize(
    ("x0", "message"),
    [
        (spoiled(0, 7), r"trajectory 1, frame 0, pixel \(5, 2\): expected a cell label in 0 \.\. 6 \(0 is the medium\), found 7"),
        (spoiled(0, -1, int), r"found -1"),
        (spoiled(0, 1.5), r"found 1\.5"),
        (spoiled(0, np.nan), r"found nan"),
        (spoiled(1, 4), r"expected a type in 0 \.\. 3, found 4"),
        (spoiled(1, 0), r"expected a type in 1 \.\. 3 for cell 1\.0, found 0, which is that of the medium"),
        (spoiled(0, 0), r"expected type 0 for the medium \(label 0\), found"),
        (BLOCKS[..., :1], r"expected \(\*batch, time, 14, 12, 2\) with channels cell, type; found \(2, 1, 14, 12, 1\)"),
        (BLOCKS[:, :, :5], r"expected \(\*batch, time, 14, 12, 2\)"),
    ],
)
def test_states_that_are_none_are_refused(x0, message):
    with pytest.raises(ShapeError, match=message):
        SMALL.build().simulate(x0, 1, np.arange(2))


def test_a_cell_of_two_types_is_refused():
    x0 = BLOCKS.copy()
    x0[1, 5, 2, 1] = x0[1, 5, 2, 1] % 3 + 1
    with pytest.raises(ShapeError, match=r"expected one type per cell, found \d where cell 1 has been of type \d before"):
        SMALL.build().simulate(x0, 1, np.arange(2))


def test_seeds_steps_and_workers_are_checked():
    system = SMALL.build()
    with pytest.raises(ShapeError, match=r"seeds: expected one per trajectory, \(2,\), found \(3,\)"):
        system.simulate(BLOCKS, 1, np.arange(3))
    with pytest.raises(ShapeError, match="steps: expected 0 or more frames, found -1"):
        system.simulate(BLOCKS, -1, np.arange(2))
    with pytest.raises(ConfigError, match="workers must be at least 1, found 0"):
        system.simulate(BLOCKS, 1, np.arange(2), workers=0)
    np.testing.assert_array_equal(system.simulate(BLOCKS, 0, np.arange(2))[:, 0], BLOCKS)
