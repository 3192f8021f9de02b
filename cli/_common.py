"""What all commands share: one line for an error, lazy sub-commands, the console and progress bars."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from epns_pyro.errors import EpnsError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


class Group(click.Group):
    """A group that imports its sub-commands when they are asked for, and turns a user's mistake into one line.

    Parameters
    ----------
    lazy : dict, optional
        Name of a sub-command -> "module:attribute" that holds it. The modules must be quick to import, for `--help` shows them all.
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
            return super().invoke(ctx)
        except BrokenPipeError:  # the reader has gone: click leaves quietly
            raise
        except EpnsError as error:
            fail(str(error))
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            fail(f"{where}{error.strerror or error}")
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(EXIT_INTERRUPTED)


def fail(message: str) -> None:
    """Say what is wrong, in one line on standard error, and leave with exit code 2."""
    click.echo(f"error: {' '.join(message.split())}", err=True)
    raise click.exceptions.Exit(EXIT_USER_ERROR)


def console() -> Console:
    """Return the console for results, on standard output."""
    return Console(highlight=False, markup=False)


def status_console() -> Console:
    """Return the console for progress and warnings, on standard error."""
    return Console(stderr=True)


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Show bars on standard error; gives a function (what, done, total) that starts and moves the bar `what`."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=status_console()) as bars:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield show


def overrides(pairs: tuple[str, ...]) -> dict[str, Any]:
    """Read the values of repeated `--set key=value` options."""
    from epns_pyro.config import parse_value

    changes = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise click.BadParameter(f"expected key=value, found {pair!r}", param_hint="--set")
        changes[key] = parse_value(value)
    return changes
