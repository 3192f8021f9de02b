"""Files that are there completely, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path, ending: str = ".partial") -> Iterator[Path]:
    """Give a place beside a file to write to, which takes its name at the end.

    After a crash the file is the old one or the new one, never a part of one.
    """
    temporary = path.with_name(path.name + ending)
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
