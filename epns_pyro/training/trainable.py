"""Checks whether a store can be used for training; `epns-pyro data info` and `epns-pyro train` print the same message."""

from __future__ import annotations

from epns_pyro.data import Store
from epns_pyro.data.inspection.check import missing_sets
from epns_pyro.data.inspection.findings import ERROR
from epns_pyro.data.strides import Strides
from epns_pyro.data.windows import check_window, pool_shape
from epns_pyro.errors import ConfigError, DataError, EpnsError
from epns_pyro.lineage import has_lineage
from epns_pyro.models.building import build
from epns_pyro.state import StateSpec
from epns_pyro.training.presets import preset
from epns_pyro.training.run import RunConfig

FAMILY_OF_SYSTEM = {"nbody": "nbody", "recorded": "nbody", "cells": "cells", "recorded_cells": "cells", "tissue": "tissue"}


def find_refusal(store: Store) -> str:
    """Return why the preset for such data cannot be trained on a store; "" if it can.

    For a system registered by user code only the sets are checked, because its model is unknown here.
    """
    try:
        check_data(store)
        if family := FAMILY_OF_SYSTEM.get(store.config.get("name", "")):
            check_trainable(store, preset(family, "quick", store))
    except EpnsError as error:
        return str(error)
    return ""


def check_data(store: Store) -> None:
    """Raise DataError if no model, whatever its settings, can be trained on a store.

    Raises
    ------
    DataError
        If a set that training needs is missing or incomplete, or if no model can read such fields.
    """
    if store.config.get("name") in ("recorded", "recorded_cells") and (problem := _unreadable(store.spec)):
        raise DataError(f"{store.path}: {problem}")
    for finding in missing_sets(store):
        if finding.level == ERROR:
            raise DataError(f"{store.path}: {finding.message}")
    for split in ("train", "val"):
        store.require(split)


def check_trainable(store: Store, config: RunConfig) -> None:
    """Raise if the model of a config cannot be trained on a store, before any file is made.

    Raises
    ------
    ConfigError
        If the model does not suit the fields, or if trajectories are too short for the windows.
    DataError
        If the data cannot be read.
    """
    check_data(store)
    if config.training.strides != (1,):
        store = store.timed()
    first, horizon = store.system.first_frame, config.training.horizon
    if config.training.strides != (1,):
        Strides(store.spec, store.frame_dt, config.training.strides).check(store, "train", max(horizon.start, horizon.end), first)
    check_window(store, "train", max(horizon.start, horizon.end), first)
    check_window(store, "val", 1, first)
    pool_shape(store, "train", config.training.memory)
    earlier, frames = build(config.model, store.context()).earlier_frames, store.steps("train") + 1
    if earlier >= frames:
        raise ConfigError(
            f"model.history.frames: a window of {earlier + 1} frames, but the set 'train' has trajectories of {frames}: "
            f"choose at most {frames}"
        )


def _unreadable(spec: StateSpec) -> str:
    """Return why no model can use recordings of a spec; "" if one can."""
    labels = [field.name for field in spec.fields if field.kind == "label"]
    sites = ", ".join(spec.sites)
    if labels and len(spec.sites) == 1:
        return f"field {labels[0]!r} holds labels of bodies, which a model cannot use as numbers: leave it out, or declare it a category"
    if labels and len(spec.sites) != 2:
        return f"label images have the two axes (y, x), found ({sites}): train on slices or projections"
    if has_lineage(spec):
        return ""
    if len(spec.sites) == 2 and not (spec.names == ("cell", "type") and spec["cell"].kind == "label" and spec["type"].of == "cell"):
        return (
            f"label images need the two fields 'cell' (kind: label) and 'type' (kind: category, of: cell), found {', '.join(spec.names)}: "
            "add the variable cell_type (trajectory, cell), all 1 if there is only one type"
        )
    if len(spec.sites) != 1 and not labels:
        return f"fields on the axes ({sites}): expected particles on one axis (body), or label images (y, x)"
    if spec.periodic and not labels:
        return "periodic: true is for label images; for particles in a periodic box say `box: [side, side]`, in the unit of the positions"
    return ""
