"""Strict typed configuration, and registries that map a name to a config class.

A config is frozen; for an unknown key the error offers the nearest name. A config holds the user's choices; properties of the
data (shapes, scales, dt) are in the data context.
"""

from __future__ import annotations

import enum
import inspect
import re
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, Self, TypeVar

import pydantic
from pydantic_core import core_schema

from epns_pyro.errors import ConfigError, nearest, shown
from epns_pyro.plain import parse_yaml

LARGEST = 2**63  # larger integers overflow in other libraries

C = TypeVar("C", bound="Config")


class Config(pydantic.BaseModel):
    """Base of all configs: frozen, no unknown keys, errors in one line."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _no_truth_for_numbers(cls, raw: Any) -> Any:
        for name, value in raw.items() if isinstance(raw, dict) else ():
            if isinstance(value, bool) and name in cls.model_fields and _is_number(cls.model_fields[name].annotation):
                raise ValueError(f"{name}: expected a number, found {value}")
        return raw

    @pydantic.model_validator(mode="after")
    def _countable(self) -> Self:
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, int) and not -LARGEST < value < LARGEST:
                raise ValueError(f"{name}: expected a number below 2^63, found one of {len(str(abs(value)))} digits")
        return self

    @classmethod
    def parse(cls, raw: dict[str, Any], *, where: str = "config") -> Self:
        """Validate plain data.

        Raises
        ------
        ConfigError
            One line per problem: the key, what was expected, what was found.
        """
        if not isinstance(raw, dict):
            raise ConfigError(f"{where}: expected a mapping, found {type(raw).__name__}")
        try:
            return cls.model_validate(raw)
        except pydantic.ValidationError as error:
            raise ConfigError("; ".join(_explain(cls, item, where) for item in error.errors())) from None

    def override(self, changes: dict[str, Any]) -> Self:
        """Return a copy with dotted keys changed, e.g. {"training.steps": 100}, fully validated again.

        A choice is changed by its name, {"backbone": "frames"} or {"backbone.name": "frames"}; it starts with its own defaults, which other
        changes can set. The same holds for a section that was off (None).
        """
        raw, settings = self.model_dump(mode="python"), []
        for dotted, value in sorted(changes.items(), key=lambda change: change[0].count(".")):
            raw = self._switched_on(raw, dotted)
            key = f"{dotted}.name" if isinstance(value, str) and "name" in _section(raw, dotted) else dotted
            if key.endswith(".name") and value != _section(raw, key.removesuffix(".name")).get("name"):
                node, leaf = _place(raw, key)
                node.clear()  # settings of the old choice are dropped
                node[leaf] = value
                raw = type(self).parse(raw).model_dump(mode="python")
            else:
                settings.append((key, value))
        for key, value in settings:
            node, leaf = _place(raw, key)
            node[leaf] = value
        return type(self).parse(raw)

    def _switched_on(self, raw: dict[str, Any], dotted: str) -> dict[str, Any]:
        """Replace a section that is None by its defaults, if a dotted key is inside it and it has defaults."""
        *sections, _ = dotted.split(".")
        for depth, section in enumerate(sections):
            node = _section(raw, ".".join(sections[:depth])) if depth else raw
            if section in node and node[section] is None:
                node[section] = {}
                try:
                    return type(self).parse(raw).model_dump(mode="python")
                except ConfigError:
                    node[section] = None
        return raw


def _section(raw: dict[str, Any], dotted: str) -> dict[str, Any]:
    """Return the mapping that a dotted key holds; empty if it holds none."""
    node: Any = raw
    for part in dotted.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else {}


def _place(raw: dict[str, Any], dotted: str) -> tuple[dict[str, Any], str]:
    """Return the mapping that contains a dotted key, and the last part of the key."""
    node: Any = raw
    *parents, leaf = dotted.split(".")
    for parent in parents:
        if not isinstance(node.get(parent), dict):
            why = f"{parent!r} is a value, not a section" if parent in node else f"there is no section {parent!r}: {nearest(parent, node)}"
            raise ConfigError(f"--set {dotted}: {why}")
        node = node[parent]
    if leaf not in node:
        raise ConfigError(f"--set {dotted}: unknown key {leaf!r}: {nearest(leaf, node)}")
    return node, leaf


def _explain(cls: type[Config], item: Any, where: str) -> str:
    location = ".".join(str(part) for part in item["loc"]) or where
    if item["type"] == "extra_forbidden":
        owner: Any = cls
        for part in item["loc"][:-1]:
            owner = _submodel(owner, part)
        known = owner.model_fields if owner is not None else ()
        return f"{where}: unknown key {location!r}: {nearest(str(item['loc'][-1]), known)}"
    if item["type"] == "value_error":  # raised by our own validators: already a complete sentence
        about = f"{where}: {location}" if item["loc"] else where
        return f"{about}: {item['ctx']['error']}"
    found = item.get("input")
    return f"{where}: {location}: {item['msg'][:1].lower()}{item['msg'][1:]}, found {shown(found)}"


def _submodel(owner: Any, part: Any) -> Any:
    if owner is None or part not in getattr(owner, "model_fields", {}):
        return owner if isinstance(owner, type) else None
    annotation = owner.model_fields[part].annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, Config) else None


def _is_number(annotation: Any) -> bool:
    """Say whether a field takes numbers, and neither true nor false."""
    kinds, parts = set(), [annotation]
    while parts:
        part = parts.pop()
        inner = typing.get_args(part)
        parts += inner[:1] if hasattr(part, "__metadata__") else inner
        kinds.add(part)
    return bool(kinds & {int, float}) and bool not in kinds


def parse_value(text: str) -> Any:
    """Read the value of a `--set key=value` as YAML, so that 1e-3, true, [1, 2] and words have their usual types."""
    if re.fullmatch(r"[-+]?[0-9]{1,100}", text):
        return int(text)  # YAML 1.1 reads 010 as 8
    if re.fullmatch(r"[-+]?[0-9]+(:[0-9]+)+", text):
        return text  # and 1:30 as 90
    try:
        return float(text) if _is_exponent(text) else parse_yaml(text, where="--set")
    except ConfigError:
        return text


def _is_exponent(text: str) -> bool:
    # YAML 1.1 reads 1e-3 as a word.
    try:
        float(text)
    except ValueError:
        return False
    return "e" in text.lower()


class Choice(enum.Enum):
    """Values of which one is chosen, itself or by name: `Choice(value)` is the value, and raises ConfigError where there is none."""

    @classmethod
    def _missing_(cls, value: object) -> NoReturn:
        raise ConfigError(f"expected one of {', '.join(repr(one.value) for one in cls)}, found {value!r}")


class Registry:
    """Maps names to entries of one kind; for an unknown name the error offers the nearest one.

    Entries that a config can choose are `Config` classes with a field ``name``, whose default is the registered name, and a
    method ``build``.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Any] = {}

    def register(self, name: str) -> Callable[[Any], Any]:
        def decorate(entry: Any) -> Any:
            if name in self._entries:
                raise ConfigError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return decorate

    def __getitem__(self, name: str) -> Any:
        if not isinstance(name, str) or name not in self._entries:
            raise ConfigError(f"unknown {self.kind} {shown(name)}: {nearest(name, self._entries)}; register your own with --import FILE.py")
        return self._entries[name]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._entries))

    def parse(self, raw: Any) -> Any:
        """Read a choice: a config, the bare name (all defaults), or a mapping with the key ``name``."""
        if isinstance(raw, Config):
            return raw
        if isinstance(raw, str):
            return self[raw]()
        if not isinstance(raw, dict) or "name" not in raw:
            raise ConfigError(
                f"expected a {self.kind}: a name or a mapping with the key 'name' (known: {', '.join(self.names)}), found {shown(raw)}"
            )
        return self[raw["name"]].parse(raw, where=f"{self.kind} {raw['name']}")


@dataclass(frozen=True)
class one_of:
    """Mark a config field as a choice from a registry: `backbone: Annotated[BackboneConfig, one_of(BACKBONES)]`."""

    registry: Registry

    def __get_pydantic_core_schema__(self, source: Any, handler: pydantic.GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(
            self.registry.parse,
            core_schema.is_instance_schema(source),
            serialization=core_schema.simple_ser_schema("any"),  # all fields of the chosen class, not only those of its base
        )


@dataclass(frozen=True)
class Setting:
    """One setting of a config.

    Parameters
    ----------
    key : str
        Dotted, as `--set KEY=VALUE` takes it.
    value : object
        Current value as plain data; the name if it is a choice; {} for an empty section.
    description : str
        "" if its class has none.
    choices : tuple of str
        Possible names of a registry, or possible words; () for other types.
    """

    key: str
    value: Any
    description: str = ""
    choices: tuple[str, ...] = ()


def list_settings(config: Config, prefix: str = "") -> Iterator[Setting]:
    """List all settings of a config; those of its sections have dotted keys."""
    documented = _documented(type(config))
    for name, field in type(config).model_fields.items():
        if name == "name" and prefix:
            continue  # it is shown as the value of the choice, one level above
        key, value = f"{prefix}{name}", getattr(config, name)
        about = field.description or documented.get(name, "")
        registry = next((mark.registry for mark in field.metadata if isinstance(mark, one_of)), None)
        if registry is not None:
            yield Setting(key, value.name, about, registry.names)
        elif isinstance(value, Config):
            summary = inspect.getdoc(type(value)) or ""
            yield Setting(key, {}, about or summary.partition("\n")[0])
        else:
            words = typing.get_args(field.annotation) if typing.get_origin(field.annotation) is Literal else ()
            plain = config.model_dump(mode="json", include={name})[name]
            yield Setting(key, plain, about, tuple(map(str, words)))
        if isinstance(value, Config):
            yield from list_settings(value, f"{key}.")


def _documented(cls: type[Config]) -> dict[str, str]:
    """Read the descriptions of parameters from the section "Parameters" of a class and its bases."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        lines = inspect.cleandoc(base.__doc__ or "").splitlines() if issubclass(base, Config) else []
        names: list[str] = []
        for line in lines[lines.index("Parameters") + 2 :] if "Parameters" in lines else []:
            if line and not line.startswith(" "):
                names = [name.strip() for name in line.partition(" : ")[0].split(",")] if " : " in line else []
                found |= dict.fromkeys(names, "")
            elif line.strip():
                found |= {name: f"{found[name]} {line.strip()}".strip() for name in names}
    return found
