"""The readers that are fuzzed, each with a small sound input. A new reader is one more entry of READERS."""

from __future__ import annotations

from pathlib import Path

import mutators
import numcodecs
import numpy as np
import xarray as xr
import yaml
from harness import Reader
from importers import IMPORTERS
from tracks import TRACKS
from zarr.codecs import BloscCodec, GzipCodec

from epns_pyro.conditioning.observations import read_observations
from epns_pyro.data import open_store
from epns_pyro.data.description import read_description
from epns_pyro.data.inspection.check import check
from epns_pyro.data.windows import Windows
from epns_pyro.data.writing import Identity, StoreWriter
from epns_pyro.state import Field, StateSpec

PARTICLES = StateSpec(
    (
        Field("mass", dynamic=False, unit="kg"),
        Field("position", "1o", translates=True, unit="m"),
        Field("velocity", "1o", rate_of="position", unit="m/s"),
    ),
    space=2,
)
LABELS = StateSpec(
    (Field("cell", kind="label", size=3), Field("type", kind="category", size=2, dynamic=False, of="cell")), sites=("y", "x")
)
DESCRIPTION = {
    "fields": [
        {"name": "mass", "dynamic": False},
        {"name": "position", "irreps": "1o", "translates": True, "unit": "m"},
        {"name": "velocity", "irreps": "1o", "rate_of": "position"},
    ],
    "space": 2,
    "time_unit": "s",
    "split": {"train": 0.6, "val": 0.2, "test": 0.2},
}


def tracks(trajectories: int = 6, frames: int = 5, bodies: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    velocity = rng.normal(size=(trajectories, frames, bodies, 2))
    return {
        "mass": rng.uniform(1, 2, size=(trajectories, bodies)),
        "position": np.cumsum(velocity, axis=1),
        "velocity": velocity,
    }


def dataset() -> xr.Dataset:
    dims = {"mass": ("trajectory", "body")}
    values = {name: (dims.get(name, ("trajectory", "time", "body", "space")), array) for name, array in tracks().items()}
    return xr.Dataset(values, coords={"time": 0.5 * np.arange(5)})


# -- sound inputs ----------------------------------------------------------------------------------------------------------


def own_particles(folder: Path) -> None:
    config = {"name": "recorded", "spec": yaml.safe_load(PARTICLES.to_json()), "frame_dt": 0.5}
    _write(folder / "x.zarr", Identity(config, PARTICLES, 0.5, "s"), PARTICLES.pack(**_over_time(tracks())))


def own_labels(folder: Path) -> None:
    config = {"name": "recorded_cells", "lattice": [6, 6], "cells": 2, "types": 1, "frame_dt": 1.0}
    cell = np.zeros((4, 3, 6, 6), np.uint16)
    cell[..., 1:3, 1:4], cell[..., 3:5, 1:4] = 1, 2
    _write(folder / "x.zarr", Identity(config, LABELS, 1.0), LABELS.pack(cell=cell, type=(cell > 0).astype(np.uint16)))


def _over_time(fields: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return fields | {"mass": np.repeat(fields["mass"][:, None], fields["position"].shape[1], 1)}


def _write(path: Path, identity: Identity, x: np.ndarray) -> None:
    writer = StoreWriter(path, identity)
    for name in ("train", "val", "test"):
        split = writer.split(name, len(x), x.shape[1], x.shape[2:-1])
        split.append(x)
    writer.finish()


def zarr_2(folder: Path) -> None:
    codecs = {"compressors": numcodecs.Blosc(cname="lz4"), "filters": [numcodecs.Shuffle()], "chunks": (2, 5, 3, 2)}
    _described(folder)
    dataset().to_zarr(
        folder / "x.zarr", zarr_format=2, consolidated=True, encoding={"position": codecs, "velocity": {"compressors": numcodecs.Zlib()}}
    )


def zarr_3(folder: Path) -> None:
    encoding = {
        "position": {"compressors": (BloscCodec(cname="zstd"),), "chunks": (2, 5, 3, 2)},
        "velocity": {"compressors": (GzipCodec(),), "chunks": (1, 5, 3, 2), "shards": (2, 5, 3, 2)},
    }
    _described(folder)
    dataset().to_zarr(folder / "x.zarr", zarr_format=3, consolidated=False, encoding=encoding)


def netcdf(folder: Path) -> None:
    _described(folder, "x.nc")
    encoding = {"position": {"zlib": True, "chunksizes": (2, 5, 3, 2)}, "velocity": {"fletcher32": True, "chunksizes": (6, 5, 3, 2)}}
    dataset().to_netcdf(folder / "x.nc", engine="h5netcdf", encoding=encoding)


def _described(folder: Path, name: str = "x.zarr") -> None:
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(DESCRIPTION))


def _seen() -> xr.Dataset:
    fields = {name: array[0] for name, array in tracks().items()}
    fields["position"][2, 1] = np.nan
    return xr.Dataset(
        {
            "position": (("time", "body", "space"), fields["position"], {"noise": 0.05}),
            "mass": (("body",), fields["mass"]),
            "initial_position": (("body", "space"), fields["position"][0]),
            "initial_velocity": (("body", "space"), fields["velocity"][0], {"noise": 0.1}),
        },
        coords={"time": 0.5 * np.arange(5)},
    )


def seen_netcdf(folder: Path) -> None:
    _seen().to_netcdf(folder / "seen.nc", engine="h5netcdf")


def seen_zarr(folder: Path) -> None:
    _seen().to_zarr(folder / "seen.zarr", consolidated=False)


# -- readers ---------------------------------------------------------------------------------------------------------------


def read_store(folder: Path) -> None:
    """Do what `data info` and `train` do with a store: open it, inspect it, measure it, draw windows, read all."""
    store = open_store(next((path for path in sorted(folder.iterdir()) if path.suffix in (".zarr", ".nc")), folder / "x.nc"))
    check(store)
    context, system = store.context(), store.system
    del context, system
    Windows(store, "train", 1, 2).draw()
    for split in store.splits:
        store.read(split)


def read_seen(folder: Path) -> None:
    read_observations(next(folder.glob("seen.*"), folder / "seen.nc"), PARTICLES, frame_dt=0.5)


def read_yaml(folder: Path) -> None:
    read_description(folder / "x.zarr.yaml")


ANYTHING = (*mutators.BYTES, mutators.change_numbers)
READERS = (
    Reader("particles", own_particles, read_store, (*ANYTHING, mutators.change_json, mutators.nest)),
    Reader("labels", own_labels, read_store, (*mutators.BYTES, mutators.change_json, mutators.nest)),
    Reader("zarr-2", zarr_2, read_store, (*ANYTHING, mutators.change_json, mutators.nest)),
    Reader("zarr-3", zarr_3, read_store, (*ANYTHING, mutators.change_json, mutators.nest)),
    Reader("netcdf", netcdf, read_store, (*ANYTHING, mutators.change_yaml)),
    Reader("description", _described, read_yaml, (*mutators.BYTES, mutators.change_yaml, mutators.nest)),
    Reader("observations-netcdf", seen_netcdf, read_seen, ANYTHING),
    Reader("observations-zarr", seen_zarr, read_seen, (*ANYTHING, mutators.change_json, mutators.nest)),
    *IMPORTERS,
    *TRACKS,
)
