"""The celestial model beside the baselines of the literature: likelihood of whole paths, distributions from one state, long runs.

    python benchmarks/baselines_nbody.py --out benchmarks/results/baselines_nbody.csv

The rows are those of baselines_nbody.yaml, a study like that of `epns-pyro reproduce celestial`. Models that go step by step have the same
budget of optimiser steps, in minibatches of 64 transitions; those that follow an equation from its start have theirs in minibatches of 64
windows, which grow. The likelihood of a path is that of the path given its start, in nats per transition. An interrupted benchmark goes on
where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
from common import study, write_table

from epns_pyro.studies.measures import Row, by_place

DISTANCES = (("total_energy", 25), ("total_energy", 50), ("total_energy", 100), ("furthest_body", 100))


def cells(row: Row) -> Iterator[tuple[str, str]]:
    """Columns of one row of the table, of its first seed."""
    parts, places = row.seeds[0], by_place(row)
    cost, path = parts["cost"] or {"steps": 0, "parameters": 0, "seconds": 0.0}, parts["path"]
    yield from (("model", row.model.title), ("steps", str(cost["steps"])))
    yield from ((f"nats_{steps}", f"{path[key]:.1f}") for steps, key in ((1, "path_1"), (10, "path_10"), (100, "path")))
    for name, frame in DISTANCES:
        yield f"ks_{name}_{frame}", f"{places[name, frame][0]['ks']:.2f}" if (name, frame) in places else ""
    yield "plausible_after_1000", f"{parts['long_runs']['alive']:.2f}"
    yield from (("parameters", str(cost["parameters"])), ("train_seconds", f"{cost['seconds']:.0f}"))


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), default=Path("studies/baselines_nbody"), help="Of the runs.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/baselines_nbody.csv"), show_default=True)
@click.option("--only", multiple=True, help="Names of models in baselines_nbody.yaml; all by default.")
@click.option("--jobs", default=1, show_default=True, help="Runs at a time.")
def main(folder: Path, out: Path, only: tuple[str, ...], jobs: int) -> None:
    write_table([dict(cells(row)) for row in study(Path(__file__).with_suffix(".yaml"), folder, only, jobs) if row.seeds], out)


if __name__ == "__main__":
    main()
