"""Absurd values of every option and argument of every command: never a traceback, exit code 2, and one line that says why."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from epns_pyro.cli import main

ABSURD = (
    "",
    " ",
    "nan",
    "-inf",
    "-1",
    "1e999",
    "٣",
    "²",
    "9" * 40,
    "-" + "9" * 400,
    "x" * 5000,
    "💥",
    "no/such",
    "[[[[[",
    "{",
    "a: b: c",
    "=1",
)
NOWHERE = "no/such/file"


def commands(command: click.Command = main, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from commands(found, (*path, name))
    else:
        yield path, command


TREE = dict(commands())


def words(path: tuple[str, ...], changed: click.Parameter, value: str) -> list[str]:
    """A call of a command where everything but one parameter is sound, though its files do not exist."""
    call = [*path]
    for parameter in TREE[path].params:
        if parameter is changed:
            call += [value] if isinstance(parameter, click.Argument) else [f"{parameter.opts[0]}={value}"]
        elif isinstance(parameter, click.Argument):
            call.append({"family": "nbody", "system": "nbody"}.get(str(parameter.name), NOWHERE))
        elif parameter.required:
            call += [parameter.opts[0], "new.zarr" if parameter.name == "out" else NOWHERE]
    if path == ("train",) and changed.name != "data":
        call += ["--data", NOWHERE]
    if path == ("data", "generate"):
        call += ["--set", "bodies=-1"] if changed.name != "changes" else []
    return call


@pytest.mark.parametrize("path", TREE, ids=" ".join)
def test_absurd_values_are_refused_in_one_line(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for parameter in TREE[path].params:
        if isinstance(parameter, click.Option) and parameter.is_flag:
            continue
        for value in ABSURD:
            call = words(path, parameter, value)
            result = CliRunner().invoke(main, call)
            assert result.exit_code in ((0, 2) if path[0] in ("settings", "list") else (2,)), (call, result.output)
            assert result.exception is None or isinstance(result.exception, SystemExit), (call, result.exception)
            if result.exit_code:
                lines = result.output.strip().splitlines()  # a bar without progress is an empty line
                assert len(lines) == 1, (call, result.output)
                line = lines[0]
                assert line.startswith("error: "), (call, line)
                assert 10 < len(line) < 1000, (call, line)
    assert list(tmp_path.iterdir()) == [], "a refused call leaves something behind"


@pytest.mark.parametrize("path", TREE, ids=" ".join)
def test_a_missing_argument_is_named_with_the_way_to_help(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    needed = [p for p in TREE[path].params if p.required and (p.nargs != -1 or isinstance(p, click.Argument))]
    result = CliRunner().invoke(main, [*path])
    if needed:
        assert result.exit_code == 2, result.output
        assert result.output.startswith("error: Missing "), result.output
        assert f"see main {' '.join(path)} --help" in result.output
    else:
        assert result.exit_code in (0, 2), result.output


def test_an_option_that_no_command_has_is_refused():
    for path in TREE:
        result = CliRunner().invoke(main, [*path, "--no-such-option"])
        assert (result.exit_code, result.output.count("\n")) == (2, 1), result.output
        assert "No such option" in result.output
