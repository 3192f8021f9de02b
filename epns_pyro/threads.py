"""Threads of compiled code, which needs no lock of the interpreter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from epns_pyro.errors import ConfigError
from epns_pyro.later import later

if TYPE_CHECKING:
    import numba
else:
    numba = later("numba")


@contextmanager
def limited(workers: int | None) -> Iterator[None]:
    """Run numba's parallel loops in the block on at most `workers` threads (None: numba's own limit).

    numba and torch share one OpenMP runtime, and numba changes its number of threads: torch's number is restored afterwards.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"workers must be at least 1, found {workers} (leave it out to use every core)")
    of_torch, before = torch.get_num_threads(), numba.get_num_threads()  # in this order: the second starts numba's threads
    numba.set_num_threads(min(workers or before, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    try:
        yield
    finally:
        numba.set_num_threads(before)
        torch.set_num_threads(of_torch)


def share_out(count: int, work: Callable[[int, int], None]) -> None:
    """Do some work on `count` items, all from one number up to another, on as many threads as torch has."""
    threads = max(1, min(torch.get_num_threads(), count))
    if threads == 1:
        work(0, count)
        return
    bounds = [count * part // threads for part in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, bounds[:-1], bounds[1:]))
