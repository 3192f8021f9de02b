"""Measuring the data context: the scales of fields and of their changes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from epns_pyro.context import DataContext
from epns_pyro.data.precision import check_scale
from epns_pyro.data.presence import presence
from epns_pyro.derived import difference
from epns_pyro.durations import along, drift, noise_power, relative
from epns_pyro.errors import DataError
from epns_pyro.geometry import Space
from epns_pyro.later import later
from epns_pyro.lineage import has_lineage, per_label
from epns_pyro.state import Field, StateSpec
from epns_pyro.systems.lattice import MOST_LABELS

if TYPE_CHECKING:
    from epns_pyro.data.stores import Store
    from epns_pyro.systems import label_motion
else:
    label_motion = later("epns_pyro.systems.label_motion")

REACH_PIXELS = 2**25  # of label images used to measure the reach of cells, spread over the set
REACH_SHARE = 0.995  # fraction of steps of cells within the reach
ROUNDING = 1e-9  # relative; anything smaller is rounding


def compute_context(store: Store, split: str = "train") -> DataContext:
    """Measure the scales of every real field in one set, a few chunks at a time.

    The scale of a field is its standard deviation over trajectories, frames and sites. Vectors are pooled over their axes, about their
    mean vector, so that rotating the data changes nothing; a translating field is taken about the centroid of its state, so that
    moving the data changes nothing either. A constant has no spread: its mean magnitude counts instead, or 1 if that is zero too.
    The step scale is the root mean square of the unpredicted change in a nominal step, about zero; of the whole change, where the rate
    predicts it to rounding. The origin is the mean position, where that is farther from zero than the positions spread. Only bodies that
    are there count, in the centroid too, and their changes where they are there before and after.

    Raises
    ------
    DataError
        If the set cannot be read, or if no body is present in any of its frames.
    """
    spec = store.spec
    real = [f for f in spec.fields if f.kind == "real"]
    values, places = {f.name: _Moments() for f in real}, {f.name: _Moments() for f in real if f.translates}
    pairs = {f.name: _Moments() for f in spec.fields if f.is_pair}
    dynamic = [f for f in real if f.dynamic]
    changes, surprises = ({f.name: _Moments() for f in dynamic} for _ in range(2))
    sides, bends, absences = _Moments(), _Bends(), False
    for x in _blocks(store, split) if real else ():
        there = presence(spec, x)
        absences |= not there.all()
        for field in real:
            values[field.name].add(_about_centroid(spec, field, spec.get(x, field.name), there)[there], spec.width(field))
        for name, moments in places.items():
            moments.add(spec.get(x, name)[there], spec.space)
        for name, moments in pairs.items():
            moments.add(spec.get(x[:, 0], name)[..., : x.shape[-2]], 1)
        if spec.box_field is not None:
            sides.add(spec.get(x[:, 0, 0], spec.box_field.name), spec.space)
        for field in (spec[f.rate_of] for f in spec.fields if f.hidden):
            bends.add(np.diff(field_changes(spec, field, spec.get(x, field.name), spec.space_of(x[:, :1])), axis=1))
        for field in dynamic:
            change = field_changes(spec, field, spec.get(x, field.name), spec.space_of(x[:, :1]))
            surprise, stays = change - drift(spec, field, x[:, :-1], store.frame_dt), there[:, 1:] & there[:, :-1]
            if any(f.hidden for f in spec.fields):  # in the first frame of a body there is no difference to stand in for its velocity
                stays[:, 0], stays[:, 1:] = False, stays[:, 1:] & there[:, :-2]
            if (ratio := relative(spec, x[:, :-1])) is not None:  # what a nominal step would have brought
                change, surprise = (part * along(field, ratio ** -noise_power(spec, field)) for part in (change, surprise))
            changes[field.name].add(change[stays], spec.width(field))
            surprises[field.name].add(surprise[stays], spec.width(field))
    if real and not values[real[0].name].count:
        raise DataError(f"{store.path}: set {split!r} holds no body in any frame: all of its dynamic fields are NaN")
    scales = {name: moments.spread for name, moments in (values | pairs).items()}
    if spec.geometry.periodic and (place := spec.position):  # positions spread evenly over it, and there is no centroid
        squared = np.mean(np.square(spec.box)) if spec.box else sides.rms**2
        scales[place.name], places = float(np.sqrt(squared / 12)), {}
    steps = {f.name: _step_scale(changes[f.name].rms, surprises[f.name].rms) or scales[f.name] for f in dynamic}
    with store.naming(split):
        for field in real:
            check_scale(field, scales[field.name], "has a scale of")
            if field.dynamic:
                check_scale(field, steps[field.name], "has a change per step of")
    return DataContext(
        spec=spec.with_scales(scales),
        frame_dt=store.frame_dt,
        step_scales=steps,
        sites=store.sites(split),
        origin=next((_origin(moments.mean, scales[name]) for name, moments in places.items()), ()),
        absences=absences,
        cell_reach=_cell_reach(store, split),
        second_difference_correlations=bends.correlations,
        event_rates=_event_rates(store, split),
    )


def field_changes(spec: StateSpec, field: Field, values: np.ndarray, space: Space | None = None) -> np.ndarray:
    """Return changes of a field from frame to frame, (trajectory, time - 1, *site[, space]); in a box, to the nearest image."""
    return difference(spec, field, values[:, :-1], values[:, 1:], space)


def _cell_reach(store: Store, split: str) -> float | None:
    """Measure the reach of cells in one step, on a part of a set of label images; None for other data."""
    label = next((field for field in store.spec.dynamic_fields if field.kind == "label" and len(store.spec.sites) == 2), None)
    if label is None or store.steps(split) < 1 or label.size > MOST_LABELS:
        return None
    blocks = store.blocks(split)
    pixels = len(blocks[0]) * (store.steps(split) + 1) * int(np.prod(store.sites(split)))
    stride = max(1, len(blocks) * pixels // REACH_PIXELS)
    reaches = []
    for block in blocks[::stride]:
        cells = store.spec.get(store.read(split, block), label.name)
        reach = label_motion.step_reach(cells, label.size - 1, periodic=store.spec.periodic)
        reaches.append(reach[~np.isnan(reach)])
    found = np.concatenate(reaches)
    return float(np.quantile(found, REACH_SHARE)) if found.size else None


def _event_rates(store: Store, split: str) -> tuple[float, ...]:
    """Count which fractions of the cells of a set die and divide in a step; () for states without lineage.

    A cell that is gone without daughters has died, and one with two has divided.
    """
    if not has_lineage(store.spec) or store.steps(split) < 1:
        return ()
    spec, size, total = store.spec, store.spec["cell"].size, np.zeros(3)
    for block in store.blocks(split):
        x = store.read(split, block)
        labels = spec.get(x, "cell")
        there = per_label(labels, (labels > 0).astype(bool), size)
        mother = per_label(labels, spec.get(x, "mother"), size).astype(np.int64)
        first = there[:, 1:] & ~there[:, :-1]
        daughters = np.zeros(first.shape, np.int64)
        np.add.at(daughters, (*np.indices(first.shape[:2])[..., None], mother[:, 1:] * first), first)
        gone = there[:, :-1] & ~there[:, 1:]
        total += there[:, :-1].sum(), (gone & (daughters == 0)).sum(), (gone & (daughters == 2)).sum()
    return tuple(map(float, total[1:] / max(total[0], 1)))


def _origin(mean: np.ndarray, spread: float) -> tuple[float, ...]:
    """Return the mean position, or () if zero is within the data, because single precision is then as good from zero."""
    return tuple(map(float, mean)) if np.linalg.norm(mean) > spread else ()


def _blocks(store: Store, split: str) -> Iterator[np.ndarray]:
    return (store.read(split, block).astype(np.float64, copy=False) for block in store.blocks(split))


def _about_centroid(spec: StateSpec, field: Field, values: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Subtract from a translating field the mean over the present bodies: values (trajectory, time, *site[, space])."""
    if not field.translates:
        return values
    sites = tuple(range(2, 2 + len(spec.sites)))
    total = np.where(there[..., None], values, 0.0).sum(sites, keepdims=True)
    return values - total / np.maximum(there.sum(sites, keepdims=True), 1)[..., None]


def _step_scale(change: float, surprise: float) -> float:
    return surprise if surprise > ROUNDING * change else change


class _Bends:
    """Running correlations of second differences (trajectory, time, body, space) with those one and two frames later; NaN: not seen."""

    def __init__(self) -> None:
        self._squares, self._products = np.zeros(2), np.zeros(2)

    def add(self, bends: np.ndarray) -> None:
        for k in range(2):
            before, after = bends[:, : -k - 1], bends[:, k + 1 :]
            self._products[k] += np.nansum(before * after)
            self._squares[k] += np.nansum(np.where(np.isnan(before * after), np.nan, before**2 + after**2)) / 2

    @property
    def correlations(self) -> tuple[float, ...]:
        return tuple(map(float, self._products / self._squares)) if self._squares.all() else ()


class _Moments:
    """Running mean and sums of squares of the rows of a table (Chan, Golub & LeVeque 1983), pooled over its columns on request."""

    def __init__(self) -> None:
        self.count, self._mean, self._squares, self._magnitude = 0, np.zeros(1), np.zeros(1), 0.0

    def add(self, values: np.ndarray, width: int) -> None:
        table = values.reshape(-1, width)
        if not len(table):
            return
        n, mean = len(table), table.mean(0)
        shift, total = mean - self._mean, self.count + n
        self._squares = self._squares + ((table - mean) ** 2).sum(0) + shift**2 * (self.count * n / total)
        self._mean = self._mean + shift * (n / total)
        self._magnitude += float(np.abs(table).sum())
        self.count = total

    @property
    def mean(self) -> np.ndarray:
        """Mean row: (column,)."""
        return self._mean

    @property
    def spread(self) -> float:
        """Standard deviation; of a constant its mean magnitude, or 1."""
        deviation = float(np.sqrt(self._squares.mean() / self.count))
        magnitude = self._magnitude / (self.count * len(self._mean))
        return deviation if deviation > ROUNDING * magnitude else magnitude or 1.0

    @property
    def rms(self) -> float:
        """Root mean square; of nothing 0."""
        return float(np.sqrt((self._squares / max(self.count, 1) + self._mean**2).mean()))
