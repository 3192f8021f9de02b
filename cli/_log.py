"""The log file of an unexpected error: traceback, command and versions, for the developers."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import sys
import tempfile
import traceback
from pathlib import Path

from epns_pyro._version import __version__

LIBRARIES = ("torch", "pyro-ppl", "numpy", "xarray", "zarr", "pydantic")


def write_log(error: BaseException) -> Path:
    """Write the log of an error into the current folder, or into the folder for temporary files; return its path."""
    lines = [
        f"epns-pyro {__version__}, Python {platform.python_version()}, {platform.platform()}",
        ", ".join(f"{name} {_version(name)}" for name in LIBRARIES),
        f"command: {shlex.join(sys.argv)}",
        "",
        "".join(traceback.format_exception(error)),
    ]
    for folder in (Path.cwd(), Path(tempfile.gettempdir())):
        try:
            handle, name = tempfile.mkstemp(prefix="epns-pyro-error-", suffix=".log", dir=folder, text=True)
            with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write("\n".join(lines))
        except OSError:
            continue
        return Path(os.path.relpath(name)) if folder == Path.cwd() else Path(name)
    return Path(os.devnull)


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
