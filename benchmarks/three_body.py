"""Forces of three bodies: what sums over pairs miss, and what fusion blocks reach, on silicon and on the same without its angles.

    python benchmarks/three_body.py --steps 3000 --out benchmarks/results/three_body.csv

Every network is the equation of motion of one and the same law: leapfrog of 2 steps per frame with its forces, and noise with one
covariance of position and velocity for all bodies. It is trained by the likelihood of one frame, on the same frames with the same seed, and
judged on held-out trajectories. `gap` is the distance from the true transition density, nats per transition. The row of the true forces
fits the noise alone: what such a law leaves. Rows already in the table are kept, so that `--only` adds to it.
"""

from __future__ import annotations

import csv
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import click
import numpy as np
import torch
from common import write_table
from torch import Tensor, nn

from epns_pyro.backbones import Backbone, Features
from epns_pyro.context import DataContext
from epns_pyro.data import generate, open_store
from epns_pyro.models.bodies.emissions import CoupledConfig
from epns_pyro.models.bodies.integrator import IntegratorConfig
from epns_pyro.systems import SiliconConfig
from epns_pyro.systems.silicon import Silicon
from epns_pyro.training.validation import draw_transitions

FUSION = {"name": "fusion", "layers": 1, "width": 32, "reach": 4.0}
NETWORKS = {
    "true forces": "central",  # replaced
    "sums over pairs (pairwise)": {"name": "pairwise", "width": 64},
    "central forces (central)": {"name": "central", "width": 32},
    "message passing, 1 layer (vector)": {"name": "vector", "layers": 1},
    "message passing, 3 layers (vector)": {"name": "vector", "layers": 3},
    "fusion, 1 leg, potential": FUSION | {"legs": 1, "lmax": 2, "forces": "potential"},
    "fusion, 2 legs, lmax 1, potential": FUSION | {"legs": 2, "lmax": 1, "forces": "potential"},
    "fusion, 2 legs, lmax 2, potential": FUSION | {"legs": 2, "lmax": 2, "forces": "potential"},
    "fusion, 2 legs, lmax 2, no potential": FUSION | {"legs": 2, "lmax": 2},
}
SYSTEMS = {"silicon": SiliconConfig(), "silicon without angles": SiliconConfig(angles=0.0)}
WITHOUT_ANGLES = ("true forces", "sums over pairs (pairwise)", "central forces (central)", "fusion, 1 leg, potential")
KEYS = ("system", "network")


class TrueForces(Backbone):
    """The accelerations of the system, in the units of a network."""

    equivariant: ClassVar[bool] = True

    def __init__(self, system: Silicon, learned: Backbone, context: DataContext) -> None:
        super().__init__(learned.signature)
        self.system, self.scale = system, context.spec["position"].scale
        self.unit = context.step_scales["velocity"] / context.frame_dt

    def evaluate(self, positions: Tensor, features: Features) -> Features:
        x = self.system.spec.pack(position=self.scale * positions.double().numpy(), velocity=np.zeros(positions.shape))
        forces = torch.from_numpy(self.system.acceleration(x) / self.unit).to(positions)
        return Features(features.scalars, forces[..., None, :])


class Law(nn.Module):
    """p(x' | x): Normal about the integrated state."""

    def __init__(self, network: dict, system: Silicon, context: DataContext, *, true: bool) -> None:
        super().__init__()
        self.spec, self.emission = context.spec, CoupledConfig()
        self.integrator = IntegratorConfig.parse({"steps": 2, "network": network}).build(context)
        self.noise = nn.Parameter(torch.zeros(3))
        self.register_buffer("units", torch.tensor([context.step_scales[f.name] for f in self.spec.dynamic_fields]))
        self.force_unit = context.step_scales["velocity"] / context.frame_dt
        if true:
            self.integrator.network = TrueForces(system, self.integrator.network, context)

    def log_prob(self, x: Tensor, x_next: Tensor) -> Tensor:
        """Nats of states (batch, body, channel) given those before: (batch,)."""
        mean = self.integrator.bodies.persistence(x) + self.integrator(x).change
        noise = self.noise.expand(*mean.shape[:-1], -1)
        return self.emission.build(self.spec, mean, noise, self.units).log_prob(self.spec.dynamic(x_next))

    def accelerations(self, x: Tensor) -> Tensor:
        """Forces on bodies (batch, body, 3)."""
        bodies = self.integrator.bodies
        return self.integrator.network(bodies.positions(x), bodies.features(x)).vectors[..., 0, :] * self.force_unit


@dataclass(frozen=True)
class Budget:
    """Optimiser steps, transitions in each, and the learning rate at the start of its cosine."""

    steps: int
    batch: int
    rate: float


def fit(law: Law, x: Tensor, x_next: Tensor, budget: Budget) -> float:
    """Train by the likelihood of random transitions; return the seconds of processor time."""
    generator, started = torch.Generator().manual_seed(0), time.process_time()
    optimiser = torch.optim.Adam([p for p in law.parameters() if p.requires_grad], lr=budget.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, budget.steps)
    for step in range(budget.steps):
        chosen = torch.randint(len(x), (budget.batch,), generator=generator)
        optimiser.zero_grad()
        loss = -law.log_prob(x[chosen], x_next[chosen]).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(law.parameters(), 10.0)
        optimiser.step()
        schedule.step()
        if step % 250 == 0:
            print(f"{step}: {loss.item():.3f}", flush=True)
    return time.process_time() - started


def row(name: str, settings: dict, label: str, folder: Path, budget: Budget) -> dict[str, object]:
    """Train and judge one network on one system."""
    path = folder / f"{label.replace(' ', '_')}.zarr"
    store = open_store(path) if path.exists() else generate(SYSTEMS[label], path)
    system, context = store.system, store.context()
    train = torch.from_numpy(store.read("train")).float()
    x, x_next = train[:, :-1].flatten(0, 1), train[:, 1:].flatten(0, 1)
    torch.manual_seed(0)
    law = Law(settings, system, context, true=name == "true forces")
    parameters = sum(p.numel() for p in law.integrator.network.parameters())
    seconds = fit(law, x, x_next, budget)
    now, after = draw_transitions(store, "test", 2000)
    states = torch.from_numpy(now).double()
    law = law.double().requires_grad_(False)
    nats = law.log_prob(states, torch.from_numpy(after).double()).numpy()
    oracle = system.transition_log_prob(now, after)
    true = system.acceleration(now)
    error = np.sqrt(((law.accelerations(states).numpy() - true) ** 2).mean() / (true**2).mean())
    gap = oracle - nats
    return {
        "system": label,
        "network": name,
        "gap": f"{gap.mean():.3f}",
        "standard_error": f"{gap.std() / len(gap) ** 0.5:.3f}",
        "force_error": f"{error:.4f}",
        "parameters": parameters,
        "steps": budget.steps,
        "train_seconds": f"{seconds:.0f}",
    }


@click.command()
@click.option("--steps", default=3000, show_default=True)
@click.option("--batch", default=64, show_default=True)
@click.option("--rate", default=5e-3, show_default=True)
@click.option("--only", multiple=True, help="Networks whose name contains this; all by default.")
@click.option("--system", "systems", multiple=True, type=click.Choice(list(SYSTEMS)), help="Both by default.")
@click.option("--folder", type=click.Path(path_type=Path), default=Path("data"), show_default=True, help="Where the data are, or are made.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/three_body.csv"), show_default=True)
def main(steps: int, batch: int, rate: float, only: tuple[str, ...], systems: tuple[str, ...], folder: Path, out: Path) -> None:
    rows: dict[tuple[str, ...], dict] = {}
    order = [(label, name) for label in SYSTEMS for name in NETWORKS if label == "silicon" or name in WITHOUT_ANGLES]
    for label, name in order:
        if (systems and label not in systems) or (only and not any(part in name for part in only)):
            continue
        made = row(name, NETWORKS[name], label, folder, Budget(steps, batch, rate))
        print(made, flush=True)
        if out.exists():  # others may have added to it meanwhile
            with open(out, newline="") as file:
                rows = {tuple(r[key] for key in KEYS): r for r in csv.DictReader(file)} | rows
        rows[label, name] = made
        write_table([rows[key] for key in order if key in rows], out)


if __name__ == "__main__":
    main()
