"""Stores: what is read, how little of it is read, and what users may bring along."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import xarray as xr
import yaml
import zarr
from toy_systems import STRIPES, WALKERS

from epns_pyro.data import Split, open_store, to_dataset
from epns_pyro.errors import ConfigError, DataError
from epns_pyro.state import Field, StateSpec

pytestmark = pytest.mark.filterwarnings("error")


def dataset(n=4, frames=6, bodies=3, *, seed=0) -> xr.Dataset:
    """A user's recording: particles in the plane with a charge each, a wind that is the same for a trajectory, and no velocity."""
    rng = np.random.default_rng(seed)
    return xr.Dataset(
        {
            "position": (("trajectory", "time", "body", "space"), rng.standard_normal((n, frames, bodies, 2))),
            "charge": (("trajectory", "body"), rng.standard_normal((n, bodies))),
            "wind": (("trajectory", "body", "space"), rng.standard_normal((n, bodies, 2))),
        },
        coords={"time": 0.5 * np.arange(frames)},
    )


SPEC = StateSpec(
    fields=(
        Field("position", irreps="1o", translates=True, unit="um"),
        Field("charge", dynamic=False),
        Field("wind", irreps="1o", dynamic=False),
    ),
    space=2,
)
AS_STATES = SPEC.pack(position=dataset().position.values, charge=dataset().charge.values[:, None], wind=dataset().wind.values[:, None])


def described(data: xr.Dataset, **attributes) -> xr.Dataset:
    return data.assign_attrs(state_spec=SPEC.to_json(), **attributes)


def write(data: xr.Dataset, path, **options):
    data.to_zarr(path, consolidated=False, zarr_format=3, **options)
    return path


def everything(store) -> np.ndarray:
    """Trajectories of all sets in the order of the file."""
    rows = np.concatenate([store.rows(group) for group in store.splits])
    return np.concatenate([store.read(group) for group in store.splits])[np.argsort(rows)]


def test_parts_of_a_set_are_the_parts_of_the_whole(walkers):
    x = walkers.read("train")
    assert x.shape == (11, 9, 2, 5)
    assert x.dtype == np.float64
    for indices in (slice(2, 7), [4, 0, 10, 4], np.array([3]), range(3), 5, -1, []):
        wanted = np.atleast_1d(indices) if isinstance(indices, int) else indices
        wanted = np.asarray(wanted, dtype=int) if not isinstance(wanted, slice) else wanted
        np.testing.assert_array_equal(walkers.read("train", indices, 2, 5), x[wanted][:, 2:5])


def test_only_the_needed_chunks_are_read(walkers, monkeypatch):
    keys = []
    get = zarr.storage.LocalStore.get

    async def spying_get(self, key, *args, **kw):
        keys.append(key)
        return await get(self, key, *args, **kw)

    store = open_store(walkers.path)
    store.read("val")
    monkeypatch.setattr(zarr.storage.LocalStore, "get", spying_get)
    store.read("train", [4, 5, 9])
    chunks = sorted(key for key in keys if "/position/c/" in key)
    assert chunks == ["train/position/c/2/0/0/0", "train/position/c/4/0/0/0"]


def test_blocks_cover_every_trajectory_once_and_keep_chunks_together(walkers):
    blocks = walkers.blocks("train")
    np.testing.assert_array_equal(np.concatenate(blocks), np.arange(11))
    assert [len(block) for block in blocks] == [2, 2, 2, 2, 2, 1]


def test_what_a_store_says_about_itself(walkers, stripes):
    assert walkers.splits == ("train", "val", "same_init")
    assert (walkers.size("same_init"), walkers.steps("same_init"), walkers.sites("same_init")) == (6, 8, (2,))
    assert walkers.spec == WALKERS
    assert walkers.frame_dt == 0.25
    assert walkers.time_unit == "s"
    assert walkers.system.config.sets["train"].trajectories == 11
    assert stripes.spec == STRIPES
    assert stripes.sites("val") == (6, 8)


def test_a_fingerprint_tells_sets_apart_and_forgets_where_they_are(tmp_path):
    data = described(dataset(), frame_dt=0.5)
    one, same = (open_store(write(data, tmp_path / f"{name}.zarr")) for name in ("one", "same"))
    moved = data.assign(position=data.position.where(data.time < 2, data.position + 1e-9))
    other = open_store(write(moved, tmp_path / "other.zarr"))
    assert one.fingerprint("train") == same.fingerprint("train") != other.fingerprint("train")
    assert one.fingerprint("train") != one.fingerprint("test")


def test_labels_come_with_the_type_of_their_cell(stripes):
    x = stripes.read("train")
    assert x.dtype == np.int16
    labels, types = STRIPES.get(x, "cell"), STRIPES.get(x, "type")
    assert (types[labels == 0] == 0).all()
    stored = stripes.dataset("train")["cell_type"].values
    for trajectory in range(7):
        for cell in (1, 2, 3):
            assert (types[trajectory][labels[trajectory] == cell] == stored[trajectory, cell - 1]).all()
    assert (labels[:, 1:] != labels[:, :-1]).any()


def test_a_netcdf_file_with_groups_holds_the_same(walkers, tmp_path):
    path = tmp_path / "store.nc"
    for group in walkers.splits:
        walkers.dataset(group).load().to_netcdf(path, group=group, mode="a", engine="h5netcdf")
    copy = open_store(path)
    assert copy.splits == walkers.splits
    assert copy.spec == walkers.spec
    for group in walkers.splits:
        np.testing.assert_array_equal(copy.read(group, [2, 0]), walkers.read(group, [2, 0]))


@pytest.mark.parametrize("form", ["zarr", "netcdf"])
def test_a_plain_file_of_a_user_is_split_and_read(tmp_path, form):
    path = tmp_path / f"data.{form}"
    data = described(dataset())
    write(data, path) if form == "zarr" else data.to_netcdf(path, engine="h5netcdf")
    store = open_store(path)
    assert store.splits == ("train", "val", "test")
    assert [store.size(group) for group in store.splits] == [2, 1, 1]
    np.testing.assert_array_equal(everything(store), np.broadcast_to(AS_STATES, everything(store).shape))
    assert store.frame_dt == 0.5
    assert store.system.name == "recorded"
    assert store.system.spec == SPEC


def test_dimensions_in_another_order_and_values_shared_by_all(tmp_path):
    data = dataset()
    data["charge"] = data.charge.isel(trajectory=0)
    data["wind"] = data.wind.expand_dims(time=6)
    store = open_store(write(described(data.transpose("space", "body", "time", "trajectory")), tmp_path / "a.zarr"))
    expected = SPEC.pack(position=dataset().position.values, charge=data.charge.values, wind=dataset().wind.values[:, None])
    np.testing.assert_array_equal(everything(store), expected)


def test_a_single_recording_without_a_trajectory_dimension(tmp_path):
    store = open_store(write(described(dataset().isel(trajectory=0)), tmp_path / "a.zarr"))
    assert store.splits == ("train",)
    assert store.size("train") == 1
    np.testing.assert_array_equal(store.read("train"), AS_STATES[:1])
    np.testing.assert_array_equal(np.concatenate(store.blocks("train")), [0])


def test_groups_of_a_user_are_sets(tmp_path):
    for seed, group in enumerate(("val", "train")):
        write(described(dataset(seed=seed), frame_dt=0.5), tmp_path / "a.zarr", group=group, mode="a")
    store = open_store(tmp_path / "a.zarr")
    assert store.splits == ("train", "val")
    np.testing.assert_array_equal(SPEC.get(store.read("val"), "position"), dataset(seed=0).position)


def description(**extra) -> str:
    raw = json.loads(SPEC.to_json())
    return yaml.safe_dump({"fields": raw["fields"], "space": 2} | extra)


@pytest.mark.parametrize("name", ["a.zarr.yaml", "a.yaml"])
def test_a_description_beside_the_store(tmp_path, name):
    write(dataset(), tmp_path / "a.zarr")
    (tmp_path / name).write_text(description(frame_dt=2.0, time_unit="min", split={"train": 0.5, "val": 0.5, "test": 0}))
    store = open_store(tmp_path / "a.zarr")
    assert store.spec == SPEC
    assert (store.frame_dt, store.time_unit) == (2.0, "min")
    assert {group: store.size(group) for group in store.splits} == {"train": 2, "val": 2}
    assert store.system.time_unit == "min"


def test_a_description_given_by_hand_comes_first(tmp_path):
    write(described(dataset()), tmp_path / "a.zarr")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"fields": [{"name": "position", "irreps": "1o", "translates": True}], "space": 2}))
    assert open_store(tmp_path / "a.zarr", spec=tmp_path / "mine.yaml").spec.names == ("position",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fields: [", "mine.yaml: is not valid YAML"),
        ("fields: [{name: position, irrep: 1o}]", "mine.yaml: .*'position': unknown key 'irrep': did you mean 'irreps'"),
        ("field: []", "mine.yaml: unknown key 'field': did you mean 'fields'"),
        ("fields: [{name: position}]\nframe_dt: -1", "mine.yaml: frame_dt: input should be greater than 0, found -1"),
    ],
)
def test_mistakes_in_a_description_name_the_file(tmp_path, text, message):
    write(dataset(), tmp_path / "a.zarr")
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        open_store(tmp_path / "a.zarr", spec=tmp_path / "mine.yaml")


def test_the_extent_of_recorded_particles_is_measured(tmp_path):
    store = open_store(write(described(dataset(n=9)), tmp_path / "a.zarr"))
    position = SPEC.get(store.read("train"), "position")
    centred = position - position[:, :1].mean(2, keepdims=True)
    expected = np.linalg.norm(centred, axis=-1).max()
    np.testing.assert_allclose(store.system.config.extent["position"], expected)


def test_label_images_of_a_user_are_recorded_cells(stripes, tmp_path):
    data = stripes.dataset("train").load().drop_attrs().assign_attrs(state_spec=STRIPES.to_json())
    store = open_store(write(data, tmp_path / "a.zarr"))
    assert store.system.name == "recorded_cells"
    assert store.system.spec == store.spec == STRIPES
    assert store.system.config.lattice == (6, 8)


@pytest.mark.parametrize("n", [1, 2, 3, 10, 57])
def test_a_split_is_a_partition_that_never_starves_a_set(n):
    parts = Split().rows(n)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(n))
    assert all(len(part) for part in parts.values())
    assert set(parts) == {1: {"train"}, 2: {"train", "val"}}.get(n, {"train", "val", "test"})
    assert all((np.diff(part) > 0).all() for part in parts.values())
    assert all(np.array_equal(part, Split().rows(n)[name]) for name, part in parts.items())
    if n == 57:
        assert [len(parts[name]) for name in ("train", "val", "test")] == [45, 6, 6]
        assert not np.array_equal(parts["train"], Split(seed=1).rows(n)["train"])


def test_what_cannot_be_opened(tmp_path):
    with pytest.raises(DataError, match="no such store"):
        open_store(tmp_path / "nothing.zarr")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: is empty: it holds neither data nor a run"):
        open_store(tmp_path / "empty")
    (tmp_path / "notes.txt").write_text("not data")
    with pytest.raises(DataError, match=r"is neither a zarr directory nor a netCDF-4 file.*: epns-pyro data import-tracks notes\.txt"):
        open_store(tmp_path / "notes.txt")
    (tmp_path / "film.tif").write_text("not data")
    with pytest.raises(DataError, match=r"epns-pyro data import-labels film\.tif --out film\.zarr"):
        open_store(tmp_path / "film.tif")
    (tmp_path / "notes.doc").write_text("not data")
    with pytest.raises(DataError, match=r"netCDF-4 file that can be read \(.*\)$"):
        open_store(tmp_path / "notes.doc")
    with pytest.raises(DataError, match=r"no description of its fields: give --spec FILE, put a\.zarr\.yaml next to it"):
        open_store(write(dataset(), tmp_path / "a.zarr"))
    with pytest.raises(DataError, match="the time between frames is unknown"):
        open_store(write(described(dataset().drop_vars("time")), tmp_path / "b.zarr"))
    with pytest.raises(DataError, match="the attribute 'state_spec': is not valid JSON"):
        open_store(write(dataset().assign_attrs(state_spec="hello"), tmp_path / "c.zarr"))


def test_what_cannot_be_read(walkers, tmp_path):
    with pytest.raises(DataError, match="has no set 'vali': did you mean 'val'"):
        walkers.read("vali")
    with pytest.raises(DataError, match="set 'train' has trajectories 0 to 10, found 3 to 11"):
        walkers.read("train", [3, 11])
    data = described(dataset())
    broken = {
        "field 'charge' is missing": data.drop_vars("charge"),
        r"expected the dimensions \(trajectory, time, body, space\), found \(trajectory, time, atom, space\)": data.rename(body="atom"),
        "field 'position': space has 2 dimensions, found 1": data.isel(space=[0]),
        "has 1 frame: a step needs at least 2": data.isel(time=[0]).assign_attrs(frame_dt=0.5),
        "holds NaN or infinite values: epns-pyro data info says where": data.assign(position=data.position.where(data.position < 0.5)),
        "field 'charge': expected real numbers, found dtype": data.assign(charge=data.charge.astype("complex128")),
    }
    for number, (message, bad) in enumerate(broken.items()):
        with pytest.raises(DataError, match=message):
            everything(open_store(write(bad, tmp_path / f"{number}.zarr")))


def test_labels_outside_of_what_is_declared(stripes, tmp_path):
    data = stripes.dataset("train").load().assign_attrs(complete=7)
    cell = data["cell"].values.copy()
    cell[3, 2, 0, 0] = 9
    bad = data.assign({"cell": (data["cell"].dims, cell)})
    write(bad, tmp_path / "a.zarr", group="train")
    with pytest.raises(DataError, match="set 'train': field 'cell': label 9 is outside the declared range 0 to 3"):
        open_store(tmp_path / "a.zarr").read("train")
    write(data.assign({"cell": data["cell"].astype("float32")}), tmp_path / "b.zarr", group="train")
    with pytest.raises(DataError, match="field 'cell': a label is a whole number, found dtype float32"):
        open_store(tmp_path / "b.zarr").read("train")
    write(data.isel(cell=slice(2)), tmp_path / "c.zarr", group="train")
    with pytest.raises(DataError, match="field 'cell_type': expected 3 entries, one per cell, found 2"):
        open_store(tmp_path / "c.zarr").read("train")


def test_states_as_a_dataset_in_memory(walkers, stripes):
    x = np.stack([walkers.read("train"), walkers.read("train")])
    data = to_dataset(WALKERS, x, ("sample", "trajectory", "time"), frame_dt=0.25)
    assert data.position.dims == ("sample", "trajectory", "time", "body", "space")
    np.testing.assert_array_equal(data.velocity, WALKERS.get(x, "velocity"))
    np.testing.assert_array_equal(data.mass, walkers.dataset("train").mass)
    np.testing.assert_array_equal(data.time, 0.25 * np.arange(9))
    assert (data.position.units, data.mass.dims) == ("m", ("trajectory", "body"))
    labels = to_dataset(STRIPES, stripes.read("val"), ("trajectory", "time"), frame_dt=1.0)
    assert labels["cell"].dims == ("trajectory", "time", "y", "x")
    np.testing.assert_array_equal(labels["cell_type"], stripes.dataset("val")["cell_type"])


def test_the_spec_of_a_store_survives_the_trip(walkers):
    assert asdict(open_store(walkers.path).spec) == asdict(WALKERS)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fields": SPEC.fields[::-1]}, "has the fields position, charge, wind, the model has wind, charge, position"),
        ({"fields": (replace(SPEC.fields[0], unit="mm"), *SPEC.fields[1:])}, "the field 'position' is in um, in the model in mm"),
        (
            {"fields": (SPEC.fields[0], Field("charge", "0o", dynamic=False), SPEC.fields[2])},
            "the field 'charge' has irreps 0e, in the model 0o",
        ),
        ({"frame_dt": 0.1}, "a step lasts 0.5, of the model 0.1"),
    ],
)
def test_a_store_of_other_states_is_not_for_a_model(change, said, tmp_path):
    data = dataset().assign_attrs(state_spec=SPEC.to_json(), frame_dt=0.5)
    data.to_zarr(tmp_path / "a.zarr", consolidated=False)
    store = open_store(tmp_path / "a.zarr")
    assert store.states_for(SPEC, 0.5) is store
    with pytest.raises(DataError, match=said):
        store.states_for(replace(SPEC, fields=change.get("fields", SPEC.fields)), change.get("frame_dt", 0.5))
