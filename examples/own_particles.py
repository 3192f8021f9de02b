"""Bring your own particle data: write a store, describe its fields, train on it.

Here the recordings are of a made-up system, 2D particles tied by springs to their common centre and kicked at random, recorded without
velocities; put your own arrays in its place.

    python examples/own_particles.py
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import xarray as xr

SPEC = """\
frame_dt: 0.1
time_unit: s
fields:
  - {name: charge, irreps: 0e, dynamic: false, unit: C}
  - {name: position, irreps: 1o, translates: true, unit: m}
sites: [particle]
space: 2
"""


def record(trajectories: int, frames: int, particles: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return charges (trajectory, particle) and positions (trajectory, time, particle, space)."""
    charge = rng.uniform(0.5, 2.0, (trajectories, particles))
    x, path = rng.normal(size=(trajectories, particles, 2)), []
    for _ in range(frames):
        path.append(x)
        pull = x.mean(1, keepdims=True) - x
        x = x + 0.1 * charge[..., None] * pull + 0.05 * rng.normal(size=x.shape)
    return charge, np.stack(path, 1)


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), default=Path("own"), show_default=True)
@click.option("--steps", default=300, show_default=True)
def main(folder: Path, steps: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    charge, position = record(200, 30, 6, np.random.default_rng(0))
    store = folder / "springs.zarr"
    data = {"charge": (("trajectory", "particle"), charge), "position": (("trajectory", "time", "particle", "space"), position)}
    xr.Dataset(data).to_zarr(store, mode="w", consolidated=False)
    store.with_name(store.name + ".yaml").write_text(SPEC)

    def epns_pyro(*arguments: str) -> None:
        print("$ epns-pyro", *arguments, flush=True)
        subprocess.run([sys.executable, "-m", "epns_pyro.cli", *arguments], check=True)

    epns_pyro("data", "info", str(store))
    epns_pyro("train", "nbody", "--data", str(store), "--steps", str(steps), "--out", str(folder / "run"))
    epns_pyro("report", str(folder / "run"))


if __name__ == "__main__":
    main()
