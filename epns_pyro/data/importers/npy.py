"""Reading .npy files from unknown sources: no pickles, and the header must agree with the size of the file."""

from __future__ import annotations

import tokenize
import warnings
from pathlib import Path

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
