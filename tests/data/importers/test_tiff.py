"""TIFF files that are damaged, lie about their size, or are no films: one line each, and nothing written."""

from __future__ import annotations

import json
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from epns_pyro.data import import_labels
from epns_pyro.data.importers.movies import View, find_movies
from epns_pyro.data.importers.tiff import count_images, open_stack
from epns_pyro.errors import DataError

FILM = np.zeros((6, 16, 16), np.uint16)
FILM[:, 3:7, 3:7], FILM[:, 9:12, 9:12] = 1, 7


def write(path, film=FILM, **options):
    tifffile.imwrite(path, film, **({"photometric": "minisblack"} | options))
    return path


def directory(**tags):
    """The bytes of a little-endian TIFF with one directory at 8 and 512 bytes of zeros behind it; all tags are LONG."""
    tags = {256: 16, 257: 16, 258: 16, 259: 1, 262: 1, 273: 300, 277: 1, 278: 16, 279: 512} | {int(k[1:]): v for k, v in tags.items()}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()) if tag != 0)
    head = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries) // 12) + entries
    return (head + struct.pack("<I", tags.get(0, 0))).ljust(300, b"\0") + bytes(512)


def deflate_bomb():
    packed = zlib.compress(bytes(2**26))
    return directory(t259=8, t279=len(packed))[:300] + packed


def shared_strip():
    """The same 512 bytes as pixels of a hundred images of 4096 x 4096."""
    return b"".join([directory(t256=2**14, t257=2**14, t259=8, t279=512)])


LIES = {
    "not a TIFF": (b"no image", "is not a TIFF file"),
    "empty": (b"", "is not a TIFF file"),
    "no directory": (b"II*\0\0\0\0\0", "holds no images"),
    "beyond the end": (b"II*\0\xff\xff\0\0", "image 1 lies beyond its end"),
    "circle": (directory(t0=8), "forms a loop after image 1"),
    "huge": (directory(t256=10**6, t257=10**6), "declares 1000000 x 1000000 pixels: expected 1 to 268435456"),
    "larger than the file": (directory(t256=4000, t257=4000), "declares 4000 x 4000 pixels but holds 512 bytes"),
    "no width": (directory(t256=0), "declares 16 x 0 pixels"),
    "strips beyond the end": (directory(t273=700), "lies beyond the end of the file"),
    "no strips": (directory(t273=0, t279=0), "is the file damaged|has no pixels"),
    "much from little": (shared_strip(), "bytes per byte of the file: is it damaged"),
    "bomb": (deflate_bomb(), "expand to more than the 512 bytes that they need"),
    "damaged codec": (directory(t259=8), "cannot be read as TIFF"),
    "unknown codec": (directory(t259=4711), "cannot be read as TIFF"),
    "no rows per strip": (directory(t278=0), "bad.tif: "),
    "bits that nothing has": (directory(t258=77), "bad.tif: "),
}


@pytest.mark.parametrize("name", LIES)
def test_files_that_lie(name, tmp_path):
    content, message = LIES[name]
    (tmp_path / "bad.tif").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        import_labels(tmp_path / "bad.tif", tmp_path / "o.zarr")
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.tif"]


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"imagej": True, "metadata": {"axes": "TYX"}}, {"bigtiff": True}])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_stacks_that_were_cut_short(kept, options, tmp_path):
    content = write(tmp_path / "a.tif", **options).read_bytes()
    (tmp_path / "a.tif").write_bytes(content[: int(kept * len(content))])
    with pytest.raises(DataError, match=r"a\.tif: "):
        import_labels(tmp_path / "a.tif", tmp_path / "o.zarr")
    assert not (tmp_path / "o.zarr").exists()


def test_a_long_circle_of_images_is_no_endless_loop(tmp_path):
    """tifffile looks for circles among the first hundred images only."""
    film = np.ones((150, 4, 4), np.uint8)
    content = bytearray(write(tmp_path / "a.tif", film).read_bytes())
    assert count_images(tmp_path / "a.tif") == 150
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        last, second = tiff.pages[149].offset, tiff.pages[1].offset
    entries = struct.unpack_from("<H", content, last)[0]
    struct.pack_into("<I", content, last + 2 + 12 * entries, second)
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(DataError, match="forms a loop after image 150"):
        open_stack(tmp_path / "a.tif")


def test_frames_of_different_size(tmp_path, monkeypatch):
    (tmp_path / "films").mkdir()
    for i in range(3):
        write(tmp_path / "films" / f"t{i:03d}.tif", FILM[0, : 16 - i])
    with pytest.raises(DataError, match=r"films: frame 1 has 15 x 16 pixels, frame 0 16 x 16: expected one size"):
        import_labels(tmp_path / "films", tmp_path / "o.zarr")
    monkeypatch.chdir(tmp_path / "films")
    with pytest.raises(DataError, match=r"^films: frame 1"):
        import_labels(Path(), tmp_path / "o.zarr")
    with tifffile.TiffWriter(tmp_path / "mixed.tif") as file:
        for i in range(3):
            file.write(FILM[0, : 16 - i], photometric="minisblack")
    with pytest.raises(DataError, match=r"mixed\.tif: image 2 has 15 x 16 pixels, the first 16 x 16"):
        import_labels(tmp_path / "mixed.tif", tmp_path / "o.zarr")


@pytest.mark.filterwarnings("ignore:<tifffile.TiffWriter.write> data with shape:DeprecationWarning")
@pytest.mark.parametrize("frames", [2, 3, 4, 5])
def test_few_frames_are_not_taken_for_colours(frames, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", FILM[:frames])  # without a word, 3 and 4 frames are saved as planes of colour
    np.testing.assert_array_equal(list(open_stack(tmp_path / "a.tif").frames()), FILM[:frames])
    tifffile.imwrite(tmp_path / "rgb.tif", FILM[:3].astype(np.uint8), photometric="rgb", planarconfig="separate", metadata=None)
    with pytest.raises(DataError, match="is a colour image"):
        open_stack(tmp_path / "rgb.tif")


@pytest.mark.parametrize(
    "options",
    [
        {"imagej": True, "metadata": {"axes": "TYX"}},
        {"metadata": {"axes": "TYX"}},
        {"metadata": None},
        {"compression": "zlib", "tile": (16, 16)},
        {"compression": "zlib", "predictor": True},
        {"compression": "lzma"},
        {"byteorder": ">", "bigtiff": True},
        {"ome": True, "metadata": {"axes": "TYX"}},
        {"contiguous": True, "truncate": True},
    ],
    ids=str,
)
def test_films_that_are_read(options, tmp_path):
    np.testing.assert_array_equal(list(open_stack(write(tmp_path / "a.tif", **options)).frames()), FILM)


@pytest.mark.parametrize("axes", ["ZYX", "CYX"])
@pytest.mark.parametrize("options", [{"imagej": True}, {"ome": True}, {}], ids=str)
def test_volumes_are_not_films(axes, options, tmp_path):
    write(tmp_path / "a.tif", **options, metadata={"axes": axes})
    name = {"Z": "z slices", "C": "channels"}[axes[0]]
    with pytest.raises(DataError, match=rf"a\.tif: is a stack of 6 {name}, expected a film .* use --stack-is-time if"):
        import_labels(tmp_path / "a.tif", tmp_path / "o.zarr")
    assert import_labels(tmp_path / "a.tif", tmp_path / "o.zarr", stack_is_time=True).steps("train") == 5


def test_films_of_volumes_are_refused_whatever_is_said(tmp_path):
    write(tmp_path / "a.tif", FILM.reshape(2, 3, 16, 16), metadata={"axes": "TZYX"})
    with pytest.raises(DataError, match="is a stack of 3 z slices"):
        open_stack(tmp_path / "a.tif")
    with pytest.raises(DataError, match="holds 2 frames, 3 z slices: expected a film"):
        open_stack(tmp_path / "a.tif", stack_is_time=True)


@pytest.mark.parametrize("name", ["mask{:03d}", "man_seg{:04d}", "t{:03d}", "man_track{:03d}"])
def test_a_folder_of_numbered_stacks_is_a_film_of_volumes(name, tmp_path):
    (tmp_path / "ctc").mkdir()
    for i in range(3):
        write(tmp_path / "ctc" / f"{name.format(i)}.tif", metadata=None)
    with pytest.raises(DataError, match="are the frames of one film, and each is a stack of 6 images, so a volume"):
        find_movies(tmp_path / "ctc")
    assert len(find_movies(tmp_path / "ctc", stack_is_time=True)) == 3


@pytest.mark.parametrize("compression", ["tiff_lzw", "jpeg"])
def test_a_codec_that_is_not_installed_is_named(compression, tmp_path, monkeypatch):
    images = [Image.fromarray(a.astype(np.uint8)) for a in FILM]
    images[0].save(tmp_path / "a.tif", save_all=True, append_images=images[1:], compression=compression)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    monkeypatch.setattr(tifffile.tifffile, "imagecodecs", tifffile._imagecodecs)
    monkeypatch.setattr(tifffile.TIFF, "DECOMPRESSORS", tifffile.tifffile.CompressionCodec(encode=False), raising=False)
    with pytest.raises(DataError, match=r"compressed with (LZW|JPEG), which needs one more package: pip install 'epns-pyro\[images\]'"):
        import_labels(tmp_path / "a.tif", tmp_path / "o.zarr")


# -- what is kept of an image ------------------------------------------------------------------------------------------------


def test_downscaling_takes_the_label_of_most_pixels():
    image = np.array([[1, 1, 0, 2, 9], [1, 3, 2, 2, 9], [4, 4, 0, 0, 9], [5, 5, 0, 7, 9], [8, 8, 8, 8, 8]])
    np.testing.assert_array_equal(View(downscale=2).of(image, "a"), [[1, 2], [4, 0]])  # a tie goes to the first pixel; edges are dropped


def test_cropping_comes_first(tmp_path):
    write(tmp_path / "a.tif")
    store = import_labels(tmp_path / "a.tif", tmp_path / "o.zarr", crop=((3, 13), (2, 14)), downscale=2)
    image = store.spec.get(store.read("train"), "cell")[0, 0]
    expected = View(downscale=2).of(FILM[0, 3:13, 2:14], "a")
    np.testing.assert_array_equal(image, np.minimum(expected, 2))  # label 7 has become 2
    with pytest.raises(DataError, match=r"a\.tif: cannot be cropped to x = 2:17: expected a range within 0:16"):
        import_labels(tmp_path / "a.tif", tmp_path / "p.zarr", crop=((3, 13), (2, 17)))
    with pytest.raises(DataError, match="16 x 16 pixels cannot be downscaled by 17"):
        import_labels(tmp_path / "a.tif", tmp_path / "p.zarr", downscale=17)
    with pytest.raises(DataError, match="a crop of a periodic image is not periodic"):
        import_labels(tmp_path / "a.tif", tmp_path / "p.zarr", crop=((3, 13), (2, 14)), periodic=True)


def test_every_film_is_read_once(tmp_path, monkeypatch):
    write(tmp_path / "a.tif")
    pages, decode = [], tifffile.TiffPage.asarray
    monkeypatch.setattr(tifffile.TiffPage, "asarray", lambda page, **options: (pages.append(page.index), decode(page, **options))[1])
    import_labels(tmp_path / "a.tif", tmp_path / "o.zarr", segment=2)
    assert pages == list(range(6))


def test_labels_of_any_size_are_renumbered(tmp_path):
    for i, names in enumerate(([1, 7], [3, 2**31], [5, 2**24])):
        film = np.array([0, *names], np.uint32)[np.searchsorted([0, 1, 7], FILM)]
        store = import_labels(write(tmp_path / f"{i}.tif", film), tmp_path / f"{i}.zarr")
        np.testing.assert_array_equal(store.spec.get(store.read("train"), "cell")[0], np.searchsorted([0, 1, 7], FILM))


@pytest.mark.parametrize("shape", [(10**12, 8, 8), (10**6, 10, 8, 8), (4, 2**20, 2**20)])
def test_a_zarr_array_that_claims_more_than_it_holds(shape, tmp_path):
    array = zarr.create_array(tmp_path / "a.zarr", shape=(1,) * len(shape), chunks=(1,) * (len(shape) - 2) + (8, 8), dtype="u2")
    array[:] = 1
    described = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())
    (tmp_path / "a.zarr" / "zarr.json").write_text(json.dumps(described | {"shape": shape}))
    with pytest.raises(DataError, match=r"a\.zarr: ('cell' declares \d+ frames|variable '' declares )"):
        import_labels(tmp_path / "a.zarr", tmp_path / "o.zarr")
