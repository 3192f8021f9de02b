"""What the sweeps of a trained model of cells do to the images of one step, and whether its latents are to blame for what is left.

    python benchmarks/sweeps_cells.py RUN --out benchmarks/results/sweeps_cells.csv

From recorded frames, images are drawn with few sweeps and with many, and compared with the recorded next frames: mean
difference in per cent of the true mean, with its standard error. Latents come from the prior, as in a forecast, or from the posterior,
which has seen the next frame: an error that only the prior makes is one of the latents. Latents "recorded" start the sweeps at the
recorded next frame instead of a first draw: sweeps whose conditional distribution is right leave it as it is, in distribution. Without
sweeps it is the first draw. `--apart` draws pixels at the same time that are closer, or farther apart, than in training.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import torch
from common import write_table

import epns_pyro
from epns_pyro.data import open_store
from epns_pyro.training.validation import as_tensor, draw_transitions

OBSERVED = {
    "displacement": "displacement",
    "area_sd": "area_sd",
    "fragments": "fragments",
    "clusters": "clusters",
    "perimeter": "perimeter",
}


@torch.no_grad()
def drawn(sim: epns_pyro.Simulator, x: np.ndarray, x_next: np.ndarray, latents: str, block: int) -> np.ndarray:
    """Draw full states after x, with latents of the prior or of the posterior, or by sweeps of x_next: (transition, y, x, channel)."""
    found = []
    for before, after in zip(as_tensor(x).split(block), as_tensor(x_next).split(block), strict=True):
        step = sim.transition.at(sim.local(before))
        law = step.prior if latents == "prior" else step.posterior(sim.local(after))
        emission = step.emission(law.sample())
        image = emission.swept(sim.spec.dynamic(sim.local(after))) if latents == "recorded" else emission.sample()
        found.append(step.advance(image).x.numpy())
    return np.concatenate(found)


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), default=Path("data/cells16.zarr"), show_default=True)
@click.option("--split", default="test", show_default=True)
@click.option("--transitions", default=300, show_default=True)
@click.option("--sweeps", multiple=True, type=int, default=(0, 1, 2, 4, 8, 16), show_default=True)
@click.option("--latents", "kinds", multiple=True, default=("prior", "posterior"), show_default=True)
@click.option("--apart", type=int, default=None, help="pixels  [default: as in the run]")
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/sweeps_cells.csv"), show_default=True)
def main(
    run: Path,
    data: Path,
    split: str,
    transitions: int,
    sweeps: tuple[int, ...],
    kinds: tuple[str, ...],
    apart: int | None,
    seed: int,
    out: Path,
) -> None:
    sim, store = epns_pyro.load(run), open_store(data)
    x, x_next = draw_transitions(store, split, transitions)

    def measured(after: np.ndarray) -> dict[str, np.ndarray]:
        observables = store.system.observables(np.stack([x, after], 1))
        return {name: observables[name].values[:, 1] for name in OBSERVED}

    truth, rows = measured(x_next), []
    sim.transition.scores.apart = apart or sim.transition.scores.apart
    for latents in kinds:
        for count in sweeps:
            torch.manual_seed(seed)
            sim.transition.scores.sweeps = count
            row: dict[str, str | int] = {"latents": latents, "sweeps": count}
            for name, values in measured(drawn(sim, x, x_next, latents, 50)).items():
                percent = 100 * (values - truth[name]) / truth[name].mean()
                row |= {f"{name}_%": f"{percent.mean():+.1f}", f"{name}_error": f"{percent.std() / len(percent) ** 0.5:.1f}"}
            rows.append(row)
            print(row, flush=True)
    write_table(rows, out)


if __name__ == "__main__":
    main()
