"""What a picture shows: trajectories by source, with the system that they are of."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from epns_pyro.data import Store, files, layout, to_dataset
from epns_pyro.data.layout import TIME, TRAJECTORY
from epns_pyro.derived import lead_frames
from epns_pyro.errors import DataError, nearest
from epns_pyro.plain import parse_json
from epns_pyro.presence import allows_absence, presence
from epns_pyro.simulator import Simulator
from epns_pyro.state import StateSpec
from epns_pyro.systems import SYSTEMS, System

SAMPLE = "sample"
TRUTH, MODEL = "truth", "model"
MOST_RUNS = 200  # of a set of a store that are read


Shown = tuple[str, str, np.ndarray]  # name, source and states (time, *site, channel) of a run that is drawn


@dataclass(frozen=True)
class Futures:
    """Trajectories to look at.

    Parameters
    ----------
    system : System
        Its observables and units.
    states : dict
        Source, "truth" or "model" -> (run, time, *site, channel), float64 or integers; what has a truth has it first.
    frame_dt : float
        Time between two frames.
    start : float
        Time of the first frame.
    """

    system: System
    states: dict[str, np.ndarray]
    frame_dt: float
    start: float = 0.0

    @property
    def spec(self) -> StateSpec:
        return self.system.spec

    def time(self, source: str) -> np.ndarray:
        """Times of the frames of a source, in the time unit of the system: (time,)."""
        return self.start + self.frame_dt * np.arange(self.states[source].shape[1])

    def shown(self, runs: int) -> list[Shown]:
        """Return the first runs: one truth beside members of the model, or runs of the one source that there is."""
        found = []
        alone = len(self.states) == 1
        for source, x in self.states.items():
            single = source == TRUTH and not alone
            word = {TRUTH: "trajectory", MODEL: "member"}[source]
            found += [(TRUTH if single else f"{word} {k + 1}", source, x[k]) for k in range(min(len(x), 1 if single else runs))]
        return found

    def examples(self, runs: int) -> xr.Dataset:
        """Return the first runs, as long as the shortest of them, as fields: (source, trajectory = 1, time, *site[, space])."""
        shown = self.shown(runs)
        frames = min(len(x) for _, _, x in shown)
        states = np.stack([x[None, :frames] for _, _, x in shown])
        data = to_dataset(self.spec, states, ("source", TRAJECTORY, TIME), frame_dt=self.frame_dt)
        return data.assign_coords(source=[name for name, _, _ in shown])

    def quantiles(self, names: Sequence[str] = (), levels: Sequence[float] = (0.1, 0.5, 0.9)) -> xr.Dataset:
        """Return quantiles over runs of some observables, or of those that the system is compared by.

        Returns
        -------
        Dataset
            `value` (source, initial_state = 1, observable, time, quantile), with coordinates `label` and `unit` (observable).

        Raises
        ------
        DataError
            If the system has no observable of a name.
        """
        found = {source: self.system.observables(x) for source, x in self.states.items()}
        known = next(iter(found.values()))
        if wrong := [name for name in names if name not in known]:
            raise DataError(f"no observable {wrong[0]!r}: {nearest(wrong[0], known)}")
        chosen = list(names or self.system.key_observables or known)
        time = max((self.time(source) for source in self.states), key=len)
        value = np.full((len(found), 1, len(chosen), len(time), len(levels)), np.nan)
        for i, observables in enumerate(found.values()):
            for j, name in enumerate(chosen):
                values = np.asarray(observables[name].values, float)  # (run, time)
                with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # times at which nothing is left are NaN
                    value[i, 0, j, : values.shape[1]] = np.nanquantile(values, levels, axis=0).T
        return xr.Dataset(
            {"value": (("source", "initial_state", "observable", TIME, "quantile"), value)},
            coords={
                "source": list(found),
                "observable": chosen,
                TIME: (TIME, time, {"units": self.system.time_unit}),
                "quantile": list(levels),
                "label": ("observable", [known[name].label for name in chosen]),
                "unit": ("observable", [known[name].unit for name in chosen]),
            },
        )


def sample_futures(
    sim: Simulator, store: Store, *, trajectory: int = 0, split: str | None = None, members: int, steps: int, seed: int = 0
) -> Futures:
    """Sample futures of a recorded initial state, beside all recorded futures of that state.

    They start at the first frame that has all before it that a model may know. Where bodies come and go, truth and futures hold those of
    the initial state, until the recording has lost them.

    Parameters
    ----------
    sim : Simulator
    store : Store
    trajectory : int
        Number in the set whose initial state is taken.
    split : str, optional
        The set; by default `same_init`, which has many true futures of one state, else `test`.
    members, steps, seed : int
    """
    split = split or next(name for name in ("same_init", "test", *store.splits) if name in store.splits)
    before = store.system.frames_given - 1 if sim.infers_states else sim.transition.earlier_frames
    first = max(store.system.forecast_frame, before)
    if not 0 <= trajectory < store.size(split):
        raise DataError(f"{store.path}: set {split!r} has trajectories 0 to {store.size(split) - 1}, found {trajectory}")
    if store.steps(split) < first:
        raise DataError(f"{store.path}: a forecast starts at frame {first}, and set {split!r} has frames 0 to {store.steps(split)}")
    known = store.read(split, start=first - before, stop=first + 1)
    same = np.flatnonzero([np.array_equal(x, known[trajectory], equal_nan=x.dtype.kind == "f") for x in known])[:MOST_RUNS]
    truth = store.read(split, same, start=first, stop=first + steps + 1)
    own = known[trajectory][None]
    start, past = (own, None) if sim.infers_states else (own[:, -1], own[:, :-1] if before else None)
    blocks = sim.rollout_blocks(start, steps=steps, members=members, seed=seed, past=past)
    model = np.concatenate([block.states[:, 0] for block in blocks])
    exact = model.astype(np.float64) if model.dtype.kind == "f" else model
    if allows_absence(store.spec) and len(same) == 1:
        truth, exact = _of_the_same_bodies(store.spec, truth, exact)
    return Futures(sim.system, {TRUTH: truth, MODEL: exact}, store.frame_dt, first * store.frame_dt)


def _of_the_same_bodies(spec: StateSpec, truth: np.ndarray, futures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Leave out of truth (1, time, body, channel) and futures (sample, time, body, channel) who entered later or has left the recording."""
    there = presence(spec, truth)
    there = there & there[:, :1]
    stays = there[:, np.arange(futures.shape[1]).clip(max=there.shape[1] - 1)]  # after the recording as in its last frame
    return np.where(there[..., None], truth, np.nan), np.where(stays[..., None], futures, np.nan)


def recorded(store: Store, *, split: str | None = None, first: int = 0, steps: int | None = None) -> Futures:
    """Return trajectories of a set of a store, from number `first` on; by default of the set `test`."""
    split = split or ("test" if "test" in store.splits else store.splits[0])
    if first >= store.size(split):
        raise DataError(f"{store.path}: set {split!r} has trajectories 0 to {store.size(split) - 1}, found {first}")
    if steps is not None and steps > store.steps(split):
        raise DataError(f"{store.path}: set {split!r} has {store.steps(split)} steps, found {steps}")
    x = store.read(split, slice(first, first + MOST_RUNS), stop=None if steps is None else steps + 1)
    return Futures(store.system, {TRUTH: x}, store.frame_dt)


def is_futures(path: Path) -> bool:
    """Whether a file holds futures that `epns-pyro simulate` wrote, not a store."""
    return not files.contents(path)[0] and SAMPLE in files.open_dataset(path).dims


def read_futures(path: Path, *, trajectory: int = 0) -> Futures:
    """Read the futures of one initial state from a file that `epns-pyro simulate` wrote.

    Raises
    ------
    DataError
        If the file does not say what its fields are, or has no such initial state.
    """
    dataset = files.open_dataset(path)
    if "state_spec" not in dataset.attrs or "system_config" not in dataset.attrs:
        raise DataError(f"{path}: does not say what its fields are: epns-pyro simulate writes a file that does")
    count = dataset.sizes.get(TRAJECTORY, 1)
    if not 0 <= trajectory < count:
        raise DataError(f"{path}: has futures of initial states 0 to {count - 1}, found {trajectory}")
    config = parse_json(dataset.attrs["system_config"], where=f"{path}: the attribute 'system_config'")
    system, frame_dt = SYSTEMS.parse(config).build(), float(dataset.attrs["frame_dt"])
    one = dataset.isel({TRAJECTORY: slice(trajectory, trajectory + 1)}, missing_dims="ignore")
    members = [layout.decode(system.spec, one.isel({SAMPLE: k}), frame_dt)[0] for k in range(one.sizes[SAMPLE])]
    return Futures(system, {MODEL: np.stack(members)}, frame_dt, start=frame_dt * lead_frames(system.spec))
