"""What may happen to a file: damage to its bytes, to the plain data in it, to the numbers that it holds.

A mutator is a function (folder, rng) -> str that changes something below a folder and says what. Those here are for everybody: a reader
of a new kind of file takes what fits, and adds its own beside its entry in `readers.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml
import zarr

Rng = np.random.Generator

HOSTILE_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 7, 10**6, 10**9, 10**12, 10**30, 10**400, 0.5, -0.0, 1e38, 1e-300, 1e300,
    float("nan"), float("inf"), -float("inf"), "", "text", "²", "1e999", "NaN", "nan", "\x00", "ü" * 50, "9" * 25, "x" * 100_000,
    [], {}, [[]], [1, 2], ["a"], {"name": "x"}, {"name": []}, {"name": None}, [None], {"a": {"b": {"c": []}}}, list(range(100_000)),
)  # fmt: skip
HOSTILE_NUMBERS = (np.nan, np.inf, -np.inf, 1e300, -1e300, 1e38, 1e20, 1e-300, 1e-40, 0.0, -1.0, 1e9, 9.97e36)


def files(folder: Path, rng: Rng, *, accept: Callable[[Path], bool] = lambda path: True) -> Path | None:
    """Choose a file below a folder."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and accept(path))
    return found[rng.integers(len(found))] if found else None


# -- bytes -----------------------------------------------------------------------------------------------------------------


def flip_bytes(folder: Path, rng: Rng) -> str:
    """Change a few bytes of a file."""
    path = files(folder, rng)
    content = bytearray(path.read_bytes())
    places = rng.integers(len(content), size=int(rng.choice([1, 1, 2, 8]))) if content else []
    for place in places:
        content[place] ^= int(rng.integers(1, 256))
    path.write_bytes(content)
    return f"{path.relative_to(folder)}: changed bytes {sorted(map(int, places))}"


def cut(folder: Path, rng: Rng) -> str:
    """Cut off the end of a file."""
    path = files(folder, rng)
    size = path.stat().st_size
    keep = int(rng.integers(size)) if size else 0
    path.write_bytes(path.read_bytes()[:keep])
    return f"{path.relative_to(folder)}: kept {keep} of {size} bytes"


def overwrite(folder: Path, rng: Rng) -> str:
    """Write zeros, ones or noise over a stretch of a file."""
    path = files(folder, rng)
    content = bytearray(path.read_bytes())
    start = int(rng.integers(len(content) + 1))
    length = min(int(rng.choice([1, 4, 64, 512])), len(content) - start)
    fill = (bytes(length), b"\xff" * length, rng.bytes(length))[rng.integers(3)]
    content[start : start + length] = fill
    path.write_bytes(content)
    return f"{path.relative_to(folder)}: bytes {start} to {start + length} overwritten"


def lose(folder: Path, rng: Rng) -> str:
    """Delete a file, or leave it there with nothing in it, or with bytes that mean nothing."""
    path = files(folder, rng)
    if (kind := rng.integers(3)) == 0:
        path.unlink()
        return f"{path.relative_to(folder)}: deleted"
    path.write_bytes(b"" if kind == 1 else rng.bytes(200))
    return f"{path.relative_to(folder)}: {'emptied' if kind == 1 else 'filled with noise'}"


BYTES = (flip_bytes, cut, overwrite, lose)

# -- plain data ------------------------------------------------------------------------------------------------------------


def change_json(folder: Path, rng: Rng) -> str:
    """Replace, delete or add one entry in a JSON file, also inside text that is JSON itself."""
    path = files(folder, rng, accept=_is_json)
    if path is None:
        return "nothing"
    data, what = _changed(json.loads(path.read_text()), rng)
    path.write_text(json.dumps(data))
    return f"{path.relative_to(folder)}: {what}"


def change_yaml(folder: Path, rng: Rng) -> str:
    """Replace, delete or add one entry in a YAML file."""
    path = files(folder, rng, accept=lambda path: path.suffix == ".yaml")
    data, what = _changed(yaml.safe_load(path.read_text()), rng)
    path.write_text(yaml.safe_dump(data))
    return f"{path.relative_to(folder)}: {what}"


def nest(folder: Path, rng: Rng) -> str:
    """Let a YAML or JSON file nest or expand without end."""
    path = files(folder, rng, accept=lambda path: path.suffix == ".yaml" or _is_json(path))
    deep = int(rng.choice([200, 2_000, 100_000]))
    bombs = {
        "brackets": "[" * deep + "]" * deep,
        "braces": '{"a":' * deep + "1" + "}" * deep,
        "open brackets": "fields: " + "[" * deep,
        "as fields": "fields: " + "[" * deep + "]" * deep,
        "aliases": "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)) + "fields: *a39\n",
        "merges": "a0: &a0 {k: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40)) + "fields: *a39\n",
        "itself": "fields: &a [*a]\n",
        "digits": '{"fields": ' + "9" * 10_000 + "}",
        "tags": "fields: !!python/object/apply:os.system ['true']\n",
        "date": "fields: 2026-99-99\n",
        "number": "fields: !!int ''\n",
    }
    name = sorted(bombs)[rng.integers(len(bombs))]
    path.write_text(bombs[name])
    return f"{path.relative_to(folder)}: {name}, {deep} deep"


def _is_json(path: Path) -> bool:
    return path.suffix == ".json" or path.name in (".zarray", ".zattrs", ".zgroup", ".zmetadata")


def _changed(data: Any, rng: Rng) -> tuple[Any, str]:
    """Return plain data with one entry changed, and what was done in words."""
    places = list(_places(data))
    if not places:
        value = HOSTILE_VALUES[rng.integers(len(HOSTILE_VALUES))]
        return value, f"all of it is {_short(value)}"
    owner, key = places[rng.integers(len(places))]
    old = owner[key]
    if isinstance(old, str) and old[:1] == "{" and rng.random() < 0.9:
        inner, what = _changed(json.loads(old), rng)
        owner[key] = json.dumps(inner)
        return data, f"in {key}: {what}"
    if (kind := rng.integers(6)) == 0 and isinstance(owner, dict):
        del owner[key]
        return data, f"{key!r} deleted"
    if kind == 1 and isinstance(owner, dict):
        owner["more"] = owner.pop(key)
        return data, f"{key!r} renamed"
    if kind == 2 and isinstance(old, (int, float)):
        owner[key] = type(old)(old * int(rng.choice([-1, 2, 10, 10**6, 10**12])))
    elif kind == 3 and isinstance(owner, list):
        owner += [old] * int(rng.choice([1, 5]))
    else:
        owner[key] = HOSTILE_VALUES[rng.integers(len(HOSTILE_VALUES))]
    return data, f"{key!r} is {_short(owner[key])}, was {_short(old)}"


def _places(data: Any) -> Any:
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield data, key
        yield from _places(value)


def _short(value: Any) -> str:
    if isinstance(value, int) and abs(value) > 10**40:
        return "a long number"
    return f"{value!r}"[:60]


# -- numbers in arrays -----------------------------------------------------------------------------------------------------


def change_numbers(folder: Path, rng: Rng) -> str:
    """Put one hostile number into some or all places of a floating point array of a zarr or netCDF file."""
    number = HOSTILE_NUMBERS[rng.integers(len(HOSTILE_NUMBERS))]
    everywhere, product = rng.random() < 0.3, rng.random() < 0.3
    done = []

    def change(array: Any, name: str) -> None:
        values = np.asarray(array[...])
        if values.dtype.kind == "f" and values.size:
            place = ... if everywhere else tuple(int(rng.integers(n)) for n in values.shape)
            with np.errstate(all="ignore"):
                values[place] = values[place] * number if product else number
            array[...] = values
            done.append(f"{name}: {'all' if everywhere else place} {'times' if product else 'is'} {number:g}")

    with_arrays(folder, rng, change)
    return "; ".join(done) or "nothing"


def with_arrays(folder: Path, rng: Rng, change: Callable[[Any, str], None]) -> None:
    """Call change(array, name) with one array of the first zarr store or netCDF file below a folder, open for writing."""
    for path in sorted(folder.iterdir()):
        if path.suffix == ".nc":
            with h5py.File(path, "r+") as file:
                names: list[str] = []
                file.visit(names.append)
                found = [file[name] for name in names if isinstance(file[name], h5py.Dataset)]
                if found:
                    array = found[rng.integers(len(found))]
                    change(array, array.name)
            return
        if path.is_dir():
            root = zarr.open_group(path, mode="r+", use_consolidated=False)
            arrays = sorted((name, item) for name, item in root.members(max_depth=None) if isinstance(item, zarr.Array))
            name, array = arrays[rng.integers(len(arrays))]
            change(array, name)
            return
