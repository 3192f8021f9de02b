"""Finding films of label images in the user's files, and reading them frame by frame."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from epns_pyro.data.files import IMAGES, check_zarr, reading, refuse_damaged_blosc
from epns_pyro.data.importers.epns_format import natural
from epns_pyro.data.importers.tiff import MOST_IMAGE_PIXELS, MOST_PIXELS, count_images, open_stack
from epns_pyro.errors import DataError, nearest
from epns_pyro.later import later

if TYPE_CHECKING:
    import zarr
else:
    zarr = later("zarr")

MOST_FILM_PIXELS = 2**31  # of a film after crop and downscaling: it must fit into memory
_METADATA = (".zarray", ".zattrs", ".zgroup", ".zmetadata", "zarr.json")
_NUMBERED_FRAME = re.compile(r"(?:t|mask|man_seg|man_track)_?\d{3,}$", re.IGNORECASE)  # one frame in the Cell Tracking Challenge


@dataclass(frozen=True)
class View:
    """Part and resolution of an image that are used: a rectangle of it, downscaled.

    Parameters
    ----------
    crop : ((int, int), (int, int)), optional
        Rows, then columns, each (first, one past the last), in pixels of the file; None: all.
    downscale : int
        N x N pixels become one pixel with their most frequent label (if several, that of the first such pixel in reading order). Remaining
        rows and columns at the end are dropped.
    """

    crop: tuple[tuple[int, int], tuple[int, int]] | None = None
    downscale: int = 1

    def of(self, image: np.ndarray, where: str) -> np.ndarray:
        """Return the cropped and downscaled image (y, x)."""
        if self.crop:
            for axis, (start, stop), size in zip("yx", self.crop, image.shape, strict=True):
                if not 0 <= start < stop <= size:
                    raise DataError(f"{where}: cannot be cropped to {axis} = {start}:{stop}: expected a range within 0:{size}")
            (top, bottom), (left, right) = self.crop
            image = image[top:bottom, left:right]
        return self._downscaled(image, where) if self.downscale > 1 else image

    def _downscaled(self, image: np.ndarray, where: str) -> np.ndarray:
        factor, (height, width) = self.downscale, image.shape
        if min(height, width) < factor:
            raise DataError(f"{where}: {height} x {width} pixels cannot be downscaled by {factor}")
        y, x = height // factor, width // factor
        blocks = image[: y * factor, : x * factor].reshape(y, factor, x, factor).swapaxes(1, 2).reshape(y, x, factor**2)
        best, votes = blocks[..., 0].copy(), np.zeros((y, x), np.int64)
        for place in range(factor**2):
            count = (blocks == blocks[..., place : place + 1]).sum(-1)
            better = count > votes
            best[better], votes[better] = blocks[..., place][better], count[better]
        return best


@dataclass(frozen=True)
class Movie:
    """One film of label images; `frames` yields them (y, x) in order of time."""

    name: str
    number: int
    frames: Callable[[], Iterable[np.ndarray]]

    def labels(self, view: View | None = None) -> np.ndarray:
        """Read the labels (time, y, x): integers without negative ones."""
        view, pixels = view or View(), 0
        kept: list[np.ndarray] = []
        for frame in self.frames():
            image = np.ascontiguousarray(view.of(self._whole(frame), self.name))
            if kept and image.shape != kept[0].shape:
                first, here = (" x ".join(map(str, i.shape)) for i in (kept[0], image))
                raise DataError(f"{self.name}: frame {len(kept)} has {here} pixels, frame 0 {first}: expected one size")
            kept.append(image)
            pixels += image.size
            if pixels > MOST_FILM_PIXELS:
                raise DataError(
                    f"{self.name}: has more than {MOST_FILM_PIXELS} pixels: crop or downscale it, or cut it into files of fewer frames"
                )
        if not pixels:
            raise DataError(f"{self.name}: holds no images: {len(kept)} frames of {kept[0].shape if kept else 'no'} pixels")
        frames = np.stack(kept)
        if not frames.any():
            raise DataError(f"{self.name}: holds no labels, all pixels are 0")
        return frames

    def _whole(self, image: np.ndarray) -> np.ndarray:
        if image.dtype.kind == "b":
            return image.astype(np.uint8)
        if image.dtype.kind == "f" and np.array_equal(image, np.round(image)) and np.abs(image).max(initial=0) < 2**53:
            return image.astype(np.int64)  # integers, saved as floating-point numbers by many segmentation tools
        if image.dtype.kind not in "iu":
            raise DataError(f"{self.name}: a label is a whole number, found {image.dtype}: is this the raw image, not its segmentation?")
        if image.min(initial=0) < 0:
            raise DataError(f"{self.name}: holds negative labels (down to {image.min()}): use 0 for the medium and 1, 2, ... for cells")
        return image


def find_movies(path: Path, *, stack_is_time: bool = False) -> list[Movie]:
    """Return the films that a path holds, in natural order.

    Raises
    ------
    DataError
        If there are none, or if they are volumes; `stack_is_time` says that the images of a TIFF stack are frames whatever it says.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.is_dir() and is_zarr(path):
        return _zarr_movies(path)
    if path.is_file() and path.suffix.lower() in IMAGES:
        return [Movie(_name(path), 0, partial(_stack_frames, path, stack_is_time))]
    files = sorted((p for p in path.glob("*") if p.suffix.lower() in IMAGES), key=natural)
    if not files:
        inside = sorted({p.parent for p in path.glob("*/**/*") if p.suffix.lower() in IMAGES}, key=natural)
        found = f"one level or more below, in {', '.join(str(p) for p in inside[:3])}: give one of them" if inside else "none of them"
        raise DataError(f"{path}: expected a zarr array, a TIFF stack, or a folder of .tif files, found {found}")
    counts = [count_images(file) for file in files]
    if max(counts) == 1 and all(open_stack(file).images == 1 for file in files):
        return [Movie(_name(path), 0, lambda: (frame for file in files for frame in open_stack(file).frames()))]
    if not stack_is_time and max(counts) > 1 and all(_NUMBERED_FRAME.match(file.stem) for file in files):
        raise DataError(
            f"{path}: {files[0].name}, ... are the frames of one film, and each is a stack of {counts[0]} images, so a volume: keep one "
            "image per frame (a slice or a projection), or use --stack-is-time if every file is a film of its own"
        )
    return [Movie(file.name, number, partial(_stack_frames, file, stack_is_time)) for number, file in enumerate(files)]


def _stack_frames(file: Path, stack_is_time: bool) -> Iterator[np.ndarray]:
    return open_stack(file, stack_is_time=stack_is_time).frames()


def is_zarr(path: Path) -> bool:
    return any((path / name).is_file() for name in ("zarr.json", ".zarray", ".zgroup"))


def open_films(path: Path) -> zarr.Array:
    """Open the array of labels of a zarr directory, (time, y, x) or (movie, time, y, x)."""
    node = open_node(path)
    array = _cell(path, node) if isinstance(node, zarr.Group) else node
    if array.ndim not in (3, 4):
        raise DataError(f"{path}: 'cell' must be (time, y, x) or (movie, time, y, x), found {array.shape}")
    _refuse_claims(path, array)
    return array


def _cell(path: Path, group: zarr.Group) -> zarr.Array:
    with reading(f"{path}: its list of arrays cannot be read"):
        names = sorted(group.array_keys())
    if "cell" not in names:
        raise DataError(f"{path}: has no array 'cell': {nearest('cell', names)}")
    with reading(f"{path}: the array 'cell' cannot be read"):
        return zarr.open_array(path, path="cell", mode="r")


def open_node(path: Path) -> zarr.Group | zarr.Array:
    """Open a zarr directory after checking its metadata."""
    check_zarr(path)
    refuse_damaged_blosc(path)
    with reading(f"{path}: is not a zarr directory, or is damaged"):
        return zarr.open(path, mode="r")


def _zarr_movies(path: Path) -> list[Movie]:
    array = open_films(path)
    if array.ndim == 3:
        return [Movie(_name(path), 0, partial(_zarr_frames, path, array))]
    return [Movie(f"{_name(path)}[{i}]", i, partial(_zarr_frames, path, array, i)) for i in range(array.shape[0])]


def _refuse_claims(path: Path, array: zarr.Array) -> None:
    """Raise DataError if an array declares more frames than its chunks can hold: a frame without a chunk would be empty."""
    if not array.size:
        axes = "(time, y, x)" if array.ndim == 3 else "(movie, time, y, x)"
        raise DataError(f"{path}: holds no images: {axes} is {array.shape}")
    *films, height, width = array.shape
    stored = array.shards or array.chunks
    files = sum(1 for file in (path / array.path).rglob("*") if file.is_file() and file.name not in _METADATA)
    frames, held = math.prod(films), files * math.prod(stored[:-2])
    if not held:
        raise DataError(f"{path}: holds no labels, all pixels are 0")
    if height * width > MOST_IMAGE_PIXELS or frames * height * width > MOST_PIXELS or math.prod(stored) > MOST_FILM_PIXELS:
        raise DataError(
            f"{path}: 'cell' declares {frames} frames of {height} x {width} pixels in chunks of {math.prod(stored)}: the limits are "
            f"{MOST_IMAGE_PIXELS} pixels per frame, {MOST_PIXELS} in all, {MOST_FILM_PIXELS} in a chunk; is it damaged?"
        )
    if frames > held:
        raise DataError(f"{path}: 'cell' declares {frames} frames, its chunks hold {held} at most: is it damaged, or written in part only?")


def _zarr_frames(path: Path, array: zarr.Array, *movie: int) -> Iterator[np.ndarray]:
    """Yield frames (y, x), reading one chunk of frames at a time."""
    time, step = array.shape[-3], array.chunks[-3]
    for start in range(0, time, step):
        stop = min(start + step, time)
        what = f"movie {movie[0]}, " if movie else ""
        place: tuple[int | slice, ...] = (*movie, slice(start, stop))
        with reading(f"{path}: 'cell', {what}frames {start} to {stop - 1}: cannot be read", ": copy the file again, or make it anew"):
            frames = np.asarray(array[place])
        yield from frames


def _name(path: Path) -> str:
    """Return what messages call a path: its last part, also of "." """
    return path.name or path.resolve().name
