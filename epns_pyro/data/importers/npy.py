"""Reading .npy files of others: no pickles, and a header is believed only as far as the file goes."""

from __future__ import annotations

import tokenize
import warnings
from pathlib import Path

import numpy as np

from epns_pyro.errors import DataError

# What NumPy raises for damaged files and for headers that make no sense.
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
    """Open an array of numbers, any shape, without reading its values: they are read where they are used.

    Raises
    ------
    DataError
        If the file is damaged, shorter than its header says, or holds something else than numbers.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of NumPy, on sizes that overflow: they end in an error anyway
            array = np.lib.format.open_memmap(path, mode="r")  # reads arrays only: no pickle, no archive
    except _DAMAGE as error:
        raise DataError(f"{path}: cannot be read as a .npy array: {' '.join(str(error).split())[:200] or type(error).__name__}") from None
    if array.dtype.kind not in "biuf":
        raise DataError(f"{path}: holds {array.dtype} values, expected numbers")
    return array
