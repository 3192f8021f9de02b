"""How much data a celestial model needs, equivariant or not: nats on held-out transitions for training sets of several sizes.

    python benchmarks/data_efficiency_nbody.py --steps 1000 --out benchmarks/results/data_efficiency_nbody.csv

Every row has the same budget of optimiser steps, seed and batch, and is scored on the same held-out transitions with the weights that were
best on the validation set. Training sets are the first trajectories of one another; one has 100 transitions.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
from common import ALONE, train, write_table

from epns_pyro.data import generate
from epns_pyro.training.presets import preset
from epns_pyro.training.validation import as_tensor, draw_transitions

VARIANTS = {
    "default": {},
    "vector, no integrator": ALONE,
    "PNS-GNN, no integrator": ALONE | {"model.backbone": "message-passing"},
}


@click.command()
@click.option("--sizes", default="10,40,400", show_default=True, help="Trajectories to train on.")
@click.option("--steps", default=1000, show_default=True)
@click.option("--only", multiple=True, help="Names of networks; all by default.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/data_efficiency_nbody.csv"), show_default=True)
def main(sizes: str, steps: int, only: tuple[str, ...], out: Path) -> None:
    base = preset("nbody", "quick").override({"training.steps": steps, "training.validate_every": steps // 5, "training.log_every": 50})
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for size in map(int, sizes.split(",")):
            sets = base.system.model_dump()["sets"]
            sets = {"train": sets["train"] | {"trajectories": size}, "val": sets["val"], "test": sets["test"]}
            config = base.override({"system": base.system.override({"sets": sets})})
            store = generate(config.system, Path(scratch) / f"{size}.zarr")
            x, x_next = draw_transitions(store, "test", 2000)  # of the same test set every time
            for name, changes in VARIANTS.items():
                if only and name not in only:
                    continue
                sim, seconds = train(config.override(changes), store, which="best")
                bounds = sim.bounds(as_tensor(x), as_tensor(x_next)[:, None], num_samples=16)
                rows.append(
                    {
                        "network": name,
                        "trajectories": size,
                        "steps": steps,
                        "elbo": f"{bounds.elbo.mean():.2f}",
                        "iwae_16": f"{bounds.iwae.mean():.2f}",
                        "median_elbo": f"{bounds.elbo.median():.2f}",
                        "train_seconds": f"{seconds:.0f}",
                    }
                )
                print(rows[-1], flush=True)
        rows.append({"network": "oracle", "elbo": f"{store.system.transition_log_prob(x, x_next).mean():.2f}"})
    write_table(rows, out)


if __name__ == "__main__":
    main()
