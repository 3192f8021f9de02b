"""`epns-pyro data import-tracks`: tables of tracks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from epns_pyro.cli._common import PATH, POSITIVE, progress_bars, store_option

if TYPE_CHECKING:
    from epns_pyro.data.description import Split


class PerAxis(click.ParamType):
    """Numbers per axis: "10,10"."""

    name = "X,Y[,Z]"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        try:
            return tuple(float(part) for part in str(value).split(",")) if value else ()
        except ValueError:
            self.fail(f"expected numbers like 10,10, found {str(value)[:60]!r}", param, ctx)


class Shares(click.ParamType):
    """Parts of three sets: "70,10,20"."""

    name = "TRAIN,VAL,TEST"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Split:
        from epns_pyro.data.description import Split

        try:
            train, val, test = (float(part) for part in str(value).split(","))
            return Split(train=train, val=val, test=test)
        except ValueError:
            self.fail(f"expected three parts like 70,10,20, found {str(value)[:60]!r}", param, ctx)


class Box(click.ParamType):
    """Sides, of all recordings or of one: "10,10" or "second=12,12"."""

    name = "[NAME=]X,Y[,Z]"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, tuple[float, ...]]:
        if isinstance(value, tuple):  # click converts what it has converted
            return value
        name, _, sides = str(value).rpartition("=")
        return name, PerAxis().convert(sides, param, ctx)


class Noise(click.ParamType):
    """A standard deviation, or the word learn."""

    name = "NUMBER|learn"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float | str:
        from epns_pyro.fields import LEARN

        if value == LEARN:
            return LEARN
        try:
            return float(str(value))
        except ValueError:
            self.fail(f"expected a standard deviation or {LEARN}, found {str(value)[:60]!r}", param, ctx)


@click.command("import-tracks")
@click.argument("paths", metavar="TABLE...", type=PATH, nargs=-1, required=True)
@store_option
@click.option("--columns", default="", help="Meaning of the columns: frame,id,x,y[,z] in order (- skips one), or frame=NAME,id=NAME,...")
@click.option("--frame-dt", type=POSITIVE, help="Time between consecutive frame numbers.  [default: 1]")
@click.option("--time-column", default="", metavar="COLUMN", help="Times of the frames, evenly spaced or not, in place of frame numbers.")
@click.option("--time-unit", default="", help="Unit of time, e.g. s.")
@click.option("--every", type=click.IntRange(min=1), help="Keep every N-th frame number.  [default: their common step]")
@click.option("--scale", type=POSITIVE, default=1.0, show_default=True, help="Size of a pixel: positions are multiplied by it.")
@click.option("--unit", default="", help="Unit of positions.")
@click.option("--segment", type=click.IntRange(min=2), help="Frames per trajectory.  [default: so that every set has some]")
@click.option("--field", "fields", multiple=True, metavar="NAME[=COLUMN][:UNIT]", help="A scalar that changes in time, e.g. intensity.")
@click.option("--static", "statics", multiple=True, metavar="NAME[=COLUMN][:UNIT]", help="A scalar that is constant, e.g. diameter:um.")
@click.option("--category", "categories", multiple=True, metavar="NAME[=COLUMN]", help="A class of bodies, e.g. species.")
@click.option("--vector", "vectors", multiple=True, metavar="NAME=COLUMN,COLUMN[:UNIT]", help="A vector, e.g. velocity=vx,vy.")
@click.option(
    "--pairs", multiple=True, metavar="NAME=FILE[:UNIT]", help="Bonds or springs: a table of two ids and perhaps a value, a row per pair."
)
@click.option("--likelihood", type=click.FloatRange(0, 1), help="Leave out detections with a likelihood below this.")
@click.option(
    "--duplicates",
    type=click.Choice(["refuse", "first"]),
    default="refuse",
    show_default=True,
    help="If an id has two positions in one frame: stop, or use the first.",
)
@click.option(
    "--non-interacting",
    "singles",
    is_flag=True,
    help="Bodies do not influence each other: every track becomes trajectories of its own, of one body.",
)
@click.option(
    "--split",
    type=click.Choice(["time", "recording", "track"]),
    help="Make the sets from stretches of time, from whole recordings, or from whole tracks that do not interact.  [default: time; track "
    "with 20 such tracks or more]",
)
@click.option("--margin", type=click.IntRange(min=0), help="Frames left out between two sets of one recording.  [default: one segment]")
@click.option(
    "--shares", type=Shares(), help="Parts of the segments in each set.  [default: 80,10,10; with fewer than 400 more for the test]"
)
@click.option("--test", "tests", multiple=True, type=PATH, metavar="TABLE", help="A recording that is used for the test set only.")
@click.option(
    "--symmetry",
    type=click.Choice(["E", "SE", "axis", "point", "translations", "none"]),
    default="E",
    show_default=True,
    help="Of the law: E all, SE no reflections, axis turns about the last axis, point a fixed centre (a trap).",
)
@click.option(
    "--centre", type=PerAxis(), default="", help="With --symmetry point: the fixed centre, in the unit of positions.  [default: zero]"
)
@click.option("--box", "boxes", type=Box(), multiple=True, help="Sides of a periodic box, in the unit of positions; of one file: NAME=X,Y.")
@click.option(
    "--history",
    type=click.IntRange(0, 64),
    help="Put the velocities of the last N steps (differences of positions) into the state; 0: none.  [default: 4; 0 with a velocity]",
)
@click.option(
    "--noise",
    type=Noise(),
    help="Standard deviation of the error of positions, in their unit, or learn; 0: exact. The model then infers velocities; no history.",
)
def import_tracks(
    paths: tuple[Path, ...],
    out: Path,
    columns: str,
    frame_dt: float | None,
    time_column: str,
    time_unit: str,
    every: int | None,
    scale: float,
    unit: str,
    segment: int | None,
    fields: tuple[str, ...],
    statics: tuple[str, ...],
    categories: tuple[str, ...],
    vectors: tuple[str, ...],
    pairs: tuple[str, ...],
    likelihood: float | None,
    duplicates: str,
    singles: bool,
    split: str | None,
    margin: int | None,
    shares: Split | None,
    tests: tuple[Path, ...],
    symmetry: str,
    centre: tuple[float, ...],
    boxes: tuple[tuple[str, tuple[float, ...]], ...],
    history: int | None,
    noise: float | str | None,
) -> None:
    """Import tables of tracks, one row per detection: CSV, TSV, text, Parquet, .npy or .npz files, or folders. One file is one recording.

    Layouts of trackpy, TrackMate, btrack, napari, DeepLabCut, idtracker and
    MOTChallenge are recognised; other tables need --columns.
    """
    from epns_pyro.cli.data import _summarise
    from epns_pyro.data.importers.track_fields import Column, Quantities
    from epns_pyro.data.importers.track_options import Options
    from epns_pyro.data.importers.track_pairs import Pairs
    from epns_pyro.data.importers.track_report import ImportReport
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
        time_column=time_column,
        time_unit=time_unit,
        every=every,
        scale=scale,
        unit=unit,
        segment=segment,
        quantities=quantities,
        pairs=tuple(Pairs.read(text) for text in pairs),
        likelihood=likelihood,
        duplicates=duplicates,
        singles=singles,
        split=split,
        margin=margin,
        shares=shares,
        symmetry=symmetry,
        centre=centre,
        box=dict(boxes).get("", ()),
        boxes={name: box for name, box in boxes if name},
        history=history,
        noise=noise,
    )
    with progress_bars() as progress:
        store = run(paths, out, options, tests=tests, progress=progress)
    for line in ImportReport.of(store.path).lines():
        click.echo(line)
    _summarise(store)
