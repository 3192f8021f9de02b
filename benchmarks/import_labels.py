"""Time and memory of importing a large film of tracked cells, and of training on it.

    python benchmarks/import_labels.py --frames 92 --height 700 --width 1100 --cells 285 --segment 8 --steps 3

Makes a film of discs that walk at random and hide each other, with labels 3, 6, 9, ..., in a TIFF file, imports it, and prints seconds and
the largest resident memory; with --steps also the seconds of an optimiser step of the quick preset, without and with validation.
"""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import tifffile
from scipy.spatial import KDTree

from epns_pyro import preset, train
from epns_pyro.data import import_labels, open_store


def film(frames: int, height: int, width: int, cells: int, radius: float, seed: int = 0) -> np.ndarray:
    """Draw labels (time, y, x) uint16: every pixel belongs to the nearest centre within the radius."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform((0, 0), (height, width), (cells, 2))
    names = np.append(3 * np.arange(1, cells + 1), 0)
    pixels = np.indices((height, width)).reshape(2, -1).T
    images = np.empty((frames, height, width), np.uint16)
    for image in images:
        centres = np.clip(centres + rng.normal(0, 1.5, centres.shape), 0, (height - 1, width - 1))
        image[:] = names[KDTree(centres).query(pixels, distance_upper_bound=radius)[1]].reshape(height, width)
    return images


@click.command()
@click.option("--frames", default=92, show_default=True)
@click.option("--height", default=700, show_default=True)
@click.option("--width", default=1100, show_default=True)
@click.option("--cells", default=285, show_default=True)
@click.option("--radius", default=24.0, show_default=True, help="Of a cell, pixels.")
@click.option("--segment", type=int, help="Cut the film into trajectories of so many frames.")
@click.option("--steps", default=0, show_default=True, help="Optimiser steps to time.")
def main(frames: int, height: int, width: int, cells: int, radius: float, segment: int | None, steps: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tifffile.imwrite(Path(folder) / "film.tif", film(frames, height, width, cells, radius), photometric="minisblack")
        started = time.perf_counter()
        import_labels(Path(folder) / "film.tif", Path(folder) / "film.zarr", segment=segment)
        seconds = time.perf_counter() - started
        print(f"{frames} frames of {height} x {width} pixels, {cells} cells: {seconds:.1f} s, {memory():.2f} GiB", flush=True)
        if steps:
            each, validation = training_seconds(Path(folder), steps)
            print(f"an optimiser step: {each:.1f} s, a validation: {validation:.1f} s, {memory():.2f} GiB")


def memory() -> float:
    """Largest resident memory so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def training_seconds(folder: Path, steps: int) -> tuple[float, float]:
    """Seconds of an optimiser step of the quick preset, and of a validation: there is one before the first step and one after the last."""
    store = open_store(folder / "film.zarr")
    config = preset("cells", "quick", store).override({"training.steps": steps, "training.log_every": 1})
    started, ends = time.perf_counter(), []
    train(config, store, folder / "run", on_progress=lambda _: ends.append(time.perf_counter()))
    each = float(np.median(np.diff(ends)))
    return each, (ends[0] - started - each + time.perf_counter() - ends[-1]) / 2


if __name__ == "__main__":
    main()
