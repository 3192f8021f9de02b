"""Inspectors of label images and of the properties of the entities in them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from epns_pyro.data.inspection.findings import ERROR, WARNING, Inspector, Tally
from epns_pyro.state import Field

BY_LABEL = ("trajectory", "frame", "label")
OFTEN, MANY = 0.01, 20  # share and number of steps with a jump from which on frames are long for the cells, and no tracking was lost


class EmptyFrames(Tally):
    """Frames with label 0 (medium) only: no cell can be followed through them, so a store must not contain any."""

    def see(self, labels: np.ndarray, first: int = 0) -> None:
        """Count the empty frames of labels (*axis, *site), with the axes of this tally."""
        self.add(np.asarray(~labels.any(tuple(range(len(self.axes), labels.ndim)))), first)

    def problem(self) -> str:
        """Describe which frames are empty; "" if none is."""
        if not self.count:
            return ""
        seen = f"{self.where} is empty" if self.count == 1 else f"{self.count} frames are empty, the first is {self.where}"
        return f"{seen}: leave such frames out at the ends of a film, and cut it at others"


class Labels(Inspector):
    """Impossible labels, empty frames, and labels that jump, appear late, disappear for some frames, or never occur.

    `mothers`: name of the field that holds the mother of every cell, where there is one. Then daughters are no surprise, and labels are
    reserved for them.
    """

    def __init__(self, field: Field, *, periodic: bool = False, mothers: str = "") -> None:
        self._field, self._periodic, self._mothers = field, periodic, mothers
        self._negative, self._beyond, self._empty = Tally(), Tally(), EmptyFrames()
        self._jumps, self._gaps, self._births = Tally(BY_LABEL), Tally(BY_LABEL), Tally(BY_LABEL)
        self._born_pixels = self._returned_pixels = 0
        self._largest, self._steps, self._seen = 0, 0, np.zeros(field.size, dtype=bool)

    def look(self, arrays: dict[str, np.ndarray], first: int) -> None:
        labels = arrays[self._field.name]
        self._negative.add(labels < 0, first)
        self._beyond.add(labels >= self._field.size, first)
        self._largest = max(self._largest, int(labels.max()))
        labels = np.where((labels < 0) | (labels >= self._field.size), 0, labels)
        flat = labels.reshape(*labels.shape[:2], -1)
        self._empty.see(labels, first)
        areas = count_labels(flat, np.ones_like(flat, dtype=bool), self._field.size)
        present = areas > 0
        stayed = count_labels(flat[:, 1:], flat[:, 1:] == flat[:, :-1], self._field.size) > 0
        self._seen |= present.any((0, 1))
        followed = present[:, 1:] & present[:, :-1]
        self._steps += int(followed[..., 1:].sum())
        self._jumps.add(self._far(labels, _late(followed & ~stayed)), first)
        before, after = (np.logical_or.accumulate(p, axis=1) for p in (present, present[:, ::-1]))
        self._gaps.add(_starts(before & after[:, ::-1] & ~present), first)
        come, seen_before = _starts(present), np.pad(before[:, :-1], ((0, 0), (1, 0), (0, 0)))
        if self._mothers:
            mothers = arrays[self._mothers].reshape(flat.shape)
            come &= count_labels(flat, mothers > 0, self._field.size) == 0
        self._births.add(come & ~seen_before, first)
        self._born_pixels += int(areas[come & ~seen_before].sum())
        self._returned_pixels += int(areas[come & seen_before].sum())

    def _far(self, labels: np.ndarray, moved: np.ndarray) -> np.ndarray:
        """Keep only moves (trajectory, time, label) without a common pixel that leave a gap wider than the cell."""
        jumped = np.zeros_like(moved)
        for trajectory, frame, label in np.argwhere(moved):
            before, after = (np.argwhere(labels[trajectory, t] == label) for t in (frame - 1, frame))
            box = labels.shape[2:] if self._periodic else None
            from scipy.spatial import KDTree  # takes a second to import

            gap = KDTree(before, boxsize=box).query(after)[0].min()
            jumped[trajectory, frame, label] = gap > _diameter(min(len(before), len(after)))
        return jumped

    def findings(self) -> Iterator[tuple[str, str]]:
        name, declared = self._field.name, self._field.size - 1
        if self._negative.count:
            yield (
                ERROR,
                f"field {name!r}: labels are negative, first in {self._negative.where}: use 0 for the medium, 1, 2, ... for {name}s",
            )
        if self._beyond.count:
            yield (
                ERROR,
                f"field {name!r}: label {self._largest} is more than the {declared} {name}s declared, first in {self._beyond.where}: "
                f"declare size {self._largest + 1}, or number the {name}s from 1 without gaps",
            )
        if problem := self._empty.problem():
            yield ERROR, f"field {name!r}: {problem}"
        if self._jumps.count:
            yield (
                WARNING,
                f"field {name!r}: labels jump {self._jumps.count} times, first in {self._jumps.where}: "
                "by more than the width of the cell since the frame before; "
                + (
                    "frames are far apart for these cells"
                    if self._jumps.count > max(MANY, OFTEN * self._steps)
                    else "was the tracking lost?"
                ),
            )
        if self._gaps.count:
            yield (
                WARNING,
                f"field {name!r}: labels disappear and come back {self._gaps.count} times, first in {self._gaps.where}: fill the gaps; "
                "models "
                f"do not create cells, so the {self._returned_pixels} pixels that come back "
                "are left out of the likelihood, and no forecast contains them",
            )
        if self._births.count:
            yield (
                WARNING,
                f"field {name!r}: labels first appear within a trajectory {self._births.count} times, first in {self._births.where}: "
                f"models do not create cells, so their first {self._born_pixels} pixels are left out of the likelihood, "
                "and no forecast contains them; "
                "cut trajectories where cells appear or divide (--segment), or give daughters their mother's label",
            )
        unused = np.flatnonzero(~self._seen[1:]) + 1
        if unused.size and not self._mothers:
            some = ", ".join(map(str, unused[:5])) + (", ..." if unused.size > 5 else "")
            yield WARNING, f"field {name!r}: {unused.size} of {declared} declared labels never occur ({some}): they cost memory and time"


class Entities(Inspector):
    """Entities that occur but have no category."""

    def __init__(self, field: Field, owner: Field) -> None:
        self._field, self._owner, self._tally = field, owner, Tally(("trajectory", owner.name))

    def look(self, arrays: dict[str, np.ndarray], first: int) -> None:
        labels, categories = arrays[self._owner.name], arrays[self._field.name]
        inside = np.where((labels < 0) | (labels >= self._owner.size), 0, labels).reshape(len(labels), 1, -1)
        present = count_labels(inside, np.ones_like(inside, dtype=bool), self._owner.size)[:, 0] > 0
        missing = present & (np.pad(categories, ((0, 0), (1, 0)), constant_values=1) == 0)  # label 0, the medium, has no category
        self._tally.add(missing, first)

    def findings(self) -> Iterator[tuple[str, str]]:
        if self._tally.count:
            owner, name = self._owner.name, self._field.name
            yield (
                ERROR,
                f"field {name!r}: {self._tally.count} {owner}s have no {name} (0 is that of the medium), the first in {self._tally.where}",
            )


def count_labels(labels: np.ndarray, mask: np.ndarray, size: int) -> np.ndarray:
    """Count the pixels of every label where mask is True: labels, mask (trajectory, time, pixel) -> (trajectory, time, label)."""
    counts = np.zeros((*labels.shape[:2], size), dtype=np.int64)
    for frame in np.ndindex(labels.shape[:2]):  # one by one: memory holds a film of large images only once
        counts[frame] = np.bincount(labels[frame][mask[frame]], minlength=size)
    return counts


def _diameter(area: float) -> float:
    """Diameter of a disc."""
    return 2 * np.sqrt(area / np.pi)


def _late(mask: np.ndarray) -> np.ndarray:
    """Turn a mask over steps into a mask over the frames after these steps, without label 0."""
    mask = np.pad(mask, ((0, 0), (1, 0), (0, 0)))
    mask[..., 0] = False
    return mask


def _starts(mask: np.ndarray) -> np.ndarray:
    """Keep the first frame of every run of True frames, without label 0."""
    return _late(mask[:, 1:] & ~mask[:, :-1])
