"""How many threads a compiled simulator may use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numba

from epns_pyro.errors import ConfigError


@contextmanager
def limited(workers: int | None) -> Iterator[None]:
    """Run numba's parallel loops in the block on at most `workers` threads (None: all that numba was given)."""
    if workers is not None and workers < 1:
        raise ConfigError(f"workers must be at least 1, found {workers} (leave it out to use every core)")
    before = numba.get_num_threads()
    numba.set_num_threads(min(workers or before, numba.config.NUMBA_NUM_THREADS))
    try:
        yield
    finally:
        numba.set_num_threads(before)
