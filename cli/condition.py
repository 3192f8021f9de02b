"""`epns-pyro condition`: infer states or trajectories from observations, with a trained simulator."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click

from epns_pyro.cli._common import (
    LARGEST,
    RUN,
    console,
    device_option,
    fail,
    futures_option,
    seed_option,
    status_console,
    trajectory_of,
    with_imports,
)

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

    from epns_pyro.simulator import Simulator


@click.command()
@click.argument("run", type=RUN)
@click.option(
    "--observations",
    type=click.Path(path_type=Path),
    required=True,
    help="FILE.nc or FILE.zarr with one variable per observed field; NaN where nothing was observed.",
)
@click.option(
    "--noise", "noises", multiple=True, metavar="FIELD=SIGMA", help="Standard deviation of the error of a field, instead of the file's."
)
@click.option(
    "--from",
    "source",
    metavar="PATH[:INDEX]",
    help="Store and number of the test trajectory with the initial state, and the states before it of a model with a history.",
)
@click.option(
    "--smooth", "smoothing", is_flag=True, help="Infer whole trajectories given all observations, not each state given those up to it."
)
@click.option("--particles", type=click.IntRange(1, LARGEST), default=500, show_default=True)
@seed_option
@futures_option
@device_option
@with_imports
def condition(
    run: Path,
    observations: Path,
    noises: tuple[str, ...],
    source: str | None,
    smoothing: bool,
    particles: int,
    seed: int,
    out: Path,
    device: str,
) -> None:
    """Infer the states of a trajectory from partial and noisy observations, with the simulator in RUN."""
    import epns_pyro
    from epns_pyro.conditioning.observations import read_observations

    chosen = trajectory_of(source) if source else None
    sim = epns_pyro.load(run, device=device)
    recorded = read_observations(observations, sim.spec, frame_dt=sim.context.frame_dt, noise=_noise(noises))
    x0, past = _initial(*chosen, sim=sim, particles=particles, seed=seed) if chosen else (recorded.initial, None)
    if x0 is None:
        names = ", ".join(f.name if not f.dynamic else f"initial_{f.name}" for f in sim.spec.fields)
        return fail(f"{observations}: no initial state: add the variables {names}, or name a trajectory that starts there with --from")
    with status_console().status("conditioning"):
        posterior = (sim.smooth if smoothing else sim.filter)(x0, recorded.observations, particles=particles, seed=seed, past=past)
    posterior.attrs |= {"run": str(run), "observations": str(observations), "seed": seed, "particles": particles}
    _write(posterior, out)
    _summarise(posterior, recorded.observations.frames, particles, out)


def _noise(options: tuple[str, ...]) -> dict[str, float]:
    noise: dict[str, float] = {}
    for text in options:
        name, _, value = text.partition("=")
        if name in noise:
            raise click.BadParameter(f"{name} is given twice", param_hint="--noise")
        try:
            noise[name] = float(value)
        except ValueError:
            raise click.BadParameter(f"expected FIELD=SIGMA with a number, found {text!r}", param_hint="--noise") from None
    return noise


def _initial(path: Path, index: int | None, *, sim: Simulator, particles: int, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the state of a trajectory at the last of the frames that a forecast is given, and those before it that are of use.

    A hidden state is inferred from these frames: then it is an ensemble.
    """
    from epns_pyro.data import open_store
    from epns_pyro.sampling import given

    store = open_store(path).states_for(sim.spec, sim.context.frame_dt)
    x0, past = given(sim, store, "test" if "test" in store.splits else store.splits[0], index or 0)
    if sim.infers_states:
        return sim.infer(x0, members=particles, seed=seed)[:, 0].numpy(), None
    return x0[0], None if past is None else past[0]


def _write(posterior: xr.Dataset, out: Path) -> None:
    temporary = out.with_name(out.name + ".partial")
    if out.suffix == ".zarr":
        shutil.rmtree(temporary, ignore_errors=True)
        posterior.to_zarr(temporary, consolidated=False)
    else:
        posterior.to_netcdf(temporary, engine="h5netcdf")
    temporary.replace(out)


def _summarise(posterior: xr.Dataset, observed: np.ndarray, particles: int, out: Path) -> None:
    ess = posterior["ess"].values
    worst = int(ess.argmin())
    say = console().print
    say(f"{len(observed)} of {len(ess)} frames observed, {particles} particles", soft_wrap=True)
    say(f"log evidence  {float(posterior['log_evidence'].values.ravel()[-1]):.2f} nats")
    say(f"effective sample size  median {float(posterior['ess'].median()):.0f}, smallest {ess[worst]:.0f} at frame {worst}")
    if ess[worst] < 0.05 * particles:
        say("few particles carry the weight at that frame: use more particles, or check the noise", soft_wrap=True)
    say(f"posterior: {out}", soft_wrap=True)
