"""Trials: the pieces of held-out data that are forecast, whole trajectories or stretches of a few long ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from epns_pyro.data import Store
from epns_pyro.errors import ConfigError
from epns_pyro.presence import missing
from epns_pyro.training.run import EvaluationConfig

ENOUGH, STRETCHES, SHORTEST = 20, 50, 8  # trajectories that need no cutting, stretches to cut fewer into, least steps of a stretch
RECORDING, FIRST_FRAME = "recording", "first_frame"  # variables (trajectory) of imported recordings
BODY_ID = "body_id"  # likewise, (trajectory, body)


@dataclass(frozen=True)
class Trials:
    """Stretches of a set to forecast: each is `steps` steps of trajectory `rows` (trial,), starting at frame `starts` (trial,).

    `recording` (trial,) says from which recording a trial is; trials of one recording are dependent. None where all are independent.
    """

    store: Store
    split: str
    rows: np.ndarray
    starts: np.ndarray
    steps: int
    recording: np.ndarray | None

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, block: slice) -> np.ndarray:
        """Read the states of some trials: (trial, time, *site, channel)."""
        return self._read(self.rows[block], self.starts[block], self.steps + 1)

    def initial(self, block: slice) -> np.ndarray:
        """Read what forecasters of some trials are given: states (trial, *site, channel), or frames where states are hidden."""
        given = self.store.system.frames_given
        x = self._read(self.rows[block], self.starts[block] + 1 - given, given)
        return x[:, 0] if given == 1 else x

    def past(self, block: slice, earlier: int) -> np.ndarray | None:
        """Read so many states before those that some trials start from: (trial, time, *site, channel); None if they are none.

        NaN in all dynamic channels before the first frame of a trajectory.
        """
        if not earlier:
            return None
        rows, starts = self.rows[block], self.starts[block]
        x = self._read(rows, (starts - earlier).clip(min=0), earlier)
        index = starts[:, None] - earlier + np.arange(earlier)  # of the frames wanted; what was read starts at the first that there is
        x = np.take_along_axis(x, (index - index.clip(min=0)[:, :1]).clip(min=0).reshape(*index.shape, *[1] * (x.ndim - 2)), 1)
        known = (index >= 0).reshape(*index.shape, *[1] * (x.ndim - 2))
        return np.where(known, x, missing(self.store.spec, x))

    def _read(self, rows: np.ndarray, starts: np.ndarray, frames: int) -> np.ndarray:
        if (starts == starts[0]).all():
            return self.store.read(self.split, rows, start=int(starts[0]), stop=int(starts[0]) + frames)
        parts: list[np.ndarray] = []
        for row in dict.fromkeys(rows.tolist()):  # trials of one trajectory stand together, in time order
            of_row = starts[rows == row]
            x = self.store.read(self.split, [row], start=int(of_row[0]), stop=int(of_row[-1]) + frames)[0]
            parts += [x[start : start + frames] for start in of_row - of_row[0]]
        return np.stack(parts)

    def label(self, values: xr.Dataset) -> xr.Dataset:
        """Add to measurements (trajectory, ...) of all trials which of them are dependent; see `calibration.dependence`."""
        if self.recording is None:
            return values
        same = self.rows[1:] == self.rows[:-1]
        apart = np.diff(self.starts)[same] if same.any() else [self.store.steps(self.split) + 1]
        spacing = {"spacing": float(np.median(apart) * self.store.frame_dt)}
        return values.assign_coords(recording=("trajectory", self.recording), order=("trajectory", np.arange(len(self)), spacing))


def trials(store: Store, split: str, settings: EvaluationConfig) -> Trials:
    """Choose what is forecast of a set: its first `settings.trajectories`, or as many stretches of long ones, evenly spread.

    Raises
    ------
    ConfigError
        If the test trajectories are shorter than `settings.stretch`.
    """
    first, size = store.system.forecast_frame, store.size(split)
    longest = store.steps(split) - first
    steps = settings.stretch or _chosen(store)
    if split == "test" and steps and steps > longest:
        raise ConfigError(f"evaluation.stretch: the set 'test' has {longest} steps to forecast, found {steps}: choose at most {longest}")
    recording, order = _origin(store, split)
    if steps is None or 2 * steps > longest:
        rows = np.arange(min(settings.trajectories, size))
        whole = Trials(store, split, rows, np.full(len(rows), first), min(settings.stretch or longest, longest), None)
        if recording is None or len(np.unique(recording[rows])) == len(rows):
            return whole
        rows = rows[np.lexsort((order[rows], recording[rows]))]
        return Trials(store, split, rows, whole.starts, whole.steps, recording[rows])
    recording = np.arange(size) if recording is None else recording
    sorted_rows = np.lexsort((order, recording))
    starts = np.arange(first, first + longest - steps + 1, steps)
    rows, starts = np.repeat(sorted_rows, len(starts)), np.tile(starts, size)
    some = np.unique(np.round(np.linspace(0, len(rows) - 1, min(len(rows), settings.trajectories))).astype(int))
    return Trials(store, split, rows[some], starts[some], steps, recording[rows[some]])


def _chosen(store: Store) -> int | None:
    """Return the steps of a stretch, the same for all sets; None if trajectories are forecast whole, which is the default."""
    size, longest = store.size("test"), store.steps("test") - store.system.forecast_frame
    if store.system.can_simulate or size >= ENOUGH or longest < 2 * SHORTEST:
        return None
    return int(np.clip(size * longest // STRETCHES, SHORTEST, longest))


def _origin(store: Store, split: str) -> tuple[np.ndarray | None, np.ndarray]:
    """Return what trajectories (trajectory,) come from, None if the store does not say, and their order in time.

    That is a recording, or a track of one where each trajectory holds one body: those of a recording do not influence each other.
    """
    data, rows = store.dataset(split), store.rows(split)
    known = {name: data[name].values[rows] for name in (RECORDING, FIRST_FRAME) if name in data and data[name].dims == ("trajectory",)}
    if RECORDING not in known or RECORDING in store.spec.names:
        return None, rows
    origin = [known[RECORDING]]
    if BODY_ID in data and data[BODY_ID].ndim == 2 and data[BODY_ID].shape[1] == 1:
        origin.append(data[BODY_ID].values[rows, 0])
    return np.unique(np.stack(origin, 1), axis=0, return_inverse=True)[1], known.get(FIRST_FRAME, rows)
