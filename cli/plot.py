"""`epns-pyro plot`: pictures and films of trajectories."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from epns_pyro.cli._common import LARGEST, RUN, console, fail, seed_option, with_imports

if TYPE_CHECKING:
    from epns_pyro.plots.futures import Futures

PICTURES = (".png", ".svg", ".pdf")
FILMS = (".gif", ".mp4", ".html")
NOT_OF = {"members": ("futures", "recordings"), "seed": ("futures", "recordings"), "split": ("futures",), "steps": ("futures",)}  # options
STEPS = 100  # of the futures of a run that are sampled by default


@click.command()
@click.argument("what", metavar="RUN|STORE|FUTURES", type=RUN)
@click.option("--kind", type=click.Choice(["fan", "paths"]), help="Kind of picture.  [default: fan]")
@click.option("--observable", "observables", multiple=True, metavar="NAME", help="Fans of this observable only; repeatable.")
@click.option("--set", "split", metavar="NAME", help="Set of trajectories.  [default: same_init of a run, test of a store]")
@click.option("--trajectory", type=click.IntRange(0, LARGEST), default=0, show_default=True, help="Number of the initial state in the set.")
@click.option("--runs", type=click.IntRange(1, 12), default=3, show_default=True, help="Number of paths, or of runs in a film.")
@click.option("--members", type=click.IntRange(1, LARGEST), default=100, show_default=True, help="Futures to sample from a RUN.")
@click.option("--steps", type=click.IntRange(1, LARGEST), help="Number of steps.  [default: 100 for a run, otherwise all]")
@seed_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="FILE.png, .svg or .pdf; .gif, .mp4 or .html for a film.  [default: fan.png or paths.png]",
)
@with_imports
@click.pass_context
def plot(
    ctx: click.Context,
    what: Path,
    kind: str | None,
    observables: tuple[str, ...],
    split: str | None,
    trajectory: int,
    runs: int,
    members: int,
    steps: int | None,
    seed: int,
    out: Path | None,
) -> None:
    """Draw trajectories: futures sampled from a RUN over the truth, trajectories of a STORE, or FUTURES from `epns-pyro simulate`.

    A fan shows the median and the 10-90% band of observables over time; paths show positions of bodies, or label images; a film moves.
    """
    if out is not None and out.suffix not in PICTURES + FILMS:
        fail(f"{out}: expected a name that ends in {', '.join(PICTURES + FILMS)}")
    if not what.exists():
        fail(f"{what}: no such run, store or file of futures")
    if out is not None and not out.absolute().parent.is_dir():
        fail(f"{out.absolute().parent}: no such folder: make it first, or name another place for the picture")
    given = [name for name in NOT_OF if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    futures = _gather(what, split, trajectory, members, steps, seed, given)
    if out is not None and out.suffix in FILMS:
        _film(futures, runs, out)
    else:
        kind = kind or "fan"
        out = out or Path(f"{kind}.png")
        _picture(futures, kind, observables, runs, out)
    console().print(f"{_described(futures)}: {out}", soft_wrap=True)


def _gather(what: Path, split: str | None, trajectory: int, members: int, steps: int | None, seed: int, given: list[str]) -> Futures:
    from epns_pyro.data import open_store
    from epns_pyro.plots.futures import is_futures, read_futures, recorded, sample_futures
    from epns_pyro.training.run import RunFolder

    folder = RunFolder(what)
    if folder.best.is_file() or folder.last.is_file():
        import epns_pyro

        sim = epns_pyro.load(what)
        if not Path(sim.store).exists():
            fail(f"{sim.store}: the data that {what} was trained on are not there, so there is nothing to start from")
        store = open_store(sim.store).states_for(sim.spec, sim.context.frame_dt)
        return sample_futures(sim, store, trajectory=trajectory, split=split, members=members, steps=steps or STEPS, seed=seed)
    kind = "futures" if is_futures(what) else "recordings"
    if wrong := [name for name in given if kind in NOT_OF[name]]:
        fail(f"{what}: holds {kind}, and {', '.join('--' + name.replace('split', 'set') for name in wrong)} is not for these: leave it out")
    if kind == "futures":
        return read_futures(what, trajectory=trajectory)
    return recorded(open_store(what), split=split, first=trajectory, steps=steps)


def _picture(futures: Futures, kind: str, observables: tuple[str, ...], runs: int, out: Path) -> None:
    from epns_pyro.plots import panels, paper

    drawn = panels.fans(futures, observables) if kind == "fan" else panels.paths(futures, runs)
    paper.save(paper.draw(drawn, _described(futures)), out)


def _film(futures: Futures, runs: int, out: Path) -> None:
    if out.suffix == ".html":
        from epns_pyro.report import write_player

        write_player(futures.examples(runs), futures.system.time_unit, _described(futures), out)
    else:
        from epns_pyro.plots.film import save_film

        save_film(futures, runs, out)


def _described(futures: Futures) -> str:
    parts = [f"{len(x)} {_word(source, len(x))}" for source, x in futures.states.items()]
    return f"{futures.system.name}: {' and '.join(parts)}"


def _word(source: str, number: int) -> str:
    word = {"truth": "recorded trajectory", "model": "future of the model"}[source]
    return word if number == 1 else {"truth": "recorded trajectories", "model": "futures of the model"}[source]
