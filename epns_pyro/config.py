"""Strict typed configuration and the registries that map a name to a config class.

A config is frozen; an unknown key is an error that offers the nearest name. What the user chose lives here; what the data
dictates (shapes, scales, dt) travels separately.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Self, TypeVar

import pydantic
import yaml

from epns_pyro.errors import ConfigError, nearest

C = TypeVar("C", bound="Config")


class Config(pydantic.BaseModel):
    """Base of all configs: frozen, no unknown keys, errors in one clear line."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

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

        Another choice, by "shape.name" or by "shape" itself, starts from its own defaults; its settings may come in any order.
        """
        raw = self.model_dump(mode="python")
        for dotted, value in sorted(changes.items(), key=lambda item: not _is_choice(item, raw)):
            *parents, leaf = dotted.split(".")
            node: Any = raw
            for parent in parents:
                if not isinstance(node, dict) or not isinstance(node.get(parent), dict):
                    known = node if isinstance(node, dict) else ()
                    raise ConfigError(f"--set {dotted}: there is no section {parent!r}: {nearest(parent, known)}")
                node = node[parent]
            if leaf not in node and _ANEW not in node:
                raise ConfigError(f"--set {dotted}: unknown key {leaf!r}: {nearest(leaf, node)}")
            if leaf == "name" and value != node["name"]:
                node.clear()
                node[_ANEW] = True
            if _is_choice((dotted, value), raw) and leaf != "name":
                node[leaf] = {"name": value, _ANEW: True}
            else:
                node[leaf] = value
        return type(self).parse(_without_marks(raw))


_ANEW = "<anew>"  # marks a choice made anew, whose keys only its own config knows


def _is_choice(change: tuple[str, Any], raw: dict[str, Any]) -> bool:
    """Whether a change names another entry of a registry: "shape.name", or "shape" where a mapping with a name stands."""
    dotted, value = change
    node: Any = raw
    for key in dotted.split("."):
        node = node.get(key) if isinstance(node, dict) else None
    return dotted.endswith(".name") or (isinstance(value, str) and isinstance(node, dict) and "name" in node)


def _without_marks(raw: Any) -> Any:
    return {key: _without_marks(value) for key, value in raw.items() if key != _ANEW} if isinstance(raw, dict) else raw


def _explain(cls: type[Config], item: Any, where: str) -> str:
    location = ".".join(str(part) for part in item["loc"]) or where
    if item["type"] == "extra_forbidden":
        owner: Any = cls
        for part in item["loc"][:-1]:
            owner = _submodel(owner, part)
        known = owner.model_fields if owner is not None else ()
        return f"{where}: unknown key {location!r}: {nearest(str(item['loc'][-1]), known)}"
    if item["type"] == "value_error":  # raised by one of our own validators: already a whole sentence
        about = f"{where}: {location}" if item["loc"] else where
        return f"{about}: {item['ctx']['error']}"
    found = item.get("input")
    return f"{where}: {location}: {item['msg'][:1].lower()}{item['msg'][1:]}, found {found!r}"


def _submodel(owner: Any, part: Any) -> Any:
    if owner is None or part not in getattr(owner, "model_fields", {}):
        return owner if isinstance(owner, type) else None
    annotation = owner.model_fields[part].annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, Config) else None


def parse_value(text: str) -> Any:
    """Read the value of a `--set key=value`, as YAML (so 1e-3, true, [1, 2] and words mean what they look like)."""
    try:
        return float(text) if _is_exponent(text) else yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _is_exponent(text: str) -> bool:
    # YAML 1.1 reads 1e-3 as a word.
    try:
        float(text)
    except ValueError:
        return False
    return "e" in text.lower()


class Registry:
    """Names for config classes of one kind, with an error that offers the nearest name.

    A registered class is a `Config` with a field ``name`` whose default is the name it is registered under, and a method ``build``.
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
        if name not in self._entries:
            raise ConfigError(f"unknown {self.kind} {name!r}: {nearest(name, self._entries)}")
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
                f"expected a {self.kind}: a name or a mapping with the key 'name' (known: {', '.join(self.names)}), found {raw!r}"
            )
        return self[raw["name"]].parse(raw, where=f"{self.kind} {raw['name']}")


def choice(registry: Registry) -> Any:
    """Type of a config field whose value is one of the configs of a registry."""
    return Annotated[pydantic.SerializeAsAny[Config], pydantic.BeforeValidator(registry.parse)]
