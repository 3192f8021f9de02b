"""What all commands share: errors in one line, sub-commands imported on demand, the console, progress bars and shared options."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from epns_pyro.cli._log import write_log
from epns_pyro.errors import EpnsError

if TYPE_CHECKING:
    from epns_pyro.cluster import Cluster

EXIT_USER_ERROR = 2
EXIT_UNEXPECTED = 70  # EX_SOFTWARE of sysexits.h
EXIT_INTERRUPTED = 130
LARGEST = 10**9  # members, steps, particles: a larger number is a typing error
LONGEST_WORD = 500  # characters; paths are shorter
SEED = click.IntRange(min=0, max=2**63 - 1)
POSITIVE = click.FloatRange(min=0, min_open=True)
PATH = click.Path(path_type=Path)
IMPORTS = "epns_pyro.imports"


class _Run(click.Path):
    """The folder of a run; "pretrained:NAME" is one that comes with the package."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from epns_pyro.pretrained import find_run

        return super().convert(find_run(value) if isinstance(value, str) else value, param, ctx)


RUN = _Run(path_type=Path)


class Group(click.Group):
    """A group that imports a sub-command when it is called, and reports every error in one line.

    Parameters
    ----------
    lazy : dict, optional
        Name of a sub-command -> "module:attribute" that holds it. `--help` imports all modules: they must be quick to import.
    """

    def __init__(self, *args: Any, lazy: dict[str, str] | None = None, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._lazy = lazy or {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *self._lazy})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self._lazy:
            module, attribute = self._lazy[cmd_name].split(":")
            return getattr(importlib.import_module(module), attribute)
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _quiet():
                return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort, BrokenPipeError):  # click handles these itself
            raise
        except click.ClickException as error:
            if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
                raise
            where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else ctx.command_path
            fail(f"{error.format_message().rstrip('.')}: see {where} --help")
        except EpnsError as error:
            fail(str(error))
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            fail(f"{where}{error.strerror or error}")
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(EXIT_INTERRUPTED)
        except Exception as error:  # last resort: readers have refused wrong input before this point, so this is a fault of the program
            where = write_log(error)
            what = one_line(f"{type(error).__name__}: {error}".removesuffix(": "))
            click.echo(f"unexpected error: {what[:300]}: a fault of epns-pyro; please report it with the log {where}", err=True)
            raise click.exceptions.Exit(EXIT_UNEXPECTED) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide Python's warnings, which are for programmers. PYTHONWARNINGS and `python -W` show them."""
    if sys.warnoptions:
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def one_line(text: str) -> str:
    """Return a message in one line, with words that nobody can read, such as a pasted file, cut short."""
    return " ".join(word if len(word) <= LONGEST_WORD else f"{word[:80]}..." for word in text.split())


def fail(message: str) -> NoReturn:
    """Print what is wrong, in one line on standard error, and exit with code 2."""
    click.echo(f"error: {one_line(message)}", err=True)
    raise click.exceptions.Exit(EXIT_USER_ERROR)


def console() -> Console:
    """Return the console for results, on standard output."""
    return Console(highlight=False, markup=False)


def status_console() -> Console:
    """Return the console for progress and warnings, on standard error."""
    return Console(stderr=True)


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Show progress bars on standard error; yields a function (what, done, total) that starts or moves the bar `what`."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=status_console()) as bars:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield show


def overrides(pairs: tuple[str, ...]) -> dict[str, Any]:
    """Read the values of repeated `--set key=value` options; of one key the last counts."""
    from epns_pyro.config import parse_value

    changes = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise click.BadParameter(f"expected key=value, found {pair!r}", param_hint="--set")
        changes[key] = parse_value(value)
    return changes


def trajectory_of(source: str) -> tuple[Path, int | None]:
    """Read PATH or PATH:INDEX; the name of an existing file may contain colons."""
    path, colon, index = source.rpartition(":")
    if not colon or os.path.exists(source):  # False, not an error, where the name is too long
        return Path(source), None
    if not (path and index.isascii() and index.isdigit() and len(index) < 10):
        fail(f"--from {source[:80]}: expected PATH or PATH:INDEX with a whole number, found {index[:40]!r}, and there is no such path")
    return Path(path), int(index)


def result_file(ctx: click.Context, param: click.Parameter, out: Path) -> Path:
    """Check the name of a result: FILE.zarr or FILE.nc that does not exist yet."""
    if out.suffix not in (".zarr", ".nc"):
        fail(f"{out}: expected a name that ends in .zarr or .nc")
    if out.exists():
        fail(f"{out}: exists already: choose another name")
    if not (home := out.resolve().parent).is_dir():
        fail(f"{out}: there is no folder {home}")
    return out


seed_option = click.option("--seed", type=SEED, default=0, show_default=True)
device_option = click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ...")
store_option = click.option("--out", type=PATH, required=True, help="Where to write the store.")
futures_option = click.option(
    "--out", type=PATH, required=True, callback=result_file, help="FILE.zarr or FILE.nc to write; an existing file is not overwritten."
)


def with_imports(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the option --import, which loads the user's code before the command runs."""
    return click.option(
        "--import",
        "--plugin",
        "imports",
        multiple=True,
        metavar="MODULE|FILE.py",
        expose_value=False,
        callback=_load_imports,
        help="Load Python code that registers your own systems, backbones or models; the code is executed. Repeatable.",
    )(command)


def with_cluster(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the option --cluster, which `workers_of` reads."""
    return click.option(
        "--cluster",
        metavar="local[:N]|slurm:N|tcp://HOST:PORT",
        help="Share the work among N processes, N jobs of SLURM, or the workers of a Dask scheduler.  [extra: cluster]",
    )(command)


@contextmanager
def workers_of(cluster: str | None) -> Iterator[Cluster | None]:
    """Have the workers that --cluster names while the block lasts; None where it is not given."""
    if cluster is None:
        yield None
        return
    from epns_pyro.cluster import connect

    with connect(cluster) as found:
        yield found


def imported(ctx: click.Context) -> tuple[str, ...]:
    """Return the values of --import."""
    return ctx.meta.get(IMPORTS, ())


def _load_imports(ctx: click.Context, param: click.Parameter, names: tuple[str, ...]) -> None:
    from epns_pyro.extensions import load_extensions

    ctx.meta[IMPORTS] = names
    if not ctx.resilient_parsing:
        load_extensions(names)
