"""Checkpoints: one file with everything that training needs to go on, written to a temporary file and renamed.

Loading never runs code from the file: `torch.load(weights_only=True)` admits tensors and plain data only.
"""

from __future__ import annotations

import os
import platform
import warnings
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch

from epns_pyro._version import __version__
from epns_pyro.context import DataContext
from epns_pyro.errors import CheckpointError
from epns_pyro.state import StateSpec

FORMAT = "epns-pyro checkpoint"
VERSION = 1
CONTENT = frozenset({"config", "system", "context", "store", "weights", "optimizer", "noise", "windows", "counters", "versions"})


def versions() -> dict[str, str]:
    """Versions of the code and of the libraries whose numbers it depends on."""
    return {
        "epns-pyro": __version__,
        "torch": str(torch.__version__),
        "pyro-ppl": pyro.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def write_checkpoint(path: Path, **content: Any) -> None:
    """Write tensors and plain data by name; a crash leaves the old file or the new one, never half of one."""
    temporary = path.with_name(path.name + ".partial")
    with open(temporary, "wb") as file:
        torch.save({"format": FORMAT, "version": VERSION, "versions": versions(), **content}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises
    ------
    CheckpointError
        If there is none, if it is truncated, or if it is not one of ours or of another version.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint: epns-pyro train makes one")
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip():  # torch writes checksums and never looks at them
                raise zipfile.BadZipFile
        with warnings.catch_warnings(action="ignore"):  # of foreign files, about which our own error says enough
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        raise CheckpointError(f"{path}: not a readable checkpoint (truncated, damaged or foreign: {type(error).__name__})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: a file of PyTorch, but not a checkpoint of epns-pyro")
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: a checkpoint of version {content.get('version')}, while this epns-pyro {__version__} reads version {VERSION}: "
            "use the epns-pyro that wrote it, or train anew"
        )
    if missing := sorted(CONTENT - content.keys()):
        raise CheckpointError(f"{path}: an incomplete checkpoint, without {', '.join(missing)}: train anew")
    return content


def context_to_plain(context: DataContext) -> dict[str, Any]:
    """Return a data context as plain data that a checkpoint may hold."""
    return asdict(context) | {"spec": context.spec.to_json()}


def context_from_plain(raw: dict[str, Any]) -> DataContext:
    tuples = {key: tuple(raw.get(key, ())) for key in ("sites", "origin")}  # there was no origin before 0.2
    return DataContext(**(raw | tuples | {"spec": StateSpec.from_json(raw["spec"])}))
