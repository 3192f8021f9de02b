"""`epns-pyro report` and `epns-pyro compare`: HTML pages of results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from epns_pyro.cli._common import RUN, console, with_imports

if TYPE_CHECKING:
    from rich.table import Table

    from epns_pyro.evaluation.summary import ComparisonRow


@click.command()
@click.argument("run", type=RUN)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="The page.  [default: RUN/report.html]")
@click.option(
    "--pages", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER", help="Write it as an overview and a page per quantity."
)
@click.option("--open", "show", is_flag=True, help="Show the page in a browser.")
@click.option("--markdown", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.md", help="Write the summary as Markdown too.")
@click.option("--figures", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER", help="Write every figure as a file too.")
@click.option("--format", "form", type=click.Choice(["svg", "pdf", "png"]), default="svg", show_default=True, help="Of the figures.")
@with_imports
def report(run: Path, out: Path | None, pages: Path | None, show: bool, markdown: Path | None, figures: Path | None, form: str) -> None:
    """Write RUN/report.html, one self-contained page about the evaluation of RUN, which is a folder or pretrained:NAME."""
    if pages and out:
        raise click.UsageError("give --out for one page, or --pages for a folder of pages")
    from epns_pyro.pretrained import is_pretrained
    from epns_pyro.report import write_figures, write_markdown, write_report, write_report_pages
    from epns_pyro.training.metrics import read_metrics
    from epns_pyro.training.run import RunFolder

    folder = RunFolder(run)
    out = out or (Path(f"{run.name}-report.html") if is_pretrained(run) else folder.report)
    log = read_metrics(folder.metrics)
    page = write_report_pages(folder.evaluation, pages, log) if pages else write_report(folder.evaluation, out, log)
    console().print(f"report: {page} ({page.stat().st_size / 1e6:.1f} MB)", soft_wrap=True)
    if markdown:
        console().print(f"summary: {write_markdown(folder.evaluation, markdown)}", soft_wrap=True)
    if figures:
        written = write_figures(folder.evaluation, figures, log, suffix=f".{form}")
        console().print(f"figures: {len(written)} in {figures}", soft_wrap=True)
    if show:
        click.launch(page.resolve().as_uri())


@click.command()
@click.argument("runs", nargs=-1, required=True, type=RUN)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default=Path("compare.html"), show_default=True)
@with_imports
def compare(runs: tuple[Path, ...], out: Path) -> None:
    """Print one table that compares evaluated runs, and write it as a page."""
    from epns_pyro.report import write_comparison

    rows = write_comparison({name: run / "evaluation" for name, run in zip(_names(runs), runs, strict=True)}, out)
    console().print(_table(rows))
    if len({row.data for row in rows}) > 1:
        console().print("these runs were evaluated on different held-out data: compare only runs with the same letter")
    console().print(f"page: {out}", soft_wrap=True)


def _names(runs: tuple[Path, ...]) -> list[str]:
    """Return the name of each folder, or its whole path where two have the same name."""
    names = [run.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


def _table(rows: list[ComparisonRow]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("run", overflow="fold")
    for head in ("ELBO", "IWAE", "gap", "KL", "active", "calibrated", "D_KS", "plausible", "trained on", "data"):
        table.add_column(head, justify="right")
    for row in rows:
        nats = f".{row.decimals}f"
        numbers: list[tuple[float | str | None, str]] = [(value, nats) for value in (row.elbo, row.iwae, row.gap, row.kl)]
        numbers += [(row.active, ""), (row.calibrated, ""), (row.ks, ".3f"), (row.alive, ".0%"), (row.trajectories, ","), (row.data, "")]
        table.add_row(row.name, *("–" if value is None else format(value, form) for value, form in numbers))
    return table
