"""Find what is wrong with a store, as sentences that `epns-pyro data info` prints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from epns_pyro.data import files, layout
from epns_pyro.data.inspection.directions import Directions
from epns_pyro.data.inspection.exactness import Exactness, differ, suits
from epns_pyro.data.inspection.findings import ERROR, WARNING, Finding, Inspector
from epns_pyro.data.inspection.labels import Entities, Labels
from epns_pyro.data.inspection.memory import Memory
from epns_pyro.data.inspection.numbers import Constant, ExactRate, NonFinite, OutOfRange, Rate, Still
from epns_pyro.data.inspection.outliers import Outliers, Wrapped
from epns_pyro.data.inspection.places import Places
from epns_pyro.data.stores import Store
from epns_pyro.data.writing import Progress
from epns_pyro.lineage import has_lineage
from epns_pyro.state import StateSpec

LONGEST_STEP = 20  # in typical ones: what lasts longer is a gap


def check(store: Store, *, progress: Progress | None = None) -> list[Finding]:
    """Read a whole store, a few chunks at a time, and return what is wrong with it; errors first."""
    found = missing_sets(store)
    exactness = {split: Exactness(store.spec) for split in store.splits if suits(store.spec)}
    for split in store.splits:
        with store.naming(split):
            found += _structure(store, split)
            found += _values(store, split, progress, exactness.get(split))
    found += differ(store.spec, exactness)
    return sorted(found, key=lambda finding: finding.level != ERROR)


def missing_sets(store: Store) -> list[Finding]:
    """List the sets that are missing: training needs two of them."""
    return [Finding(level, "", f"there is no set {name!r}: {use}") for name, (level, use) in _USES.items() if name not in store.splits]


_CUT = ": cut a single recording along time into trajectories"
_USES = {
    "train": (ERROR, "a model cannot be trained" + _CUT),
    "val": (ERROR, "training cannot be validated" + _CUT),
    "test": (WARNING, "a model cannot be evaluated"),
}


def _structure(store: Store, split: str) -> list[Finding]:
    dataset = store.dataset(split)
    found = [Finding(ERROR, split, problem) for problem in layout.problems(store.spec, dataset)]
    if missing := store.missing(split):
        total = store.size(split)
        message = f"is incomplete, {total - missing} of {total} trajectories: run the command that made the store again to complete it"
        found.append(Finding(ERROR, split, message))
    for variable in () if store.missing(split) else layout.variables(store.spec):
        if variable.name in dataset.variables and (lost := files.lost_chunks(dataset, variable.name)):
            found.append(Finding(WARNING, split, lost))
    if layout.TIME in dataset.variables and dataset.variables[layout.TIME].dtype.kind in "fiu":
        found += [Finding(level, split, text) for level, text in _clock(files.load(dataset, layout.TIME).values, store.frame_dt)]
    return found


def _clock(time: np.ndarray, frame_dt: float) -> Iterator[tuple[str, str]]:
    steps = np.diff(time, axis=-1)
    if not steps.size:
        return
    if not (steps > 0).all():
        frame = int(np.argmin(np.atleast_2d(steps > 0).all(0))) + 1
        yield ERROR, f"the coordinate 'time' does not increase at frame {frame}: sort the frames, or correct it"
    elif np.ptp(steps) > 1e-3 * np.median(steps):
        if (ratio := steps.max() / np.median(steps)) > LONGEST_STEP:
            yield WARNING, f"the longest step lasts {steps.max():.4g}, {ratio:.3g} times the typical one: cut the recording there"
    elif not np.isclose(np.median(steps), frame_dt, rtol=1e-3):
        yield ERROR, f"frame_dt is {frame_dt:.4g}, but the coordinate 'time' advances by {np.median(steps):.4g} per frame"


def _values(store: Store, split: str, progress: Progress | None, exactness: Exactness | None) -> list[Finding]:
    spec, dataset = store.spec, store.dataset(split)
    sound = [v for v in layout.variables(spec) if not layout.variable_problems(spec, v, dataset)]
    inspectors = _inspectors(spec, sound, store.frame_dt)
    if split == "train":  # neither directions nor memory are tested in a set of runs from the same initial states
        inspectors += _symmetry(spec, sound)
        others = [field for field in spec.dynamic_fields if field.is_vector and field != spec.position]
        if spec.position in {v.field for v in sound} and all(field.differences or field.lag_of for field in others):
            inspectors.append(Memory(spec, spec.position, alone=not others))
    if exactness and spec.position in {v.field for v in sound}:
        inspectors.append(exactness)
    done = 0
    for block in store.blocks(split) if sound else ():
        block = block[block < store.size(split) - store.missing(split)]
        if not len(block):
            break
        part = dataset.isel({layout.TRAJECTORY: store.rows(split, block)}, missing_dims="ignore")
        arrays = {v.field.name: layout.load(part, v) for v in sound}
        with np.errstate(over="ignore", invalid="ignore"):  # an inspector reports values that are too large
            for inspector in inspectors:
                inspector.look(arrays, int(block[0]))
        done += len(block)
        if progress:
            progress(split, done, store.size(split))
    with np.errstate(over="ignore", invalid="ignore"):
        return [Finding(level, split, message) for inspector in inspectors for level, message in inspector.findings()]


def _symmetry(spec: StateSpec, sound: list[layout.Variable]) -> list[Inspector]:
    """Return inspectors of the changes of vectors, except those that follow from a rate or that a static vector may explain."""
    fields = [v.field for v in sound if v.field.irreps == "1o" and v.field.kind == "real"]
    if len(spec.sites) != 1 or spec.geometry.special_directions or any(not field.dynamic for field in fields):
        return []
    predicted = {v.field.rate_of for v in sound}
    found: list[Inspector] = [Directions(spec, field) for field in fields if field.name not in predicted]
    position = spec.position
    if position is not None and position.translates and position in fields and not spec.geometry.periodic and spec.box_field is None:
        found.append(Places(spec))
    return found


def _inspectors(spec: StateSpec, sound: list[layout.Variable], frame_dt: float) -> list[Inspector]:
    names = {v.field.name for v in sound}
    inspectors: list[Any] = []
    for field in (v.field for v in sound):
        if field.kind == "real":
            inspectors += [NonFinite(spec, field), Outliers(spec, field), Constant(spec, field), *([Still(field)] if field.dynamic else [])]
            if field.translates and field.dynamic and not spec.geometry.periodic:
                inspectors.append(Wrapped(spec, field))
        elif field.is_pair:
            inspectors.append(NonFinite(spec, field))
        elif field.kind == "label":
            of_image = field.name == spec.dynamic_fields[0].name or not has_lineage(spec)
            mothers = "mother" if has_lineage(spec) else ""
            inspectors.append(Labels(field, periodic=spec.periodic, mothers=mothers) if of_image else OutOfRange(field))
        elif field.kind not in ("duration", "box"):
            inspectors.append(OutOfRange(field))
        if field.rate_of in names:
            inspectors += [Rate(spec, field, frame_dt), ExactRate(spec, field, frame_dt)]
        if field.kind == "category" and field.of in names:
            inspectors.append(Entities(field, spec[field.of]))
    return inspectors
