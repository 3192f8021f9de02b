"""States: named channels with a representation, a unit and a scale.

A state is an array or tensor of shape (*batch, *site, channel). Channels are never addressed by number: `StateSpec.get`,
`StateSpec.pack` and `StateSpec.dynamic` use names. The spec is pure data; it works the same on NumPy arrays and torch tensors.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, Protocol

import numpy as np
import torch

from epns_pyro.errors import ConfigError, ShapeError, nearest, shown
from epns_pyro.fields import Field, padded
from epns_pyro.geometry import Space
from epns_pyro.once import once
from epns_pyro.plain import check_type, parse_json

Array = Any  # numpy.ndarray or torch.Tensor
Channels = slice  # in the spec `slice` is a method


class GroupElement(Protocol):
    """One element g of a symmetry group: how it acts on states and latents. `epns_pyro.symmetry` has the groups."""

    @abstractmethod
    def act(self, spec: StateSpec, fields: tuple[Field, ...], x: Array) -> Array:
        """Return g x, for x of shape (*batch, *site, channels of `fields`)."""

    @abstractmethod
    def act_latent(self, z: Array, fields: tuple[Field, ...] = ()) -> Array:
        """Return g z, for latents z of shape (*batch, entity, latent).

        Without `fields` an element only permutes the entities; with them the latents of an entity are the channels of these fields, and
        vectors among them are rotated.
        """


@dataclass(frozen=True)
class StateSpec:
    """The content of a state: fields, the names of the site axes, and the dimension of space.

    Parameters
    ----------
    fields : tuple of Field
        In the order of the channels.
    sites : tuple of str
        Names of the site axes, e.g. ("body",) or ("y", "x").
    space : int
        Dimension of space: the number of channels of a vector field.
    periodic : bool
        Whether the site axes of a lattice are periodic.
    box : tuple of float
        Sides of the periodic box of the bodies; empty: none.
    rotations, axis
        Rotations of space that are symmetries: see `epns_pyro.geometry.Space`.
    """

    fields: tuple[Field, ...]
    sites: tuple[str, ...] = ("body",)
    space: int = 3
    periodic: bool = False
    box: tuple[float, ...] = ()
    rotations: str = "full"
    axis: tuple[float, ...] = ()

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
        for name in ("box", "axis"):
            object.__setattr__(self, name, getattr(self.geometry, name))
        for kind, one in (("duration", "a step has one duration"), ("box", "a trajectory has one box")):
            if len(found := [f.name for f in self.fields if f.kind == kind]) > 1:
                raise ConfigError(f"{one}, found the fields {', '.join(found)}")
        for f in self.fields:
            for role, other in (("rate_of", f.rate_of), ("of", f.of), ("lag_of", f.lag_of)):
                if other and other not in names:
                    raise ConfigError(f"field {shown(f.name)}: {role} names no field: {nearest(other, names)}")
            if f.rate_of and self[f.rate_of].irreps != f.irreps:
                raise ConfigError(f"field {shown(f.name)} is declared the rate of {shown(f.rate_of)}, but their irreps differ")
            if (f.hidden or f.noise) and any(other.differences or other.lag_of for other in self.fields):
                raise ConfigError(
                    f"field {shown(f.name)} is hidden or has noise: then no field is a difference or of an earlier frame, for these are no "
                    "states: declare the velocity hidden, and leave out history"
                )
            if f.of and self[f.of].kind != "label":
                raise ConfigError(f"field {shown(f.name)} is declared a property of {shown(f.of)}, which is not a label field")

    # -- structure ---------------------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Field:
        if (field := self._by_name.get(name)) is None:
            raise ConfigError(f"the state has no field {name!r}: {nearest(name, self.names)}")
        return field

    def __contains__(self, name: str) -> bool:
        return name in self.names

    @once
    def geometry(self) -> Space:
        """The space of the vectors."""
        return Space(self.space, self.box, self.rotations, self.axis, own_box=self.box_field is not None)

    def space_of(self, x: Array) -> Space:
        """Return the space of states x (*batch, body, channel), with their boxes where each has its own."""
        if self.box_field is None:
            return self.geometry
        return self.geometry.of(self.get(x, self.box_field.name)[..., :1, :])

    @once
    def names(self) -> tuple[str, ...]:
        return tuple(f.name for f in self.fields)

    @once
    def dynamic_fields(self) -> tuple[Field, ...]:
        return tuple(f for f in self.fields if f.dynamic)

    @once
    def static_fields(self) -> tuple[Field, ...]:
        return tuple(f for f in self.fields if not f.dynamic)

    @once
    def position(self) -> Field | None:
        """The position of a body: the field that translates or, about a fixed point, the first dynamic vector that is no rate."""
        placed = [f for f in self.fields if f.translates] or [f for f in self.dynamic_fields if f.irreps == "1o" and not f.rate_of]
        return placed[0] if placed else None

    @once
    def duration(self) -> Field | None:
        """The field that says how long the step to the next frame lasts; None where all frames are even."""
        return next((f for f in self.fields if f.kind == "duration"), None)

    @once
    def box_field(self) -> Field | None:
        """The field that holds the sides of the box of a trajectory; None where all are in one box or in none."""
        return next((f for f in self.fields if f.kind == "box"), None)

    def width(self, field: Field | str) -> int:
        """Number of channels of a field."""
        field = self[field] if isinstance(field, str) else field
        return field.size if field.is_pair else self.space if field.is_vector else 1

    @property
    def channels(self) -> int:
        """Number of channels of a full state."""
        return sum(self.width(f) for f in self.fields)

    @property
    def dynamic_channels(self) -> int:
        """Number of channels of the dynamic part of a state."""
        return sum(self.width(f) for f in self.dynamic_fields)

    def slice(self, name: str, *, among_dynamic: bool = False) -> slice:
        """Channels of a field in the full state, or in its dynamic part."""
        if (place := self._places[among_dynamic].get(name)) is None:
            self[name]  # raises with the nearest name where there is no such field
            raise ConfigError(f"field {name!r} is static: it is not among the dynamic channels")
        return place

    @once
    def _by_name(self) -> dict[str, Field]:
        return {field.name: field for field in self.fields}

    @once
    def _places(self) -> tuple[dict[str, Channels], dict[str, Channels]]:
        """Channels of every field in the full state, and of every dynamic one in the dynamic part: looked up many times in a step."""

        def places(fields: tuple[Field, ...]) -> dict[str, Channels]:
            ends = list(accumulate(map(self.width, fields), initial=0))
            return {f.name: Channels(*channels) for f, channels in zip(fields, pairwise(ends), strict=True)}

        return places(self.fields), places(self.dynamic_fields)

    # -- reading and building states -----------------------------------------------------------------------------------

    def get(self, x: Array, name: str) -> Array:
        """Return a field of a full state: vectors (*batch, *site, space), scalars (*batch, *site), pairs (*batch, body, size)."""
        part = x[..., self.slice(name)]
        return part if self[name].is_vector or self[name].is_pair else part[..., 0]

    def get_dynamic(self, y: Array, name: str) -> Array:
        """Return a field of the dynamic part of a state, with the shape that `get` returns."""
        part = y[..., self.slice(name, among_dynamic=True)]
        return part if self[name].is_vector else part[..., 0]

    def pack(self, **values: Array) -> Array:
        """Build full states (*batch, *site, channel) from one array per field; batch dimensions broadcast.

        A duration may be left out: it is the nominal one.

        Raises
        ------
        ShapeError
            If a field is missing, unknown, or has a wrong shape.
        """
        if values and self.duration and self.duration.name not in values:
            values = values | {self.duration.name: np.full((1,) * len(self.sites), self.duration.scale)}
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
            if not _is_floating(value) and field.kind in ("real", "pair", "duration", "box"):
                value = value.to(torch.get_default_dtype()) if is_torch else value.astype(np.float64)
            if field.is_pair:
                value = padded(field, value)
            elif field.is_vector:
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
            return torch.cat([p.expand(*shape, p.shape[-1]) for p in parts], dim=-1)  # promotes dtypes
        return np.concatenate([np.broadcast_to(p, (*shape, p.shape[-1])) for p in parts], axis=-1)

    def dynamic(self, x: Array) -> Array:
        """Return the dynamic channels of a full state: (*batch, *site, dynamic channel)."""
        if not self.static_fields:
            return x
        cat = torch.cat if isinstance(x, torch.Tensor) else np.concatenate
        return cat([x[..., self.slice(f.name)] for f in self.dynamic_fields], -1)

    def advance(self, x: Array, y: Array) -> Array:
        """Return the state x with its dynamic channels replaced by y; batch dimensions broadcast.

        A property of entities (`of`) is looked up for the new labels: a pixel that a cell has taken gets the type of that cell.
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

    def wrap(self, x: Array) -> Array:
        """Return states (*batch, body, channel) with every position inside the periodic box."""
        return self.advance(x, self.wrap_dynamic(x, self.dynamic(x))) if self.geometry.periodic else x

    def wrap_dynamic(self, x: Array, y: Array) -> Array:
        """Return dynamic channels y (*batch, body, dynamic channel) with every position inside the periodic box of states x."""
        if not self.geometry.periodic or self.position is None:
            return y
        place = self.slice(self.position.name, among_dynamic=True)
        parts = [y[..., : place.start], self.space_of(x).wrap(y[..., place]), y[..., place.stop :]]
        return torch.cat(parts, -1) if isinstance(y, torch.Tensor) else np.concatenate(parts, -1)

    def entity_property(self, x: Array, name: str) -> Array:
        """Return a property of the entities of a label field, read from their sites: (*batch, label); 0 for absent ones."""
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
        for field in self.fields if all(x.shape) else ():
            if field.kind in ("label", "category") and field.size:
                values = self.get(x, field.name)
                if found := [int(extreme) for extreme in (values.min(), values.max()) if not 0 <= extreme < field.size]:
                    raise ShapeError(f"{what}: {field.name!r} holds {found[0]}, expected numbers from 0 to {field.size - 1}")

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
        """Build a spec from plain data (JSON or YAML); errors name the entry."""
        if not isinstance(raw, dict) or not isinstance(raw.get("fields"), (list, tuple)):
            raise ConfigError(f"a state specification is a mapping with the keys fields, {', '.join(_SETTINGS)}")
        for key in raw:
            if key not in ("fields", *_SETTINGS):
                raise ConfigError(f"state specification: unknown key {shown(key)}: {nearest(key, ('fields', *_SETTINGS))}")
        known = tuple(Field.__dataclass_fields__)
        fields = []
        for number, entry in enumerate(raw["fields"]):
            if not isinstance(entry, dict) or "name" not in entry:
                raise ConfigError(f"state specification: field {number} is not a mapping with a name")
            for key in entry:
                if key not in known:
                    raise ConfigError(f"state specification: field {shown(entry['name'])}: unknown key {shown(key)}: {nearest(key, known)}")
                check_type(
                    f"state specification: field {shown(entry['name'])}: {key}", entry[key], str(Field.__dataclass_fields__[key].type)
                )
            fields.append(Field(**entry))
        rest = {key: raw[key] for key in _SETTINGS if key in raw}
        for key, value in rest.items():
            check_type(f"state specification: {key}", value, _SETTINGS[key])
        return cls(fields=tuple(fields), **rest)


_SETTINGS = {"sites": "names", "space": "int", "periodic": "bool", "box": "numbers", "rotations": "str", "axis": "numbers"}


def _is_floating(x: Array) -> bool:
    return x.dtype.is_floating_point if isinstance(x, torch.Tensor) else np.issubdtype(x.dtype, np.floating)
