"""`epns-pyro train`: prepare data, train, evaluate, and name the next commands."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from epns_pyro.cli._common import SEED, console, fail, imported, overrides, progress_bars, status_console, with_imports

if TYPE_CHECKING:
    from epns_pyro.data import Store
    from epns_pyro.training.run import RunConfig, RunFolder


@click.command()
@click.argument("family", metavar="nbody|particles|cells")
@click.option("--data", "data", type=click.Path(path_type=Path), help="Store to train on.  [default: simulated once, in data/]")
@click.option("--preset", metavar="quick|pairs|paper", help="Settings to start from.  [default: quick]")
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A config.yaml with the settings, instead of a preset.",
)
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change one setting, e.g. training.batch=128; repeatable.")
@click.option("--steps", type=click.IntRange(min=1), help="Optimiser steps; the same as --set training.steps=N.")
@click.option(
    "--compile/--no-compile",
    "compiling",
    default=None,
    help="Compile a step of training first, which takes minutes and a C++ compiler; the same as --set training.compile=true.",
)
@click.option("--seed", type=SEED, help="Seed of all random numbers.  [default: 0]")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder of the run.  [default: runs/FAMILY]")
@click.option("--resume", is_flag=True, help="Continue the run in --out from its last checkpoint.")
@click.option("--accelerator", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--devices", type=click.IntRange(min=1), default=1, show_default=True, help="Processes per node, one device each.")
@click.option("--num-nodes", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--evaluate/--no-evaluate", default=True, show_default=True, help="Evaluate the trained simulator at the end.")
@with_imports
@click.pass_context
def train(
    ctx: click.Context,
    family: str,
    data: Path | None,
    preset: str | None,
    file: Path | None,
    changes: tuple[str, ...],
    steps: int | None,
    compiling: bool | None,
    seed: int | None,
    out: Path | None,
    resume: bool,
    accelerator: str,
    devices: int,
    num_nodes: int,
    evaluate: bool,
) -> None:
    """Train a simulator from recorded trajectories: of bodies (nbody, particles) or of label images (cells).

    Without options, `epns-pyro train nbody` simulates the default data set once, trains the quick preset on it, evaluates the
    result, and names the next commands.
    """
    from epns_pyro.training.run import RunFolder
    from epns_pyro.training.trainable import check_trainable
    from epns_pyro.training.trainer import Hardware, Trainer

    folder = RunFolder(out or Path("runs") / family)
    hardware = Hardware(accelerator, devices, num_nodes)
    settings = overrides(changes)
    for key, value in (("training.steps", steps), ("training.compile", compiling), ("seed", seed)):
        if value is not None and settings.setdefault(key, value) is not value:
            fail(f"--set {key}: there is an option for it, too: give one of them")
    settings |= {"imports": imported(ctx)} if imported(ctx) else {}
    store, config = _prepare(family, data, preset, file, settings, folder, resume)
    check_trainable(store, config)
    if hardware.is_main and (doubt := config.model.doubt(store.context())):
        status_console().print(f"warning: {doubt}", style="yellow", soft_wrap=True)
    if hardware.is_main and (side := config.training.crop) and side < max(store.sites("train")):
        whole = " x ".join(map(str, store.sites("train")))
        words = f"training sees {side} x {side} of {whole} pixels at a time, around a random cell (training.crop)"
        status_console().print(f"{words}; its nats are of such parts", soft_wrap=True)
    new = not resume and hardware.is_main
    if new:
        folder.check_free()
    trainer = Trainer(config, store, folder, hardware)
    if new:  # after the trainer, which refuses data that it cannot train on: then no empty folder is left behind
        folder.create(trainer.config)
    try:
        _fit(trainer, resume=resume)
    except KeyboardInterrupt:
        if hardware.is_main:
            again = ["epns-pyro", "train", family, "--out", str(folder.path), "--data", str(store.path), "--resume"]
            saved = f"interrupted: saved in {folder.last}. Continue with:\n  {shlex.join(again)}"
            words = saved if folder.last.exists() else "interrupted before the first step: nothing is saved; start again"
            console().print(words, soft_wrap=True)
        raise
    if not hardware.is_main:
        return
    run = shlex.quote(str(folder.path))
    if evaluate:
        from epns_pyro.cli.evaluate import evaluate_run

        evaluate_run(folder.path, store.path)
        console().print(
            f"\nnext:\n  epns-pyro report {run}\n  epns-pyro simulate {run} --members 100 --steps 100 --out futures.zarr", soft_wrap=True
        )
    else:
        console().print(f"\nnext:\n  epns-pyro evaluate {run}\n  epns-pyro report {run}", soft_wrap=True)


def _prepare(
    family: str, data: Path | None, preset: str | None, file: Path | None, settings: dict, folder: RunFolder, resume: bool
) -> tuple[Store, RunConfig]:
    """Read the settings, and open or make the data for them."""
    from epns_pyro.data import open_store
    from epns_pyro.errors import CheckpointError
    from epns_pyro.training import presets
    from epns_pyro.training.checkpoint import read_checkpoint
    from epns_pyro.training.run import RunConfig
    from epns_pyro.training.trainable import check_data

    if file and preset:
        fail("--config has all settings: leave out --preset")
    presets.get_preset(family, start := preset or "quick")
    if resume:
        if file or preset or settings.keys() - {"imports"}:
            fail(f"--resume uses the settings of {folder.config}: leave out --config, --preset, --set, --steps and --seed")
        if folder.config.exists() and not folder.last.exists():
            fail(f"{folder.path}: stopped before its first checkpoint: start again without --resume")
        content = read_checkpoint(folder.last)
        config = RunConfig.parse(content["config"], where=str(folder.last))
        path = data or Path(content["store"])
        if not path.exists():
            raise CheckpointError(f"{folder.last}: its data {path} are not there: name their new place with --data")
        store = open_store(path)
        presets.check_family(family, store.spec, where=str(path))
        return store, config
    if data and (simulated := next((key for key in settings if key.partition(".")[0] == "system"), None)):
        fail(f"--set {simulated}: is for data that are simulated: those of {data} are what they are")
    given = open_store(data) if data else None
    if given:
        check_data(given)
        presets.check_family(family, given.spec, where=str(data))
    if file:
        config = RunConfig.from_yaml(file)
        presets.check_family(family, config.system.build().spec, where=str(file))
    else:
        config = presets.preset(family, start, given)
    config = config.override(settings)
    return given or _default_store(config, presets.default_data(family, start)), config


def _default_store(config: RunConfig, path: Path) -> Store:
    from epns_pyro.data import generate

    fresh = not path.exists()
    with progress_bars() as show:
        store = generate(config.system, path, progress=lambda name, done, total: show(f"simulating {name}", done, total))
    console().print(f"data: {'simulated into' if fresh else 'using'} {path}", soft_wrap=True)
    return store


def _fit(trainer, *, resume: bool) -> None:
    """Train with a progress bar: step, nats per transition, KL, gap to the oracle, time left; in a log file, one line per validation."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = BarColumn(bar_width=8), MofNCompleteColumn(), TextColumn("{task.fields[numbers]}"), TimeRemainingColumn(), TextColumn("left")
    with Progress(*columns, console=status_console(), disable=not trainer.fabric.is_global_zero) as bar:
        total = trainer.config.training.steps
        task, last = bar.add_task("training", total=total, numbers=""), None

        def say(what: str) -> None:
            bar.update(task, numbers=what)
            if trainer.fabric.is_global_zero and not bar.console.is_terminal:
                bar.console.print(what, soft_wrap=True)

        def show(progress) -> None:
            nonlocal last
            numbers = f"{progress.log_likelihood - progress.kl:.1f} nats, KL {progress.kl:.2f}"
            if progress.validation is not None:
                numbers += f", val {progress.validation.elbo:.1f}"
                if progress.validation.gap is not None:
                    numbers += f" ({progress.validation.gap:.1f} to oracle)"
            if progress.skipped:
                numbers += f", {progress.skipped} skipped"
            bar.update(task, completed=progress.step, numbers=numbers)
            if progress.validation != last and not bar.console.is_terminal:
                bar.console.print(f"step {progress.step}/{total}: {numbers}", soft_wrap=True)
            last = progress.validation

        validation = trainer.fit(resume=resume, on_progress=show, on_fit=say)
    if trainer.fabric.is_global_zero:
        used = f"{validation.active} of {validation.latent} latent dimensions active, KL {validation.kl:.2f}"
        gap = "" if validation.gap is None else f", {validation.gap:.2f} below the oracle ({validation.oracle:.2f})"
        console().print(
            f"trained: validation ELBO {validation.elbo:.2f} nats per transition{gap}; {used}; saved in {trainer.folder.path}",
            soft_wrap=True,
        )
        if (law := trainer.transition.law) is not None:
            console().print(f"law of pairs: {law}", soft_wrap=True)
        if trainer.lost_patience:
            patience = trainer.config.training.patience
            console().print(
                f"ended early: the last {patience} validations were worse than the best; --set training.patience=null trains to the end",
                soft_wrap=True,
            )
        step, best = trainer.best
        if step == 0:
            start = "a linear autoregression" if trainer.starts_linear else "persistence"
            console().print(
                f"not better than {start}: no state of the training beat the first ({best:.2f} nats), which is kept: train longer, "
                "check the data with epns-pyro data info, or give the state what it lacks (velocities, `history: 4`)",
                soft_wrap=True,
            )
        elif step < trainer.config.training.steps:
            console().print(f"the parameters of step {step} ({best:.2f} nats), which are better, are kept", soft_wrap=True)
