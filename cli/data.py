"""`epns-pyro data`: make, import and look into trajectory stores."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from epns_pyro.cli._common import SEED, Group, console, fail, overrides, progress_bars, with_imports

if TYPE_CHECKING:
    from epns_pyro.data.stores import Store
    from epns_pyro.systems.base import SystemConfig

PATH = click.Path(path_type=Path)


class Crop(click.ParamType):
    """A rectangle of an image: "0:200,50:250" is rows 0 to 199 and columns 50 to 249."""

    name = "Y0:Y1,X0:X1"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[tuple[int, int], tuple[int, int]]:
        found = re.fullmatch(r"\s*(\d{1,9}):(\d{1,9})\s*,\s*(\d{1,9}):(\d{1,9})\s*", value, re.ASCII)
        if not found:
            self.fail(f"expected rows and columns like 0:200,50:250, found {value[:60]!r}", param, ctx)
        top, bottom, left, right = map(int, found.groups())
        return (top, bottom), (left, right)


@click.group(cls=Group, lazy={"import-tracks": "epns_pyro.cli.import_tracks:import_tracks"})
def data() -> None:
    """Make, import and look into trajectory stores."""


@data.command()
@click.argument("system", metavar="SYSTEM")
@click.option("--out", type=PATH, help="Where to write the store.  [default: data/SYSTEM.zarr]")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Every trajectory follows from seed, set and number.")
@click.option("--sets", help="Comma-separated sets to make, all by default; more can be added later.")
@click.option("--trajectories", type=click.IntRange(min=1), help="At most so many trajectories per set (or per shared initial state).")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a setting of the system, e.g. --set sigma=0.2.")
@click.option("--workers", type=click.IntRange(min=1), help="Threads of the simulator.  [default: all cores]")
@with_imports
def generate(
    system: str, out: Path | None, seed: int, sets: str | None, trajectories: int | None, changes: tuple[str, ...], workers: int | None
) -> None:
    """Simulate the trajectory sets of SYSTEM (nbody, cells, ...).

    An interrupted run is finished by giving the same command again.
    """
    from epns_pyro.data.generate import generate as simulate
    from epns_pyro.systems import SYSTEMS

    config = SYSTEMS.parse({"name": system}).override(overrides(changes))
    config = _limited(config, trajectories) if trajectories else config
    names = [name.strip() for name in sets.split(",")] if sets else None
    out = out or Path("data") / f"{system}.zarr"
    with progress_bars() as progress:
        store = simulate(config, out, seed, sets=names, workers=workers, progress=progress)
    _summarise(store)


def _limited(config: SystemConfig, trajectories: int) -> SystemConfig:
    changes = {}
    for name, settings in config.sets.items():
        shared = settings.initial_states or 1
        changes[f"sets.{name}.trajectories"] = min(settings.trajectories, shared * trajectories)
    return config.override(changes)


@data.command("import-epns")
@click.argument("directory", type=PATH)
@click.option("--out", type=PATH, required=True, help="Where to write the store.")
@click.option("--every", type=click.IntRange(min=1), help="Keep every so many frames.  [default: 10 celestial, 1 cellular]")
@click.option("--frame-dt", type=click.FloatRange(min=0, min_open=True), help="Time between two frames that are kept.")
def import_epns(directory: Path, out: Path, every: int | None, frame_dt: float | None) -> None:
    """Import .npy files in the layout of the published code: DIRECTORY holds train/, val/, test/, test_same_init/, ..."""
    from epns_pyro.data.importers.epns_format import FOLDERS
    from epns_pyro.data.importers.epns_format import import_epns as run

    with progress_bars() as progress:
        store = run(directory, out, every=every, frame_dt=frame_dt, progress=progress)
    for name in FOLDERS:
        if name not in store.splits:
            click.echo(f"no folder {FOLDERS[name]}/: there is no set {name}", err=True)
    _summarise(store)


@data.command("import-labels")
@click.argument("path", type=PATH)
@click.option("--out", type=PATH, required=True, help="Where to write the store.")
@click.option("--types", type=PATH, help="Type of every cell: CSV with columns label, type (and movie), or .npy (cell,) or (movie, cell).")
@click.option("--frame-dt", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True, help="Time between two frames.")
@click.option("--time-unit", default="", help="Its unit.")
@click.option("--segment", type=click.IntRange(min=2), help="Cut every movie into trajectories of so many frames.")
@click.option("--crop", type=Crop(), help="Keep these rows and columns only, counted from 0, the last not included.")
@click.option("--downscale", type=click.IntRange(min=1), default=1, help="Make one pixel of so many by so many: the label of most.")
@click.option("--stack-is-time", is_flag=True, help="The images of a TIFF stack are frames, not slices or channels.")
@click.option("--periodic", is_flag=True, help="The image wraps around at its edges.")
def import_labels(
    path: Path,
    out: Path,
    types: Path | None,
    frame_dt: float,
    time_unit: str,
    segment: int | None,
    crop: tuple[tuple[int, int], tuple[int, int]] | None,
    downscale: int,
    stack_is_time: bool,
    periodic: bool,
) -> None:
    """Import label images: a zarr array (time, y, x) or (movie, time, y, x), a TIFF stack, or a folder of TIFFs."""
    from epns_pyro.data.importers.labels import import_labels as run
    from epns_pyro.data.importers.lineage import find_lineage

    with progress_bars() as progress:
        store = run(
            path,
            out,
            types=types,
            frame_dt=frame_dt,
            time_unit=time_unit,
            segment=segment,
            crop=crop,
            downscale=downscale,
            stack_is_time=stack_is_time,
            periodic=periodic,
            progress=progress,
        )
    if (lineage := find_lineage(path)) is not None:
        console().print(f"{lineage.summary}; what appears within a trajectory is named by epns-pyro data info", soft_wrap=True)
    _summarise(store)


@data.command()
@click.argument("path", type=PATH)
@click.option("--spec", type=PATH, help="YAML file that describes the fields of PATH.")
@with_imports
def info(path: Path, spec: Path | None) -> None:
    """Say what is in the store PATH, and what is wrong with it; exit code 2 if that keeps it from being used."""
    from epns_pyro.data.inspection.check import check
    from epns_pyro.data.inspection.findings import ERROR, Finding
    from epns_pyro.data.inspection.motion import motion_lines
    from epns_pyro.data.inspection.tracks import track_lines
    from epns_pyro.data.stores import open_store
    from epns_pyro.training.trainable import find_refusal

    store = open_store(path, spec=spec)
    with progress_bars() as progress:
        findings = check(store, progress=progress)
    readable = all(finding.level != ERROR for finding in findings)
    if readable and (refusal := find_refusal(store)):
        findings = [Finding(ERROR, "", refusal), *findings]
    _summarise(store)
    _fields(store)
    for line in (*motion_lines(store), *track_lines(store)) if readable else ():
        console().print(line, soft_wrap=True)
    for finding in findings:
        console().print(Text(str(finding), style="red" if finding.level == ERROR else "yellow"), soft_wrap=True)
    if errors := [finding for finding in findings if finding.level == ERROR]:
        fail(f"{path}: {len(errors)} thing{'s' * (len(errors) > 1)} must be put right before it can be used")
    if not findings:
        console().print("nothing wrong found")


def _summarise(store: Store) -> None:
    table = Table(title=str(store.path), title_justify="left", box=None)
    for heading in ("set", "trajectories", "frames", *store.spec.sites):
        table.add_column(heading, justify="left" if heading == "set" else "right")
    for group in store.splits:
        numbers = (store.size(group), store.steps(group) + 1, *store.sites(group))
        table.add_row(group, *map(str, numbers))
    console().print(table)
    unit = f" {store.time_unit}" if store.time_unit else ""
    console().print(f"system {store.config['name']}, one step is {store.frame_dt:g}{unit}, {_size(store.path)} on disk")


def _fields(store: Store) -> None:
    from epns_pyro.errors import EpnsError
    from epns_pyro.fields import IRREPS

    try:
        context = store.context()
    except EpnsError:  # the findings say why
        context = None
    table = Table(box=None)
    for heading in ("field", "is a", "unit", "scale", "change per step"):
        table.add_column(heading)
    for field in store.spec.fields:
        kind = IRREPS[field.irreps] if field.kind == "real" else "of pairs" if field.is_pair else f"{field.kind} below {field.size}"
        measured = context is not None and field.kind == "real"
        scale = f"{context.spec[field.name].scale:.4g}" if measured else ""
        step = f"{context.step_scales[field.name]:.4g}" if measured and field.dynamic else "static" if not field.dynamic else ""
        table.add_row(field.name, kind, field.unit, scale, step)
    console().print(table)
    if context is not None and context.cell_reach is not None:
        from epns_pyro.backbones.tissues.cell_windows import window_for
        from epns_pyro.backbones.tissues.tissue import Size

        side = window_for(context.cell_reach, Size(*context.sites))
        console().print(
            f"cells stay within {context.cell_reach:.1f} pixels of their centre in a step: windows around them are {side} x {side} pixels",
            soft_wrap=True,
        )


def _size(path: Path) -> str:
    files = path.rglob("*") if path.is_dir() else [path]
    return decimal(sum(file.stat().st_size for file in files if file.is_file()))
