"""`epns-pyro report` and `epns-pyro compare`: pages to read."""

from __future__ import annotations

from pathlib import Path

import click

from epns_pyro.cli._common import console, fail


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
def report(run: Path) -> None:
    """Write RUN/report.html, one self-contained page, from the evaluation of RUN."""
    from epns_pyro.calibration.report import write_report
    from epns_pyro.inference.metrics import read_metrics
    from epns_pyro.inference.run import RunFolder

    folder = RunFolder(run)
    if not run.is_dir():
        fail(f"{run}: no such run: epns-pyro train --out {run} makes one")
    page = write_report(folder.evaluation, folder.report, read_metrics(folder.metrics))
    console().print(f"report: {page} ({page.stat().st_size / 1e6:.1f} MB)", soft_wrap=True)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default=Path("compare.html"), show_default=True)
def compare(runs: tuple[Path, ...], out: Path) -> None:
    """Print one table for several evaluated runs, and write it as a page."""
    from rich.table import Table

    from epns_pyro.calibration.report import write_comparison

    names = [run.name for run in runs]
    labels = names if len(set(names)) == len(names) else [str(run) for run in runs]
    rows = write_comparison({label: run / "evaluation" for label, run in zip(labels, runs, strict=True)}, out)
    table = Table("run", "ELBO", "IWAE", "gap", "KL", "active", "calibrated", "mean D_KS", "plausible", box=None)
    for row in rows:
        numbers = [f"{row[key]:.2f}" if row[key] is not None else "" for key in ("elbo", "iwae", "gap", "kl")]
        distance = "" if row["ks"] is None else f"{row['ks']:.3f}"
        table.add_row(row["name"], *numbers, row["active"], row["calibrated"], distance, f"{row['alive']:.0%}")
    console().print(table)
    if len({row["store"] for row in rows}) > 1:
        console().print("these runs were evaluated on different data: their numbers are not comparable line by line")
    console().print(f"page: {out}", soft_wrap=True)
