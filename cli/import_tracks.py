"""`epns-pyro data import-tracks`: tables of tracks."""

from __future__ import annotations

from pathlib import Path

import click

from epns_pyro.cli._common import progress_bars

PATH = click.Path(path_type=Path)
POSITIVE = click.FloatRange(min=0, min_open=True)


@click.command("import-tracks")
@click.argument("paths", metavar="TABLE...", type=PATH, nargs=-1, required=True)
@click.option("--out", type=PATH, required=True, help="Where to write the store.")
@click.option("--columns", default="", help="What the columns are: frame,id,x,y[,z] (- skips one), or frame=NAME,id=NAME,...")
@click.option("--frame-dt", type=POSITIVE, help="Time between two frame numbers.  [default: 1]")
@click.option("--time-unit", default="", help="Its unit.")
@click.option("--every", type=click.IntRange(min=1), help="Keep every so many frame numbers.  [default: their common step]")
@click.option("--scale", type=POSITIVE, default=1.0, show_default=True, help="Size of a pixel, in the unit of positions.")
@click.option("--unit", default="", help="Unit of positions.")
@click.option("--segment", type=click.IntRange(min=2), help="Frames of a trajectory.  [default: a whole recording]")
@click.option("--field", "fields", multiple=True, metavar="NAME[=COLUMN][:UNIT]", help="A scalar that changes, e.g. intensity.")
@click.option("--static", "statics", multiple=True, metavar="NAME[=COLUMN][:UNIT]", help="A scalar that does not, e.g. diameter:um.")
@click.option("--category", "categories", multiple=True, metavar="NAME[=COLUMN]", help="A class of bodies, e.g. species.")
@click.option("--vector", "vectors", multiple=True, metavar="NAME=COLUMN,COLUMN[:UNIT]", help="A vector, e.g. velocity=vx,vy.")
@click.option("--likelihood", type=click.FloatRange(0, 1), help="Drop detections less likely than this.")
@click.option(
    "--duplicates", type=click.Choice(["refuse", "first"]), default="refuse", show_default=True, help="Two places of one id in a frame."
)
@click.option("--split", type=click.Choice(["time", "recording"]), default="time", show_default=True, help="What the sets are made of.")
@click.option("--margin", type=click.IntRange(min=0), help="Frames between the sets of a recording.  [default: one segment]")
@click.option("--test", "tests", multiple=True, type=PATH, metavar="TABLE", help="A recording that is left out, for the test.")
@click.option(
    "--history",
    type=click.IntRange(0, 64),
    default=4,
    show_default=True,
    help="Velocities of so many steps as part of the state, as differences; 0: none.",
)
def import_tracks(
    paths: tuple[Path, ...],
    out: Path,
    columns: str,
    frame_dt: float | None,
    time_unit: str,
    every: int | None,
    scale: float,
    unit: str,
    segment: int | None,
    fields: tuple[str, ...],
    statics: tuple[str, ...],
    categories: tuple[str, ...],
    vectors: tuple[str, ...],
    likelihood: float | None,
    duplicates: str,
    split: str,
    margin: int | None,
    tests: tuple[Path, ...],
    history: int,
) -> None:
    """Import tables of tracks, one row per detection: CSV, TSV, text, Parquet or .npy, or folders of them; a file is a recording.

    Known are the layouts of trackpy, TrackMate, btrack and napari, DeepLabCut and idtracker; others need --columns.
    """
    from epns_pyro.cli.data import _summarise
    from epns_pyro.data.importers.track_fields import Column, Quantities
    from epns_pyro.data.importers.track_report import ImportReport
    from epns_pyro.data.importers.tracks import Options
    from epns_pyro.data.importers.tracks import import_tracks as run

    quantities = Quantities(
        fields=tuple(Column.parse(text) for text in fields),
        statics=tuple(Column.parse(text) for text in statics),
        categories=tuple(Column.parse(text) for text in categories),
        vectors=tuple(Column.parse(text, vector=True) for text in vectors),
    )
    options = Options(
        columns=columns,
        frame_dt=frame_dt,
        time_unit=time_unit,
        every=every,
        scale=scale,
        unit=unit,
        segment=segment,
        quantities=quantities,
        likelihood=likelihood,
        duplicates=duplicates,
        split=split,
        margin=margin,
        history=history,
    )
    with progress_bars() as progress:
        store = run(paths, out, options, tests=tests, progress=progress)
    for line in ImportReport.of(store.path).lines():
        click.echo(line)
    _summarise(store)
