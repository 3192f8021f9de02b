"""The field of view of a recording: bodies that leave it count neither in the truth nor in a member.

The bodies that a recording still has are those that went less far. A forecast knows of no border, so its bodies would look as if they went
too far. Here truth and members are treated alike: a body counts until it first leaves a region within the field of view, in each path by
itself. If the law is right, truth and members stay exchangeable.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from epns_pyro.data import Store
from epns_pyro.presence import allows_absence, presence
from epns_pyro.state import StateSpec

REACH = 0.99  # quantile of the steps along an axis: who is seen within the region is rarely out of view one step later
NARROW = 0.2  # of a side: a longer reach leaves too little of it
LEAVING = 0.5  # share of the bodies that disappear which do so outside of the region; where it is less, other reasons prevail
FEWEST, BLOCKS = 20, 50  # bodies that disappear, for that share; blocks of the training set that are read


@dataclass(frozen=True)
class FieldOfView:
    """A region within what a recording shows: `low` (space,) to `high` (space,) of the positions, in their unit."""

    low: np.ndarray
    high: np.ndarray

    def stays(self, spec: StateSpec, x: np.ndarray) -> np.ndarray:
        """Say which bodies of states (*dims, time, body, channel) have not left yet: (*dims, time, body). An absent body leaves nothing."""
        place = _positions(spec, x)
        outside = ((place < self.low) | (place > self.high)).any(-1)
        return ~np.logical_or.accumulate(outside, axis=-2)

    def judged(self, spec: StateSpec, x: np.ndarray, there: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Say which bodies of recorded states (trajectory, time, body, channel) are judged, and which of members: (trajectory, time, body).

        `there` are those that a forecast can be judged by. A body that left the region may still be in a member; one that was lost within
        is in none.
        """
        stays = self.stays(spec, x)
        return there & stays, stays[:, :1] & (there | ~stays)

    def words(self, unit: str) -> str:
        """Describe the region: "-7.5 to 7.5 x 0 to 9 m"."""
        sides = " x ".join(f"{low:.4g} to {high:.4g}" for low, high in zip(self.low, self.high, strict=True))
        return f"{sides} {unit}".rstrip()


def field_of_view(store: Store) -> FieldOfView | None:
    """Find the field of view in the training set; None where bodies do not disappear at a border.

    It is the box of all positions, less the length of a step on every side.
    """
    spec = store.spec
    if spec.position is None or not allows_absence(spec) or spec.geometry.periodic or spec.box_field or "train" not in store.splits:
        return None
    blocks = store.blocks("train")
    parts = [store.read("train", blocks[i]) for i in np.unique(np.linspace(0, len(blocks) - 1, BLOCKS).astype(int))]
    if all(presence(spec, x).all() for x in parts):
        return None
    places = [_positions(spec, x) for x in parts]
    steps = np.concatenate([np.abs(np.diff(x, axis=1)).reshape(-1, x.shape[-1]) for x in places])
    steps, every = steps[np.isfinite(steps).all(-1)], np.concatenate([x.reshape(-1, x.shape[-1]) for x in places])
    if not len(steps):
        return None
    low, high, reach = np.nanmin(every, axis=0), np.nanmax(every, axis=0), np.quantile(steps, REACH, axis=0)
    if (reach > NARROW * (high - low)).any():
        return None
    view = FieldOfView(low + reach, high - reach)
    last = np.concatenate([_last_seen(spec, x, place) for x, place in zip(parts, places, strict=True)])
    gone = ((last < view.low) | (last > view.high)).any(-1)
    return view if len(last) >= FEWEST and gone.mean() >= LEAVING else None


def _positions(spec: StateSpec, x: np.ndarray) -> np.ndarray:
    return np.asarray(spec.get(x, spec.position.name if spec.position else "position"), np.float64)


def _last_seen(spec: StateSpec, x: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Return where bodies of states (trajectory, time, body, channel) were seen last that are gone before the last frame: (body, space)."""
    there = presence(spec, x)
    gone = there.any(1) & ~there[:, -1]
    last = there.shape[1] - 1 - np.argmax(there[:, ::-1], axis=1)
    trajectory, body = np.nonzero(gone)
    return place[trajectory, last[gone], body]
