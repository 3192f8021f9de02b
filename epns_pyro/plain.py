"""Safe reading of YAML and JSON, from files or text, within limits; all code of the package reads them here.

A file may come from anyone. Its size, its depth of nesting and, for YAML, the size after expanding aliases are limited before anything
is built from it. The result contains only mappings, lists, text, numbers, dates, true, false and null.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from epns_pyro.errors import ConfigError, DataError, EpnsError, shown

YAML_BYTES, JSON_BYTES = 2**20, 64 * 2**20  # of a file; the YAML reader takes about a second for 100 kB
DEPTH = 60  # of nested lists and mappings
VALUES = 100_000  # of a YAML file, after aliases are expanded
DIGITS = 1000  # of a number


def read_yaml(path: str | Path, *, error: type[EpnsError] = ConfigError) -> Any:
    """Read plain data from a YAML file.

    Raises
    ------
    DataError
        If the file cannot be read.
    EpnsError
        Of the class `error`, if it is not valid YAML or exceeds a limit; the message names the file.
    """
    return parse_yaml(_text(Path(path), YAML_BYTES), where=str(path), error=error)


def read_json(path: str | Path, *, error: type[EpnsError] = DataError) -> Any:
    """Read plain data from a JSON file; raises as `read_yaml` does."""
    return parse_json(_text(Path(path), JSON_BYTES), where=str(path), error=error)


def parse_yaml(text: str, *, where: str, error: type[EpnsError] = ConfigError) -> Any:
    """Read plain data from YAML text; `where` names it in the message of the error."""
    try:
        return yaml.load(text, _Loader)
    except _Limit as limit:
        raise error(f"{where}: {limit}") from None
    except yaml.YAMLError as problem:
        raise error(f"{where}: is not valid YAML: {_one_line(problem)}") from None
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as problem:  # text that does not fit its tag or date
        raise error(f"{where}: is not valid YAML: a value does not fit its type ({_one_line(problem)})") from None


def parse_json(text: str | bytes, *, where: str, error: type[EpnsError] = DataError) -> Any:
    """Read plain data from JSON text; `where` names it in the message of the error."""
    try:
        data = json.loads(text, parse_int=_whole)
        _require_shallow(data)
    except (_Limit, RecursionError) as limit:
        raise error(f"{where}: {limit if isinstance(limit, _Limit) else _too_deep()}") from None
    except (ValueError, TypeError) as problem:
        raise error(f"{where}: is not valid JSON: {_one_line(problem)}") from None
    return data


class _Limit(Exception):
    """Says which limit a text exceeds."""


def _too_deep() -> _Limit:
    return _Limit(f"lists and mappings are nested more than {DEPTH} deep: files of this program have a few levels")


def _text(path: Path, most: int) -> str:
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: cannot be read: it is not a file")
    try:
        if (size := path.stat().st_size) > most:
            raise DataError(f"{path}: has {size / 2**20:.3g} MiB: expected at most {most / 2**20:g} MiB: is it the right file?")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {_one_line(error)}") from None


def _one_line(problem: Exception) -> str:
    line = " ".join(str(problem).split()) or type(problem).__name__
    return line if len(line) <= 300 else f"{line[:300]} ..."


def _whole(digits: str) -> int:
    if len(digits) > DIGITS:
        raise _Limit(f"a number has {len(digits)} digits, and at most {DIGITS} are read")
    return int(digits)


def _require_shallow(data: Any) -> None:
    level, depth = [data], 0
    while level := [item for node in level for item in _children(node)]:
        depth += 1
        if depth > DEPTH:
            raise _too_deep()


def _children(node: Any) -> Any:
    return node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which counts nesting depth, and values after aliases are expanded."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._inside = [(0, 0)]  # (values, height) of the nodes being composed
        self._anchored: dict[int, tuple[int, int]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise _Limit(f"line {key.start_mark.line + 1}: the key {shown(key.value)} is given twice")
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)

    def compose_node(self, parent: Any, index: Any) -> Any:
        if len(self._inside) > DEPTH + 1:
            raise _too_deep()
        is_alias = self.check_event(yaml.events.AliasEvent)
        self._inside.append((0, 0))
        node = super().compose_node(parent, index)
        inner_values, inner_height = self._inside.pop()
        if is_alias and id(node) not in self._anchored:
            raise _Limit("an alias refers to a value that it is part of")
        self._anchored.setdefault(id(node), (inner_values + 1, inner_height + 1))
        values, height = self._anchored[id(node)]
        outer_values, outer_height = self._inside[-1]
        self._inside[-1] = outer_values + values, max(outer_height, height)
        if self._inside[-1][0] > VALUES:
            raise _Limit(f"holds more than {VALUES} values once its aliases are followed: files of this program hold fewer")
        if len(self._inside) + height > DEPTH + 2:
            raise _too_deep()
        if isinstance(node, yaml.ScalarNode) and not node.tag.endswith(":str") and len(node.value) > DIGITS:
            raise _Limit(f"a number or date has {len(node.value)} characters, and at most {DIGITS} are read")
        return node


_PLAIN = {
    "str": "a word",
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "float | str": "a number or a word",
    "names": "a list of names",
    "numbers": "a list of numbers",
}


def check_type(what: str, value: Any, kind: str) -> None:
    """Raise ConfigError unless a value has the type that the dataclass field is annotated with."""
    fits = {
        "str": isinstance(value, str),
        "bool": isinstance(value, bool),
        "int": isinstance(value, int) and not isinstance(value, bool),
        "float": isinstance(value, (int, float)) and not isinstance(value, bool),
        "float | str": isinstance(value, (int, float, str)) and not isinstance(value, bool),
        "names": isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value),
        "numbers": isinstance(value, (list, tuple)) and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value),
    }
    if not fits[kind]:
        raise ConfigError(f"{what}: expected {_PLAIN[kind]}, found {shown(value)}")
