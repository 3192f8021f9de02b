"""Checks of the metadata of a zarr directory before a library uses them: safe codecs, possible sizes.

A zarr array names the codecs that decode it, and one codec that libraries know (pickle) runs code from the file. So only the codecs
listed here are accepted. An array also declares its shape; `claims` returns every shape with the size of its files.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epns_pyro.errors import DataError, nearest, shown
from epns_pyro.plain import read_json

# Codecs that only compute: numbers from bytes, bytes from bytes or text from bytes.
_BYTES = {"blosc", "bz2", "gzip", "lz4", "lzma", "zlib", "zstd", "adler32", "crc32", "crc32c", "fletcher32", "jenkins_lookup3", "shuffle"}
_NUMBERS = {"astype", "bitround", "delta", "fixedscaleoffset", "packbits", "quantize", "pcodec", "zfpy"}
CODECS_2 = frozenset(_BYTES | _NUMBERS | {"vlen-utf8"})
CODECS_3 = frozenset(
    {"blosc", "bytes", "crc32c", "endian", "gzip", "sharding_indexed", "transpose", "vlen-utf8", "zstd"}
    | {f"numcodecs.{name}" for name in _BYTES | _NUMBERS}
)
NAMES = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")
LONGEST_TEXT = 10_000  # bytes of one entry of an array of text
_NUMBER_2 = re.compile(r"[<>|=]?([biufc])(1|2|4|8|16)|[<>|=]?[mM]8(\[\w+\])?")
_TEXT_2 = re.compile(r"[<>|=]?([SU])(\d{1,5})")
_NUMBER_3 = re.compile(r"bool|u?int(8|16|32|64)|float(16|32|64)|complex(64|128)")
_BY_NAME_3 = ("fixed_length_utf32", "null_terminated_bytes", "numpy.datetime64", "numpy.timedelta64", "string", "variable_length_utf8")


@dataclass(frozen=True)
class Claim:
    """Declared size of an array: its shape and that of a chunk, the bytes of one entry, and the bytes on disk.

    Trajectories that an interrupted run has not reached are not in `written`.
    """

    name: str
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    itemsize: int
    written: int
    stored: Iterator[int]  # sizes of its files, to be summed as far as needed
    blosc: Path | None = None  # folder of its chunks, if Blosc compressed them


def claims(path: Path) -> list[Claim]:
    """Read the metadata of all arrays of a zarr directory.

    Raises
    ------
    DataError
        If metadata are damaged, or name a codec or data type that is not accepted.
    """
    return list(_claims(path, path, depth=3, complete=None))


def _claims(root: Path, folder: Path, depth: int, complete: int | None) -> Iterator[Claim]:
    here = {name: read_json(folder / name) for name in NAMES if (folder / name).is_file()}
    name = folder.relative_to(root).as_posix() if folder != root else ""
    for file, content in here.items():
        if not isinstance(content, dict):
            raise DataError(f"{folder / file}: is damaged: expected a JSON object, found {shown(content)}")
        if file == "zarr.json":
            yield from _claims_3(folder, name, content, complete)
        elif file == ".zarray":
            yield _claim_2(folder, name, content, complete)
        elif file == ".zmetadata":
            for key, inner in _mapping(folder / file, content, "metadata").items():
                if key.endswith(".zarray"):
                    _claim_2(folder, key, _required(isinstance(inner, dict), inner, folder / file, key), None)
    if depth and here and not any(file == ".zarray" or content.get("node_type") == "array" for file, content in here.items()):
        for child in sorted(path for path in folder.iterdir() if path.is_dir()):
            yield from _claims(root, child, depth - 1, _complete(here))


def _claims_3(folder: Path, name: str, content: dict[str, Any], complete: int | None) -> Iterator[Claim]:
    file = folder / "zarr.json"
    consolidated = content.get("consolidated_metadata")
    for key, inner in _mapping(file, consolidated, "metadata").items() if consolidated else ():
        if _required(isinstance(inner, dict), inner, file, key).get("node_type") == "array":
            _claim_3(folder, file, str(key), inner, None)
    if content.get("node_type") == "array":
        yield _claim_3(folder, file, name, content, complete)


def _claim_2(folder: Path, name: str, content: dict[str, Any], complete: int | None) -> Claim:
    file = folder / ".zarray"
    shape, chunk = _sizes(file, "shape", content.get("shape")), _sizes(file, "chunks", content.get("chunks"), least=1)
    filters = content.get("filters")
    compressor = content.get("compressor")
    codecs = [*(_required(isinstance(filters, list), filters, file, "filters") if filters else ()), *([compressor] if compressor else ())]
    for codec in codecs:
        _check_codec(file, codec, "id", CODECS_2)
    dtype = content.get("dtype")
    if dtype == "|O" and any(codec["id"] == "vlen-utf8" for codec in codecs):
        itemsize = 8
    else:
        itemsize = _itemsize_2(dtype)
        _required(itemsize, dtype, file, "dtype")
    blosc = folder if codecs and _packed_by_blosc(codecs) else None
    return Claim(name, shape, chunk, itemsize, _written(shape, complete), _stored(folder), blosc)


def _claim_3(folder: Path, file: Path, name: str, content: dict[str, Any], complete: int | None) -> Claim:
    shape = _sizes(file, "shape", content.get("shape"))
    grid = _mapping(file, content, "chunk_grid")
    if grid.get("name") != "regular":
        raise DataError(f"{file}: expected a regular grid of chunks, found {shown(grid.get('name'))}: write the array again")
    chunk = _sizes(file, "chunk_shape", _mapping(file, grid, "configuration").get("chunk_shape"), least=1)
    _check_codecs_3(file, content.get("codecs"))
    _required(not content.get("storage_transformers"), content.get("storage_transformers"), file, "storage_transformers")
    itemsize = _itemsize_3(content.get("data_type"))
    _required(itemsize, content.get("data_type"), file, "data_type")
    blosc = folder if _packed_by_blosc(content["codecs"]) else None
    return Claim(name, shape, chunk, itemsize, _written(shape, complete), _stored(folder), blosc)


# -- entries ---------------------------------------------------------------------------------------------------------------


def _check_codecs_3(file: Path, codecs: Any) -> None:
    for codec in _required(isinstance(codecs, list), codecs, file, "codecs"):
        codec = {"name": codec} if isinstance(codec, str) else codec
        _check_codec(file, codec, "name", CODECS_3)
        configuration = codec.get("configuration") or {}
        _required(isinstance(configuration, dict), configuration, file, f"configuration of {codec['name']}")
        for inner in ("codecs", "index_codecs"):
            if inner in configuration:
                _check_codecs_3(file, configuration[inner])


def _check_codec(file: Path, codec: Any, key: str, known: frozenset[str]) -> None:
    name = _required(isinstance(codec, dict), codec, file, "codec").get(key)
    if not isinstance(name, str) or name not in known:
        raise DataError(
            f"{file}: the codec {shown(name)} is not read, because a codec from a file could run code: write the array again with one "
            f"that only computes ({nearest(str(name), known)})"
        )
    settings = codec | (codec.get("configuration") or {} if isinstance(codec.get("configuration"), dict) else {})
    for setting in ("dtype", "astype", "encode_dtype", "decode_dtype"):
        if setting in settings and not _itemsize_2(settings[setting]) and not _itemsize_3(settings[setting]):
            raise DataError(f"{file}: the codec {name!r} has the {setting} {shown(settings[setting])}, expected one of numbers")


def _packed_by_blosc(codecs: list[Any]) -> bool:
    last = codecs[-1] if codecs else None
    return str((last.get("id") or last.get("name")) if isinstance(last, dict) else last).endswith("blosc")


def _itemsize_2(dtype: Any) -> int:
    """Bytes of an entry of a version 2 dtype; 0 for one that is not read."""
    if not isinstance(dtype, str):
        return 0
    if number := _NUMBER_2.fullmatch(dtype):
        return int(number[2] or 8)
    if text := _TEXT_2.fullmatch(dtype):
        size = int(text[2]) * (4 if text[1] == "U" else 1)
        return size if 0 < size <= LONGEST_TEXT else 0
    return 0


def _itemsize_3(data_type: Any) -> int:
    """Bytes of an entry of a version 3 data type; 0 for one that is not read."""
    if isinstance(data_type, str):
        if _NUMBER_3.fullmatch(data_type):
            return max(1, int("".join(filter(str.isdigit, data_type)) or 8) // 8)
        return 8 if data_type in ("string", "variable_length_utf8") else 0
    if not isinstance(data_type, dict) or data_type.get("name") not in _BY_NAME_3:
        return 0
    configuration = data_type.get("configuration") or {}
    size = configuration.get("length_bytes", 8) if isinstance(configuration, dict) else 0
    return size if _is_whole(size) and 0 < size <= LONGEST_TEXT else 0


def _sizes(file: Path, key: str, value: Any, least: int = 0) -> tuple[int, ...]:
    _required(isinstance(value, list) and all(_is_whole(n) and n >= least for n in value) and len(value) <= 32, value, file, key)
    return tuple(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _mapping(file: Path, content: Any, key: str) -> dict[str, Any]:
    value = content.get(key) if isinstance(content, dict) else content
    return _required(isinstance(value, dict), value, file, key)


def _required(fits: Any, value: Any, file: Path, key: str) -> Any:
    if not fits:
        raise DataError(f"{file}: is damaged, or not read by this program: {key} is {shown(value)}")
    return value


def _stored(folder: Path) -> Iterator[int]:
    """Yield the sizes of the files of an array, without metadata."""
    for parent, _, files in os.walk(folder):
        for file in files:
            if file not in NAMES:
                yield Path(parent, file).stat().st_size


def _complete(here: dict[str, Any]) -> int | None:
    """Number of trajectories that the metadata of a group say are written, where they say so."""
    attributes = here.get("zarr.json", {}).get("attributes") or here.get(".zattrs") or {}
    complete = attributes.get("complete") if isinstance(attributes, dict) else None
    return complete if _is_whole(complete) else None


def _written(shape: tuple[int, ...], complete: int | None) -> int:
    return entries(shape) if complete is None or not shape else entries((max(0, min(shape[0], complete)), *shape[1:]))


def damaged_blosc(claim: Claim) -> str | None:
    """Return the first Blosc chunk whose header does not match its size: the library would read past its end."""
    if claim.blosc is None:
        return None
    most = 2 * claim.itemsize * entries(claim.chunk) + 1024  # a filter may add a little
    for parent, _, files in os.walk(claim.blosc):
        for path in (Path(parent, file) for file in sorted(files) if file not in NAMES):
            with open(path, "rb") as chunk:
                header = chunk.read(16)
            unpacked, packed = (int.from_bytes(header[i : i + 4], "little") for i in (4, 12))
            if len(header) < 16 or packed != path.stat().st_size or unpacked > most:
                return path.relative_to(claim.blosc).as_posix()
    return None


def entries(shape: tuple[int, ...]) -> int:
    """Number of entries of an array."""
    return math.prod(shape)
