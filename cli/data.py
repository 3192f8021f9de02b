"""`epns-pyro data`: make, import and inspect trajectory stores."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from epns_pyro.cli._common import (
    PATH,
    SEED,
    Group,
    console,
    fail,
    imported,
    overrides,
    progress_bars,
    store_option,
    with_cluster,
    with_imports,
    workers_of,
)

if TYPE_CHECKING:
    from epns_pyro.data.stores import Store
    from epns_pyro.fields import Field
    from epns_pyro.systems.base import SystemConfig


class Crop(click.ParamType):
    """A rectangle of an image: "0:200,50:250" is rows 0 to 199 and columns 50 to 249."""

    name = "Y0:Y1,X0:X1"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[tuple[int, int], tuple[int, int]]:
        found = re.fullmatch(r"\s*(\d{1,9}):(\d{1,9})\s*,\s*(\d{1,9}):(\d{1,9})\s*", value, re.ASCII)
        if not found:
            self.fail(f"expected rows and columns like 0:200,50:250, found {value[:60]!r}", param, ctx)
        top, bottom, left, right = map(int, found.groups())
        return (top, bottom), (left, right)


LAZY = {"import-tracks": "epns_pyro.cli.import_tracks:import_tracks", "import-md": "epns_pyro.cli.import_md:import_md"}


@click.group(cls=Group, lazy=LAZY)
def data() -> None:
    """Make, import and inspect trajectory stores."""


@data.command()
@click.argument("system", metavar="SYSTEM")
@click.option("--out", type=PATH, help="Where to write the store.  [default: data/SYSTEM.zarr]")
@click.option("--seed", type=SEED, default=0, show_default=True, help="The same seed always gives the same trajectories.")
@click.option("--sets", help="Sets to make, separated by commas: train, val, test, ...  [default: all; more can be added later]")
@click.option("--trajectories", type=click.IntRange(min=1), help="Largest number of trajectories per set (or per shared initial state).")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a setting of the system, e.g. --set sigma=0.2.")
@click.option("--workers", type=click.IntRange(min=1), help="Threads of the simulator.  [default: all cores; 1 with --cluster]")
@with_cluster
@with_imports
@click.pass_context
def generate(
    context: click.Context,
    system: str,
    out: Path | None,
    seed: int,
    sets: str | None,
    trajectories: int | None,
    changes: tuple[str, ...],
    workers: int | None,
    cluster: str | None,
) -> None:
    """Simulate the trajectory sets of SYSTEM (nbody, cells, ...).

    If a run was interrupted, the same command completes it.
    """
    from epns_pyro.data.generate import generate as simulate
    from epns_pyro.systems import SYSTEMS

    config = SYSTEMS.parse({"name": system}).override(overrides(changes))
    config = _limited(config, trajectories) if trajectories else config
    names = [name.strip() for name in sets.split(",")] if sets else None
    out = out or Path("data") / f"{system}.zarr"
    with workers_of(cluster) as found, progress_bars() as progress:
        more = {"workers": workers, "progress": progress, "cluster": found, "imports": imported(context)}
        store = simulate(config, out, seed, sets=names, **more)
    _summarise(store)


def _limited(config: SystemConfig, trajectories: int) -> SystemConfig:
    changes = {}
    for name, settings in config.sets.items():
        shared = settings.initial_states or 1
        changes[f"sets.{name}.trajectories"] = min(settings.trajectories, shared * trajectories)
    return config.override(changes)


@data.command("import-epns")
@click.argument("directory", type=PATH)
@store_option
@click.option("--every", type=click.IntRange(min=1), help="Keep every N-th frame.  [default: 10 celestial, 1 cellular]")
@click.option("--frame-dt", type=click.FloatRange(min=0, min_open=True), help="Time between two frames that are kept.")
def import_epns(directory: Path, out: Path, every: int | None, frame_dt: float | None) -> None:
    """Import .npy files in the layout of the published EPNS code: DIRECTORY holds train/, val/, test/, test_same_init/, ..."""
    from epns_pyro.data.importers.epns_format import FOLDERS
    from epns_pyro.data.importers.epns_format import import_epns as run

    with progress_bars() as progress:
        store = run(directory, out, every=every, frame_dt=frame_dt, progress=progress)
    for name in FOLDERS:
        if name not in store.splits:
            click.echo(f"no folder {FOLDERS[name]}/: the store has no set {name}", err=True)
    _summarise(store)


@data.command("import-labels")
@click.argument("path", type=PATH)
@store_option
@click.option("--types", type=PATH, help="Type of every cell: CSV with columns label, type (and movie), or .npy (cell,) or (movie, cell).")
@click.option("--frame-dt", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True, help="Time between two frames.")
@click.option("--time-unit", default="", help="Unit of time, e.g. min.")
@click.option("--segment", type=click.IntRange(min=2), help="Frames per trajectory.  [default: so that every set has some]")
@click.option("--crop", type=Crop(), help="Keep only these rows and columns, e.g. 0:200,50:250; counted from 0, the end not included.")
@click.option("--downscale", type=click.IntRange(min=1), default=1, help="Merge N x N pixels into one, with their most frequent label.")
@click.option("--stack-is-time", is_flag=True, help="Read the images of a TIFF stack as frames, not as slices or channels.")
@click.option("--periodic", is_flag=True, help="The image is periodic: its opposite edges meet.")
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
    from epns_pyro.data.importers.labels import label_hints
    from epns_pyro.data.importers.lineage import find_lineage
    from epns_pyro.data.importers.track_splits import too_few

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
    for hint in label_hints(store):
        console().print(hint, soft_wrap=True)
    if "test" in store.splits and too_few(tested := store.size("test"), store.steps("test")):
        sets = f"{tested} trajector{'y' if tested == 1 else 'ies'}"
        console().print(f"the test set has {sets}, too few for verdicts: use a shorter --segment, or more films", soft_wrap=True)
    if (lineage := find_lineage(path)) is not None:
        console().print(f"{lineage.summary}; epns-pyro data info lists the cells that appear within a trajectory", soft_wrap=True)
    _summarise(store)


@data.command()
@click.argument("path", type=PATH)
@click.option("--spec", type=PATH, help="YAML file that describes the fields of PATH.")
@with_imports
def info(path: Path, spec: Path | None) -> None:
    """Show what is in the store PATH, and what is wrong with it; exit code 2 if training cannot use it."""
    from epns_pyro.data.inspection.check import check
    from epns_pyro.data.inspection.findings import ERROR, Finding
    from epns_pyro.data.inspection.motion import duration_lines, motion_lines
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
    for line in (*duration_lines(store), *motion_lines(store), *track_lines(store)) if readable else ():
        console().print(line, soft_wrap=True)
    for finding in findings:
        console().print(Text(str(finding), style="red" if finding.level == ERROR else "yellow"), soft_wrap=True)
    if errors := [finding for finding in findings if finding.level == ERROR]:
        fail(f"{path}: {len(errors)} error{'s' * (len(errors) > 1)} to correct before it can be used")
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


_KINDS = {"pair": "of pairs", "duration": "duration of the step to come", "box": "sides of the periodic box"}


def _fields(store: Store) -> None:
    from epns_pyro.errors import EpnsError
    from epns_pyro.fields import IRREPS

    try:
        context = store.context()
    except EpnsError:  # the findings say why
        context = None
    table = Table(box=None)
    for heading in ("field", "type", "unit", "scale", "change per step"):
        table.add_column(heading)
    for field in store.spec.fields:
        kind = IRREPS[field.irreps] if field.kind == "real" else _KINDS.get(field.kind) or f"{field.kind} below {field.size}"
        measured = context if field.kind == "real" else None
        scale = f"{measured.spec[field.name].scale:.4g}" if measured else ""
        step = f"{measured.step_scales[field.name]:.4g}" if measured and field.dynamic else ""
        if not field.dynamic and field.kind != "duration":
            step = "static"
        table.add_row(field.name, kind + _how_recorded(field), field.unit, scale, step)
    console().print(table)
    if context is not None and context.cell_reach is not None:
        from epns_pyro.backbones.tissues.cell_windows import window_for
        from epns_pyro.backbones.tissues.tissue import Size

        side = window_for(context.cell_reach, Size(*context.sites))
        console().print(
            f"cells stay within {context.cell_reach:.1f} pixels of their centre during a step: "
            f"windows around them are {side} x {side} pixels",
            soft_wrap=True,
        )


def _how_recorded(field: Field) -> str:
    from epns_pyro.fields import LEARN

    if field.hidden:
        return ", hidden"
    if field.differences or field.lag_of:
        return ", derived"
    return f", error {field.noise if field.noise == LEARN else format(field.noise, '.4g')}" if field.noise else ""


def _size(path: Path) -> str:
    files = path.rglob("*") if path.is_dir() else [path]
    return decimal(sum(file.stat().st_size for file in files if file.is_file()))
