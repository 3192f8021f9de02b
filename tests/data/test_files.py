"""Files that may come from anywhere: codecs, sizes and chunks are looked at before they are believed."""

from __future__ import annotations

import gc
import json
import pickle
import re
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import h5py
import numcodecs
import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

from epns_pyro.data import files, open_store
from epns_pyro.data.inspection.check import check
from epns_pyro.data.precision import check_precision
from epns_pyro.errors import DataError
from epns_pyro.state import Field, StateSpec

DIMS = ("trajectory", "time", "body", "space")
DESCRIPTION = "frame_dt: 0.5\nspace: 2\nfields:\n  - {name: position, irreps: 1o, translates: true}\n"


def write(folder: Path, name: str = "x.zarr", *, values: np.ndarray | None = None, time: object = None, **settings: object) -> Path:
    """Write a store of positions that is sound but for what the settings and values say."""
    values = np.random.default_rng(0).normal(size=(6, 5, 3, 2)).cumsum(1) if values is None else values
    data = xr.Dataset({"position": (DIMS, values)}, coords={} if time is None else {"time": time})
    path = folder / name
    path.with_name(path.name + ".yaml").write_text(DESCRIPTION)
    encoding = {"position": {"chunksizes" if name.endswith(".nc") else "chunks": (2, 5, 3, 2)} | settings}
    if name.endswith(".nc"):
        data.to_netcdf(path, engine="h5netcdf", encoding=encoding)
    else:
        version = 2 if "compressors" in settings and isinstance(settings["compressors"], numcodecs.abc.Codec) else 3
        data.to_zarr(path, zarr_format=version, consolidated=version == 2, encoding=encoding)
    return path


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def use(path: Path) -> None:
    """Do what data info and train do."""
    store = open_store(path)
    check(store)
    store.context()
    store.read("train")


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        use(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(str(path))


# -- damaged chunks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "chunk"),
    [
        ({"compressors": (ZstdCodec(),)}, "c/1/0/0/0"),
        ({"compressors": (BloscCodec(),)}, "c/1/0/0/0"),
        ({"compressors": (GzipCodec(),)}, "c/1/0/0/0"),
        ({"compressors": ()}, "c/1/0/0/0"),
        ({"compressors": (ZstdCodec(),), "shards": (4, 5, 3, 2)}, "c/1/0/0/0"),
        ({"compressors": numcodecs.Blosc(cname="lz4")}, "1.0.0.0"),
        ({"compressors": numcodecs.Zstd()}, "1.0.0.0"),
        ({"compressors": numcodecs.Zlib()}, "1.0.0.0"),
    ],
)
@pytest.mark.parametrize("damage", [lambda content: content[:20], lambda content: b"", lambda content: bytes(len(content) - 1)])
def test_a_damaged_chunk_of_zarr_is_named(settings, chunk, damage, tmp_path):
    path = write(tmp_path, **settings)
    file = path / "position" / chunk
    file.write_bytes(damage(file.read_bytes()))
    said = refused(path)
    assert re.match(f"(: set '(train|val|test)')?: variable 'position': chunk {re.escape(chunk)} is damaged \\(", said)
    assert said.endswith("copy the file again from its source, or make it again")


def test_a_damaged_chunk_of_netcdf_names_the_variable(tmp_path):
    path = write(tmp_path, "x.nc", fletcher32=True)
    with h5py.File(path) as file:
        place = file["position"].id.get_chunk_info(1).byte_offset
    content = bytearray(path.read_bytes())
    content[place] ^= 255
    path.write_bytes(content)
    assert refused(path).startswith(": set 'train': variable 'position' cannot be read (")


def test_a_damaged_time_is_named(tmp_path):
    path = write(tmp_path, time=0.5 * np.arange(5))
    (path / "time" / "c" / "0").write_bytes(b"")
    assert refused(path).startswith(": set 'train': variable 'time': chunk c/0 is damaged (")


def test_any_changed_byte_of_a_chunk_of_ours_is_seen(walkers, tmp_path):
    path = shutil.copytree(walkers.path, tmp_path / "x.zarr")
    chunk = path / "train" / "position" / "c" / "0" / "0" / "0" / "0"
    sound, seen = chunk.read_bytes(), walkers.read("train", 0)
    for place in range(0, len(sound), 7):
        chunk.write_bytes(sound[:place] + bytes([sound[place] ^ 16]) + sound[place + 1 :])
        try:
            np.testing.assert_array_equal(open_store(path).read("train", 0), seen)  # a bit that means nothing
        except DataError as error:
            assert "chunk c/0/0/0/0 is damaged" in str(error)  # noqa: PT017 - one or the other


def test_lost_chunks_are_found(tmp_path):
    path = write(tmp_path)
    assert not [finding for finding in check(open_store(path)) if "missing on disk" in finding.message]
    (path / "position" / "c" / "1" / "0" / "0" / "0").unlink()
    (finding,) = {finding.message for finding in check(open_store(path)) if "missing on disk" in finding.message}
    assert finding == "1 of 3 chunks of 'position' are missing on disk and are read as nan: is a file lost?"


# -- code in data ----------------------------------------------------------------------------------------------------------


class Payload:
    """Unpickling this makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


TEXT_BY_PICKLE = {"filters": [{"id": "vlen-utf8"}], "compressor": {"id": "pickle"}, "dtype": "|O", "fill_value": ""}


def old(path: Path, **changes: object) -> None:
    edit(path / "position" / ".zarray", **changes)


def summary(path: Path, **changes: object) -> None:
    content = json.loads((path / ".zmetadata").read_text())
    content["metadata"]["position/.zarray"] |= changes
    (path / ".zmetadata").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("version", "plant", "said"),
    [
        (2, lambda path: old(path, compressor={"id": "pickle", "protocol": 5}), "the codec 'pickle' is not read"),
        (2, lambda path: old(path, **TEXT_BY_PICKLE), "the codec 'pickle' is not read"),
        (2, lambda path: old(path, filters=[{"id": "pickle"}]), "the codec 'pickle' is not read"),
        (2, lambda path: old(path, filters=[{"id": "msgpack2"}], dtype="|O"), "the codec 'msgpack2' is not read"),
        (2, lambda path: old(path, filters=[{"id": ["pickle"]}]), "the codec ['pickle'] is not read"),
        (2, lambda path: old(path, filters=["pickle"]), "codec is 'pickle'"),
        (2, lambda path: old(path, filters="pickle"), "filters is 'pickle'"),
        (2, lambda path: old(path, filters=[{"id": "astype", "encode_dtype": "|O", "decode_dtype": "<f8"}]), "encode_dtype '|O'"),
        (2, lambda path: old(path, dtype="|O"), "dtype is '|O'"),
        (2, lambda path: old(path, dtype=[["a", "<f8"]]), "dtype is [['a', '<f8']]"),
        (2, lambda path: old(path, dtype="<U100000"), "dtype is '<U100000'"),
        (2, lambda path: summary(path, compressor={"id": "pickle"}), "the codec 'pickle' is not read"),
        (3, lambda path: edit(path / "position" / "zarr.json", codecs=[{"name": "numcodecs.pickle"}]), "the codec 'numcodecs.pickle'"),
        (3, lambda path: edit(path / "position" / "zarr.json", codecs=["numcodecs.pickle"]), "the codec 'numcodecs.pickle'"),
        (
            3,
            lambda path: edit(
                path / "position" / "zarr.json",
                codecs=[{"name": "sharding_indexed", "configuration": {"codecs": [{"name": "evil"}], "index_codecs": []}}],
            ),
            "the codec 'evil' is not read",
        ),
        (
            3,
            lambda path: edit(
                path / "zarr.json",
                consolidated_metadata={
                    "metadata": {
                        "position": json.loads((path / "position" / "zarr.json").read_text()) | {"codecs": [{"name": "numcodecs.pickle"}]}
                    }
                },
            ),
            "the codec 'numcodecs.pickle' is not read",
        ),
        (3, lambda path: edit(path / "position" / "zarr.json", data_type={"name": "structured"}), "data_type is {'name': 'structured'}"),
        (3, lambda path: edit(path / "position" / "zarr.json", storage_transformers=[{"name": "x"}]), "storage_transformers is"),
    ],
)
def test_codecs_that_do_more_than_compute_are_refused_before_anything_is_decoded(version, plant, said, tmp_path, monkeypatch):
    monkeypatch.setattr(numcodecs.pickles, "ALLOW_UNSAFE_PICKLE_DECODE", True)  # as numcodecs before 0.16.6 had it
    path = write(tmp_path, compressors=numcodecs.Zstd() if version == 2 else (ZstdCodec(),))
    for chunk in [*(path / "position").glob("[0-9]*"), *(path / "position").glob("c/*/0/0/0")]:
        chunk.write_bytes(pickle.dumps(Payload(tmp_path / "code ran")))
    plant(path)
    assert said in refused(path)
    with pytest.raises(DataError, match=r"position|zarr\.json|\.zmetadata|\.zarray"):
        files.open_dataset(path)
    assert not (tmp_path / "code ran").exists()


def test_the_planted_code_would_run(tmp_path, monkeypatch):
    monkeypatch.setattr(numcodecs.pickles, "ALLOW_UNSAFE_PICKLE_DECODE", True)
    path = write(tmp_path, compressors=numcodecs.Zstd())
    (path / "position" / "0.0.0.0").write_bytes(pickle.dumps(Payload(tmp_path / "code ran")))
    old(path, **TEXT_BY_PICKLE)
    with suppress(Exception):  # what it raises afterwards does not matter; one chunk, for those that are not pickled may raise first
        zarr.open_group(path, mode="r", use_consolidated=False)["position"][0, 0, 0, 0]
    assert (tmp_path / "code ran").exists()


@pytest.mark.parametrize("name", ["lz4", "zstd", "blosclz"])
def test_codecs_that_compute_are_read(name, tmp_path):
    use(write(tmp_path, "a.zarr", compressors=numcodecs.Blosc(cname=name), filters=[numcodecs.Delta("<f8"), numcodecs.Shuffle()]))
    use(write(tmp_path, "b.zarr", compressors=(BloscCodec(cname=name),), shards=(4, 5, 3, 2)))


# -- sizes -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shape": [10**12, 5, 3, 2]}, "declares a dimension of 1e+12 entries: expected at most 1e+08"),
        ({"shape": [6, 10**9, 3, 2]}, "declares a dimension of 1e+09"),
        ({"shape": [6, 10**400, 3, 2]}, "declares a dimension of 1e+300"),
        ({"shape": [10**7, 5, 3, 2]}, "declares 10000000 x 5 x 3 x 2 entries in chunks of 2 x 5 x 3 x 2, which take 2.24 GiB, but"),
        ({"shape": [6, 5, 10**8, 2]}, "which take 44.7 GiB, but"),
        ({"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [10**7, 5, 3, 2]}}}, "in chunks of 10000000 x 5 x 3 x 2"),
        ({"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [0, 5, 3, 2]}}}, "chunk_shape is [0, 5, 3, 2]"),
        ({"shape": [-6, 5, 3, 2]}, "shape is [-6, 5, 3, 2]"),
        ({"shape": "many"}, "shape is 'many'"),
        ({"shape": [6.0, 5, 3, 2]}, "shape is [6.0, 5, 3, 2]"),
        ({"chunk_grid": {"name": "rectilinear"}}, "expected a regular grid of chunks, found 'rectilinear'"),
    ],
)
def test_sizes_of_zarr_are_believed_after_a_look_at_what_is_there(changes, said, tmp_path):
    path = write(tmp_path)
    edit(path / "position" / "zarr.json", **changes)
    assert said in refused(path)


def test_sizes_of_netcdf_are_believed_after_a_look_at_what_is_there(tmp_path):
    path = write(tmp_path, "x.nc")
    with h5py.File(path, "r+") as file:
        file.create_dataset("mass", shape=(10**7, 100), chunks=(1, 100), dtype="f8")
    assert ": variable 'mass' declares 10000000 x 100 entries in chunks of 1 x 100, which take 7.45 GiB, but 0 bytes" in refused(path)
    with h5py.File(path, "r+") as file:
        del file["mass"]
        file.create_dataset("mass", shape=(10**12,), chunks=(100,), dtype="f8")
    assert "declares a dimension of 1e+12" in refused(path)


def test_what_compresses_well_is_believed(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BELIEVED", 100)
    use(write(tmp_path))  # chunks of noise
    monkeypatch.setattr(files, "COMPRESSION", 1)
    assert "declares 6 x 5 x 3 x 2 entries" in refused(write(tmp_path, "y.zarr", values=np.ones((6, 5, 3, 2))))


def test_a_store_that_is_not_finished_says_so_whatever_its_size(walkers, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BELIEVED", 1000)
    path = shutil.copytree(walkers.path, tmp_path / "x.zarr")
    for chunk in (path / "train").glob("*/c"):
        shutil.rmtree(chunk)
    group = json.loads((path / "train" / "zarr.json").read_text())
    edit(path / "train" / "zarr.json", attributes=group["attributes"] | {"complete": 0})
    with pytest.raises(DataError, match="set 'train' is incomplete, 0 of 11 trajectories"):
        open_store(path).read("train")
    edit(path / "train" / "zarr.json", attributes=group["attributes"] | {"complete": "all"})
    with pytest.raises(DataError, match="which take"):
        open_store(path)
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"the attribute 'complete' is the number of trajectories .* 0 to 11, found 'all'"):
        open_store(path).read("train")


# -- times and numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("time", "said"),
    [
        ([0.0, np.nan, 1.0, 1.5, 2.0], "the coordinate 'time' holds NaN or infinite values: correct it, or give frame_dt"),
        ([0.0, 0.5, 1.0, 1.5, np.inf], "holds NaN or infinite values"),
        ([0.0, 0.5, 0.4, 1.5, 2.0], "does not increase at frame 2: sort the frames or correct it, or give frame_dt"),
        ([0.0, 0.5, 0.5, 1.5, 2.0], "does not increase at frame 2"),
        (["a", "b", "c", "d", "e"], "holds no numbers"),
        (np.arange("2026-01-01", "2026-01-06", dtype="datetime64[D]").astype("datetime64[ns]"), "holds dates ('days since 2026-01-01"),
    ],
)
@pytest.mark.parametrize("name", ["x.zarr", "x.nc"])
def test_a_time_that_is_no_time_is_refused(time, said, name, tmp_path):
    path = write(tmp_path, name, time=("time", np.asarray(time)))
    path.with_name(f"{name}.yaml").write_text(DESCRIPTION.replace("frame_dt: 0.5\n", ""))
    assert said in refused(path)


@pytest.mark.parametrize(
    ("factor", "said"),
    [
        (1e300, "field 'position' holds values up to"),
        (1e16, "training in single precision needs 1e-15 to 1e+15: choose another unit"),
        (1e-300, "field 'position' has a scale of"),
        (1e-17, "field 'position' has a scale of"),
    ],
)
def test_numbers_beyond_single_precision_are_refused(factor, said, tmp_path):
    path = write(tmp_path, values=factor * np.random.default_rng(0).normal(size=(6, 5, 3, 2)).cumsum(1))
    with pytest.raises(DataError, match=re.escape(said)) as caught:
        open_store(path).context()
    assert str(caught.value).startswith(f"{path}: set 'train': ")


def test_a_change_that_is_too_small_to_square_is_refused(tmp_path):
    values = np.random.default_rng(0).normal(size=(6, 1, 3, 2)).repeat(5, 1)
    values[:, 1:] += 1e-16
    path = write(tmp_path, values=values * 1e-3)
    with pytest.raises(DataError, match="field 'position' has a change per step of"):
        open_store(path).context()


def test_static_numbers_have_more_room():
    spec = StateSpec((Field("mass", dynamic=False, unit="kg"), Field("position", "1o")), space=2)
    check_precision(spec, spec.pack(mass=np.full((1, 3), 2e30), position=np.full((1, 3, 2), np.nan)))
    with pytest.raises(DataError, match=r"field 'mass' holds values up to 1e\+38, .* instead of kg"):
        check_precision(spec, spec.pack(mass=np.full((1, 3), 1e38), position=np.zeros((1, 3, 2))))


def damaged_metadata(folder: Path) -> Path:
    """Give two arrays of a store a fill value that is no number."""
    path = write(folder, time=("time", np.arange(5.0)))
    for file in path.glob("*/zarr.json"):
        edit(file, fill_value="what")
    return path


def damaged_attribute(folder: Path) -> Path:
    """Give a netCDF file an attribute of a type that h5py cannot read, under a name that h5netcdf looks for."""
    path = write(folder, "x.nc")
    with h5py.File(path, "r+") as file:
        h5py.h5a.create(file.id, b"_nc3_strict", h5py.h5t.UNIX_D32LE, h5py.h5s.create(h5py.h5s.SCALAR))
    return path


@pytest.mark.parametrize(("damage", "said"), [(damaged_metadata, "'position' cannot be read"), (damaged_attribute, "TypeTimeID")])
def test_libraries_print_nothing_about_a_damaged_file(damage, said, tmp_path, monkeypatch, caplog):
    ignored: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda event: ignored.append(str(event.exc_value)))
    assert re.search(said, refused(damage(tmp_path)))
    gc.collect()  # what zarr and h5netcdf leave behind speaks up when it is collected
    assert ignored == []
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []
