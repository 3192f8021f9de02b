"""Safe reading of label images from TIFF files: what a file declares is checked against its content first.

Before any pixel is decoded, all directories of the file are read and the declared sizes are compared with the size of the file. Images
are decoded one at a time. A damaged or malicious file raises one DataError.
"""

from __future__ import annotations

import json
import logging
import lzma
import math
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tifffile

from epns_pyro.errors import DataError

# Limits. Label images beyond them do not fit into memory.
MOST_IMAGES = 100_000  # in a file
MOST_IMAGE_PIXELS = 2**28  # 16,384 x 16,384
MOST_PIXELS = 2**33  # of all images of a file
MOST_EXPANSION = 10_000  # decoded bytes per byte of the file; label images that compress well reach a few hundred

# Exceptions that tifffile, the codecs and NumPy raise for damaged files.
_DAMAGE = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, NotImplementedError, OSError, RecursionError),
    *(RuntimeError, TypeError, ValueError, struct.error, zlib.error, lzma.LZMAError, tifffile.TiffFileError),
)
_AXES = {"z": "z slices", "c": "channels", "s": "samples"}
# Codecs of the standard library, whose output tifffile does not limit: (data, most bytes) -> bytes.
_BOUNDED: dict[int, Callable[[bytes, int], bytes]] = {
    8: lambda data, most: zlib.decompressobj().decompress(data, most),
    32946: lambda data, most: zlib.decompressobj().decompress(data, most),
    34925: lambda data, most: lzma.LZMADecompressor().decompress(data, most),
}


@dataclass(frozen=True)
class TiffStack:
    """The images (y, x) of one TIFF file: `images` of them, which are frames of a film unless there is only one."""

    file: Path
    images: int
    height: int
    width: int

    def frames(self) -> Iterator[np.ndarray]:
        """Decode the images (y, x), in order."""
        with _opened(self.file) as (tiff, raw):
            yield from _decoded(self.file, tiff, raw, self.images)


def open_stack(file: Path, *, stack_is_time: bool = False) -> TiffStack:
    """Check a TIFF file without decoding it, and return its stack of images.

    Parameters
    ----------
    file : Path
    stack_is_time : bool
        Read every image as a frame of a film, even if the file declares another axis (z slices, channels).

    Raises
    ------
    DataError
        If the file is damaged, declares more than it holds or more than the limits above, has images of different size or in colour, is a
        volume, or has channels.
    """
    with _opened(file) as (tiff, raw):
        count, size = count_images(file), raw.seek(0, 2)
        first = tiff.pages.first
        declared = _declared(tiff, first)
        images = _images(file, first, declared, count)
        for axis, name in _AXES.items():
            if declared.get(axis, 1) > 1 and not stack_is_time:
                raise DataError(
                    f"{file}: is a stack of {declared[axis]} {name}, expected a film (time, y, x): keep one image per frame (a slice or a "
                    "projection), or use --stack-is-time if the images are frames"
                )
        if sum(declared.get(axis, 1) > 1 for axis in ("t", *_AXES)) > 1:
            sizes = ", ".join(f"{declared[a]} {_AXES.get(a, 'frames')}" for a in ("t", *_AXES) if declared.get(a, 1) > 1)
            raise DataError(f"{file}: holds {sizes}: expected a film (time, y, x), so keep one image per frame (a slice or a projection)")
        for number in range(min(count, images)):
            page = tiff.pages[number].aspage()
            _refuse_page(file, page, number, size, first)
        height, width = _lateral(first)
        expanded = images * height * width * _dtype(file, first).itemsize
        if images * height * width > MOST_PIXELS or expanded > MOST_EXPANSION * size:
            raise DataError(
                f"{file}: declares {images} images of {height} x {width} pixels in {size} bytes, the limit is {MOST_PIXELS} pixels and "
                f"{MOST_EXPANSION} bytes per byte of the file: is it damaged?"
            )
    return TiffStack(file, images, height, width)


def count_images(file: Path) -> int:
    """Count the images of a TIFF file by walking through its directories.

    Raises
    ------
    DataError
        If the chain of directories leaves the file, forms a loop, or is longer than `MOST_IMAGES`.
    """
    try:
        with file.open("rb") as raw:
            return _walk(file, raw)
    except (OSError, struct.error) as error:
        raise _unreadable(file, error) from None


def _walk(file: Path, raw: BinaryIO) -> int:
    header = raw.read(16)
    order = {b"II": "<", b"MM": ">"}.get(header[:2], "")
    version = struct.unpack(f"{order}H", header[2:4])[0] if order and len(header) >= 8 else 0
    if version not in (42, 43) or (version == 43 and len(header) < 16):
        raise DataError(f"{file}: is not a TIFF file: its first bytes are not those of TIFF")
    number, offset, entry = ("H", "I", 12) if version == 42 else ("Q", "Q", 20)
    place = struct.unpack(order + offset, header[4:8] if version == 42 else header[8:16])[0]
    size = raw.seek(0, 2)
    seen: set[int] = set()
    while place:
        if place in seen:
            raise DataError(f"{file}: is damaged: its list of images forms a loop after image {len(seen)}")
        if len(seen) == MOST_IMAGES:
            raise DataError(f"{file}: holds more than {MOST_IMAGES} images: cut it into several files")
        if place >= size:
            raise DataError(f"{file}: is damaged: image {len(seen) + 1} lies beyond its end (was it cut short?)")
        seen.add(place)
        raw.seek(place)
        entries = struct.unpack(order + number, raw.read(struct.calcsize(order + number)))[0]
        raw.seek(entries * entry, 1)
        place = struct.unpack(order + offset, raw.read(struct.calcsize(order + offset)))[0]
    if not seen:
        raise DataError(f"{file}: holds no images")
    return len(seen)


def _declared(tiff: tifffile.TiffFile, first: tifffile.TiffPage) -> dict[str, int]:
    """Return the sizes of the axes that the description of a stack names: t, z, c, and i for images of an axis without a name."""
    if tiff.is_imagej:
        meta = tiff.imagej_metadata or {}
        names = {"t": "frames", "z": "slices", "c": "channels", "i": "images"}
        return {axis: int(meta[name]) for axis, name in names.items() if name in meta}
    if tiff.is_ome:
        pixels = re.search(r"<(?:\w+:)?Pixels\b[^>]*>", tiff.ome_metadata or "")
        sizes = re.findall(r"\bSize([TZC])\s*=\s*[\"'](\d{1,9})[\"']", pixels.group() if pixels else "")
        return {axis.lower(): int(size) for axis, size in sizes}
    if tiff.is_shaped:
        described = json.loads(first.description) if first.description.startswith("{") else {}
        shape = [int(n) for n in described.get("shape", ())]
        axes = str(described.get("axes", "")).lower()
        if len(axes) == len(shape) and axes.endswith("yx"):
            return {"i": math.prod(shape[:-2])} | {axis: n for axis, n in zip(axes, shape, strict=True) if axis in {"t", *_AXES}}
        return {"i": math.prod(shape[:-2])} if len(shape) > 2 and shape[-2:] == list(_lateral(first)) else {}
    return {}


def _images(file: Path, first: tifffile.TiffPage, declared: dict[str, int], count: int) -> int:
    """Return the number of images, of which `count` have their own directory."""
    wanted = declared.get("i", 0)
    if first.samplesperpixel > 1:
        # An array of 3 or 4 frames saved without a colour setting becomes the planes of one colour image.
        if count == 1 and first.planarconfig == 2 and wanted == first.samplesperpixel:
            return wanted
        raise DataError(f"{file}: is a colour image, expected labels (frames of a film are saved with photometric='minisblack')")
    if wanted > count:
        contiguous = count == 1 and first.compression == 1 and len(first.dataoffsets) == 1
        if not contiguous:
            raise DataError(f"{file}: is damaged: declares {wanted} images, holds {count} (was it cut short?)")
        needed = first.dataoffsets[0] + wanted * first.nbytes
        if needed > file.stat().st_size:
            raise DataError(f"{file}: is damaged: {wanted} images take {needed} bytes, it has {file.stat().st_size} (was it cut short?)")
        return wanted
    return count


def _lateral(page: tifffile.TiffPage) -> tuple[int, int]:
    return int(page.imagelength), int(page.imagewidth)


def _dtype(file: Path, page: tifffile.TiffPage) -> np.dtype:
    if page.dtype is None:
        raise DataError(f"{file}: image {page.index + 1} holds numbers of a kind that is not known: expected whole numbers")
    return page.dtype


def _refuse_page(file: Path, page: tifffile.TiffPage, number: int, size: int, first: tifffile.TiffPage) -> None:
    """Raise DataError unless an image can be what it declares, in a file of this size, and has the properties of the first."""
    height, width = _lateral(page)
    where = f"{file}: image {number + 1}"
    if not 0 < height * width <= MOST_IMAGE_PIXELS or page.imagedepth != 1:
        raise DataError(f"{where} declares {height} x {width} pixels: expected 1 to {MOST_IMAGE_PIXELS} pixels")
    if (height, width) != _lateral(first):
        raise DataError(f"{where} has {height} x {width} pixels, the first {' x '.join(map(str, _lateral(first)))}: expected one size")
    if page.dtype is None or page.dtype != first.dtype or page.samplesperpixel != first.samplesperpixel:
        raise DataError(f"{where} holds {page.dtype} values, the first image {first.dtype}: expected one type of whole numbers")
    if not page.dataoffsets or len(page.dataoffsets) != len(page.databytecounts):
        raise DataError(f"{where} has no pixels: is the file damaged?")
    if any(start + length > size for start, length in zip(page.dataoffsets, page.databytecounts, strict=True)):
        raise DataError(f"{where} lies beyond the end of the file: is it damaged (was it cut short)?")
    if page.compression == 1 and sum(page.databytecounts) * 8 < height * width * page.bitspersample:
        raise DataError(f"{where} declares {height} x {width} pixels but holds {sum(page.databytecounts)} bytes: is the file damaged?")
    try:
        tifffile.TIFF.DECOMPRESSORS[page.compression]
        tifffile.TIFF.UNPREDICTORS[page.predictor]
    except KeyError as error:
        raise (_needs_codec(file, page) if "imagecodecs" in str(error) else _unreadable(file, error)) from None


def _decoded(file: Path, tiff: tifffile.TiffFile, raw: BinaryIO, images: int) -> Iterator[np.ndarray]:
    first = tiff.pages.first
    shape = _lateral(first)
    if first.samplesperpixel > 1:
        _refuse_bomb(file, first, raw)
        yield from first.asarray(maxworkers=1).reshape(images, *shape)
    elif images > count_images(file):
        yield from np.memmap(file, _dtype(file, first).newbyteorder(tiff.byteorder), "r", first.dataoffsets[0], (images, *shape))
    else:
        for number in range(images):
            page = tiff.pages[number].aspage()
            _refuse_bomb(file, page, raw)
            try:
                yield page.asarray(maxworkers=1).reshape(shape)
            except ImportError:  # a codec that this Python installation does not have
                raise _needs_codec(file, page) from None


def _refuse_bomb(file: Path, page: tifffile.TiffPage, raw: BinaryIO) -> None:
    """Raise DataError if a segment of an image expands to more bytes than its pixels need."""
    expand = _BOUNDED.get(int(page.compression))
    if expand is None:
        return
    most = math.prod(page.chunks) * _dtype(file, page).itemsize
    for start, length in zip(page.dataoffsets, page.databytecounts, strict=True):
        raw.seek(start)
        if len(expand(raw.read(length), most + 1)) > most:
            raise DataError(f"{file}: is damaged: compressed pixels expand to more than the {most} bytes that they need")


@contextmanager
def _opened(file: Path) -> Iterator[tuple[tifffile.TiffFile, BinaryIO]]:
    """Open a TIFF file; every error inside becomes a DataError, and log messages of tifffile are hidden."""
    log = logging.getLogger("tifffile")
    disabled, log.disabled = log.disabled, True
    try:
        count_images(file)
        with tifffile.TiffFile(file) as tiff, file.open("rb") as raw:
            yield tiff, raw
    except DataError:
        raise
    except _DAMAGE as error:
        raise _unreadable(file, error) from None
    finally:
        log.disabled = disabled


def _unreadable(file: Path, error: Exception | Any) -> DataError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return DataError(f"{file}: cannot be read as TIFF: {reason}")


def _needs_codec(file: Path, page: tifffile.TiffPage) -> DataError:
    codec = getattr(page.compression, "name", page.compression)
    return DataError(
        f"{file}: is compressed with {codec}, which needs one more package: pip install 'epns-pyro[images]' (or save it uncompressed)"
    )
