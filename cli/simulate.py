"""`epns-pyro simulate`: sample future trajectories with a trained simulator."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.filesize import decimal

from epns_pyro.cli._common import LARGEST, RUN, SEED, console, fail, given, progress_bars, result_file, trajectory_of, with_imports

if TYPE_CHECKING:
    import numpy as np

    from epns_pyro.data import Store
    from epns_pyro.simulator import Simulator


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
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    callback=result_file,
    help="FILE.zarr or FILE.nc to write; an existing file is not overwritten.",
)
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
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option(
    "--mean-feedback",
    is_flag=True,
    help="Feed back the mean of the emission, as the published code does; the ensemble is then not a sample of the model.",
)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option(
    "--compile",
    "compiling",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="Compile a step of the model first, which takes minutes and a C++ compiler: auto does so for long simulations.",
)
@with_imports
def simulate(
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
) -> None:
    """Sample futures of recorded initial states with the simulator in RUN, which is a folder or pretrained:NAME.

    A model with a history, or of hidden states, is given the first frames of a trajectory, and futures start at the last of them.
    """
    import epns_pyro
    from epns_pyro.data import open_store, to_dataset
    from epns_pyro.data.writing import Identity
    from epns_pyro.durations import nominal
    from epns_pyro.models import Feedback

    chosen = trajectory_of(source) if source else None
    sim = epns_pyro.load(run, device=device)
    path, index = chosen or (Path(sim.store), None)
    if not chosen and not path.exists():
        fail(f"{path}: the data that {run} was trained on are not there: name a store with initial states with --from")
    store = open_store(path).timed_as(sim.spec)
    group = "test" if "test" in store.splits else store.splits[0]
    schedule = _schedule(store, group, index, steps, sim.transition.earlier_frames) if entries == "recorded" else None
    if frame_dt and (schedule is not None or store.spec.duration is None):
        fail("--frame-dt is for models of uneven frames (training.strides), and goes without --entries recorded, which has its own times")
    x0, past = given(sim, store, group, index)
    if not sim.infers_states:
        x0 = nominal(store.spec, x0, frame_dt)
    _require_room(out, members * (steps + 1) * x0.size * 4, labels=x0.dtype.kind != "f")

    block_size = max(len(x0), sim.transition.block_size)  # whole members, so that blocks can be appended along "sample"
    sim = _compiled(sim, compiling, steps * -(-members * len(x0) // block_size))
    dims, about = ("sample", "trajectory", "time"), Identity.of(sim.system).attributes()
    blocks = sim.rollout_blocks(
        x0,
        steps=steps,
        members=members,
        seed=seed,
        schedule=schedule,
        past=past,
        feedback=Feedback.PUSHFORWARD if mean_feedback else Feedback.ANCESTRAL,
        block_size=block_size,
    )
    temporary = out.with_name(out.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    with progress_bars() as show:
        for block in blocks:
            dataset = to_dataset(sim.spec, block.states, dims, frame_dt=frame_dt or sim.context.frame_dt)
            dataset = dataset.assign(alive=(dims, sim.system.alive(block.states)))
            dataset.attrs = about | {"run": str(run), "seed": seed, "feedback": "mean" if mean_feedback else "sample", "entries": entries}
            moving = dataset if not block.samples.start else dataset.drop_vars([n for n in dataset if "sample" not in dataset[n].dims])
            moving.to_zarr(temporary, **({"append_dim": "sample"} if block.samples.start else {"mode": "w"}), consolidated=False)
            show("sampling", block.samples.stop, members)
    _finish(temporary, out)
    console().print(f"{members} futures of {len(x0)} initial states, {steps} steps each: {out}", soft_wrap=True)


def _compiled(sim: Simulator, compiling: str, steps: int) -> Simulator:
    """Return the simulator with compiled steps where that is asked for, or pays for so many steps of a block."""
    from epns_pyro.inference.compiled import PAYS_FROM, find_compiler

    if compiling == "on" and sim.device.type == "cpu" and find_compiler() is None:
        fail("--compile on: no C++ compiler was found: install g++ or clang++, or name one in the variable CXX")
    if compiling == "off" or (compiling == "auto" and (steps < PAYS_FROM or find_compiler() is None)):
        return sim
    return sim.compile()


def _schedule(store: Store, group: str, index: int | None, steps: int, first: int) -> np.ndarray:
    """Return the recorded states after the initial ones, which are frame number `first`: (trajectory, time, *site, channel)."""
    left = store.steps(group) - first
    if left < steps:
        fail(f"--entries recorded: set {group!r} of {store.path} has {left} steps after the frames given, found --steps {steps}")
    return store.read(group, index, stop=first + steps + 1)[:, first + 1 :]


def _require_room(out: Path, size: int, *, labels: bool) -> None:
    """Refuse a result that cannot fit on the disk: `size` bytes before compression, which leaves about 1/50 of label images."""
    home = out.resolve().parent
    if not home.is_dir():
        fail(f"{out}: there is no folder {home}")
    free = shutil.disk_usage(home).free
    needed = size // 50 if labels else size
    if needed > free:
        fail(f"{out}: needs about {decimal(needed)}, found {decimal(free)} free: ask for fewer --members or --steps")


def _finish(temporary: Path, out: Path) -> None:
    if out.suffix == ".zarr":
        os.replace(temporary, out)
        return
    import xarray as xr

    with xr.open_zarr(temporary, consolidated=False, chunks=None) as dataset:
        dataset.drop_encoding().to_netcdf(out, engine="h5netcdf")
    shutil.rmtree(temporary)
