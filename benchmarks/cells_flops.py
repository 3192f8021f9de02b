"""Arithmetic of one simulated frame of the cellular models, and the time it takes, in one run.

    python benchmarks/cells_flops.py --out benchmarks/results/cells_flops.csv

Counts the floating-point operations of matrix products and convolutions (torch.utils.flop_counter; a multiply-add is two) of one step of
one sample: forward model, prior, emission and the drawing of all pixels. Weights do not change the count: untrained models are measured.
Time is the median of several frames, float32, on the threads that torch takes.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import click
import numpy as np
import torch
from common import write_table
from torch.utils.flop_counter import FlopCounterMode

from epns_pyro.context import DataContext
from epns_pyro.models.tissues.cells import CellsModelConfig, CellsTransition
from epns_pyro.systems import CellsConfig, trajectory_seeds

MODELS = {
    "windows, 64 classes (default)": {"interlacing": 8},
    "windows, independent pixels": {"interlacing": 1},
    "SpatialConv-GNN (embedding 32, 64 latents)": {"network": "spatial-conv", "latent": 64, "interlacing": 1},
    "PNS-UNet": {"network": "unet", "latent": 64, "interlacing": 1},
}
SYSTEMS = {"cells16": CellsConfig.small, "cells64": CellsConfig}


def frame(transition: CellsTransition, x: torch.Tensor) -> torch.Tensor:
    """One sampled step from states (1, y, x, channel)."""
    step = transition.at(x)
    z = step.prior.sample()
    return step.emission(z).sample()


def measure(transition: CellsTransition, x: torch.Tensor, rounds: int) -> tuple[float, float]:
    """GFLOP and median seconds of a frame."""
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            frame(transition, x)
        seconds = []
        for _ in range(rounds):
            started = time.perf_counter()
            frame(transition, x)
            seconds.append(time.perf_counter() - started)
    return counter.get_total_flops() / 1e9, statistics.median(seconds)


@click.command()
@click.option("--rounds", default=3, show_default=True, help="Timed frames per model.")
@click.option("--only", multiple=True, help="Systems; both by default.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/cells_flops.csv"), show_default=True)
def main(rounds: int, only: tuple[str, ...], out: Path) -> None:
    rows = []
    for name, make in SYSTEMS.items():
        if only and name not in only:
            continue
        system = make().build()
        x0 = system.initial(1, np.random.default_rng(0))
        x = torch.as_tensor(system.simulate(x0, 5, trajectory_seeds(0, "benchmark", 1))[:, -1])
        context = DataContext(system.spec, system.frame_dt, {}, tuple(x.shape[1:3]))
        for label, choices in MODELS.items():
            torch.manual_seed(0)
            transition = CellsModelConfig.parse(choices).build(context)
            gflop, seconds = measure(transition, x, rounds)
            parameters = sum(p.numel() for p in transition.parameters())
            rows.append(
                {
                    "system": name,
                    "lattice": "x".join(map(str, context.sites)),
                    "cells": system.spec["cell"].size - 1,
                    "model": label,
                    "parameters": parameters,
                    "gflop_per_frame": f"{gflop:.3f}",
                    "seconds_per_frame": f"{seconds:.4f}",
                }
            )
            print(rows[-1], flush=True)
    write_table(rows, out)


if __name__ == "__main__":
    main()
