"""The celestial model beside the baselines of the literature: likelihood of whole paths, distributions from one state, long runs.

    python benchmarks/baselines_nbody.py --out benchmarks/results/baselines_nbody.csv

Every row is trained on the same data with the same seed and judged on the same held-out data. Models that go step by step have the same
budget of optimiser steps, in minibatches of 64 transitions; those that follow an equation from its start have theirs in minibatches of 64
windows, which grow. A path is 100 steps long, and its likelihood is that of the path given its start, in nats per transition.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from common import ALONE, train, write_table

from epns_pyro.data import Store, Windows, generate, open_store
from epns_pyro.evaluation import initial_state
from epns_pyro.evaluation.checks.stability import stability
from epns_pyro.evaluation.forecasters import Forecaster, Model, Programs, Truth
from epns_pyro.evaluation.linear_forecasters import Persistence
from epns_pyro.models.baselines.gp_ode import GPODEConfig
from epns_pyro.models.baselines.ode2vae import ODE2VAEConfig
from epns_pyro.training import stock_pyro
from epns_pyro.training.presets import preset
from epns_pyro.training.run import EvaluationConfig, RunConfig
from epns_pyro.training.schedules import HorizonSchedule
from epns_pyro.training.validation import as_tensor

NSDE = {"model": "neural-sde", "training.learning_rate": 1e-3}
STEP_BY_STEP = {
    "EPNS (default)": {},
    "EPNS, no integrator": ALONE,
    "EPNS, FA-GNN, diagonal emission": ALONE | {"model.emission": "diagonal", "model.backbone": "frames"},
    "PNS-GNN": ALONE | {"model.emission": "diagonal", "model.backbone": "message-passing"},
    "PNS-MLP": ALONE | {"model.emission": "diagonal", "model.backbone": "mlp"},
    "NSDE": NSDE,
    "NSDE, forces between pairs": NSDE | {"model.backbone": "pairwise", "model.substeps": 10},
    "NSDE, not equivariant": NSDE | {"model.backbone": "message-passing"},
}


@dataclass(frozen=True)
class Equation:
    """A baseline that is an ordinary differential equation, and how it is trained."""

    config: GPODEConfig | ODE2VAEConfig
    steps: int
    learning_rate: float
    horizon: HorizonSchedule


EQUATIONS = {
    "GP-ODE": Equation(GPODEConfig(), 1000, 1e-2, HorizonSchedule(start=5, end=20, begin=0.2, finish=0.9)),
    "ODE2VAE": Equation(ODE2VAEConfig(), 3000, 3e-3, HorizonSchedule(start=10, end=100, begin=0.2, finish=0.9)),
}
PATHS, SAMPLES, LENGTHS = 40, 32, (1, 10, 100)
Score = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # x0 (batch, ...), path (batch, time, ...) -> nats (batch,)


@dataclass(frozen=True)
class Trained:
    """What a row of the table is made from."""

    forecaster: Forecaster
    score: Score
    parameters: int
    steps: int
    seconds: float


def step_by_step(config: RunConfig, store: Store) -> Trained:
    sim, seconds = train(config, store, which="best")
    parameters = sum(p.numel() for p in sim.transition.parameters())
    return Trained(Model(sim), lambda x0, path: sim.iwae(x0, path, num_samples=SAMPLES), parameters, config.training.steps, seconds)


def equation(which: Equation, store: Store) -> Trained:
    torch.manual_seed(0)
    model, guide = which.config.build(store.context(), transitions=store.size("train") * store.steps("train"))
    windows = Windows(store, "train", which.horizon.end, 64, seed=0)
    if hasattr(model, "field"):
        model.field.place(windows.draw().x0, torch.Generator().manual_seed(0))
    started = time.perf_counter()
    stock_pyro.fit(model, guide, windows, steps=which.steps, learning_rate=which.learning_rate, horizon=which.horizon)
    seconds = time.perf_counter() - started

    def score(x0: torch.Tensor, path: torch.Tensor) -> torch.Tensor:
        return stock_pyro.program_bounds(model, guide, x0, path, num_samples=SAMPLES).iwae

    return Trained(Programs(model, guide), score, sum(p.numel() for m in (model, guide) for p in m.parameters()), which.steps, seconds)


def references(store: Store) -> dict[str, Trained]:
    """What needs no training: persistence with fitted noise, and the true process."""
    system = store.system
    found: dict[str, tuple[Forecaster, Any]] = {"persistence": (Persistence(store.context()), Persistence(store.context()).log_prob)}
    found["true process"] = (Truth(system), system.transition_log_prob)

    def score(log_prob: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Score:
        def of_paths(x0: torch.Tensor, path: torch.Tensor) -> torch.Tensor:
            states = torch.cat([x0[:, None], path], 1).double().numpy()
            return torch.as_tensor(log_prob(states[:, :-1], states[:, 1:]).sum(1))

        return of_paths

    return {name: Trained(forecaster, score(log_prob), 0, 0, 0.0) for name, (forecaster, log_prob) in found.items()}


def judge(name: str, trained: Trained, store: Store, settings: EvaluationConfig) -> dict[str, Any]:
    """One row of the table."""
    x = as_tensor(store.read("test", slice(0, PATHS)))
    torch.manual_seed(0)
    nats = {n: trained.score(x[:, 0], x[:, 1 : n + 1]).mean() / n for n in LENGTHS}
    compared = initial_state.compare(trained.forecaster, store, settings, {})
    distances = {(r.observable, r.frame): r for r in compared[0]} if compared else {}
    alive, _ = stability(trained.forecaster, store, settings)
    row: dict[str, Any] = {"model": name, "steps": trained.steps}
    row |= {f"nats_{n}": f"{float(value):.1f}" for n, value in nats.items()}
    for observable, frame in (("total_energy", 25), ("total_energy", 50), ("total_energy", 100), ("furthest_body", 100)):
        found = distances.get((observable, frame))
        row[f"ks_{observable}_{frame}"] = f"{found.ks:.2f}" if found else ""
    row["plausible_after_1000"] = f"{alive.final_alive_model:.2f}"
    return row | {"parameters": trained.parameters, "train_seconds": f"{trained.seconds:.0f}"}


@click.command()
@click.option("--data", type=click.Path(path_type=Path), default=Path("data/nbody.zarr"), show_default=True)
@click.option("--steps", default=1000, show_default=True, help="Optimiser steps of the models that go step by step.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/baselines_nbody.csv"), show_default=True)
@click.option("--only", multiple=True, help="Names of rows; all by default.")
def main(data: Path, steps: int, out: Path, only: tuple[str, ...]) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    base = preset("nbody", "quick").override({"training.steps": steps, "training.validate_every": steps // 5, "training.log_every": 50})
    store = open_store(data) if data.exists() else generate(base.system, data)
    known = references(store)
    makers: dict[str, Callable[[], Trained]] = {n: lambda n=n: step_by_step(base.override(STEP_BY_STEP[n]), store) for n in STEP_BY_STEP}
    makers |= {n: lambda n=n: equation(EQUATIONS[n], store) for n in EQUATIONS}
    makers |= {n: lambda n=n: known[n] for n in known}
    rows = []
    for name, make in makers.items():
        if not only or name in only:
            rows.append(judge(name, make(), store, base.evaluation))
            print(rows[-1], flush=True)
            write_table(rows, out)


if __name__ == "__main__":
    main()
