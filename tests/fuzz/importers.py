"""The importers of label images and of the published layout, as entries of READERS, with mutators of their own: TIFF, .npy, CSV."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import mutators
import numpy as np
import tifffile
import zarr
from harness import Reader
from mutators import Rng

from epns_pyro.data import import_epns, import_labels

TIFF_SIZES = (0, 1, 2, 3, 4, 7, 8, 16, 255, 2**15, 10**6, 2**31 - 1, 2**31, 2**32 - 1)
TEXTS = ("", "big", "1.5", "-1", "²", "9" * 25, "1e3", "nan", '"', "1;2", "1,2,3", "\x00", "ä", "=1+1", " 7 ", "x" * 300_000, "\u2028")
NPY_SHAPES = ("(1000000000000,)", "(4294967296, 4294967296)", "(-1,)", "()", "(0,)", "(2, 3", "((" * 4000, "(True,)", "(1.5,)", "None")
NPY_TYPES = ("'|O'", "'<f2'", "'<c16'", "'|S4'", "'<M8[s]'", "[('a', '<i8')]", "'>i8'", "'|b1'", "'<i3'", "7", "'nonsense'")


# -- sound inputs ----------------------------------------------------------------------------------------------------------


def film(frames: int = 5) -> np.ndarray:
    cell = np.zeros((frames, 12, 14), np.uint16)
    for t in range(frames):
        cell[t, 2:5, 2 + t % 2 : 6], cell[t, 7:10, 3 : 8 - t % 2] = 4, 9
    return cell


def stack(folder: Path) -> None:
    tifffile.imwrite(folder / "film.tif", film(), photometric="minisblack")


def stack_deflate(folder: Path) -> None:
    tifffile.imwrite(folder / "film.tif", film(), photometric="minisblack", compression="zlib", tile=(16, 16), predictor=True)


def stack_imagej(folder: Path) -> None:
    tifffile.imwrite(folder / "film.tif", film(), imagej=True, metadata={"axes": "TYX"})


def stack_ome(folder: Path) -> None:
    tifffile.imwrite(folder / "film.tif", film(), ome=True, metadata={"axes": "TYX"}, bigtiff=True, compression="lzma")


def images(folder: Path) -> None:
    (folder / "films").mkdir()
    for t, image in enumerate(film(3)):
        tifffile.imwrite(folder / "films" / f"mask{t:03d}.tif", image, compression="zlib")


def tracked(folder: Path) -> None:
    images(folder)
    (folder / "films" / "man_track.txt").write_text("4 0 2 0\n9 0 2 0\n")


def films_zarr(folder: Path) -> None:
    group = zarr.create_group(folder / "films")
    group.create_array("cell", data=np.stack([film(), film()]), chunks=(1, 2, 12, 14))
    group.create_array("cell_type", data=np.ones((2, 9), np.int64))


def table(folder: Path) -> None:
    stack(folder)
    (folder / "types.csv").write_text("movie;label;type\r\nfilm;4;1\r\nfilm;9;2\r\n", encoding="utf-8-sig")


def table_npy(folder: Path) -> None:
    stack(folder)
    np.save(folder / "types.npy", np.arange(1, 10))


def planets(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(3):
        x = rng.normal(size=(3, 7, 21))
        x[:, 0] = 1 + np.arange(3)[:, None]
        _published(folder, number, x)


def tissue(folder: Path) -> None:
    for number in range(3):
        _published(folder, number, np.stack([film(), film() // 4], -1).astype(np.int64))


def _published(folder: Path, number: int, x: np.ndarray) -> None:
    for name in ("train", "test") if number == 0 else ("train",):
        (folder / "published" / name).mkdir(parents=True, exist_ok=True)
        np.save(folder / "published" / name / f"{number}.npy", x)


# -- damage ----------------------------------------------------------------------------------------------------------------


def change_tag(folder: Path, rng: Rng) -> str:
    """Replace one field of one entry of a directory of a TIFF file: its tag, type, count or value."""
    path = mutators.files(folder, rng, accept=lambda path: path.suffix == ".tif")
    content = bytearray(path.read_bytes())
    big = content[2] == 43
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[int(rng.integers(len(tiff.pages)))]
        tag = list(page.tags.values())[rng.integers(len(page.tags))]
        offset = tag.offset
    fields = ((0, "<H"), (2, "<H"), (4, "<Q"), (12, "<Q")) if big else ((0, "<H"), (2, "<H"), (4, "<I"), (8, "<I"))
    place, form = fields[rng.choice(4, p=[0.1, 0.2, 0.2, 0.5])]
    value = TIFF_SIZES[rng.integers(len(TIFF_SIZES))] % 256 ** struct.calcsize(form)
    struct.pack_into(form, content, offset + place, value)
    path.write_bytes(content)
    return f"{path.name}: tag {tag.name}, byte {place} is {value}"


def link_directory(folder: Path, rng: Rng) -> str:
    """Let the list of images of a TIFF file go on elsewhere: at an earlier image, in the middle of one, beyond the end."""
    path = mutators.files(folder, rng, accept=lambda path: path.suffix == ".tif")
    content = bytearray(path.read_bytes())
    big = content[2] == 43
    with tifffile.TiffFile(path) as tiff:
        offsets = [page.offset for page in tiff.pages]
    here = offsets[rng.integers(len(offsets))]
    entries = struct.unpack_from("<Q" if big else "<H", content, here)[0]
    target = int(rng.choice([0, 8, rng.choice(offsets), rng.integers(len(content)), len(content) + 5]))
    struct.pack_into("<Q" if big else "<I", content, here + (8 + 20 * entries if big else 2 + 12 * entries), target)
    path.write_bytes(content)
    return f"{path.name}: the image after that at {here} is at {target}"


def describe(folder: Path, rng: Rng) -> str:
    """Let the description of a TIFF file say something else of its stack."""
    path = mutators.files(folder, rng, accept=lambda path: path.suffix == ".tif")
    number = TIFF_SIZES[rng.integers(len(TIFF_SIZES))]
    descriptions = (
        f"ImageJ=1.53\nimages={number}\nslices={number}\nhyperstack=true\n",
        f"ImageJ=1.53\nimages={number}\nframes=x\nchannels=\n",
        f'{{"shape": [{number}, 12, 14]}}',
        f'{{"shape": [{number}, {number}, 12, 14], "axes": "TZYX"}}',
        '{"shape": "many"}',
        '{"shape": ' + "[" * 5000,
        f'<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0" '
        f'DimensionOrder="XYCZT" Type="uint16" SizeX="14" SizeY="12" SizeC="1" SizeZ="{number}" SizeT="{number}"/></Image></OME>',
    )
    which = int(rng.integers(len(descriptions)))
    tifffile.imwrite(path, film(), photometric="minisblack", description=descriptions[which], metadata=None)
    return f"{path.name}: described as {descriptions[which][:80]!r}"


def change_image(folder: Path, rng: Rng) -> str:
    """Give an image or stack another size, type of values, or number of axes."""
    path = mutators.files(folder, rng, accept=lambda path: path.suffix == ".tif")
    x = film()
    real = x.astype(np.float64)
    kinds = (
        *(x[0], x[:, :5], x[:0], x[:, :0], x[None], x[:4], x[:3], 0 * x),
        *(
            real + 0.5,
            real * 1e300,
            np.full_like(real, np.nan),
            x.astype(bool),
            x.astype(np.int32) - 1,
            x.astype(np.uint32) * 2**29,
            1j * x,
        ),
    )
    which = int(rng.integers(len(kinds)))
    path.unlink()
    tifffile.imwrite(path, kinds[which])
    return f"{path.name}: is {kinds[which].dtype} {kinds[which].shape}"


def change_cell(folder: Path, rng: Rng) -> str:
    """Replace one cell of a CSV file, or its encoding, its separator, the ends of its lines."""
    path = mutators.files(folder, rng, accept=lambda path: path.suffix == ".csv")
    rows = [line.split(";") for line in path.read_text(encoding="utf-8-sig").splitlines()]
    row, column = int(rng.integers(len(rows))), int(rng.integers(3))
    rows[row][column] = TEXTS[rng.integers(len(TEXTS))]
    separator, end = str(rng.choice([";", ",", "\t", " "])), str(rng.choice(["\n", "\r\n", "\r"]))
    encoding = str(rng.choice(["utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252", "utf-32"]))
    path.write_text(end.join(separator.join(cells) for cells in rows), encoding=encoding, errors="replace")
    return f"{path.name}: row {row}, column {column} is {rows[row][column][:40]!r}, {separator!r}, {encoding}"


def change_track(folder: Path, rng: Rng) -> str:
    """Replace one number of a table of tracks, or a row."""
    path = mutators.files(folder, rng, accept=lambda path: path.suffix == ".txt")
    rows = [line.split() for line in path.read_text().splitlines()]
    row, column = int(rng.integers(len(rows))), int(rng.integers(4))
    rows[row][column] = str(rng.choice([*TEXTS[:-2], "0", "1", "5", "4"]))
    rows += [rows[row]] * int(rng.integers(2))
    path.write_text("\n".join(" ".join(cells) for cells in rows), encoding=str(rng.choice(["utf-8", "utf-16"])))
    return f"{path.name}: row {row}, column {column} is {rows[row][column]!r}"


def change_header(folder: Path, rng: Rng) -> str:
    """Let the header of a .npy file lie about shape, type or order; sometimes it is a pickle or an archive instead."""
    path = mutators.files(folder, rng, accept=lambda path: path.suffix == ".npy")
    x = np.load(path)
    entries = {"descr": f"'{x.dtype.str}'", "fortran_order": "False", "shape": str(x.shape)}
    key = str(rng.choice(list(entries)))
    values = {"descr": NPY_TYPES, "fortran_order": ("True", "7", "None"), "shape": NPY_SHAPES}[key]
    entries[key] = values[rng.integers(len(values))]
    header = ("{" + ", ".join(f"'{k}': {v}" for k, v in entries.items()) + "}\n").encode()
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + x.tobytes())
    if rng.random() < 0.1:
        path.write_bytes(
            b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x04true\x94\x85\x94R\x94."
        )
    return f"{path.name}: {key} is {entries[key][:40]}"


def change_values(folder: Path, rng: Rng) -> str:
    """Put a hostile number into a .npy file."""
    path = mutators.files(folder, rng, accept=lambda path: path.suffix == ".npy")
    number = mutators.HOSTILE_NUMBERS[rng.integers(len(mutators.HOSTILE_NUMBERS))]
    x = np.load(path).astype(np.float64)
    place = ... if rng.random() < 0.3 else tuple(int(rng.integers(n)) for n in x.shape)
    x[place] = number
    np.save(path, x)
    return f"{path.name}: {place} is {number:g}"


# -- readers ---------------------------------------------------------------------------------------------------------------


def read_films(folder: Path) -> None:
    path = folder / "films"
    nothing_left(folder, lambda: import_labels(path if path.exists() else folder / "film.tif", folder / "out.zarr"))


def read_typed(folder: Path) -> None:
    types = next(path for path in (folder / "types.csv", folder / "types.npy") if path.exists())
    nothing_left(folder, lambda: import_labels(folder / "film.tif", folder / "out.zarr", types=types))


def read_published(folder: Path) -> None:
    nothing_left(folder, lambda: import_epns(folder / "published", folder / "out.zarr"))


def nothing_left(folder: Path, read) -> None:
    """Raise OSError if a failed import leaves something behind."""
    before = sorted(folder.iterdir())
    try:
        read()
        shutil.rmtree(folder / "out.zarr")
    finally:
        if sorted(folder.iterdir()) != before:
            raise OSError("a failed import left something behind")


OF_TIFF = (*mutators.BYTES, change_tag, link_directory, change_image)
OF_NPY = (*mutators.BYTES, change_header, change_values)
IMPORTERS = (
    Reader("tiff", stack, read_films, (*OF_TIFF, describe)),
    Reader("tiff-deflate", stack_deflate, read_films, OF_TIFF),
    Reader("tiff-imagej", stack_imagej, read_films, OF_TIFF),
    Reader("tiff-ome", stack_ome, read_films, OF_TIFF),
    Reader("tiff-folder", images, read_films, OF_TIFF),
    Reader("tracked-cells", tracked, read_films, (*mutators.BYTES, change_track)),
    Reader("films-zarr", films_zarr, read_films, (*mutators.BYTES, mutators.change_json, mutators.nest)),
    Reader("types-csv", table, read_typed, (change_cell,)),
    Reader("types-npy", table_npy, read_typed, (change_header, change_values)),
    Reader("published-bodies", planets, read_published, OF_NPY),
    Reader("published-cells", tissue, read_published, OF_NPY),
)
