"""Data for the players of the page: positions of bodies or label images, of truth and members, in compact form."""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from epns_pyro.evaluation.evaluated import Evaluated
from epns_pyro.evaluation.figures.style import thinned

MAX_FRAMES = 120
MAX_CHARACTERS = 3_000_000  # of packed values: every second frame is dropped until they fit
MAX_TRAIL = 300  # largest number of bodies drawn


@dataclass(frozen=True)
class Viewer:
    """A player: `kind` is "orbits" or "film"; `data` is written as JSON; `alt` describes what it shows."""

    kind: str
    data: dict[str, Any]
    alt: str


def viewer(found: Evaluated) -> Viewer | None:
    """Return the player for the examples of an evaluation; None if it has none that a player can show."""
    data = found.files.get("examples")
    return None if data is None else player(data, found.time_unit)


def player(data: xr.Dataset, time_unit: str) -> Viewer | None:
    """Return the player for fields (source, trajectory, time, ...); None if a player cannot show them."""
    if "cell" in data:
        return _film(data, time_unit)
    if "position" in data and data.sizes.get("space") in (2, 3):
        return _orbits(data, time_unit)
    return None


def _orbits(data: xr.Dataset, time_unit: str) -> Viewer:
    (body,) = set(data["position"].dims) - {"source", "trajectory", "time", "space"}  # users name it as they like
    data = data.isel({"time": thinned(data.sizes["time"], MAX_FRAMES), body: slice(0, MAX_TRAIL)})
    position = data["position"].transpose("source", "trajectory", "time", body, "space").values
    if position.shape[-1] == 2:
        position = np.concatenate([position, np.zeros_like(position[..., :1])], -1)
    trajectories, bodies = position.shape[1], position.shape[3]
    mass = data["mass"].transpose("trajectory", body).values if "mass" in data else np.ones((trajectories, bodies))
    size = np.cbrt(np.clip(mass / max(float(np.nanmax(mass)), 1e-12), 0, None))
    about = _about(data, time_unit, position.shape) | {"values": pack(position, "<f4"), "size": np.round(size, 3).tolist()}
    return Viewer("orbits", about, f"Orbits of {bodies} bodies in space over time: the truth beside members of the ensemble.")


def _film(data: xr.Dataset, time_unit: str) -> Viewer:
    data = data.isel(time=thinned(data.sizes["time"], MAX_FRAMES))
    while True:
        cells = data["cell"].transpose("source", "trajectory", "time", "y", "x").values
        values = pack(cells, "<u2")
        if len(values) <= MAX_CHARACTERS or data.sizes["time"] < 4:
            break
        data = data.isel(time=slice(None, None, 2))
    trajectories, labels = cells.shape[1], max(int(cells.max()), 1)
    types = data["cell_type"].transpose("trajectory", ...).values if "cell_type" in data else np.ones((trajectories, labels))
    about = _about(data, time_unit, cells.shape) | {"values": values, "types": types.astype(int).tolist()}
    return Viewer("film", about, f"Film of {labels} cells on a lattice, coloured by type: the truth beside members of the ensemble.")


def _about(data: xr.Dataset, time_unit: str, shape: tuple[int, ...]) -> dict[str, Any]:
    time = [float(f"{t:.6g}") for t in data["time"].values]
    return {"sources": [str(s) for s in data["source"].values], "time": time, "unit": time_unit, "shape": list(shape)}


def pack(values: np.ndarray, dtype: str) -> str:
    """Pack an array into text: little-endian numbers, deflated (zlib), base64; NaN becomes a number that the player skips."""
    array = np.ascontiguousarray(np.nan_to_num(values, nan=1e9, posinf=1e9, neginf=-1e9) if dtype == "<f4" else values, dtype)
    return base64.b64encode(zlib.compress(array.tobytes(), 6)).decode()
