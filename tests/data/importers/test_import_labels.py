"""Label images of a user: zarr arrays and TIFF stacks, with and without types."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
import zarr
from click.testing import CliRunner
from numcodecs import Blosc
from zarr.codecs import BloscCodec

from epns_pyro.cli import main
from epns_pyro.data import Split, check, import_labels, open_store
from epns_pyro.errors import DataError

pytestmark = pytest.mark.filterwarnings("error")

NAMES = np.array([0, 3, 7, 8, 40])  # labels as a tracking program might number them


@pytest.fixture
def films(rng):
    """(movie, time, y, x): four cells of 3 x 3 pixels with the odd labels NAMES, drifting along x."""
    image = np.zeros((8, 10), dtype=np.uint16)
    image[1:7, 2:8] = np.array([[3, 7], [8, 40]]).repeat(3, 0).repeat(3, 1)
    return np.stack([np.stack([np.roll(image, int(s), axis=1) for s in rng.integers(0, 2, 6).cumsum()]) for _ in range(5)])


def labels_in_order(store):
    rows = np.concatenate([np.full(store.size(group), k) for k, group in enumerate(store.splits)])
    x = np.concatenate([store.read(group) for group in store.splits])
    assert len(rows) == len(x)
    return x


def as_set(x):
    return {trajectory.tobytes() for trajectory in np.ascontiguousarray(x, dtype=np.int64)}


def compact(films):
    return np.searchsorted(NAMES, films)


def test_a_zarr_array_of_films(films, tmp_path):
    zarr.create_array(tmp_path / "cells.zarr", data=films)
    store = import_labels(tmp_path / "cells.zarr", tmp_path / "store.zarr", frame_dt=5.0, time_unit="min")
    assert {group: store.size(group) for group in store.splits} == {"train": 3, "val": 1, "test": 1}
    assert as_set(store.spec.get(labels_in_order(store), "cell")) == as_set(compact(films))
    assert (store.spec["cell"].size, store.spec["type"].size) == (5, 2)
    assert (store.spec.get(store.read("train"), "type") == (store.spec.get(store.read("train"), "cell") > 0)).all()
    assert (store.frame_dt, store.time_unit, store.spec.periodic) == (5.0, "min", False)
    assert check(store) == []
    assert store.system.config.area == (9, 9)


def test_the_system_of_imported_cells(films, tmp_path):
    films[1, 3][films[1, 3] == 7] = 3
    zarr.create_array(tmp_path / "cells.zarr", data=films)
    options = {"frame_dt": 5.0, "time_unit": "min", "split": Split(val=0, test=0)}
    system = import_labels(tmp_path / "cells.zarr", tmp_path / "store.zarr", **options).system
    assert (system.name, system.frame_dt, system.time_unit) == ("recorded_cells", 5.0, "min")
    assert system.config.area == (0, 18)  # one cell is gone for a frame, its neighbour twice as large
    x = open_store(tmp_path / "store.zarr").read("train")
    np.testing.assert_allclose(system.observables(x)["area_mean"].values[0], 9.0)
    assert system.alive(x).all()


@pytest.mark.parametrize("form", ["stack", "folder of stacks", "folder of frames", "float stack"])
def test_tiff_files(films, tmp_path, form):
    path = tmp_path / "films"
    if form in ("stack", "float stack"):
        path = tmp_path / "film.tif"
        tifffile.imwrite(path, films[0].astype(np.float32 if form == "float stack" else np.uint16), photometric="minisblack")
    else:
        path.mkdir()
        for i, image in enumerate(films[:3] if form == "folder of stacks" else films[0]):
            tifffile.imwrite(path / f"part_{i + 8}.tif", image, photometric="minisblack")
    store = import_labels(path, tmp_path / "store.zarr", split=Split(val=0, test=0), periodic=True)
    expected = compact(films[:3]) if form == "folder of stacks" else compact(films[:1])
    np.testing.assert_array_equal(store.spec.get(store.read("train"), "cell"), expected)
    assert store.spec.periodic


def test_films_are_cut_into_segments(films, tmp_path):
    zarr.create_array(tmp_path / "cells.zarr", data=films[0])
    store = import_labels(tmp_path / "cells.zarr", tmp_path / "store.zarr", segment=2)
    assert store.steps("train") == 1
    assert as_set(store.spec.get(labels_in_order(store), "cell")) == as_set(compact(films[0]).reshape(3, 2, 8, 10))


@pytest.mark.parametrize(("count", "options"), [(1, {}), (1, {"segment": 3}), (4, {}), (20, {"segment": 5})])
def test_sets_are_apart_in_time_or_have_films_of_their_own(count, options, tmp_path):
    """Every frame says which it is, by the area of its cell."""
    frames, width = 40, 50
    number = np.arange(count * frames).reshape(count, frames, 1)
    zarr.create_array(tmp_path / "films.zarr", data=(np.arange(width**2) <= number).astype(np.uint16).reshape(count, frames, width, width))
    store = import_labels(tmp_path / "films.zarr", tmp_path / "store.zarr", **options)
    when = {split: (store.spec.get(store.read(split), "cell") > 0).sum((-2, -1)).ravel() - 1 for split in store.splits}
    assert list(when) == ["train", "val", "test"]
    films = {split: set(found // frames) for split, found in when.items()}
    if count == 20:
        assert sum(map(len, films.values())) == count
        return
    assert films == {split: set(range(count)) for split in when}
    segment = store.steps("train") + 1
    for film in range(count):
        train, val, test = (found[found // frames == film] for found in when.values())
        assert val.min() - train.max() > segment
        assert test.min() - val.max() > segment


def test_a_test_set_too_small_for_verdicts_is_said(films, tmp_path):
    zarr.create_array(tmp_path / "films.zarr", data=films)
    command = ["data", "import-labels", str(tmp_path / "films.zarr"), "--out", str(tmp_path / "store.zarr")]
    run = CliRunner().invoke(main, command, env={"COLUMNS": "200"})
    assert run.exit_code == 0, run.output
    tested = open_store(tmp_path / "store.zarr").size("test")
    assert f"the test set has {tested} trajectory, too few for verdicts: use a shorter --segment, or more films" in run.output


def test_types_from_a_table_an_array_and_beside_the_labels(films, tmp_path):
    zarr.create_array(tmp_path / "films.zarr", data=films[:2])
    expected = {0: {3: 1, 7: 2, 8: 2, 40: 1}, 1: {3: 2, 7: 2, 8: 1, 40: 3}}
    lines = [f"{movie},{label},{kind}" for movie, types in expected.items() for label, kind in types.items()]
    (tmp_path / "types.csv").write_text("\n".join(["movie,label,type", *lines]))
    table = np.zeros((2, 40), dtype=np.int64)
    for movie, types in expected.items():
        for label, kind in types.items():
            table[movie, label - 1] = kind
    np.save(tmp_path / "types.npy", table)
    group = zarr.create_group(tmp_path / "group.zarr")
    group.create_array("cell", data=films[:2])
    group.create_array("cell_type", data=table)
    lookup = np.zeros((2, 41), dtype=np.int64)
    lookup[:, 1:] = table
    wanted = np.stack([lookup[i][films[i]] for i in range(2)])
    sources = [("films.zarr", "types.csv"), ("films.zarr", "types.npy"), ("group.zarr", None)]
    for i, (path, types) in enumerate(sources):
        store = import_labels(
            tmp_path / path, tmp_path / f"store{i}.zarr", types=tmp_path / types if types else None, split=Split(val=0, test=0)
        )
        np.testing.assert_array_equal(store.spec.get(store.read("train"), "type"), wanted)
        assert store.spec["type"].size == 4


def test_one_table_for_all_films(films, tmp_path):
    zarr.create_array(tmp_path / "films.zarr", data=films[:2])
    (tmp_path / "types.csv").write_text("label,type\n3,2\n7,1\n8,1\n40,2\n")
    store = import_labels(tmp_path / "films.zarr", tmp_path / "store.zarr", types=tmp_path / "types.csv")
    np.testing.assert_array_equal(store.dataset("train")["cell_type"], [[2, 1, 1, 2]])


def test_films_without_a_medium(tmp_path):
    image = np.repeat([[5, 9]], 3, axis=0)
    zarr.create_array(tmp_path / "films.zarr", data=np.stack([image, image[:, ::-1]]))
    store = import_labels(tmp_path / "films.zarr", tmp_path / "store.zarr")
    np.testing.assert_array_equal(store.spec.get(store.read("train"), "cell")[0, :, 0], [[1, 2], [2, 1]])


def refused(tmp_path, message, path, **options):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DataError, match=message):
        import_labels(tmp_path / path, tmp_path / "store.zarr", **options)
    assert sorted(tmp_path.iterdir()) == before, "a failed import left something behind"


def test_what_holds_no_films(tmp_path):
    refused(tmp_path, "nothing: no such file or folder", "nothing")
    (tmp_path / "empty").mkdir()
    refused(tmp_path, "expected a zarr array, a TIFF stack, or a folder of .tif files, found none of them", "empty")
    (tmp_path / "challenge" / "01_GT" / "TRA").mkdir(parents=True)
    tifffile.imwrite(tmp_path / "challenge" / "01_GT" / "TRA" / "man_track000.tif", np.ones((4, 4), np.uint16))
    refused(tmp_path, r"one level or more below, in .*01_GT/TRA: give one of them", "challenge")
    zarr.create_group(tmp_path / "g.zarr").create_array("cells", data=np.ones((2, 2, 2), np.int64))
    refused(tmp_path, "has no array 'cell': did you mean 'cells'", "g.zarr")
    zarr.create_array(tmp_path / "flat.zarr", data=np.ones((2, 2), np.int64))
    refused(tmp_path, r"must be \(time, y, x\) or \(movie, time, y, x\), found \(2, 2\)", "flat.zarr")
    (tmp_path / "broken.tif").write_bytes(b"no image")
    refused(tmp_path, r"broken\.tif: is not a TIFF file", "broken.tif")
    tifffile.imwrite(tmp_path / "photo.tif", np.zeros((4, 4, 3), np.uint8), photometric="rgb")
    refused(tmp_path, r"photo\.tif: is a colour image", "photo.tif")


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda x: x + 0.5, {}, r"a label is a whole number, found float64: is this the raw image"),
        (lambda x: x.astype(int) - 1, {}, r"holds negative labels \(down to -1\): use 0 for the medium"),
        (lambda x: 0 * x, {}, "holds no labels, all pixels are 0"),
        (lambda x: x[:0], {}, r"holds no images: \(time, y, x\) is \(0, 8, 10\)"),
        (lambda x: x[:1], {}, "has 1 frame: a step needs at least 2"),
        (lambda x: x, {"segment": 7}, "no film has as many frames as a segment"),
    ],
)
def test_films_that_are_no_labels(films, tmp_path, change, options, message):
    zarr.create_array(tmp_path / "films.zarr", data=change(films[0]))
    refused(tmp_path, message, "films.zarr", **options)


@pytest.mark.parametrize("group", [False, True])
@pytest.mark.parametrize("format", [2, 3])
def test_a_damaged_chunk_of_blosc_is_named(films, tmp_path, group, format):
    path, packed = tmp_path / "films.zarr", Blosc() if format == 2 else BloscCodec()
    parent = zarr.create_group(path, zarr_format=format) if group else None
    kind = {"chunks": (1, 3, 8, 10), "compressors": packed}
    array = parent.create_array("cell", data=films, **kind) if group else zarr.create_array(path, data=films, zarr_format=format, **kind)
    key = array.metadata.encode_chunk_key((2, 1, 0, 0))
    chunk = path / array.path / key
    chunk.write_bytes(chunk.read_bytes()[:-9])
    refused(tmp_path, rf"films\.zarr: (variable 'cell': )?chunk {key} is damaged", "films.zarr")


def without_cells(films, *frames):
    films = films.copy()
    for movie, frame in frames:
        films[movie, frame] = 0
    return films


def test_frames_without_a_cell(films, tmp_path):
    zarr.create_array(tmp_path / "one.zarr", data=without_cells(films, (1, 3)))
    zarr.create_array(tmp_path / "two.zarr", data=without_cells(films, (0, 4), (0, 5)))
    refused(tmp_path, r"^one\.zarr\[1\]: frame 3 is empty: leave such frames out", "one.zarr")
    refused(tmp_path, "frame 3 is empty", "one.zarr", segment=2)  # numbered in the film, not in the segment
    refused(tmp_path, r"^two\.zarr\[0\]: 2 frames are empty, the first is frame 4: leave such frames out", "two.zarr")
    store = import_labels(tmp_path / "two.zarr", tmp_path / "cut.zarr", segment=4)  # the empty frames are left over
    assert [finding for finding in check(store) if "empty" in finding.message] == []
    args = ["data", "import-labels", str(tmp_path / "one.zarr"), "--out", str(tmp_path / "store.zarr")]
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("error: one.zarr[1]: frame 3 is empty")
    assert not (tmp_path / "store.zarr").exists()


def test_films_of_different_size(films, tmp_path):
    (tmp_path / "films").mkdir()
    tifffile.imwrite(tmp_path / "films" / "a.tif", films[0], photometric="minisblack")
    tifffile.imwrite(tmp_path / "films" / "b.tif", films[1, :4], photometric="minisblack")
    refused(tmp_path, r"b\.tif: \(time, y, x\) is \(4, 8, 10\), that of a\.tif is \(6, 8, 10\): cut films", "films")
    assert import_labels(tmp_path / "films", tmp_path / "cut.zarr", segment=4).steps("train") == 3


def test_types_that_do_not_fit(films, tmp_path):
    zarr.create_array(tmp_path / "films.zarr", data=films[:2])
    refused(tmp_path, "no such file of types", "films.zarr", types=tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("cell,type\n3,1\n")
    refused(tmp_path, r"t\.csv: has no column 'label'", "films.zarr", types=tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("label,type\n3,1\n7,big\n")
    refused(tmp_path, r"t\.csv, line 3: label and type must be whole numbers", "films.zarr", types=tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("label,type\n3,1\n7,1\n8,0\n")
    message = r"t\.csv: no type of 1 or more for label 8 of films\.zarr\[0\] \(2 such labels\)"
    refused(tmp_path, message, "films.zarr", types=tmp_path / "t.csv")
    np.save(tmp_path / "t.npy", np.ones((1, 40), dtype=int))
    refused(tmp_path, r"has types for 1 films, none for films\.zarr\[1\]", "films.zarr", types=tmp_path / "t.npy")
    np.save(tmp_path / "t.npy", np.ones(40))
    refused(tmp_path, r"expected whole numbers \(cell,\) or \(movie, cell\), found float64", "films.zarr", types=tmp_path / "t.npy")
