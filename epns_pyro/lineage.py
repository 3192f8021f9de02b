"""Lineage of cells in label images: the cell that each comes from, and its age.

A state with lineage has four channels per pixel: `cell`, and of this cell `type`, `mother` and `age`. A mother that divides is gone, and
two daughters with labels of their own take her place: the notion of the Cell Tracking Challenge. Labels are reserved for cells that do not
exist yet; a label that is present, or is that of a mother, is not free.
"""

from __future__ import annotations

import numpy as np
import torch

from epns_pyro.fields import Field
from epns_pyro.state import Array, StateSpec

FIELDS = ("cell", "type", "mother", "age")
AGES = 256  # ages are counted up to 255 frames


def lineage_spec(cells: int, types: int, *, periodic: bool) -> StateSpec:
    """Return the spec of states (*batch, y, x, channel) with lineage, of at most `cells` labels and `types` types.

    `mother` is the label of the mother, 0 for cells whose mother was not seen; `age` is the number of frames since the first one of the
    cell, at most `AGES` - 1. The medium has zeros.
    """
    fields = (
        Field("cell", kind="label", size=cells + 1),
        Field("type", kind="category", size=types + 1),
        Field("mother", kind="label", size=cells + 1),
        Field("age", kind="category", size=AGES),
    )
    return StateSpec(fields, sites=("y", "x"), space=2, periodic=periodic)


def has_lineage(spec: StateSpec) -> bool:
    """Return whether states of a spec have lineage."""
    return spec.names == FIELDS and len(spec.sites) == 2


def per_label(labels: Array, values: Array, size: int) -> Array:
    """Read a property of cells off their pixels: images (*batch, y, x) of labels and values -> (*batch, label), 0 for absent labels."""
    batch = labels.shape[:-2]
    if isinstance(labels, torch.Tensor):
        return values.new_zeros(*batch, size).scatter(-1, labels.flatten(-2).long(), values.flatten(-2))
    table = np.zeros((*batch, size), values.dtype)
    np.put_along_axis(table, labels.reshape(*batch, -1).astype(np.int64), values.reshape(*batch, -1), axis=-1)
    return table


def per_pixel(table: Array, labels: Array) -> Array:
    """Look up a property of cells, table (*batch, label), in images labels (*batch, y, x): (*batch, y, x)."""
    if isinstance(labels, torch.Tensor):
        return table.gather(-1, labels.flatten(-2).long()).view(labels.shape)
    return np.take_along_axis(table, labels.reshape(*table.shape[:-1], -1).astype(np.int64), axis=-1).reshape(labels.shape)


def following(spec: StateSpec, x: Array, labels: Array) -> Array:
    """Return the state after x (*batch, y, x, channel) in which the same cells have the pixels of images labels (*batch, y, x).

    Types and mothers stay, ages grow by a frame; no cell is born.
    """
    size, now = spec["cell"].size, spec.get(x, "cell")
    tables = {name: per_label(now, spec.get(x, name), size) for name in FIELDS[1:]}
    there = per_label(now, (now > 0).astype(x.dtype) if isinstance(x, np.ndarray) else (now > 0).to(x.dtype), size)
    tables["age"] = (tables["age"] + there).clip(0, AGES - 1)
    return spec.pack(cell=labels, **{name: per_pixel(table, labels) for name, table in tables.items()})
