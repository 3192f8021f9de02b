"""The heap of this process: by default the C library returns large pieces of freed memory at once, and maps the next tensor anew.

Every page of such a tensor is then cleared by the kernel before its first use: a step of a model becomes up to three times as expensive.
"""

from __future__ import annotations

import ctypes
import os

TRIM, MMAP = 2**29, 2**25  # bytes: free memory that is kept, and the least size of what is mapped (the C library allows no more)
VARIABLES = {"MALLOC_TRIM_THRESHOLD_": TRIM, "MALLOC_MMAP_THRESHOLD_": MMAP}  # the same for processes that are still to start
PARAMETERS = {"MALLOC_TRIM_THRESHOLD_": -1, "MALLOC_MMAP_THRESHOLD_": -3}  # their numbers in malloc.h


def keep_freed_memory() -> None:
    """Have this process keep up to half a GiB of freed memory for its next tensors; what the environment says stays as it is.

    Without the C library of GNU it does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # other systems have no such function, or no such library
        return
    for name, value in VARIABLES.items():
        if name not in os.environ:
            mallopt(PARAMETERS[name], value)
