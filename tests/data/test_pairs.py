"""Attributes of pairs of bodies, such as bonds: from a store to states and back, and how a permutation moves them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
import yaml

from epns_pyro.data import check, open_store, to_dataset
from epns_pyro.errors import ConfigError, DataError, ShapeError
from epns_pyro.state import Field, StateSpec
from epns_pyro.symmetry import Euclidean

BOND, POSITION = Field("bond", kind="pair", size=5, dynamic=False), Field("position", "1o", translates=True)
SPEC = StateSpec((BOND, POSITION), space=2)


def recording(n=10, frames=4, bodies=4, seed=0) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    bond = rng.integers(2, size=(n, bodies, bodies))
    return xr.Dataset(
        {
            "position": (("trajectory", "time", "body", "space"), rng.standard_normal((n, frames, bodies, 2))),
            "bond": (("trajectory", "body", "body_"), bond),
        }
    )


def written(path, data, **entries):
    data.to_netcdf(path)
    fields = [{"name": "bond", "kind": "pair", "dynamic": False} | entries, {"name": "position", "irreps": "1o", "translates": True}]
    path.with_suffix(".yaml").write_text(yaml.safe_dump({"fields": fields, "space": 2, "frame_dt": 0.5}))
    return path


def test_a_recording_of_bonds_arrives_in_states(tmp_path):
    data = recording()
    store = open_store(written(tmp_path / "bonds.nc", data))
    assert store.spec["bond"].size == 4  # as many as there are bodies
    x, rows = store.read("train"), store.rows("train")
    np.testing.assert_array_equal(store.spec.get(x, "bond")[:, 2], data.bond.values[rows])
    assert not [found for found in check(store) if found.level == "error"]
    assert store.context().spec["bond"].scale == pytest.approx(data.bond.values[rows].std())
    again = to_dataset(store.spec, x, ("trajectory", "time"), frame_dt=0.5)
    assert again.bond.dims == ("trajectory", "body", "body_")
    np.testing.assert_array_equal(again.bond.values, data.bond.values[rows])


def test_fewer_bodies_than_room_leave_columns_of_nobody():
    position, bond = np.zeros((3, 4, 2)), np.ones((3, 4, 4))
    for convert in (np.asarray, torch.as_tensor):
        x = SPEC.pack(bond=convert(bond), position=convert(position))
        assert x.shape == (3, 4, 7)
        np.testing.assert_array_equal(SPEC.get(x, "bond")[..., :4], bond)
        assert not SPEC.get(x, "bond")[..., 4].any()
    with pytest.raises(ShapeError, match=r"'bond' is of pairs: expected \(\*batch, body, body\) of at most 5 bodies, found \(3, 4, 3\)"):
        SPEC.pack(bond=bond[..., :3], position=position)


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor])
def test_a_permutation_moves_rows_and_columns(convert):
    rng = np.random.default_rng(0)
    bond, position = rng.standard_normal((4, 4)), rng.standard_normal((4, 2))
    x = convert(SPEC.pack(bond=bond, position=position))
    g = Euclidean(space=2).random(x, rng)
    moved = SPEC.act(g, x)
    order = g.permutation
    np.testing.assert_array_equal(SPEC.get(moved, "bond")[:, :4], bond[np.ix_(order, order)])
    assert not SPEC.get(moved, "bond")[:, 4].any()


def test_what_cannot_be_an_attribute_of_pairs_is_said(tmp_path):
    with pytest.raises(ConfigError, match="'bond': an attribute of pairs is a static scalar"):
        Field("bond", kind="pair", size=4)
    bad = recording().isel(body_=slice(3))
    with pytest.raises(DataError, match="'bond': expected as many rows as columns, at most 4, found 4 x 3"):
        open_store(written(tmp_path / "bad.nc", bad)).read("train")
    hole = recording().astype(float)
    hole.bond[3, 1, 2] = np.nan
    found = check(open_store(written(tmp_path / "hole.nc", hole)))
    assert any("field 'bond': 1 values are NaN or infinite" in str(f) for f in found)
