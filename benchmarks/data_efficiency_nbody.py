"""How much data a celestial model needs, equivariant or not: nats on held-out transitions for training sets of several sizes.

    python benchmarks/data_efficiency_nbody.py --out benchmarks/results/data_efficiency_nbody.csv

The rows are those of data_efficiency_nbody.yaml, a study like that of `epns-pyro reproduce celestial`: every row has the same budget of
optimiser steps, seed and batch, and is scored on the same held-out transitions with the weights that were best on the validation set.
Training sets are the first trajectories of one another; one has 100 transitions. An interrupted benchmark goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
from common import study, write_table

from epns_pyro.studies.measures import Row


def cells(row: Row) -> Iterator[tuple[str, str]]:
    """Columns of one row of the table, of its first seed."""
    parts, trained = row.seeds[0], not row.model.reference
    cost, nats = parts["cost"], parts["likelihood"]
    yield from (("network", row.model.title), ("trajectories", str(row.trajectories) if trained else ""))
    yield from (("steps", str(cost["steps"]) if trained else ""), ("elbo", f"{nats['elbo']:.2f}"))
    yield from (("iwae_16", f"{nats['iwae']:.2f}" if trained else ""), ("median_elbo", f"{nats['median_elbo']:.2f}" if trained else ""))
    yield "train_seconds", f"{cost['seconds']:.0f}" if trained else ""


@click.command()
@click.option(
    "--folder", type=click.Path(path_type=Path), default=Path("studies/data_efficiency_nbody"), show_default=True, help="Of the runs."
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/data_efficiency_nbody.csv"), show_default=True)
@click.option("--only", multiple=True, help="Names of models in data_efficiency_nbody.yaml; all by default.")
@click.option("--jobs", default=1, show_default=True, help="Runs at a time.")
def main(folder: Path, out: Path, only: tuple[str, ...], jobs: int) -> None:
    rows = study(Path(__file__).with_suffix(".yaml"), folder, only, jobs)
    write_table([dict(cells(row)) for row in sorted(rows, key=lambda row: row.trajectories) if row.seeds], out)


if __name__ == "__main__":
    main()
