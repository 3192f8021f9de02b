"""What each part of the celestial model gives: integrator, emission, latents, equivariance, at one small training budget.

    python benchmarks/ablation_nbody.py --steps 1000 --out benchmarks/results/ablation_nbody.csv

Every row is trained on the same data with the same seed and budget, and scored on the same held-out transitions.
"""

from __future__ import annotations

from pathlib import Path

import click
from common import ALONE as NO_INTEGRATOR
from common import train, write_table

from epns_pyro.data import generate, open_store
from epns_pyro.training.presets import preset
from epns_pyro.training.validation import as_tensor, draw_transitions

WIDE = {"model.backbone": {"name": "vector"}}  # where no law is fitted, networks have more to say
NETWORK = WIDE | {"model.integrator.network": "pairwise"}  # any force between pairs, found by training alone
ALONE = WIDE | NO_INTEGRATOR

VARIANTS = {
    "integrator with a fitted law, coupled emission, latents": {},
    "integrator with a fitted law, coupled emission, latents without linear path": {"model.linear_path": False},
    "integrator, coupled emission, latents": NETWORK,
    "integrator, coupled emission, latents without linear path": NETWORK | {"model.linear_path": False},
    "integrator, diagonal emission, latents": NETWORK | {"model.emission": "diagonal"},
    "coupled emission, latents": ALONE,
    "coupled emission, latents without linear path": ALONE | {"model.linear_path": False},
    "coupled emission, latents shared by all bodies": ALONE | {"model.linear_path": False, "model.latents": "shared"},
    "coupled emission, latents, windows growing to 3 steps": ALONE | {"training.horizon.end": 3},
    "diagonal emission, latents": ALONE | {"model.emission": "diagonal"},
    "diagonal emission, latents without linear path": ALONE | {"model.emission": "diagonal", "model.linear_path": False},
    "frame averaging (FA-GNN), diagonal emission, latents": ALONE | {"model.emission": "diagonal", "model.backbone": "frames"},
    "PNS-GNN, diagonal emission, latents": ALONE | {"model.emission": "diagonal", "model.backbone": "message-passing"},
    "PNS-MLP, diagonal emission, latents": ALONE | {"model.emission": "diagonal", "model.backbone": "mlp"},
}


@click.command()
@click.option("--data", type=click.Path(path_type=Path), default=Path("data/nbody.zarr"), show_default=True)
@click.option("--steps", default=1000, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/ablation_nbody.csv"), show_default=True)
@click.option("--only", multiple=True, help="Names of variants; all by default.")
def main(data: Path, steps: int, out: Path, only: tuple[str, ...]) -> None:
    base = preset("nbody", "quick").override({"training.steps": steps, "training.validate_every": steps, "training.log_every": 50})
    store = open_store(data) if data.exists() else generate(base.system, data)
    x, x_next = draw_transitions(store, "test", 2000)
    system = store.system
    rows = []
    for name, changes in VARIANTS.items():
        if only and name not in only:
            continue
        sim, seconds = train(base.override(changes), store, which="last")
        bounds = sim.bounds(as_tensor(x), as_tensor(x_next)[:, None], num_samples=16)
        kl = sim.latent_kl(as_tensor(x), as_tensor(x_next)[:, None])
        rows.append(
            {
                "variant": name,
                "steps": steps,
                "elbo": f"{bounds.elbo.mean():.2f}",
                "iwae_16": f"{bounds.iwae.mean():.2f}",
                "median_elbo": f"{bounds.elbo.median():.2f}",
                "kl": f"{bounds.kl.mean():.2f}",
                "active_per_body": int((kl.mean(0) > 0.01).sum()),
                "parameters": sum(p.numel() for p in sim.transition.parameters()),
                "train_seconds": f"{seconds:.0f}",
            }
        )
        print(rows[-1], flush=True)
    references = {
        "oracle": system.transition_log_prob(x, x_next).mean(),
        "best diagonal Normal": system.diagonal_log_prob(x, x_next).mean(),
    }
    rows += [{"variant": name, "elbo": f"{value:.2f}"} for name, value in references.items()]
    print(rows[-2:])
    write_table(rows, out)


if __name__ == "__main__":
    main()
