"""`epns-pyro list`: the runs in a folder, a line each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from epns_pyro.cli._common import console, fail

if TYPE_CHECKING:
    from epns_pyro.training.run import RunFolder

DEEPEST = 3  # folders between the one that is listed and a run


@click.command("list")
@click.argument("folder", type=click.Path(path_type=Path), default=Path("runs"))
def list_runs(folder: Path) -> None:
    """List the runs in FOLDER (default: runs): data, steps, ELBO, and what the evaluation found. Also the pretrained simulators."""
    from epns_pyro.pretrained import HOME, PREFIX, pretrained_names
    from epns_pyro.training.run import RunFolder

    if not folder.is_dir():
        what = "is a file" if folder.is_file() else "no such folder"
        fail(f"{folder}: {what}: name one that holds runs, such as the one that epns-pyro train --out was given")
    found = {str(run.relative_to(folder)) if run != folder else run.name: RunFolder(run) for run in _runs(folder, DEEPEST)}
    found |= {f"{PREFIX}{name}": RunFolder(HOME / name) for name in pretrained_names()}
    rows = [("run", "data", "steps", "ELBO", "verdict"), *((name, *_row(run)) for name, run in found.items())]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for name, data, steps, elbo, words in rows:
        line = f"{name:<{widths[0]}}  {data:<{widths[1]}}  {steps:>{widths[2]}}  {elbo:>{widths[3]}}  {words}"
        console().print(line, soft_wrap=True)


def _runs(folder: Path, deepest: int) -> list[Path]:
    """Return the folders of runs in a folder, sorted; a run is not searched for runs."""
    if (folder / "config.yaml").is_file():
        return [folder]
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and path.suffix != ".zarr") if deepest else []
    return [run for path in inside for run in _runs(path, deepest - 1)]


def _row(run: RunFolder) -> tuple[str, str, str, str]:
    """Return data, steps, ELBO in nats per transition, and the first sentence of the report; of what there is."""
    from epns_pyro.errors import EpnsError
    from epns_pyro.evaluation.record import EvaluationRecord
    from epns_pyro.evaluation.summary import comparison_row, verdict
    from epns_pyro.training.metrics import read_metrics

    if run.evaluation.is_dir():
        try:
            record = EvaluationRecord.read(run.evaluation)
        except EpnsError as error:
            return "", "", "", str(error)
        row = comparison_row(run.path.name, record)
        elbo = "" if row.elbo is None else f"{row.elbo:.{row.decimals}f}"
        return Path(row.store).name or row.system, f"{row.steps or ''}", elbo, f"{row.calibrated} calibrated. {verdict(record)}"
    log = read_metrics(run.metrics) if run.metrics.is_file() else []
    held_out = [value for _, name, value in log if name == "val_elbo"]
    steps = str(log[-1][0]) if log else ""
    words = "not evaluated yet: epns-pyro evaluate" if held_out else "nothing trained yet"
    return "", steps, f"{max(held_out):.1f}" if held_out else "", words
