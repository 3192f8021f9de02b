"""The published layout: what is taken over, in which order, and what is refused by name."""

from __future__ import annotations

import numpy as np
import pytest

from epns_pyro.data import import_epns, open_store
from epns_pyro.errors import ConfigError, DataError

pytestmark = pytest.mark.filterwarnings("error")


def celestial(rng, bodies=3, time=41):
    """(bodies, 7, time): masses that stay, the rest at random."""
    return np.concatenate([np.repeat(rng.uniform(1, 2, (bodies, 1, 1)), time, 2), rng.standard_normal((bodies, 6, time))], axis=1)


def cellular(rng, time=4, side=12, cells=4):
    """(time, side, side, 2): four square cells in the middle, of fixed types, that drift along x."""
    types = np.concatenate([[0], rng.integers(1, 4, cells)])
    types[1] = 3
    image = np.zeros((side, side), dtype=np.int64)
    image[3:9, 2:8] = np.arange(1, 5).reshape(2, 2).repeat(3, 0).repeat(3, 1)
    labels = np.stack([np.roll(image, t, axis=1) for t in range(time)])
    return np.stack([labels, types[labels]], axis=-1)


@pytest.fixture
def planets(tmp_path, rng):
    """A published celestial folder; files are numbered past 9, and train/ comes in an order of its own."""
    arrays = {}
    for folder, number, time in (
        ("train", 11, 41),
        ("val", 2, 41),
        ("test", 2, 41),
        ("test_same_init", 4, 41),
        ("test_long_simulation", 2, 81),
    ):
        (tmp_path / "published" / folder).mkdir(parents=True)
        for i in reversed(range(number)):
            arrays[folder, i] = celestial(rng, time=time)
            if folder == "test_same_init":
                arrays[folder, i][..., 0] = arrays[folder, 3 if i > 1 else 1][..., 0]
                arrays[folder, i][:, 0] = arrays[folder, i][:, 0, :1]
            np.save(tmp_path / "published" / folder / f"run_{i}.npy", arrays[folder, i])
    return tmp_path / "published", arrays


@pytest.fixture
def tissue(tmp_path, rng):
    arrays = []
    for folder, number in (("train", 3), ("val", 1), ("test", 1)):
        (tmp_path / "cells" / folder).mkdir(parents=True)
        for i in range(number):
            arrays.append(cellular(rng))
            np.save(tmp_path / "cells" / folder / f"{i}.npy", arrays[-1].astype(np.float32))
    return tmp_path / "cells", arrays


def test_celestial_data(planets, tmp_path):
    directory, arrays = planets
    seen = []
    store = import_epns(directory, tmp_path / "store.zarr", progress=lambda *call: seen.append(call))
    assert {group: (store.size(group), store.steps(group)) for group in store.splits} == {
        "train": (11, 4),
        "val": (2, 4),
        "test": (2, 4),
        "same_init": (4, 4),
        "long": (2, 8),
    }
    x = store.read("train")
    for i in range(11):
        expected = np.moveaxis(arrays["train", i][..., ::10], -1, 0)
        np.testing.assert_array_equal(np.concatenate([store.spec.get(x[i], n).reshape(5, 3, -1) for n in store.spec.names], -1), expected)
    assert store.frame_dt == pytest.approx(0.1)
    system = open_store(store.path).system
    assert system.name == "nbody"
    assert system.config.bodies == 3
    assert system.config.sets["same_init"].initial_states == 2
    assert system.config.sets["train"].initial_states is None
    assert ("train", 11, 11) in seen


def test_every_frame_can_be_kept(planets, tmp_path):
    store = import_epns(planets[0], tmp_path / "store.zarr", every=1)
    assert store.steps("train") == 40
    assert store.frame_dt == pytest.approx(0.01)
    slow = import_epns(planets[0], tmp_path / "slow.zarr", every=20, frame_dt=0.5)
    assert (slow.steps("train"), slow.frame_dt) == (2, 0.5)


def test_cellular_data(tissue, tmp_path):
    directory, arrays = tissue
    store = import_epns(directory, tmp_path / "store.zarr")
    np.testing.assert_array_equal(store.read("train"), np.stack(arrays[:3]))
    np.testing.assert_array_equal(store.read("test"), np.stack(arrays[4:]))
    config = store.system.config
    assert (config.name, config.lattice, config.cells, config.types, config.burn_in) == ("cells", (12, 12), 4, 3, 1)
    assert store.spec == store.system.spec
    store.system.observables(store.read("test"))


@pytest.mark.parametrize("number", [lambda k: k + 1200, lambda k: 3 * k, lambda k: k + 2**40])
def test_labels_that_do_not_count_from_one_are_numbered_anew(tissue, tmp_path, number):
    directory, arrays = tissue
    for file in sorted(directory.rglob("*.npy")):
        x = np.load(file).astype(np.int64)
        x[..., 0] = np.where(x[..., 0] > 0, number(x[..., 0]), 0)
        np.save(file, x)
    store = import_epns(directory, tmp_path / "store.zarr")
    np.testing.assert_array_equal(store.read("train"), np.stack(arrays[:3]))
    assert store.system.config.cells == 4


def test_folders_other_than_train_may_be_missing(planets, tmp_path):
    for folder in ("val", "test", "test_same_init", "test_long_simulation"):
        for file in (planets[0] / folder).iterdir():
            file.unlink()
        (planets[0] / folder).rmdir()
    assert import_epns(planets[0], tmp_path / "store.zarr").splits == ("train",)


def refused(directory, tmp_path, message, **options):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DataError, match=message):
        import_epns(directory, tmp_path / "store.zarr", **options)
    assert sorted(tmp_path.iterdir()) == before, "a failed import left something behind"


def replace(file, change):
    array = np.load(file)
    np.save(file, change(array))


def negative(x):
    return -x


def with_nan(x):
    x[0, 1, 5 * 10 % x.shape[2]] = np.nan
    x[0, 1, 0] = np.nan
    return x


def with_drifting_mass(x):
    x[1, 0, -1] += 0.5
    return x


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("train/run_7.npy", lambda x: x[:, :6], r"train/run_7\.npy: expected \(bodies, 7, time\), found \(3, 6, 41\)"),
        ("train/run_0.npy", lambda x: x[0], r"train/run_0\.npy: expected celestial data .* or cellular data .*, found \(7, 41\)"),
        (
            "val/run_1.npy",
            lambda x: x[..., :31],
            r"val/run_1\.npy: has 4 frames of 3 sites, the files before it in val/ 5 frames of 3 sites",
        ),
        ("val/run_1.npy", lambda x: x[:2], r"val/run_1\.npy: has 5 frames of 2 sites"),
        ("test/run_0.npy", with_nan, r"test/run_0\.npy: holds values that are not finite"),
        ("train/run_3.npy", with_drifting_mass, r"train/run_3\.npy: the mass \(channel 0\) changes in time"),
        ("train/run_3.npy", negative, r"train/run_3\.npy: has a mass \(channel 0\) of -"),
        ("train/run_3.npy", lambda x: x.astype(str), r"train/run_3\.npy: holds <U32 values, expected numbers"),
    ],
)
def test_celestial_files_that_do_not_fit(planets, tmp_path, file, change, message):
    replace(planets[0] / file, change)
    refused(planets[0], tmp_path, message)


def test_sets_of_other_systems_and_broken_files(planets, tmp_path, rng):
    for i in range(2):
        np.save(planets[0] / "val" / f"run_{i}.npy", celestial(rng, bodies=4))
    refused(planets[0], tmp_path, r"val/run_0\.npy: has 4 bodies, those in train/ 3")
    (planets[0] / "train" / "run_4.npy").write_bytes(b"not an array")
    refused(planets[0], tmp_path, r"train/run_4\.npy: cannot be read as a \.npy array")
    refused(planets[0], tmp_path, r"train/run_0\.npy: every = 50 keeps 1 frame", every=50)


def with_two_types(x):
    x[2][x[2][..., 0] == 1, 1] = 1
    return x


def with_hole(x):
    x[1] = 0
    return x


def untyped(x):
    x[..., 1][x[..., 0] == 2] = 0
    return x


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("train/1.npy", lambda x: x - 1, r"train/1\.npy: holds labels or types that are negative"),
        ("train/1.npy", lambda x: x + 0.25, r"train/1\.npy: holds labels or types that are negative or not whole numbers"),
        ("train/2.npy", with_two_types, r"train/2\.npy: a cell has two types"),
        ("train/2.npy", lambda x: x[..., ::-1], r"train/2\.npy: a cell has two types"),
        ("val/0.npy", with_hole, r"val/0\.npy: of the frames kept, frame 1 is empty: leave such frames out"),
        ("val/0.npy", untyped, r"val/0\.npy: cell 2 has type 0, which is that of the medium"),
        ("val/0.npy", lambda x: x[:, 1:], r"val/0\.npy: has images of \(11, 12\) pixels, those in train/ \(12, 12\)"),
        ("train/2.npy", lambda x: x[..., 0], r"train/2\.npy: expected \(time, height, width, 2\), found"),
    ],
)
def test_cellular_files_that_do_not_fit(tissue, tmp_path, file, change, message):
    replace(tissue[0] / file, change)
    refused(tissue[0], tmp_path, message)


def test_folders_that_are_no_published_data(tmp_path, planets):
    refused(tmp_path / "nowhere", tmp_path, "nowhere: no such folder")
    refused(planets[0] / "train", tmp_path, r"train: has no folder train/: expected train/, val/, test/, test_same_init/")
    for file in (planets[0] / "val").iterdir():
        file.unlink()
    refused(planets[0], tmp_path, r"val: holds no \.npy files")


def test_an_existing_store_is_not_overwritten(planets, tmp_path):
    (tmp_path / "store.zarr").mkdir()
    with pytest.raises(DataError, match=r"store\.zarr: exists already"):
        import_epns(planets[0], tmp_path / "store.zarr")
    with pytest.raises(ConfigError, match="frame_dt"):
        import_epns(planets[0], tmp_path / "other.zarr", frame_dt=0.00001)
