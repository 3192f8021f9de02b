"""`epns-pyro evaluate`: test a trained simulator on held-out data."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from epns_pyro.cli._common import RUN, console, device_option, fail, overrides, progress_bars, with_imports

SIZES = {"members", "trajectories", "stretch"}  # of forecasts


@click.command()
@click.argument("run", type=RUN)
@click.option("--data", type=click.Path(path_type=Path), help="Store with the held-out sets.  [default: the training store]")
@click.option("--members", type=click.IntRange(min=2), help="Members per ensemble; the same as --set members=N.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change one setting of the evaluation; repeatable.")
@device_option
@with_imports
def evaluate(run: Path, data: Path | None, members: int | None, changes: tuple[str, ...], device: str) -> None:
    """Test the simulator in RUN on held-out data; writes RUN/evaluation/.

    States of more than 32 bodies are tested with fewer members and steps, so that it takes minutes: the report says with how many. --set
    work=4e11 allows ten times as much; --members, --set members=, trajectories= or stretch= are kept. If it was interrupted, the same
    command goes on with the forecasts that are there.
    """
    from epns_pyro.pretrained import is_pretrained

    if is_pretrained(run):
        fail(f"pretrained:{run.name}: comes with its evaluation, and is not written to: epns-pyro report pretrained:{run.name} shows it")
    settings = overrides(changes) | ({"members": members} if members else {})
    evaluate_run(run, data, settings, device)
    console().print(f"\nnext:\n  epns-pyro report {shlex.quote(str(run))}", soft_wrap=True)


def evaluate_run(run: Path, data: Path | None = None, settings: dict | None = None, device: str = "cpu") -> None:
    """Evaluate a run, show progress, and print the results."""
    import epns_pyro
    from epns_pyro.calibration.verdicts import table
    from epns_pyro.data import open_store
    from epns_pyro.errors import DataError
    from epns_pyro.evaluation import evaluate as judge
    from epns_pyro.evaluation.summary import verdict
    from epns_pyro.training.run import RunFolder

    simulator = epns_pyro.load(run, device=device)
    path = data or Path(simulator.store)
    if not path.exists():
        raise DataError(f"{path}: the data that {run} was trained on are not there: name their new place with --data")
    changes = settings or {}
    if changes.keys() & SIZES:
        changes = {"work": None} | changes  # who asks for sizes gets them
    config = simulator.config.evaluation.override(changes)
    with progress_bars() as show:
        found = judge(simulator, open_store(path), RunFolder(run), config, progress=show)
    out = console()
    out.print(verdict(found.record), soft_wrap=True)
    if found.record.run.sizes:
        out.print(f"Sizes: {found.record.run.sizes}.", soft_wrap=True)
    width = max(len(line.label) for line in found.record.headline)
    for line in found.record.headline:
        out.print(f"{line.label:<{width}}  {line.value}" + (f"  ({line.note})" if line.note else ""), soft_wrap=True)
    for group in found.verdicts.values():
        out.print(table(group), soft_wrap=True)
