"""Compiled code on several threads: it needs no lock of the interpreter."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch


def share_out(count: int, work: Callable[[int, int], None]) -> None:
    """Do some work on `count` items, all from one number up to another, on as many threads as torch has."""
    threads = max(1, min(torch.get_num_threads(), count))
    if threads == 1:
        work(0, count)
        return
    bounds = [count * part // threads for part in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, bounds[:-1], bounds[1:]))
