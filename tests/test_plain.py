"""YAML and JSON within limits: what nests or expands without end is refused in one line, quickly."""

from __future__ import annotations

import ast

import pytest
from test_architecture import SOURCES, module_name

from epns_pyro import plain
from epns_pyro.errors import CheckpointError, ConfigError, DataError, nearest, shown
from epns_pyro.plain import parse_json, parse_yaml, read_json, read_yaml

DOUBLING = "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
MERGING = "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40))
CHAIN = "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 1000))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000 + "]" * 100_000, "nested more than 60 deep"),
        ('{"a":' * 100_000, "nested more than 60 deep"),
        ("".join(f"{' ' * i}a:\n" for i in range(1000)), "nested more than 60 deep"),
        (f"a0: &a0 [x]\n{CHAIN}", "nested more than 60 deep"),
        (f"a0: &a0 [x, x]\n{DOUBLING}fields: *a39", "more than 100000 values once its aliases are followed"),
        (f"a0: &a0 {{k: 1}}\n{MERGING}fields: *a39", "more than 100000 values"),
        ("&a [*a]", "part of"),
        ("fields: " + "9" * 5000, "5000 characters"),
        ("fields: 1" + ":1" * 3000, "at most 1000"),
        ("fields: 2026-99-99", "month must be in 1..12"),
        ("!!int ''", "does not fit its type"),
        ("!!bool x", "does not fit its type"),
        ("!!timestamp x", "does not fit its type"),
        ("!!python/object/apply:os.system ['true']", "is not valid YAML"),
        ("? [a]\n: b", "is not valid YAML"),
        ("\x00", "is not valid YAML"),
        ("{", "is not valid YAML"),
    ],
)
def test_yaml_beyond_a_limit_is_refused_in_one_line(text, said):
    with pytest.raises(ConfigError, match=f"^mine.yaml: .*{said}") as caught:
        parse_yaml(text, where="mine.yaml")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000 + "]" * 100_000, "nested more than 60 deep"),
        ("[" * 500 + "]" * 500, "nested more than 60 deep"),
        ("9" * 5000, "5000 digits"),
        ("{", "is not valid JSON"),
        (b"\xff", "is not valid JSON"),
        (5, "is not valid JSON"),
        (None, "is not valid JSON"),
    ],
)
def test_json_beyond_a_limit_is_refused_in_one_line(text, said):
    with pytest.raises(DataError, match=f"^it: .*{said}") as caught:
        parse_json(text, where="it")
    assert "\n" not in str(caught.value)


def test_what_files_of_this_program_hold_is_read():
    assert parse_yaml("base: &b {name: position, size: [1, 2.5]}\nfields: [*b, {<<: *b, name: v}]", where="f")["fields"][1] == {
        "name": "v",
        "size": [1, 2.5],
    }
    assert parse_yaml("[" * 59 + "]" * 59, where="f") == parse_json("[" * 59 + "]" * 59, where="f")
    assert parse_yaml("note: " + "x" * 5000, where="f") == {"note": "x" * 5000}
    assert parse_json('{"a": [1, -2.5e3, null, true, "\\u00fc"]}', where="f") == {"a": [1, -2500.0, None, True, "ü"]}


@pytest.mark.parametrize("read", [read_yaml, read_json])
def test_a_file_that_cannot_be_read_is_named(read, tmp_path, monkeypatch):
    monkeypatch.setattr(plain, "YAML_BYTES", 10)
    monkeypatch.setattr(plain, "JSON_BYTES", 10)
    (tmp_path / "latin").write_bytes(b"\xfc")
    (tmp_path / "large").write_text("[" + " " * 20 + "]")
    (tmp_path / "bad").write_text("{")
    for path, said in (("nothing", "No such file"), ("latin", "utf-8"), ("large", "expected at most .* MiB"), (".", "it is not a file")):
        with pytest.raises(DataError, match=said) as caught:
            read(tmp_path / path)
        assert str(tmp_path) in str(caught.value)
    with pytest.raises(DataError, match="it is not a file"):
        read("/dev/zero")
    with pytest.raises(CheckpointError, match="bad: is not valid"):
        read(tmp_path / "bad", error=CheckpointError)


def test_messages_stay_short():
    assert shown("word") == "'word'"
    assert len(shown("x" * 10_000)) < 100
    assert len(shown([["x" * 1000] * 1000] * 1000)) < 300
    assert nearest(3, ["4", 5]) == "known: 4, 5"
    assert len(nearest("x" * 10_000, [f"name{i}" for i in range(10_000)])) < 1000


def test_yaml_and_json_are_read_in_one_place_alone():
    wanted = {"yaml": ("load", "safe_load", "full_load", "unsafe_load", "load_all", "safe_load_all"), "json": ("load", "loads")}
    found = [
        module_name(path)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.attr in wanted.get(node.value.id, ())
    ]
    of_our_own = {"epns_pyro.systems.recorded", "epns_pyro.data.importers.track_report"}  # they read what this program has written
    in_images = {"epns_pyro.data.importers.tiff"}  # a tag of a TIFF, guarded there
    assert set(found) - of_our_own - in_images == {"epns_pyro.plain"}
