"""What an evaluation has sampled so far: an interrupted one goes on from there.

RUN/evaluation.kept/ holds a file per block of forecasts that took long, under a name made from everything that the block depends on, and
`identity`, a digest of the model, the data and the settings. It is removed when the evaluation is complete.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from epns_pyro.whole import whole

logger = logging.getLogger(__name__)
WORTH = 2.0  # seconds: what takes less is sampled again
NAMES = "names"  # attribute of a file: the names of its datasets, which are the groups 0, 1, ...

Kept = dict[str, xr.Dataset]


class Archive:
    """A folder of what was sampled, valid for one identity; anything else in it is removed.

    Parameters
    ----------
    folder : Path
    identity : str
        Says what the results depend on beside the keys: model, data, settings, versions.
    """

    def __init__(self, folder: Path, identity: str, *, worth: float = WORTH) -> None:
        self._folder, self._worth = folder, worth
        note = folder / "identity"
        if note.is_file() and note.read_text() == identity:
            if count := len(list(folder.glob("*.nc"))):
                logger.info("going on with an interrupted evaluation: %d blocks of forecasts are there", count)
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        note.write_text(identity)

    def recall(self, key: Sequence[Any], make: Callable[[], Kept]) -> Kept:
        """Return what `make` makes, or what it made under this key before. A key holds arrays, numbers and text."""
        path = self._folder / f"{_digest(key)}.nc"
        if (found := _read(path)) is not None:
            return found
        started = time.perf_counter()
        made = make()
        if time.perf_counter() - started >= self._worth:
            _write(path, made)
        return made

    def close(self) -> None:
        """Remove the folder: all that it was for is done."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _digest(key: Sequence[Any]) -> str:
    digest = hashlib.sha256()
    for part in key:
        if isinstance(part, np.ndarray):
            digest.update(repr((part.shape, str(part.dtype))).encode() + np.ascontiguousarray(part).tobytes())
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()[:32]


def _write(path: Path, made: Kept) -> None:
    with whole(path) as partial:
        xr.Dataset(attrs={NAMES: list(made)}).to_netcdf(partial, engine="h5netcdf")
        for number, data in enumerate(made.values()):
            data.to_netcdf(partial, group=str(number), mode="a", engine="h5netcdf")


def _read(path: Path) -> Kept | None:
    """Read a file; None where there is none, or none that can be read: then it is made again."""
    if not path.is_file():
        return None
    try:
        names = np.atleast_1d(xr.load_dataset(path, engine="h5netcdf").attrs[NAMES]).tolist()
        return {name: xr.load_dataset(path, group=str(number), engine="h5netcdf", decode_times=False) for number, name in enumerate(names)}
    except (OSError, KeyError, ValueError, RuntimeError):
        return None
