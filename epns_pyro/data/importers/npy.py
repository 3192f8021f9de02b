"""Reading .npy and .npz files from unknown sources: nothing that runs code, and the header must agree with the size of the file."""

from __future__ import annotations

import pickle
import tokenize
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from epns_pyro.errors import DataError

# Exceptions that NumPy raises for damaged files and invalid headers.
_DAMAGE = (
    ArithmeticError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
    tokenize.TokenError,
)


def load_npy(path: Path) -> np.ndarray:
    """Open an array of numbers, any shape, as a memory map: values are read when they are used.

    Raises
    ------
    DataError
        If the file is damaged, shorter than its header says, or holds something other than numbers.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of NumPy, about sizes that overflow: these become an error below
            array = np.lib.format.open_memmap(path, mode="r")  # reads arrays only: no pickle, no archive
    except _DAMAGE as error:
        raise DataError(f"{path}: cannot be read as a .npy array: {' '.join(str(error).split())[:200] or type(error).__name__}") from None
    if array.dtype.kind not in "biuf":
        raise DataError(f"{path}: holds {array.dtype} values, expected numbers")
    return array


def load_dictionary(path: Path) -> dict[str, Any]:
    """Read a dictionary of text, numbers, containers and arrays, which `numpy.save` has pickled.

    A pickle runs code through the functions that it names. Here it may name those alone that NumPy puts arrays and numbers together with.

    Raises
    ------
    DataError
        If the file is damaged, names anything else, or holds no dictionary.
    """
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            found = _Unpickler(file).load()
    except (*_DAMAGE, AttributeError, ImportError, pickle.UnpicklingError) as error:
        raise DataError(f"{path}: cannot be read as a dictionary of arrays: {' '.join(str(error).split())[:200]}") from None
    if isinstance(found, np.ndarray) and found.shape == ():
        found = found.item()
    if not isinstance(found, dict):
        raise DataError(f"{path}: holds {type(found).__name__}, expected a dictionary")
    return found


class _Unpickler(pickle.Unpickler):
    """Knows the functions and classes that make arrays and numbers, and no other."""

    _MODULES = frozenset({"numpy", "numpy.core.multiarray", "numpy._core.multiarray"})
    _NAMES = frozenset({"_reconstruct", "ndarray", "dtype", "scalar"})

    def find_class(self, module: str, name: str) -> Any:
        if module in self._MODULES and name in self._NAMES:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        if (module, name) == ("_codecs", "encode"):  # bytes in old pickles
            return _bytes
        raise pickle.UnpicklingError(f"it names {module}.{name}, which could run code")


def _bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it holds bytes in {encoding!r}")
    return text.encode("latin1")


def load_npz(path: Path, name: str) -> np.ndarray:
    """Read the array of numbers with a name from an archive, or the only one that it holds.

    Raises
    ------
    DataError
        If the archive is damaged, or holds no such array.
    """
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: cannot be read as a .npz archive: it is none")
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = list(archive.files)
            chosen = name if name in names else names[0] if len(names) == 1 else None
            array = None if chosen is None else np.asarray(archive[chosen])
    except (*_DAMAGE, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as a .npz archive: {' '.join(str(error).split())[:200] or type(error).__name__}") from None
    if array is None:
        raise DataError(f"{path}: expected an array {name!r}, or only one, found {', '.join(map(repr, names[:10])) or 'none'}")
    if array.dtype.kind not in "biuf":
        raise DataError(f"{path}: {chosen!r} holds {array.dtype} values, expected numbers")
    return array
