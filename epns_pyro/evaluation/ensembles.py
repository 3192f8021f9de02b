"""Ensembles in blocks: what is wanted of the states is kept, the states are not.

A block is some members of some trajectories over all of time. It takes at most BLOCK bytes, or one member of one trajectory where that is
more, so memory does not grow with the size of an ensemble beyond what is kept of it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import numpy as np
import xarray as xr

from epns_pyro.calibration.measurements import choose_lead_times, observable_dataset
from epns_pyro.data import Store, to_dataset
from epns_pyro.derived import judged_fields
from epns_pyro.durations import with_durations
from epns_pyro.evaluation.archive import Archive, Kept
from epns_pyro.evaluation.forecasters import Forecaster
from epns_pyro.presence import allows_absence, presence
from epns_pyro.state import StateSpec
from epns_pyro.systems import System

KEPT, RECORDED = "kept", "recorded"  # entries: of the initial state alone, or those of the recording
BLOCK = 128 * 2**20  # bytes
NUMBER = 8  # bytes of a channel while it is worked on, whatever it is stored as
ENSEMBLE, PATH = ("sample", "trajectory", "time"), ("trajectory", "time")
AWAY = "displacement"  # what is kept of how far positions are from the truth

Keep = Callable[[np.ndarray], Kept]  # states (sample, trajectory, time, *site, channel) or (trajectory, time, ...) -> what to keep of them


def forecast(
    forecaster: Forecaster,
    x0: np.ndarray,
    steps: int,
    members: int,
    seed: int,
    keep: Keep,
    *,
    there: Callable[[np.ndarray, slice], np.ndarray] | None = None,
    schedule: np.ndarray | None = None,
    past: np.ndarray | None = None,
    away: Callable[[np.ndarray, slice], np.ndarray] | None = None,
    archive: Archive | None = None,
) -> Kept:
    """Sample futures of x0 (trajectory, *site, channel) block by block, and join what `keep` keeps of them.

    Every block has a random stream of its own, made from (seed, block); which blocks there are depends on sizes only. Bodies that `there`
    leaves out of states and the trajectories they are of, (sample, trajectory, time, body), leave the futures. Schedule and past are those
    of `Forecaster.sample`. What `away` says of states and the trajectories they are of, (sample, trajectory, time), is kept as AWAY.
    Blocks that an interrupted evaluation has left in the archive are taken from there.
    """
    path = (steps + 1) * x0[0].size * NUMBER
    width = max(1, min(len(x0), BLOCK // path))
    height = max(1, BLOCK // (path * width))
    columns, number = [], 0
    for some in blocks(len(x0), width):
        parts = []
        for block in blocks(members, height):
            given = {name: part[some] for name, part in (("schedule", schedule), ("past", past)) if part is not None}
            count, stream = block.stop - block.start, _block_seed(seed, number)

            def sampled(some: slice = some, count: int = count, stream: int = stream, given: dict[str, np.ndarray] = given) -> Kept:
                states = forecaster.sample(x0[some], steps, count, stream, **given)
                kept = keep(states if there is None else without(states, there(states, some)))
                return kept if away is None else kept | {AWAY: xr.Dataset({AWAY: (ENSEMBLE, away(states, some))})}

            key = (forecaster.label, steps, count, stream, x0[some], *given.values())
            parts.append(sampled() if archive is None else archive.recall(key, sampled))
            number += 1
        columns.append(_join(parts, "sample"))
    return _join(columns, "trajectory")


def initial(store: Store, split: str, rows: np.ndarray | slice) -> np.ndarray:
    """Read what forecasters are given: the first states (trajectory, *site, channel), or frames if states are hidden."""
    frame, given = store.system.forecast_frame, store.system.frames_given
    x = store.read(split, rows, start=frame + 1 - given, stop=frame + 1)
    return x[:, 0] if given == 1 else x


def recorded(store: Store, split: str, rows: np.ndarray, keep: Keep, steps: int | None = None) -> Kept:
    """Read trajectories of a set block by block, from the first natural frame on, all or so many steps; join what `keep` keeps of them."""
    first, longest = store.system.forecast_frame, store.steps(split)
    last = longest if steps is None else min(longest, first + steps)
    path = (last + 1) * store.spec.channels * int(np.prod(store.sites(split))) * NUMBER
    some = (rows[block] for block in blocks(len(rows), max(1, BLOCK // path)))
    read = (store.read(split, block, start=first, stop=last + 1) for block in some)
    return _join([kept_of(store.system, x, keep, followed(store.system, x)) for x in read], "trajectory")


def kept_of(system: System, x: np.ndarray, keep: Keep, there: np.ndarray | None = None) -> Kept:
    """Join, block by block, what `keep` keeps of recorded states (trajectory, time, *site, channel), of bodies that are `there`."""
    kept = []
    for some in blocks(len(x), max(1, BLOCK // (x[0].size * NUMBER))):
        kept.append(keep(x[some] if there is None else without(x[some], there[some])))
    return _join(kept, "trajectory")


# -- bodies that come and go -------------------------------------------------------------------------------------------------


def followed(system: System, x: np.ndarray, entries: str = KEPT) -> np.ndarray | None:
    """Say which bodies a forecast is judged by: (trajectory, time, body) booleans of recorded states (trajectory, time, body, channel).

    They are there in the first frame and in the one that is judged: a future holds the bodies of its initial state, and those that enter
    later, or come back, are in no forecast. With recorded entries all that are there count. None where no body is ever absent.
    """
    if not allows_absence(system.spec):
        return None
    there = presence(system.spec, x)
    return None if there.all() else there if entries == RECORDED else there & there[:, :1]


def schedule_of(system: System, x: np.ndarray, entries: str = KEPT) -> np.ndarray | None:
    """Return what a forecast of recorded states x (trajectory, time, *site, channel) is told of them, as states after the first.

    That is how long steps last and, with recorded entries, who enters, where, and leaves. None where there is nothing to tell.
    """
    spec = system.spec
    if entries == RECORDED and allows_absence(spec) and not presence(spec, x).all():
        return x[:, 1:]
    if spec.duration is None:
        return None
    return with_durations(spec, np.broadcast_to(x[:, :1], x[:, 1:].shape), x[:, 1:])


def without(x: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Return states (*sample, trajectory, time, body, channel) without the bodies, NaN, that are not `there` (*sample, ..., time, body)."""
    return np.where(there[..., None], x, np.nan)


def displacement(spec: StateSpec, forecast: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return mean distances over bodies of forecasts (sample, trajectory, time, body, channel) from the truth: (sample, trajectory, time).

    Bodies that are absent, NaN, from either do not count; NaN where none is left.
    """
    place = spec.slice(spec.position.name if spec.position else "position")
    way = spec.space_of(truth[..., :1, :, :]).displacement(truth[..., place], forecast[..., place])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of frames without a body
        return np.nanmean(np.linalg.norm(way.astype(np.float64), axis=-1), axis=-1)


# -- what can be kept --------------------------------------------------------------------------------------------------------


def observe(system: System, x: np.ndarray) -> xr.Dataset:
    """Evaluate all observables on states (*dims, time, *site, channel): (sample, trajectory, time) or (trajectory, time).

    Where no body is left, a member is not alive, and the truth has no value, also of what is averaged over earlier frames.
    """
    time = system.frame_dt * np.arange(x.shape[-2 - len(system.spec.sites)])
    alive = system.alive(x) if _is_ensemble(system, x) else None
    with np.errstate(over="ignore", invalid="ignore"):
        data = observable_dataset(system.observables(x), time, time_unit=system.time_unit, alive=alive)
    if alive is None and allows_absence(system.spec) and not (left := presence(system.spec, x).any(-1)).all():
        return data.where(xr.DataArray(left, dims=PATH))
    return data


def as_fields(system: System, x: np.ndarray) -> xr.Dataset:
    """Label the fields of states (sample, trajectory, time, *site, channel) or (trajectory, time, *site, channel)."""
    data = to_dataset(system.spec, x, ENSEMBLE if _is_ensemble(system, x) else PATH, frame_dt=system.frame_dt)
    data["time"].attrs["units"] = system.time_unit
    return data


def observables(system: System) -> Keep:
    """Keep the observables of every frame, and `alive`."""
    return lambda x: {"observables": observe(system, x)}


def at_frames(system: System, frames: np.ndarray) -> Keep:
    """Keep observables and dynamic fields at some frames, with `alive`: evaluated along whole paths, for they may depend on the past."""
    axis, dynamic = -2 - len(system.spec.sites), [f.name for f in judged_fields(system.spec)]

    def keep(x: np.ndarray) -> Kept:
        seen = observe(system, x).isel(time=frames)
        fields = as_fields(system, x.take(frames, axis))[dynamic].assign_coords(time=seen["time"])
        return {"observables": seen, "fields": fields.assign(alive=seen["alive"]) if "alive" in seen else fields}

    return keep


def lead_frames(steps: int) -> np.ndarray:
    """Frames at which forecasts of `steps` steps are judged, (lead_time,): about ten evenly spaced ones that end at the last."""
    return choose_lead_times(xr.Dataset(coords={"time": np.arange(steps + 1)})).astype(int)


def blocks(count: int, size: int) -> Iterator[slice]:
    """Split range(count) into slices of at most `size`."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _is_ensemble(system: System, x: np.ndarray) -> bool:
    return x.ndim == len(ENSEMBLE) + len(system.spec.sites) + 1


def _join(parts: list[Kept], dim: str) -> Kept:
    if len(parts) == 1:
        return parts[0]
    exactly = {"data_vars": "minimal", "coords": "minimal", "compat": "override", "join": "override"}
    return {name: xr.concat([part[name] for part in parts], dim, **exactly) for name in parts[0]}


def _block_seed(seed: int, number: int) -> int:
    """Return the seed of a block; that of the first is the seed itself, so that one block is what the forecaster samples."""
    return seed if number == 0 else int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
