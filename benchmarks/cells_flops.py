"""Arithmetic of one simulated frame of the cellular models, and the time it takes, in one run.

    python benchmarks/cells_flops.py --out benchmarks/results/cells_flops.csv

Counts the floating-point operations of matrix products and convolutions (torch.utils.flop_counter; a multiply-add is two) of one step of
one sample: forward model, prior, emission and the drawing of all pixels. Weights do not change the count: untrained models are measured.
Milliseconds of processor time per frame and member, for one member and for 32 together: the median of several frames, float32, one
thread. "in tensors": pixels drawn group by group, all members together; "compiled": member by member. `simulator`: the compiled Cellular
Potts simulator, one frame of its system.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import numpy as np
import torch
from common import write_table
from torch.utils.flop_counter import FlopCounterMode

from epns_pyro.context import DataContext
from epns_pyro.models.tissues.cells import CellsModelConfig, CellsTransition
from epns_pyro.models.tissues.label_images import LabelImage
from epns_pyro.systems import CellsConfig, trajectory_seeds

MODELS = {
    "preset cells: windows, 64 classes, 5 sweeps": {
        "interlacing": 8,
        "sweeps": 5,
        "apart": 8,
        "pseudo_likelihood": True,
        "distances": True,
    },
    "windows, 64 classes": {"interlacing": 8},
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


def flops(transition: CellsTransition, x: torch.Tensor) -> float:
    """GFLOP of a frame; only what is done in tensors is counted."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter, drawn(compiled=False):
        frame(transition, x)
    return counter.get_total_flops() / 1e9


def milliseconds(transition: CellsTransition, x: torch.Tensor, rounds: int, *, compiled: bool) -> float:
    """Median time of a frame, per member."""
    found = []
    with torch.no_grad(), drawn(compiled=compiled):
        frame(transition, x)
        for _ in range(rounds):
            started = time.process_time()
            frame(transition, x)
            found.append(time.process_time() - started)
    return statistics.median(found) / len(x) * 1e3


@contextmanager
def drawn(*, compiled: bool) -> Iterator[None]:
    LabelImage.compiled = compiled
    try:
        yield
    finally:
        LabelImage.compiled = True


@click.command()
@click.option("--rounds", default=3, show_default=True, help="Timed frames per model.")
@click.option("--only", multiple=True, help="Systems; both by default.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/cells_flops.csv"), show_default=True)
def main(rounds: int, only: tuple[str, ...], out: Path) -> None:
    torch.set_num_threads(1)
    rows = []
    for name, make in SYSTEMS.items():
        if only and name not in only:
            continue
        system = make().build()
        x0, seeds = system.initial(1, np.random.default_rng(0)), trajectory_seeds(0, "benchmark", 1)
        x = torch.as_tensor(system.simulate(x0, 5, seeds, workers=1)[:, -1])
        started = time.process_time()
        system.simulate(x.numpy(), 100, seeds, workers=1)
        simulator = (time.process_time() - started) * 10
        context = DataContext(system.spec, system.frame_dt, {}, tuple(x.shape[1:3]))
        for label, choices in MODELS.items():
            torch.manual_seed(0)
            transition = CellsModelConfig.parse(choices).build(context)
            parameters = sum(p.numel() for p in transition.parameters())
            rows.append(
                {
                    "system": name,
                    "lattice": "x".join(map(str, context.sites)),
                    "cells": system.spec["cell"].size - 1,
                    "model": label,
                    "parameters": parameters,
                    "GFLOP": f"{flops(transition, x):.3f}",
                }
            )
            for members in (1, 32) if transition.config.network.name == "windows" else (1,):
                for how in (False, True):
                    column = f"{'compiled' if how else 'in tensors'}, {members}"
                    rows[-1][column] = f"{milliseconds(transition, x.expand(members, -1, -1, -1), rounds, compiled=how):.1f}"
            rows[-1]["simulator"] = f"{simulator:.2f}"
            print(rows[-1], flush=True)
    write_table(rows, out)


if __name__ == "__main__":
    main()
