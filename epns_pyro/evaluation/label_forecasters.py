"""References for label images that need no learning: frequencies counted on the training set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy import ndimage

from epns_pyro.data import Store
from epns_pyro.evaluation.forecasters import Forecaster
from epns_pyro.lineage import following, has_lineage
from epns_pyro.state import StateSpec

FITTED_ON = 40  # training trajectories
DISTANCES = 4  # pixels at this distance or more from the border of their cell are counted together


@dataclass(frozen=True)
class LabelPersistence(Forecaster):
    """A pixel keeps its label, or takes that of a neighbour.

    p(x' = x) = stay[d], where d is the distance of the pixel from the border of its cell. A pixel that changes takes the label of one of
    the 8 neighbours that differ from it; with probability `stray`, or if no neighbour differs, it takes any other label. With one entry in
    `stay` this is persistence with a fitted error rate; with more, the frequency depends on the distance to the border.
    """

    spec: StateSpec
    has_density: ClassVar[bool] = True

    stay: np.ndarray
    stray: float

    @property
    def label(self) -> str:
        """Return its name in tables."""
        return "frequency by distance to the border" if len(self.stay) > 1 else "persistence with fitted error rate"

    @classmethod
    def fit(cls, store: Store, *, by_distance: bool) -> LabelPersistence:
        """Count in the training set how often pixels keep their label, and how often a new label is that of no neighbour."""
        spec, label = store.spec, label_of(store.spec)
        x = spec.get(store.read("train", slice(0, FITTED_ON), start=store.system.first_frame), label)
        before, after = x[:, :-1].reshape(-1, *x.shape[2:]), x[:, 1:].reshape(-1, *x.shape[2:])
        kept = after == before
        distance = border_distance(before) if by_distance else np.zeros(before.shape, int)
        known = ~of_new_cells(before, after, spec[label].size)
        count = np.bincount(distance[known]) + 2
        stay = (np.bincount(distance[known], kept[known], len(count)) + 1) / count
        near = np.any([shifted == after for shifted in _neighbours(before)], axis=0)
        stray = (1 + (known & ~kept & ~near).sum()) / (2 + (known & ~kept).sum())
        return cls(spec, stay, float(stray))

    def sample(self, x0: np.ndarray, steps: int, members: int, seed: int, *, schedule: np.ndarray | None = None) -> np.ndarray:
        rng, label = np.random.default_rng(seed), label_of(self.spec)
        labels = self.spec[label].size
        x = np.broadcast_to(x0, (members, *x0.shape)).reshape(-1, *x0.shape[1:])
        path = [x]
        for _ in range(steps):
            now = self.spec.get(x, label)
            moves = rng.random(now.shape) >= self.stay[self._distance(now)]
            around = np.stack(_neighbours(now))
            lot = np.where(around == now, -1.0, rng.random(around.shape))
            other = np.take_along_axis(around, lot.argmax(0)[None], 0)[0]
            lost = (rng.random(now.shape) < self.stray) | (lot.max(0) < 0)
            other = np.where(lost, (now + rng.integers(1, labels, size=now.shape)) % labels, other)
            after = np.where(moves, other, now).astype(x.dtype)
            x = following(self.spec, x, after) if has_lineage(self.spec) else self.spec.advance(x, after[..., None])
            path.append(x)
        return np.stack(path, 1).reshape(members, len(x0), steps + 1, *x0.shape[1:])

    def log_prob(self, x: np.ndarray, x_next: np.ndarray) -> np.ndarray:
        """Return log p(x' | x) of full states (transition, y, x, channel), without pixels of cells that appear: nats, (transition,)."""
        label = label_of(self.spec)
        now, then = self.spec.get(x, label), self.spec.get(x_next, label)
        stay = self.stay[self._distance(now)]
        around = _neighbours(now)
        differing = np.sum([shifted != now for shifted in around], axis=0)
        chosen = np.sum([shifted == then for shifted in around], axis=0) / np.maximum(differing, 1)
        stray = np.where(differing > 0, self.stray, 1.0)
        moved = (1 - stay) * ((1 - stray) * chosen + stray / (self.spec[label].size - 1))
        known = ~of_new_cells(now, then, self.spec[label].size)
        return np.log(np.where(now == then, stay, moved)).sum((-2, -1), where=known)

    def _distance(self, labels: np.ndarray) -> np.ndarray:
        return border_distance(labels) if len(self.stay) > 1 else np.zeros(labels.shape, int)


def label_of(spec: StateSpec) -> str:
    """Return the name of the field of labels."""
    return next(f.name for f in spec.dynamic_fields if f.kind == "label")


def of_new_cells(before: np.ndarray, after: np.ndarray, labels: int) -> np.ndarray:
    """Find pixels of images (*batch, y, x) whose label is in no pixel of the frame before; label 0, the medium, is never new."""
    flat, after_flat = (image.reshape(-1, image.shape[-2] * image.shape[-1]).astype(int) for image in (before, after))
    there = np.zeros((len(flat), labels), bool)
    np.put_along_axis(there, flat, values=True, axis=1)
    there[:, 0] = True
    return ~np.take_along_axis(there, after_flat, 1).reshape(after.shape)


def border_distance(labels: np.ndarray) -> np.ndarray:
    """Return the chessboard distance (at most DISTANCES) of every pixel of images (*batch, y, x) to the nearest other label."""
    flat = labels.reshape(-1, *labels.shape[-2:])
    distance = np.zeros(flat.shape, int)
    size = (1, 3, 3)
    inner = ndimage.minimum_filter(flat, size, mode="nearest") == ndimage.maximum_filter(flat, size, mode="nearest")
    while inner.any() and distance.max() < DISTANCES:
        distance += inner
        inner = ndimage.minimum_filter(inner, size, mode="nearest")
    return distance.reshape(labels.shape)


def _neighbours(labels: np.ndarray) -> list[np.ndarray]:
    """Return the 8 neighbours of every pixel of images (*batch, y, x); at the border the edge pixels are repeated."""
    padded = np.pad(labels, [(0, 0)] * (labels.ndim - 2) + [(1, 1), (1, 1)], mode="edge")
    height, width = labels.shape[-2:]
    steps = [(i, j) for i in range(3) for j in range(3) if (i, j) != (1, 1)]
    return [padded[..., i : i + height, j : j + width] for i, j in steps]
