"""`epns-pyro reproduce`: the claims of the paper, trained, judged and told on one page."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from epns_pyro.cli._common import LARGEST, console, fail, overrides, progress_bars, status_console, with_cluster, workers_of

if TYPE_CHECKING:
    from epns_pyro.studies import Plan
    from epns_pyro.studies.estimate import Clock, Cost
    from epns_pyro.studies.work import Report


@click.command()
@click.argument("study", metavar="celestial|cellular|FILE.yaml")
@click.option("--preset", default="quick", show_default=True, metavar="quick|paper", help="Sizes of networks, training and evaluation.")
@click.option("--seeds", type=click.IntRange(min=1, max=1000), default=3, show_default=True, help="Runs of every model.")
@click.option("--models", metavar="NAME,...", help="Models, separated by commas, e.g. epns,pns-gnn,gp-ode.  [default: all]")
@click.option("--sizes", metavar="N,...", help="Training trajectories of the data-efficiency curve.  [default: of the preset; '': none]")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change one setting in every run; repeatable.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder of the study.  [default: studies/STUDY-PRESET]")
@click.option("--jobs", type=click.IntRange(min=1, max=1000), help="Runs at a time, without --cluster.  [default: one per core]")
@with_cluster
@click.option("--dry-run", is_flag=True, help="List the runs and how long they take, and do nothing.")
def reproduce(
    study: str,
    preset: str,
    seeds: int,
    models: str | None,
    sizes: str | None,
    changes: tuple[str, ...],
    out: Path | None,
    jobs: int | None,
    cluster: str | None,
    dry_run: bool,
) -> None:
    """Test the claims of the EPNS paper: make the data, train what is missing, judge all models alike, and write one page and one table.

    Every run has its own folder. After an interrupt the same command goes on where it stopped. The page shows the models that the command
    names; more seeds or models can be added later. A study of your own is a file like those in epns_pyro/studies/.
    """
    from epns_pyro.machine import cores
    from epns_pyro.studies import Study, make_plan
    from epns_pyro.studies.estimate import Clock, estimate
    from epns_pyro.studies.page import command
    from epns_pyro.studies.work import make_data, run

    folder = out or Path("studies") / f"{Path(study).stem}-{preset}"
    plan = make_plan(
        Study.named(study),
        preset,
        out=folder.resolve() if cluster else folder,
        seeds=seeds,
        models=tuple(_split(models or "")),
        sizes=None if sizes is None else tuple(_count(size) for size in _split(sizes)),
        changes=overrides(changes),
    )
    plan.check()
    asked = jobs
    with workers_of(None if dry_run else cluster) as found:
        jobs = min(found.size if found else jobs or cores(), len(plan.jobs))
        if not dry_run:
            _require_folder(plan.out)
            with progress_bars() as show:
                make_data(plan, show, found)
        with progress_bars() as show:
            costs = estimate(plan, show)
        clock = Clock(plan, costs, jobs)
        if dry_run:
            _list(plan, costs, clock, jobs)
            return
        try:
            with _progress(plan, clock) as report:
                unfinished = run(plan, jobs=jobs, report=report, cluster=found)
        except KeyboardInterrupt:
            _tell(plan, {})
            workers = f" --cluster {shlex.quote(cluster)}" if cluster else f" --jobs {asked}" if asked else ""
            console().print(f"interrupted: everything is kept. Continue with:\n  {command(plan)}{workers}", soft_wrap=True)
            raise
    _tell(plan, unfinished)


def _tell(plan: Plan, unfinished: dict[int, str]) -> None:
    """Write page and table from what is there, and print what they say."""
    from epns_pyro.report import write_page
    from epns_pyro.studies.measures import collect, write_csv
    from epns_pyro.studies.page import make_page

    rows = collect(plan, unfinished)
    page = make_page(plan, rows)
    write_csv(rows, plan.table)
    write_page(page, plan.page)
    console().print(page.verdict, soft_wrap=True)
    for row in rows:
        for seed, why in row.failures.items():
            console().print(f"failed: {row.name}, {row.trajectories} trajectories, seed {seed}: {why}", soft_wrap=True)
    console().print(f"page: {plan.page}\ntable: {plan.table}", soft_wrap=True)


def _split(words: str) -> list[str]:
    """Read a list separated by commas."""
    return [word.strip() for word in words.split(",") if word.strip()]


def _count(word: str) -> int:
    """Read a number of trajectories."""
    if not (word.isascii() and word.isdigit() and 0 < int(word[:10]) < LARGEST):
        fail(f"--sizes: expected whole numbers above 0, separated by commas, found {word[:40]!r}")
    return int(word)


def _require_folder(out: Path) -> None:
    """Make the folder of the study, or fail in one line."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        fail(f"--out {out}: a file is in the way: name another folder")
    if not os.access(out, os.W_OK):
        fail(f"--out {out}: not writable: name another folder")


def _list(plan: Plan, costs: dict[str, Cost], clock: Clock, jobs: int) -> None:
    """Print the runs of a plan and how long they take."""
    from rich.table import Table

    from epns_pyro.studies.estimate import finished, words

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("model")
    for head in ("training trajectories", "seeds", "steps", "each takes"):
        table.add_column(head, justify="right")
    kinds = dict.fromkeys((job.name, job.trajectories) for job in plan.jobs)
    for name, trajectories in kinds:
        some = [job for job in plan.jobs if (job.name, job.trajectories) == (name, trajectories)]
        steps = "–" if some[0].model.reference else f"{some[0].config.training.steps:,}"
        table.add_row(name, f"{trajectories:,}", str(len(some)), steps, words(sum(costs[name].of(some[0]))))
    console().print(table)
    left = words((clock.total - clock.done) / jobs)
    counted = f"{len(plan.jobs)} runs, {finished(plan)} of them finished"
    console().print(f"{counted}; {jobs} at a time; {left}; into {plan.out}", soft_wrap=True)


@contextmanager
def _progress(plan: Plan, clock: Clock) -> Iterator[Report]:
    """Show a bar for the study with the time left, and one for every run that is going on; in a log file, a line per finished run."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    from epns_pyro.studies.estimate import words
    from epns_pyro.studies.work import Event, is_finished

    with Progress(TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), console=status_console()) as bars:
        whole = bars.add_task("study", total=max(clock.total, 1e-9))
        bars.update(whole, completed=clock.done)
        tasks: dict[int, Any] = {}
        phases = {number: "finished" for number, job in enumerate(plan.jobs) if is_finished(job)}

        def report(event: Event) -> None:
            clock.see(event)
            label, ended = plan.jobs[event.job].label, event.phase == "finished"
            new = phases.get(event.job) != event.phase
            phases[event.job] = event.phase
            if ended and event.job in tasks:
                bars.remove_task(tasks.pop(event.job))
            elif not ended:
                if event.job not in tasks:
                    tasks[event.job] = bars.add_task(label)
                bars.update(tasks[event.job], description=f"{label}: {event.phase}", completed=event.done, total=event.total)
            left = f"{sum(phase == 'finished' for phase in phases.values())} of {len(plan.jobs)} runs, {words(clock.left())} left"
            bars.update(whole, completed=clock.done, description=left)
            if new and not bars.console.is_terminal:
                bars.console.print(f"{label}: {event.phase}; {left}", soft_wrap=True)

        yield report
