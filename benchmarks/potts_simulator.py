"""How fast the Cellular Potts simulator is, against the textbook's loop that does the same work in the same run.

The textbook's loop runs in plain Python (for a few steps only) and compiled as it stands. Everything is timed on one thread, after a
warm-up, from the same initial state; the best of several rounds counts, because other programs can only make a round slower. The
compiled loops run equally long from square blocks, and their final energies are printed: they must agree within their errors.

    python benchmarks/potts_simulator.py --lattice 64 --steps 1000
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from typing import Any

import click
import numpy as np
from numba import njit

from epns_pyro.systems import Cells, CellsConfig, trajectory_seeds

NEIGHBOURS = np.array([(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)])


def textbook(label, kind, J, stiffness, target, temperature, steps):
    """Run `steps` Monte Carlo steps on the label image (y, x), in place: 8 neighbours, no flux."""
    height, width = label.shape
    area = np.zeros(kind.size, np.int64)
    for y in range(height):
        for x in range(width):
            area[label[y, x]] += 1
    for _ in range(steps * height * width):
        y, x = np.random.randint(height), np.random.randint(width)  # noqa: NPY002  (what a compiled loop offers)
        move = NEIGHBOURS[np.random.randint(8)]  # noqa: NPY002
        v, u = y + move[0], x + move[1]
        if v < 0 or v >= height or u < 0 or u >= width or label[v, u] == label[y, x]:
            continue
        new, old, dH = label[y, x], label[v, u], 0.0
        for k in range(8):
            b, a = v + NEIGHBOURS[k, 0], u + NEIGHBOURS[k, 1]
            if 0 <= b < height and 0 <= a < width:
                other = label[b, a]
                if other != new:
                    dH += J[kind[new], kind[other]]
                if other != old:
                    dH -= J[kind[old], kind[other]]
        if new > 0:
            dH += stiffness * ((area[new] + 1 - target) ** 2 - (area[new] - target) ** 2)
        if old > 0:
            dH += stiffness * ((area[old] - 1 - target) ** 2 - (area[old] - target) ** 2)
        if dH <= 0 or np.random.random() < math.exp(-dH / temperature):  # noqa: NPY002
            label[v, u] = new
            area[new] += 1
            area[old] -= 1


def best(rounds: int, function: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[float, Any]:
    """Shortest time of several rounds, s, and the last result."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        result = function(*arguments, **options)
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


def textbook_runs(loop: Callable[..., None], system: Cells, x0: np.ndarray, steps: int) -> np.ndarray:
    """Final states (n, y, x, channel) of the textbook's loop from x0 (n, y, x, channel)."""
    c, final = system.config, []
    for state in x0:
        label, kind = state[..., 0].astype(np.int64), system.spec.entity_property(state, "type").astype(np.int64)
        loop(label, kind, c.contact_matrix, c.stiffness, c.target_area, c.temperature, steps)
        final.append(np.stack([label, kind[label]], -1))
    return np.stack(final)


@click.command()
@click.option("--lattice", default=64, show_default=True, help="Height and width, pixels.")
@click.option("--steps", default=1000, show_default=True, help="Monte Carlo steps per run.")
@click.option("--runs", default=4, show_default=True)
@click.option("--rounds", default=5, show_default=True)
def main(lattice: int, steps: int, runs: int, rounds: int) -> None:
    system = CellsConfig(lattice=(lattice, lattice), frame_mcs=steps).build()
    x0, seeds = system.initial(runs, np.random.default_rng(0)), trajectory_seeds(0, "benchmark", runs)
    compiled = njit(textbook)

    start_up, _ = best(1, system.simulate, x0[:1], 0, seeds[:1], workers=1)
    textbook_runs(compiled, system, x0[:1], 1)
    print(f"{lattice} x {lattice} pixels, {system.config.cells} cells, {runs} runs of {steps} MCS, first call {start_up:.2f} s")
    ours, x = best(rounds, system.simulate, x0, 1, seeds, workers=1)
    theirs, final = best(rounds, textbook_runs, compiled, system, x0, steps)
    few = max(1, steps // 500)
    plain, _ = best(1, textbook_runs, textbook, system, x0[:1], few)
    rates = {"this package": runs * steps / ours, "textbook, compiled": runs * steps / theirs, "textbook, plain Python": few / plain}
    for name, rate in rates.items():
        nanoseconds = 1e9 / rate / lattice**2
        print(f"{name:24}{rate:10.0f} MCS/s on one core{nanoseconds:12.1f} ns per attempt{rates['this package'] / rate:10.1f} x")
    if (cores := os.cpu_count() or 1) > 1:
        together, _ = best(rounds, system.simulate, x0, 1, seeds)
        print(f"{'all cores':24}{runs * steps / together:10.0f} MCS/s on {cores} cores")
    for name, end in (("this package", x[:, 1]), ("textbook, compiled", final)):
        energy = system.observables(end[:, None])["hamiltonian"].values
        print(f"final energy, {name:24}{energy.mean():10.0f} +- {energy.std(ddof=1) / np.sqrt(runs):.0f}")

    frames = CellsConfig(lattice=(lattice, lattice)).build().simulate(x0, 60, seeds)
    system.observables(frames[:, :2])
    seconds, measured = best(rounds, system.observables, frames)
    count = runs * frames.shape[1]
    print(f"all {len(measured)} observables: {count / seconds:.0f} frames/s on all cores")


if __name__ == "__main__":
    main()
