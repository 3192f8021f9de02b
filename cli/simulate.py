"""`epns-pyro simulate`: sample future trajectories with a trained simulator."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.filesize import decimal

from epns_pyro.cli._common import (
    LARGEST,
    RUN,
    console,
    device_option,
    fail,
    futures_option,
    imported,
    progress_bars,
    seed_option,
    trajectory_of,
    with_cluster,
    with_imports,
    workers_of,
)

if TYPE_CHECKING:
    from epns_pyro.sampling import Ensemble


@click.command()
@click.argument("run", type=RUN)
@click.option("--members", type=click.IntRange(1, LARGEST), default=100, show_default=True, help="Sampled futures per initial state.")
@click.option("--steps", type=click.IntRange(1, LARGEST), default=100, show_default=True)
@click.option(
    "--from",
    "source",
    metavar="PATH[:INDEX]",
    help="Store with the initial states, and number of one test trajectory.  [default: all of the training store's test set]",
)
@futures_option
@click.option(
    "--entries",
    type=click.Choice(["kept", "recorded"]),
    default="kept",
    show_default=True,
    help="Bodies of a future: those of its initial state, or those that enter and leave as recorded.",
)
@click.option(
    "--frame-dt",
    type=click.FloatRange(min=0, min_open=True),
    help="Time step of the futures, if the model was trained on uneven time steps.",
)
@seed_option
@click.option(
    "--mean-feedback",
    is_flag=True,
    help="Feed back the mean of the emission, as the published code does; the ensemble is then not a sample of the model.",
)
@device_option
@click.option(
    "--compile",
    "compiling",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="Compile a step of the model first, which takes minutes and a C++ compiler: auto does so for long simulations without --cluster.",
)
@with_cluster
@with_imports
@click.pass_context
def simulate(
    context: click.Context,
    run: Path,
    members: int,
    steps: int,
    source: str | None,
    out: Path,
    entries: str,
    frame_dt: float | None,
    seed: int,
    mean_feedback: bool,
    device: str,
    compiling: str,
    cluster: str | None,
) -> None:
    """Sample futures of recorded initial states with the simulator in RUN, which is a folder or pretrained:NAME.

    A model with a history, or of hidden states, is given the first frames of a trajectory, and futures start at the last of them.
    If it was interrupted, the same command completes it.
    """
    from epns_pyro.sampling import Ensemble, Request

    store, trajectory = trajectory_of(source) if source else (None, None)
    request = Request(
        run=run,
        members=members,
        steps=steps,
        store=store,
        trajectory=trajectory,
        seed=seed,
        recorded_entries=entries == "recorded",
        frame_dt=frame_dt,
        mean_feedback=mean_feedback,
        device=device,
        compiled=compiling == "on",
        imports=imported(context),
    )
    ensemble = Ensemble.of(request)
    _require_room(out, ensemble.nbytes, labels=ensemble.x0.dtype.kind != "f")
    ensemble = _compiled(ensemble, compiling, cluster)
    with workers_of(cluster) as found, progress_bars() as show:
        ensemble.write(out, cluster=found, progress=partial(show, "sampling"))
    console().print(f"{members} futures of {ensemble.trajectories} initial states, {steps} steps each: {out}", soft_wrap=True)


def _compiled(ensemble: Ensemble, compiling: str, cluster: str | None) -> Ensemble:
    """Return the ensemble with compiled steps where that is asked for, or pays for so many steps of a block."""
    from epns_pyro.inference.compiled import PAYS_FROM, find_compiler

    sim = ensemble.sim
    if compiling == "on" and sim.device.type == "cpu" and find_compiler() is None:
        fail("--compile on: no C++ compiler was found: install g++ or clang++, or name one in the variable CXX")
    pays = not cluster and ensemble.request.steps * ensemble.blocks >= PAYS_FROM and find_compiler() is not None
    return replace(ensemble, sim=sim.compile()) if compiling == "auto" and pays else ensemble


def _require_room(out: Path, size: int, *, labels: bool) -> None:
    """Refuse a result that cannot fit on the disk: `size` bytes before compression, which leaves about 1/50 of label images."""
    free = shutil.disk_usage(out.resolve().parent).free
    needed = size // 50 if labels else size
    if needed > free:
        fail(f"{out}: needs about {decimal(needed)}, found {decimal(free)} free: ask for fewer --members or --steps")
