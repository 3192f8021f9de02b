"""Boxes per trajectory, from a store to futures: bodies that drift across the seams of boxes of different sides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import yaml
from click.testing import CliRunner

import epns_pyro
from epns_pyro.cli import main
from epns_pyro.data import open_store
from epns_pyro.data.inspection.check import check
from epns_pyro.errors import DataError

TRAJECTORIES, FRAMES, BODIES, DT = 24, 12, 3, 0.5
FIELDS = [
    {"name": "position", "irreps": "1o", "translates": True, "unit": "um"},
    {"name": "velocity", "irreps": "1o", "rate_of": "position", "unit": "um/s"},
    {"name": "box", "irreps": "1o", "dynamic": False, "kind": "box", "unit": "um"},
]


def drifting(path: Path, *, fields: list[dict] = FIELDS, sides: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Write a store; return the unwrapped positions (trajectory, time, body, space) and the sides (trajectory, space)."""
    rng = np.random.default_rng(0)
    found = rng.uniform(2, 4, (TRAJECTORIES, 2)) if sides is None else sides
    velocity = np.broadcast_to(0.5 * rng.standard_normal((TRAJECTORIES, 1, BODIES, 2)), (TRAJECTORIES, FRAMES, BODIES, 2))
    noise = 0.01 * rng.standard_normal(velocity.shape).cumsum(1)
    place = rng.uniform(0, 2, (TRAJECTORIES, 1, BODIES, 2)) + DT * np.arange(FRAMES)[:, None, None] * velocity + noise
    dims = ("trajectory", "time", "body", "space")
    wrapped = place % np.maximum(found, 0.1)[:, None, None]
    xr.Dataset({"position": (dims, wrapped), "velocity": (dims, velocity + noise), "box": (("trajectory", "space"), found)}).to_zarr(path)
    path.with_name(path.name + ".yaml").write_text(yaml.safe_dump({"fields": fields, "space": 2, "frame_dt": DT, "time_unit": "s"}))
    return place, found


def test_states_hold_the_box_and_changes_go_to_the_nearest_image(tmp_path):
    _, sides = drifting(tmp_path / "a.zarr")
    store = open_store(tmp_path / "a.zarr")
    x, rows = store.read("train"), store.rows("train")
    np.testing.assert_array_equal(store.spec.get(x, "box"), np.broadcast_to(sides[rows][:, None, None], (*x.shape[:3], 2)))
    assert store.context().step_scales["position"] < 0.05  # a jump across a seam would be a change of 2 to 4
    assert [str(finding) for finding in check(store)] == []
    result = CliRunner().invoke(main, ["data", "info", str(tmp_path / "a.zarr")])
    assert "sides of the periodic box" in result.output
    assert "nothing wrong found" in result.output


def test_differences_go_to_the_nearest_image(tmp_path):
    fields = [FIELDS[0], {"name": "velocity", "irreps": "1o", "rate_of": "position", "differences": True}, FIELDS[2]]
    place, _ = drifting(tmp_path / "a.zarr", fields=fields)
    store = open_store(tmp_path / "a.zarr")
    expected = np.diff(place[store.rows("train")], axis=1) / DT
    np.testing.assert_allclose(store.spec.get(store.read("train"), "velocity"), expected, atol=1e-12)


def test_observables_are_those_of_a_box_that_all_share(tmp_path):
    _, sides = drifting(tmp_path / "a.zarr")
    store = open_store(tmp_path / "a.zarr")
    x, rows = store.read("train"), store.rows("train")
    own = store.system.observables(x)
    for i, row in enumerate(rows):
        name = f"{row}.yaml"
        shared = {"fields": FIELDS[:2], "space": 2, "frame_dt": DT, "box": sides[row].tolist()}
        (tmp_path / name).write_text(yaml.safe_dump(shared))
        system = open_store(tmp_path / "a.zarr", spec=tmp_path / name).system
        for key, found in system.observables(x[i : i + 1, ..., :4]).items():
            np.testing.assert_allclose(own[key].values[i], found.values[0], rtol=1e-12, err_msg=key)


@pytest.mark.parametrize(
    "fields",
    [FIELDS, [FIELDS[0] | {"noise": 0.01}, FIELDS[1] | {"hidden": True}, FIELDS[2]]],
    ids=["recorded velocities", "hidden velocities"],
)
def test_a_model_is_trained_and_its_futures_stay_inside(tmp_path, fields):
    _, sides = drifting(tmp_path / "a.zarr", fields=fields)
    store = open_store(tmp_path / "a.zarr")
    settings = {"training.steps": 12, "training.batch": 4, "training.validation_transitions": 40, "model.width": 8, "model.latent": 2}
    small = {"model.backbone": {"name": "vector", "width": 8, "vectors": 4, "layers": 1}, "model.integrator.steps": 2}
    config = epns_pyro.preset("particles", data=store.system.config).override(settings | small)
    simulator = epns_pyro.train(config, store, tmp_path / "run")
    given = store.read("test", stop=5) if fields is not FIELDS else store.read("test")[:, 0]
    futures = simulator.rollout(given, steps=30, members=4)
    place, box = futures["position"].values[:, :, 1:], sides[store.rows("test")]
    assert futures["box"].dims == ("trajectory", "space")
    np.testing.assert_allclose(futures["box"], box, rtol=1e-6)  # in single precision
    assert (place >= -0.1).all()  # positions are recorded with an error, also at the seam
    assert (place <= box[:, None, None] + 0.1).all()
    assert (place.max((0, 2, 3)) > 0.8 * box).all()


@pytest.mark.parametrize("side", [0.0, -1.0, np.nan])
def test_sides_have_to_be_positive(tmp_path, side):
    sides = np.full((TRAJECTORIES, 2), 3.0)
    sides[5, 1] = side
    drifting(tmp_path / "a.zarr", sides=sides)
    with pytest.raises(DataError, match="field 'box': sides of a box have to be positive, found"):
        open_store(tmp_path / "a.zarr").read("train")
    assert CliRunner().invoke(main, ["data", "info", str(tmp_path / "a.zarr")]).exit_code == 2
