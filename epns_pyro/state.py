"""States: named channels with a representation, a unit and a scale.

A state is an array or tensor of shape (*batch, *site, channel). Nobody addresses a channel by number: `StateSpec.get`,
`StateSpec.pack` and `StateSpec.dynamic` do it by name. The spec is pure data; it works alike on NumPy arrays and torch tensors.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from epns_pyro.errors import ConfigError, ShapeError, nearest, shown
from epns_pyro.plain import parse_json

if TYPE_CHECKING:
    from epns_pyro.symmetry import GroupElement

Array = Any  # numpy.ndarray or torch.Tensor

IRREPS = {"0e": "scalar", "0o": "pseudoscalar", "1o": "vector", "1e": "pseudovector"}
KINDS = ("real", "label", "category")


@dataclass(frozen=True)
class Field:
    """One named quantity of a state.

    Parameters
    ----------
    name : str
        How scripts, stores and reports call it.
    irreps : {"0e", "0o", "1o", "1e"}
        Representation of O(d): scalar, pseudoscalar, vector, pseudovector, in e3nn's notation. A vector has as many
        channels as the spec has spatial dimensions.
    dynamic : bool
        Whether it changes in time and is predicted; a static field (a mass) is given with the initial state and copied.
    translates : bool
        Whether a translation of space adds to it (positions do, velocities do not).
    unit : str
        Unit, for labels.
    scale : float
        Typical size (standard deviation, in `unit`), computed from training data; networks see value / scale.
    kind : {"real", "label", "category"}
        A label is an arbitrary name of an entity (a cell id), which relabelling permutes; a category is a class (a type).
    size : int
        Labels and categories take the values 0 .. size - 1; 0 for real fields.
    rate_of : str
        Name of the field whose rate of change this is: a velocity is the rate of a position. "" for none.
    of : str
        Name of the label field whose entities this belongs to: a cell's type travels with its label. "" for a property of the site.
    differences : bool
        Whether this rate is not recorded but is the backward difference of what it is the rate of; see `epns_pyro.derived`.
    lag_of : str
        Name of the field whose value one frame earlier this is. "" for none.
    """

    name: str
    irreps: str = "0e"
    dynamic: bool = True
    translates: bool = False
    unit: str = ""
    scale: float = 1.0
    kind: str = "real"
    size: int = 0
    rate_of: str = ""
    of: str = ""
    differences: bool = False
    lag_of: str = ""

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ConfigError(f"field name {self.name!r} is not a plain word (letters, digits, underscore)")
        if self.irreps not in IRREPS:
            raise ConfigError(f"field {self.name!r}: irreps {self.irreps!r} is not one of {', '.join(IRREPS)}")
        if self.kind not in KINDS:
            raise ConfigError(f"field {self.name!r}: kind {self.kind!r} is not one of {', '.join(KINDS)}")
        if self.translates and self.irreps != "1o":
            raise ConfigError(f"field {self.name!r}: only a vector (irreps '1o') can translate, found {self.irreps!r}")
        if (self.kind == "real") != (self.size == 0):
            raise ConfigError(
                f"field {self.name!r}: size is for labels and categories, and they need one; found kind {self.kind!r}, size {self.size}"
            )
        if self.of and self.dynamic:
            raise ConfigError(
                f"field {self.name!r}: a property of the entities of {self.of!r} travels with them, so it must have dynamic = false"
            )
        if self.differences and not self.rate_of:
            raise ConfigError(f"field {self.name!r}: differences are of the field that it is the rate of: name that field with rate_of")
        if not (np.isfinite(self.scale) and self.scale > 0):
            raise ConfigError(f"field {self.name!r}: scale must be positive and finite, found {self.scale}")

    @property
    def is_vector(self) -> bool:
        return self.irreps[0] == "1"

    @property
    def parity(self) -> int:
        """Sign under point reflection beyond that of the rotation matrix: -1 for pseudoscalars and pseudovectors."""
        return -1 if self.irreps in ("0o", "1e") else 1


@dataclass(frozen=True)
class StateSpec:
    """What a state is made of: fields, the names of the site axes, and the dimension of space.

    Parameters
    ----------
    fields : tuple of Field
        In the order of the channels.
    sites : tuple of str
        Names of the site axes, e.g. ("body",) or ("y", "x").
    space : int
        Dimension of space: the number of channels of a vector field.
    periodic : bool
        Whether the site axes of a lattice wrap around.
    """

    fields: tuple[Field, ...]
    sites: tuple[str, ...] = ("body",)
    space: int = 3
    periodic: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", tuple(self.fields))
        object.__setattr__(self, "sites", tuple(self.sites))
        names = [f.name for f in self.fields]
        if not names:
            raise ConfigError("a state needs at least one field")
        if len(set(names)) != len(names):
            raise ConfigError(f"field names repeat: {', '.join(names)}")
        if not any(f.dynamic for f in self.fields):
            raise ConfigError("a state needs at least one dynamic field, all are static")
        if self.space not in (1, 2, 3):
            raise ConfigError(f"space must be 1, 2 or 3 dimensions, found {self.space}")
        for f in self.fields:
            for role, other in (("rate_of", f.rate_of), ("of", f.of), ("lag_of", f.lag_of)):
                if other and other not in names:
                    raise ConfigError(f"field {f.name!r}: {role} names no field: {nearest(other, names)}")
            if f.rate_of and self[f.rate_of].irreps != f.irreps:
                raise ConfigError(f"field {f.name!r} is declared the rate of {f.rate_of!r}, but their irreps differ")
            if f.of and self[f.of].kind != "label":
                raise ConfigError(f"field {f.name!r} is declared a property of {f.of!r}, which is not a label field")

    # -- structure ---------------------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Field:
        for field in self.fields:
            if field.name == name:
                return field
        raise ConfigError(f"the state has no field {name!r}: {nearest(name, self.names)}")

    def __contains__(self, name: str) -> bool:
        return name in self.names

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f.name for f in self.fields)

    @property
    def dynamic_fields(self) -> tuple[Field, ...]:
        return tuple(f for f in self.fields if f.dynamic)

    @property
    def static_fields(self) -> tuple[Field, ...]:
        return tuple(f for f in self.fields if not f.dynamic)

    def width(self, field: Field | str) -> int:
        """Number of channels of a field."""
        field = self[field] if isinstance(field, str) else field
        return self.space if field.is_vector else 1

    @property
    def channels(self) -> int:
        """Number of channels of a full state."""
        return sum(self.width(f) for f in self.fields)

    @property
    def dynamic_channels(self) -> int:
        """Number of channels of the dynamic part, the event of the sites x_t."""
        return sum(self.width(f) for f in self.dynamic_fields)

    def slice(self, name: str, *, among_dynamic: bool = False) -> slice:
        """Channels of a field in the full state, or in its dynamic part."""
        start = 0
        for field in self.dynamic_fields if among_dynamic else self.fields:
            if field.name == name:
                return slice(start, start + self.width(field))
            start += self.width(field)
        self[name]  # raises with the nearest name where there is no such field
        raise ConfigError(f"field {name!r} is static: it is not among the dynamic channels")

    # -- reading and building states -----------------------------------------------------------------------------------

    def get(self, x: Array, name: str) -> Array:
        """Return a field of a full state: (*batch, *site, space) for a vector, (*batch, *site) for a scalar."""
        part = x[..., self.slice(name)]
        return part if self[name].is_vector else part[..., 0]

    def get_dynamic(self, y: Array, name: str) -> Array:
        """Return a field of the dynamic part of a state, shaped as `get` does."""
        part = y[..., self.slice(name, among_dynamic=True)]
        return part if self[name].is_vector else part[..., 0]

    def pack(self, **values: Array) -> Array:
        """Build full states (*batch, *site, channel) from one array per field; batch dimensions broadcast.

        Raises
        ------
        ShapeError
            If a field is missing, unknown, or does not have the shape that its representation asks for.
        """
        return self._pack(self.fields, values)

    def pack_dynamic(self, **values: Array) -> Array:
        """Build the dynamic part of a state, as `pack` does."""
        return self._pack(self.dynamic_fields, values)

    def _pack(self, fields: tuple[Field, ...], values: dict[str, Array]) -> Array:
        wanted = [f.name for f in fields]
        for name in values:
            if name not in wanted:
                raise ShapeError(f"unknown field {name!r}: {nearest(name, wanted)}")
        if missing := [n for n in wanted if n not in values]:
            raise ShapeError(f"missing field{'s' * (len(missing) > 1)} {', '.join(missing)} (needed: {', '.join(wanted)})")
        is_torch = any(isinstance(v, torch.Tensor) for v in values.values())
        parts: list[Any] = []  # all of torch or all of NumPy
        for field in fields:
            value: Any = torch.as_tensor(values[field.name]) if is_torch else np.asarray(values[field.name])
            if not (value.dtype.is_floating_point if is_torch else np.issubdtype(value.dtype, np.floating)) and field.kind == "real":
                value = value.to(torch.get_default_dtype()) if is_torch else value.astype(np.float64)
            if field.is_vector:
                if value.ndim < 1 + len(self.sites) or value.shape[-1] != self.space:
                    raise ShapeError(
                        f"field {field.name!r} is a vector: expected (*batch, {', '.join(self.sites)}, {self.space}), "
                        f"found {tuple(value.shape)}"
                    )
            else:
                if value.ndim < len(self.sites):
                    raise ShapeError(
                        f"field {field.name!r} is a scalar: expected (*batch, {', '.join(self.sites)}), found {tuple(value.shape)}"
                    )
                value = value[..., None]
            parts.append(value)
        broadcast = torch.broadcast_shapes if is_torch else np.broadcast_shapes
        try:
            shape = tuple(broadcast(*[tuple(p.shape[:-1]) for p in parts]))
        except (RuntimeError, ValueError):
            found = ", ".join(f"{f.name} {tuple(p.shape[:-1])}" for f, p in zip(fields, parts, strict=True))
            raise ShapeError(f"the fields do not have the same batch and site dimensions: {found}") from None
        if is_torch:
            dtype = torch.result_type(parts[0], parts[-1])
            for part in parts:
                dtype = torch.promote_types(dtype, part.dtype)
            return torch.cat([p.expand(*shape, p.shape[-1]).to(dtype) for p in parts], dim=-1)
        return np.concatenate([np.broadcast_to(p, (*shape, p.shape[-1])) for p in parts], axis=-1)

    def dynamic(self, x: Array) -> Array:
        """Return the dynamic channels of a full state: (*batch, *site, dynamic channel)."""
        if not self.static_fields:
            return x
        cat = torch.cat if isinstance(x, torch.Tensor) else np.concatenate
        return cat([x[..., self.slice(f.name)] for f in self.dynamic_fields], -1)

    def advance(self, x: Array, y: Array) -> Array:
        """Return the state x with its dynamic channels replaced by y; batch dimensions broadcast.

        A field that belongs to entities (`of`) is looked up for the new labels: a pixel that a cell has taken gets the type of that cell.
        """
        if not self.static_fields:
            return y
        is_torch = isinstance(x, torch.Tensor)
        shape = tuple((torch.broadcast_shapes if is_torch else np.broadcast_shapes)(x.shape[:-1], y.shape[:-1]))

        def part(field: Field) -> Array:
            if field.dynamic:
                value = y[..., self.slice(field.name, among_dynamic=True)]
            elif field.of:
                value = self._travel(field, x, y)[..., None]
            else:
                value = x[..., self.slice(field.name)]
            return value.expand(*shape, -1) if is_torch else np.broadcast_to(value, (*shape, value.shape[-1]))

        parts = [part(field) for field in self.fields]
        return torch.cat(parts, -1) if is_torch else np.concatenate(parts, -1)

    def entity_property(self, x: Array, name: str) -> Array:
        """Return a property of the entities of a label field, read off the sites they occupy: (*batch, label); 0 for the absent."""
        field = self[name]
        owner, sites = self[field.of], len(self.sites)
        labels, values = self.get(x, owner.name), self.get(x, name)
        batch = labels.shape[: labels.ndim - sites]
        if isinstance(x, torch.Tensor):
            flat = labels.reshape(*batch, -1).long()
            return values.new_zeros(*batch, owner.size).scatter(-1, flat, values.reshape(*batch, -1))
        table = np.zeros((*batch, owner.size), dtype=x.dtype)
        np.put_along_axis(table, labels.reshape(*batch, -1).astype(np.int64), values.reshape(*batch, -1), axis=-1)
        return table

    def _travel(self, field: Field, x: Array, y: Array) -> Array:
        table, labels = self.entity_property(x, field.name), self.get_dynamic(y, field.of)
        batch = labels.shape[: labels.ndim - len(self.sites)]
        if isinstance(x, torch.Tensor):
            table = table.expand(*torch.broadcast_shapes(table.shape[:-1], batch), -1)
            flat = labels.reshape(*batch, -1).long().expand(*table.shape[:-1], -1)
            return table.gather(-1, flat).reshape(*table.shape[:-1], *labels.shape[len(batch) :])
        table = np.broadcast_to(table, (*np.broadcast_shapes(table.shape[:-1], batch), table.shape[-1]))
        flat = np.broadcast_to(labels.reshape(*batch, -1).astype(np.int64), (*table.shape[:-1], int(np.prod(labels.shape[len(batch) :]))))
        return np.take_along_axis(table, flat, axis=-1).reshape(*table.shape[:-1], *labels.shape[len(batch) :])

    def act(self, g: GroupElement, x: Array) -> Array:
        """Return g x for full states x (*batch, *site, channel)."""
        return g.act(self, self.fields, x)

    def act_dynamic(self, g: GroupElement, y: Array) -> Array:
        """Return g y for the dynamic channels y (*batch, *site, dynamic channel) of a state."""
        return g.act(self, self.dynamic_fields, y)

    def check_shape(self, x: Array, *, what: str = "the state") -> None:
        """Raise ShapeError unless x is a (*batch, *site, channel) array of this spec with the right dtype."""
        if x.ndim < 1 + len(self.sites) or x.shape[-1] != self.channels:
            named = ", ".join(f"{f.name} {self.width(f)}" for f in self.fields)
            raise ShapeError(
                f"{what}: expected (*batch, {', '.join(self.sites)}, {self.channels}) with channels {named}; found {tuple(x.shape)}. "
                "spec.pack(...) builds it from named fields"
            )
        if not _is_floating(x) and all(f.kind == "real" for f in self.fields):
            raise ShapeError(f"{what}: expected floating point numbers, found dtype {x.dtype}")

    def check(self, x: Array, *, what: str = "the state") -> None:
        """Raise ShapeError unless x is a finite (*batch, *site, channel) array of this spec."""
        self.check_shape(x, what=what)
        if _is_floating(x) and not bool((torch if isinstance(x, torch.Tensor) else np).isfinite(x).all()):
            raise ShapeError(f"{what}: holds NaN or infinite values")

    # -- travel --------------------------------------------------------------------------------------------------------

    def with_scales(self, scales: dict[str, float]) -> StateSpec:
        """Return the spec with the scales of the named fields replaced."""
        for name in scales:
            self[name]  # raises with the nearest name where there is no such field
        return replace(self, fields=tuple(replace(f, scale=float(scales.get(f.name, f.scale))) for f in self.fields))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> StateSpec:
        return cls.from_dict(parse_json(text, where="the state specification", error=ConfigError))

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> StateSpec:
        """Build a spec from plain data (JSON or YAML), with errors that name the entry."""
        if not isinstance(raw, dict) or not isinstance(raw.get("fields"), (list, tuple)):
            raise ConfigError("a state specification is a mapping with the keys fields, sites, space, periodic")
        for key in raw:
            if key not in ("fields", "sites", "space", "periodic"):
                raise ConfigError(
                    f"state specification: unknown key {shown(key)}: {nearest(key, ('fields', 'sites', 'space', 'periodic'))}"
                )
        known = tuple(Field.__dataclass_fields__)
        fields = []
        for number, entry in enumerate(raw["fields"]):
            if not isinstance(entry, dict) or "name" not in entry:
                raise ConfigError(f"state specification: field {number} is not a mapping with a name")
            for key in entry:
                if key not in known:
                    raise ConfigError(f"state specification: field {shown(entry['name'])}: unknown key {shown(key)}: {nearest(key, known)}")
                _check_type(f"field {shown(entry['name'])}: {key}", entry[key], str(Field.__dataclass_fields__[key].type))
            fields.append(Field(**entry))
        rest = {k: raw[k] for k in ("sites", "space", "periodic") if k in raw}
        for key, value in rest.items():
            _check_type(key, value, {"sites": "names", "space": "int", "periodic": "bool"}[key])
        return cls(fields=tuple(fields), **rest)


_PLAIN = {"str": "a word", "bool": "true or false", "int": "a whole number", "float": "a number", "names": "a list of names"}


def _check_type(what: str, value: Any, kind: str) -> None:
    """Raise ConfigError unless a value of plain data is of the kind that a field of a dataclass is annotated with."""
    fits = {
        "str": isinstance(value, str),
        "bool": isinstance(value, bool),
        "int": isinstance(value, int) and not isinstance(value, bool),
        "float": isinstance(value, (int, float)) and not isinstance(value, bool),
        "names": isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value),
    }
    if not fits[kind]:
        raise ConfigError(f"state specification: {what}: expected {_PLAIN[kind]}, found {shown(value)}")


def _is_floating(x: Array) -> bool:
    return x.dtype.is_floating_point if isinstance(x, torch.Tensor) else np.issubdtype(x.dtype, np.floating)
