"""A field: one named quantity of a state, with its representation, unit, scale and relations to other fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from epns_pyro.errors import ConfigError, ShapeError, shown

IRREPS = {"0e": "scalar", "0o": "pseudoscalar", "1o": "vector", "1e": "pseudovector"}
LEARN = "learn"  # the noise of a field is a parameter of the model
KINDS = ("real", "label", "category", "pair", "duration", "box")


@dataclass(frozen=True)
class Field:
    """One named quantity of a state.

    Parameters
    ----------
    name : str
        Its name in scripts, stores and reports.
    irreps : {"0e", "0o", "1o", "1e"}
        Representation of O(d): scalar, pseudoscalar, vector, pseudovector, in e3nn's notation. A vector has as many
        channels as the spec has spatial dimensions.
    dynamic : bool
        Whether it changes in time and is predicted; a static field (a mass) is given with the initial state and copied.
    translates : bool
        Whether a translation of space is added to it (to positions, not to velocities).
    unit : str
        Unit, for labels.
    scale : float
        Typical size (standard deviation, in `unit`), computed from training data; networks see value / scale.
    kind : {"real", "label", "category", "pair", "duration", "box"}
        A label is an arbitrary name of an entity (a cell id), which relabelling permutes; a category is a class (a type); a pair is a
        static attribute of pairs of bodies (a bond), of which body i holds its row e_i*: as many channels as there are bodies. A duration
        is how long the step from this frame to the next lasts; it is given, the same for all sites, and its scale is the nominal one. A box
        is the sides of the periodic box that a trajectory is in, in the unit of positions; it is the same for all bodies.
    size : int
        Labels and categories take the values 0 .. size - 1; 0 for real fields. Of pairs the largest number of bodies; a store that is
        opened fills it in.
    rate_of : str
        Name of the field whose rate of change this is: a velocity is the rate of a position. "" for none.
    of : str
        Name of the label field whose entities have this property, e.g. the type of a cell. "" for a property of the site.
    differences : bool
        Whether this rate is not recorded, but computed as the backward difference of its field; see `epns_pyro.derived`.
    lag_of : str
        Name of the field whose value one frame earlier this is. "" for none.
    hidden : bool
        Whether this rate is part of the state, but not recorded: a model infers it (see `epns_pyro.models.hidden`).
    noise : float or "learn"
        Standard deviation of the error with which this field is recorded, in `unit`, per axis; "learn" where it is not known. 0: exactly.
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
    hidden: bool = False
    noise: float | str = 0.0

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ConfigError(f"field name {shown(self.name)} is not a plain word (letters, digits, underscore)")
        if self.irreps not in IRREPS:
            raise ConfigError(f"field {shown(self.name)}: irreps {shown(self.irreps)} is not one of {', '.join(IRREPS)}")
        if self.kind not in KINDS:
            raise ConfigError(f"field {shown(self.name)}: kind {shown(self.kind)} is not one of {', '.join(KINDS)}")
        if self.translates and self.irreps != "1o":
            raise ConfigError(f"field {shown(self.name)}: only a vector (irreps '1o') can translate, found {shown(self.irreps)}")
        if self.is_pair and (self.irreps != "0e" or self.dynamic):
            raise ConfigError(f"field {shown(self.name)}: an attribute of pairs is a static scalar: irreps '0e' and dynamic = false")
        if self.kind == "duration" and (self.dynamic or self.irreps != "0e"):
            raise ConfigError(f"field {shown(self.name)}: a duration is a scalar that is given: irreps '0e' and dynamic = false")
        if self.kind == "box" and (self.dynamic or self.irreps != "1o"):
            raise ConfigError(
                f"field {shown(self.name)}: the box of a trajectory is constant, one side per axis: irreps '1o', dynamic = false"
            )
        if not self.is_pair and (self.kind in ("real", "duration", "box")) != (self.size == 0):
            raise ConfigError(
                f"field {shown(self.name)}: size is for labels and categories, and they need one; "
                f"found kind {self.kind!r}, size {self.size}"
            )
        if self.of and self.dynamic:
            raise ConfigError(
                f"field {shown(self.name)}: a property of the entities of {self.of!r} travels with them, so it must have dynamic = false"
            )
        if self.differences and not self.rate_of:
            raise ConfigError(
                f"field {shown(self.name)}: differences are of the field that it is the rate of: name that field with rate_of"
            )
        if self.hidden and (not self.rate_of or self.differences or not self.dynamic):
            raise ConfigError(
                f"field {shown(self.name)}: only the rate of a recorded field can be hidden, and then it is no difference: "
                "name that field with rate_of, and leave out `differences`"
            )
        if self.noise != LEARN and not (isinstance(self.noise, (int, float)) and np.isfinite(self.noise) and self.noise >= 0):
            raise ConfigError(
                f"field {shown(self.name)}: noise is a standard deviation of at least 0, or 'learn', found {shown(self.noise)}"
            )
        if self.noise and (self.hidden or self.differences or self.lag_of or not self.dynamic or self.kind != "real"):
            raise ConfigError(f"field {shown(self.name)}: only a real dynamic field that is recorded can have noise")
        if not (np.isfinite(self.scale) and self.scale > 0):
            raise ConfigError(f"field {shown(self.name)}: scale must be positive and finite, found {self.scale}")

    @property
    def is_vector(self) -> bool:
        return self.irreps[0] == "1"

    @property
    def is_pair(self) -> bool:
        return self.kind == "pair"

    @property
    def parity(self) -> int:
        """Sign under point reflection beyond that of the rotation matrix: -1 for pseudoscalars and pseudovectors."""
        return -1 if self.irreps in ("0o", "1e") else 1


def padded(field: Field, value: Any) -> Any:
    """Return an attribute of pairs (*batch, body, body) with as many columns as its field has channels; those of no body are zero."""
    if value.ndim < 2 or value.shape[-1] not in (value.shape[-2], field.size) or value.shape[-1] > field.size:
        raise ShapeError(
            f"field {field.name!r} is of pairs: expected (*batch, body, body) of at most {field.size} bodies, found {tuple(value.shape)}"
        )
    missing = field.size - value.shape[-1]
    if isinstance(value, torch.Tensor):
        return torch.nn.functional.pad(value, (0, missing))
    return np.pad(value, [(0, 0)] * (value.ndim - 1) + [(0, missing)])
