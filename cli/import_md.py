"""`epns-pyro data import-md`: trajectories of molecular dynamics."""

from __future__ import annotations

from pathlib import Path

import click

from epns_pyro.cli._common import PATH, POSITIVE, progress_bars, store_option


@click.command("import-md")
@click.argument("paths", metavar="FILE...", type=PATH, nargs=-1, required=True)
@store_option
@click.option("--topology", type=PATH, help="Topology of the trajectories, where these do not name their atoms (PSF, PDB, GRO, ...).")
@click.option("--select", default="all", show_default=True, help="Atoms to import, in the language of MDAnalysis, e.g. 'name CA'.")
@click.option("--frame-dt", type=POSITIVE, help="Time between consecutive frames.  [default: that of the file, or 1]")
@click.option("--time-unit", default="", help="Unit of time.  [default: that of the file]")
@click.option("--every", type=click.IntRange(min=1), help="Keep every N-th frame.  [default: 1]")
@click.option("--scale", type=POSITIVE, default=1.0, show_default=True, help="Positions and the box are multiplied by it.")
@click.option("--unit", default="", help="Unit of positions.  [default: Å]")
@click.option("--segment", type=click.IntRange(min=2), help="Frames per trajectory.  [default: so that every set has some]")
@click.option(
    "--split",
    type=click.Choice(["time", "recording"]),
    default="time",
    show_default=True,
    help="Make the sets from stretches of time, or from whole files.",
)
@click.option("--margin", type=click.IntRange(min=0), help="Frames left out between two sets of one file.  [default: one segment]")
@click.option("--test", "tests", multiple=True, type=PATH, metavar="FILE", help="A file that is used for the test set only.")
@click.option(
    "--box",
    type=click.Choice(["recorded", "mean", "none"]),
    default="recorded",
    show_default=True,
    help="The box as it is, constant and rectangular; the mean box, to which positions are scaled (constant pressure); or none: atoms are "
    "followed across its sides (one molecule).",
)
@click.option("--bonds", is_flag=True, help="Take the bonds of the topology as an attribute of pairs of atoms.")
@click.option("--individuals", is_flag=True, help="Every atom is a class of its own, not of its species: for one molecule.")
@click.option(
    "--pairs", multiple=True, metavar="NAME=FILE[:UNIT]", help="An attribute of pairs: a table of two atoms, from 1, and perhaps a value."
)
@click.option(
    "--history",
    type=click.IntRange(0, 64),
    help="Velocities of the last N steps in the state, as differences of positions; 0: none.  [default: 4; 0 with recorded velocities]",
)
def import_md(
    paths: tuple[Path, ...],
    out: Path,
    topology: Path | None,
    select: str,
    frame_dt: float | None,
    time_unit: str,
    every: int | None,
    scale: float,
    unit: str,
    segment: int | None,
    split: str,
    margin: int | None,
    tests: tuple[Path, ...],
    box: str,
    bonds: bool,
    individuals: bool,
    pairs: tuple[str, ...],
    history: int | None,
) -> None:
    """Import trajectories of atoms: extxyz, .traj and XDATCAR by ASE, and what MDAnalysis reads.

    Needs the extra md: pip install 'epns-pyro[md]'.
    """
    from epns_pyro.cli.data import _summarise
    from epns_pyro.data.importers.md import import_md as run
    from epns_pyro.data.importers.track_options import Options
    from epns_pyro.data.importers.track_pairs import Pairs
    from epns_pyro.data.importers.track_report import ImportReport

    options = Options(
        frame_dt=frame_dt,
        time_unit=time_unit,
        every=every,
        scale=scale,
        unit=unit,
        segment=segment,
        split=split,
        margin=margin,
        pairs=tuple(Pairs.read(text) for text in pairs),
        history=history,
    )
    with progress_bars() as progress:
        store = run(
            paths,
            out,
            options,
            topology=topology,
            select=select,
            box=box,
            bonds=bonds,
            individuals=individuals,
            tests=tests,
            progress=progress,
        )
    for line in ImportReport.of(store.path).lines():
        click.echo(line)
    _summarise(store)
