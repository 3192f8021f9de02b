"""Orderly stops: Ctrl-C and SIGTERM are noted, and training ends after the step that it is in."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether a signal to stop has come; outside of the main thread signals are left to the caller."""
    came = False

    def stop(*_: Any) -> None:
        nonlocal came
        came = True

    previous = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, stop)
    except ValueError:  # not in the main thread
        pass
    try:
        yield lambda: came
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
