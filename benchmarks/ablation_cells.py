"""Cellular models at one training budget: networks, and rules by which an image is drawn, judged by nats and by the images.

    python benchmarks/ablation_cells.py --steps 600 --out benchmarks/results/ablation_cells.csv

Every row is trained on the same data of the small system with the same seed, batch and steps (the UNet at a lower rate), scored on the same
held-out transitions, and rolled out from the same held-out states. Areas, fragments and boundaries of what is drawn stand beside those of
the true process (last row) after one frame and after many. "mode" feeds the likeliest label of every pixel back, the published choice.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from common import train, write_table

from epns_pyro.data import generate, open_store
from epns_pyro.evaluation.forecasters import Model, Truth
from epns_pyro.models import Feedback
from epns_pyro.training.presets import preset
from epns_pyro.training.validation import as_tensor, draw_transitions

BOUND = {"model.pseudo_likelihood": False, "model.distances": False, "model.apart": 4, "training.kl.start": 0.0}
ONCE = BOUND | {"model.sweeps": 0}
INDEPENDENT = ONCE | {"model.interlacing": 1}
VARIANTS = {
    "windows, 64 classes, sweeps fitted by pseudo-likelihood (default)": {},
    "windows, 64 classes, 8 sweeps trained by the bound": BOUND | {"model.sweeps": 8, "model.training_sweeps": 2},
    "windows, 64 classes, 2 sweeps trained by the bound": BOUND | {"model.sweeps": 2},
    "windows, 64 classes": ONCE,
    "windows, 64 classes, revised": ONCE | {"model.revisions": [4, 16, 32]},
    "windows, 16 classes": ONCE | {"model.interlacing": 4},
    "windows, independent pixels": INDEPENDENT,
    "SpatialConv-GNN (embedding 32, 64 latents), independent pixels": INDEPENDENT | {"model.network": "spatial-conv", "model.latent": 64},
    # at the rate of the others it ends as an image of medium alone
    "PNS-UNet, independent pixels": INDEPENDENT | {"model.network": "unet", "model.latent": 64, "training.learning_rate": 3e-4},
}
START, MEMBERS, TRAJECTORIES = 10, 2, 20
OBSERVED = {"area_mean": "area", "area_sd": "area_sd", "fragments": "fragments", "perimeter": "perimeter"}


def measured(system, paths: np.ndarray, steps: int) -> dict[str, str]:
    """Means of the observables after one frame and after the last, of paths (sample, trajectory, time, ...)."""
    found = system.observables(paths.reshape(-1, *paths.shape[2:])[:, [1, steps]])
    return {f"{short}_{at}": f"{found[key].values[:, i].mean():.2f}" for key, short in OBSERVED.items() for i, at in enumerate((1, steps))}


@click.command()
@click.option("--data", type=click.Path(path_type=Path), default=Path("data/cells16.zarr"), show_default=True)
@click.option("--steps", default=600, show_default=True)
@click.option("--batch", default=16, show_default=True)
@click.option("--frames", default=30, show_default=True, help="Length of the rollouts.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/ablation_cells.csv"), show_default=True)
@click.option("--only", multiple=True, help="Names of variants; all by default.")
def main(data: Path, steps: int, batch: int, frames: int, out: Path, only: tuple[str, ...]) -> None:
    if unknown := set(only) - VARIANTS.keys():
        raise click.BadParameter(f"unknown variants {sorted(unknown)}; there are {', '.join(VARIANTS)}")
    budget = {"training.steps": steps, "training.batch": batch, "training.validate_every": steps, "training.log_every": 10}
    base = preset("cells", "quick").override(budget)
    store = open_store(data) if data.exists() else generate(base.system, data)
    x, x_next = draw_transitions(store, "test", 300)
    x0 = store.read("test", slice(0, TRAJECTORIES))[:, START]
    rows = []
    for name, changes in VARIANTS.items():
        if only and name not in only:
            continue
        config = base.override(changes)
        sim, seconds = train(config, store, which="last")
        bounds = sim.bounds(as_tensor(x), as_tensor(x_next)[:, None], num_samples=4)
        kl = sim.latent_kl(as_tensor(x), as_tensor(x_next)[:, None])
        score = {
            "steps": steps,
            "elbo": f"{bounds.elbo.mean():.2f}",
            "iwae_4": f"{bounds.iwae.mean():.2f}",
            "kl": f"{bounds.kl.mean():.2f}",
            "active_per_cell": int((kl.mean(0) > 0.01).sum()),
            "parameters": sum(p.numel() for p in sim.transition.parameters()),
            "train_seconds": f"{seconds:.0f}",
        }
        rules = {"sample": Feedback.ANCESTRAL} | ({"mode": Feedback.PUSHFORWARD} if config.model.interlacing == 1 else {})
        for rule, feedback in rules.items():
            paths = Model(sim, feedback).sample(x0, frames, MEMBERS, 0)
            rows.append({"variant": name, "rule": rule, **score, **measured(store.system, paths, frames)})
            print(rows[-1], flush=True)
    rows.append({"variant": "true process", **measured(store.system, Truth(store.system).sample(x0, frames, MEMBERS, 0), frames)})
    print(rows[-1])
    write_table(rows, out)


if __name__ == "__main__":
    main()
