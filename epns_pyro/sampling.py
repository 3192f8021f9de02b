"""Ensembles of futures on disk: written block by block, here or by the workers of a cluster, and completed by a rerun.

An ensemble grows in FILE.partial, a zarr store of its final size. Every block of members has a random stream and chunks of its own, so
that it does not matter who samples which, and when. The attribute PROGRESS says what is being made and how many blocks of it are there.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from epns_pyro.cluster import Cluster
from epns_pyro.data import open_store, to_dataset
from epns_pyro.data.writing import Identity
from epns_pyro.durations import nominal
from epns_pyro.errors import ConfigError, DataError
from epns_pyro.later import later
from epns_pyro.models import Feedback
from epns_pyro.runs import load
from epns_pyro.whole import whole

if TYPE_CHECKING:
    import xarray as xr
    import zarr

    from epns_pyro.data import Store
    from epns_pyro.simulator import Block, Simulator
else:
    xr, zarr = later("xarray"), later("zarr")

DIMS = ("sample", "trajectory", "time")
PROGRESS = "epns_pyro_progress"
CHUNK_BYTES = 16 * 2**20
PART_BYTES = 32 * 2**20  # of states that are in memory at once; of a longer block, futures are collected in a file


@dataclass(frozen=True)
class Request:
    """What is asked for: futures of recorded initial states.

    Parameters
    ----------
    run : Path
    store : Path, optional
        With the initial states; by default the one that the run was trained on.
    trajectory : int, optional
        Of the test set, or of the first set where there is none; all by default.
    members, steps, seed : int
    recorded_entries : bool
        Whether bodies enter and leave as they were recorded, or those of the initial state stay.
    frame_dt : float, optional
        Time step, for models of uneven frames.
    mean_feedback : bool
        Feed back the mean of the emission, which gives no sample of the model.
    device : str
    compiled : bool
    imports : tuple of str
        Modules or Python files that the run needs.
    """

    run: Path
    members: int
    steps: int
    store: Path | None = None
    trajectory: int | None = None
    seed: int = 0
    recorded_entries: bool = False
    frame_dt: float | None = None
    mean_feedback: bool = False
    device: str = "cpu"
    compiled: bool = False
    imports: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ensemble:
    """A request with the simulator and the initial states that it names.

    Parameters
    ----------
    request : Request
    sim : Simulator
    x0 : (trajectory, *site, channel), or (trajectory, time, *site, channel) where states are hidden
    schedule, past : (trajectory, time, *site, channel), optional
        Recorded states after and before x0, see `Simulator.rollout`.
    """

    request: Request
    sim: Simulator
    x0: np.ndarray
    schedule: np.ndarray | None = None
    past: np.ndarray | None = None

    @classmethod
    def of(cls, request: Request) -> Ensemble:
        """Load what a request names.

        Raises
        ------
        DataError, ConfigError, CheckpointError
            If something is not there, or does not go together.
        """
        sim = load(request.run, device=request.device, imports=request.imports)
        path = request.store or Path(sim.store)
        if request.store is None and not path.exists():
            raise DataError(
                f"{path}: the data that {request.run} was trained on are not there: name a store with initial states with --from"
            )
        store = open_store(path).states_for(sim.spec, sim.context.frame_dt)
        split, index = "test" if "test" in store.splits else store.splits[0], request.trajectory
        schedule = _schedule(store, split, index, request.steps, sim.transition.earlier_frames) if request.recorded_entries else None
        if request.frame_dt and (schedule is not None or store.spec.duration is None):
            raise ConfigError(
                "--frame-dt is for models of uneven frames (training.strides), and goes without --entries recorded, which has its own times"
            )
        x0, past = given(sim, store, split, index)
        if not sim.infers_states:
            x0 = nominal(store.spec, x0, request.frame_dt)
        return cls(request, sim.compile() if request.compiled else sim, x0, schedule, past)

    @property
    def trajectories(self) -> int:
        return len(self.x0)

    @property
    def members_per_block(self) -> int:
        return max(1, self.sim.transition.at_once(torch.as_tensor(self.x0)) // self.trajectories)

    @property
    def blocks(self) -> int:
        """Number of blocks, each of some members of all trajectories."""
        return -(-self.request.members // self.members_per_block)

    @property
    def nbytes(self) -> int:
        """Size of the result before compression."""
        return self.request.members * (self.request.steps + 1) * self.x0.size * 4

    @cached_property
    def identity(self) -> str:
        """What makes the futures what they are, as JSON: the request, the weights and the initial states."""
        digest = hashlib.sha256()
        for states in (self.x0, self.past, self.schedule):
            digest.update(b"" if states is None else np.ascontiguousarray(states).tobytes())
        for name, weights in self.sim.transition.state_dict().items():
            digest.update(name.encode())
            digest.update(weights.detach().cpu().numpy().tobytes())
        asked = {key: value for key, value in asdict(self.request).items() if key not in ("run", "store", "imports")}
        return json.dumps(asked | {"from": digest.hexdigest(), "members_per_block": self.members_per_block})

    @property
    def width(self) -> int:
        """Number of trajectories that are sampled at a time."""
        if self.sim.spec.duration is not None:  # times are those of all trajectories together
            return self.trajectories
        return min(self.trajectories, max(1, self.sim.transition.at_once(torch.as_tensor(self.x0))))

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame of the trajectories that one member has at a time."""
        return self.x0[0].size * self.width * max(4, self.x0.itemsize)

    @property
    def members_per_group(self) -> int:
        """Members of a block whose futures are in memory at once: a divisor of those of a block."""
        fit = max(1, PART_BYTES // (self.frame_bytes * (self.request.steps + 1)))
        return max(d for d in range(1, self.members_per_block + 1) if self.members_per_block % d == 0 and (d <= fit or d == 1))

    def sample(self, number: int) -> Iterator[tuple[slice, slice, xr.Dataset]]:
        """Sample a block by its number, in parts: which members and trajectories they have, and their states with `alive`."""
        request, across = self.request, -(-self.trajectories // self.width)
        span = max(1, PART_BYTES // (self.frame_bytes * min(self.members_per_block, request.members)))
        blocks = self.sim.rollout_blocks(
            self.x0,
            steps=request.steps,
            members=request.members,
            seed=request.seed,
            schedule=self.schedule,
            past=self.past,
            feedback=Feedback.PUSHFORWARD if request.mean_feedback else Feedback.ANCESTRAL,
            block_size=self.members_per_block * self.width,
            only=range(number * across, (number + 1) * across),
            inferred=self._inferred,
            span=span,
        )
        for block in whole_futures(blocks, request.steps + 1, self.members_per_group):
            yield block.samples, block.trajectories, self._labelled(block.states)

    @cached_property
    def _inferred(self) -> torch.Tensor | None:
        """Hidden states that all members start from: they are drawn together, once for all blocks."""
        return self.sim.inferred(self.x0, self.request.members, self.request.seed)

    def _labelled(self, states: np.ndarray) -> xr.Dataset:
        dataset = to_dataset(self.sim.spec, states, DIMS, frame_dt=self.request.frame_dt or self.sim.context.frame_dt)
        return dataset.assign(alive=(DIMS, self.sim.system.alive(states)))

    # -- on disk ---------------------------------------------------------------------------------------------------------------

    def write(self, out: Path, *, cluster: Cluster | None = None, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Sample the ensemble into FILE.zarr or FILE.nc, or complete what an interrupted run has left.

        Parameters
        ----------
        out : Path
        cluster : Cluster, optional
            Workers that sample the blocks; the ensemble does not depend on it.
        progress : callable
            Called as progress(done, total) with numbers of members.
        """
        partial = out.with_name(out.name + ".partial")
        done, members = self._begin(partial), self.request.members
        progress(min(done * self.members_per_block, members), members)
        left = range(done, self.blocks)
        if cluster:
            finished = cluster.map(_Remote(self._for_workers(), partial.resolve(), uuid.uuid4().hex), left)
        else:
            finished = map(functools.partial(self._write_block, path=partial), left)
        for number in finished:
            _note(partial, self.identity, number + 1)
            progress(min((number + 1) * self.members_per_block, members), members)
        _finish(partial, out)

    def _begin(self, partial: Path) -> int:
        """Create the store that the ensemble grows in, if this one is not there yet; return how many blocks it has."""
        if (found := _progress(partial)) and found["identity"] == self.identity:
            return int(found["blocks"])
        shutil.rmtree(partial, ignore_errors=True)
        request, example = self.request, self._example()
        group = zarr.create_group(partial, attributes=Identity.of(self.sim.system).attributes())
        whole = {"sample": request.members, "trajectory": self.trajectories, "time": request.steps + 1}
        for name, variable in example.variables.items():
            sizes = {str(d): whole.get(str(d), n) for d, n in variable.sizes.items()}
            group.create_array(
                str(name),
                shape=tuple(sizes.values()),
                chunks=tuple(_chunks(sizes, self.members_per_group, self.width, variable.dtype.itemsize).values()),
                dtype=variable.dtype,
                dimension_names=list(sizes),
                compressors=zarr.codecs.ZstdCodec(level=0, checksum=True),  # without a checksum a changed byte is read as data
                attributes=variable.attrs,
            )
        told = {"run": str(request.run), "seed": request.seed, "feedback": "mean" if request.mean_feedback else "sample"}
        group.update_attributes(told | {"entries": "recorded" if request.recorded_entries else "kept"})
        _note(partial, self.identity, 0)
        return 0

    def _example(self) -> xr.Dataset:
        """One step of one member, which has all variables of the ensemble."""
        schedule = None if self.schedule is None else self.schedule[:, :1]
        request, sim = replace(self.request, members=1, steps=1), replace(self.sim, sampler=None)
        *_, dataset = next(replace(self, request=request, sim=sim, schedule=schedule, x0=self.x0, past=self.past).sample(0))
        return dataset

    def _write_block(self, number: int, *, path: Path) -> int:
        """Sample a block into the store that is there; return its number. The first block has what all members share."""
        arrays = dict(zarr.open_group(path, mode="r+", use_consolidated=False).arrays())
        for samples, trajectories, dataset in self.sample(number):
            place = {"sample": samples, "trajectory": trajectories}
            for name, variable in dataset.variables.items():
                if "sample" in variable.dims or number == 0:
                    arrays[str(name)][tuple(place.get(str(d), slice(None)) for d in variable.dims)] = variable.values
        return number

    def _for_workers(self) -> Request:
        """Return the request with paths that mean the same in any folder."""
        imports = tuple(str(Path(name).resolve()) if name.endswith(".py") else name for name in self.request.imports)
        store = self.request.store or Path(self.sim.store)
        return replace(self.request, run=self.request.run.resolve(), store=store.resolve(), imports=imports)


@dataclass(frozen=True)
class _Remote:
    """What a worker needs to write blocks by their numbers. Calls that share `call` share what was loaded for them."""

    request: Request
    path: Path
    call: str

    def __call__(self, number: int) -> int:
        return _loaded(self.request, self.call)._write_block(number, path=self.path)


@lru_cache(maxsize=1)
def _loaded(request: Request, call: str) -> Ensemble:
    return Ensemble.of(request)


def given(sim: Simulator, store: Store, split: str, index: int | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Read what a model starts from, at the first frame that has all it may know before it.

    Returns
    -------
    x0 : ndarray, (trajectory, *site, channel)
        Where states are hidden: the frames given, (trajectory, time, *site, channel).
    past : ndarray, (trajectory, time, *site, channel), optional
        The states before x0 of a model with a history.

    Raises
    ------
    DataError
        If the trajectories are shorter than the history.
    """
    if sim.infers_states:
        return store.read(split, index, stop=store.system.frames_given), None
    earlier = sim.transition.earlier_frames
    if earlier > store.steps(split):
        raise DataError(f"{store.path}: the model has a history of {earlier + 1} frames, found {store.steps(split) + 1} in set {split!r}")
    frames = store.read(split, index, stop=earlier + 1)
    return frames[:, -1], frames[:, :-1] if earlier else None


def _schedule(store: Store, split: str, index: int | None, steps: int, first: int) -> np.ndarray:
    """Return the recorded states after the initial ones, which are frame number `first`: (trajectory, time, *site, channel)."""
    left = store.steps(split) - first
    if left < steps:
        raise DataError(f"--entries recorded: set {split!r} of {store.path} has {left} steps after the frames given, found --steps {steps}")
    return store.read(split, index, stop=first + steps + 1)[:, first + 1 :]


def whole_futures(blocks: Iterable[Block], frames: int, group: int) -> Iterator[Block]:
    """Turn blocks that come in parts along time into blocks of whole futures, of at most `group` members where there is more than one part.

    The parts are collected in a file, which is gone afterwards.
    """
    with tempfile.TemporaryFile() as file:
        for block in blocks:
            if block.states.shape[2] == frames:
                yield block
                continue
            members, trajectories, steps, *state = block.states.shape
            frame = block.states[0, 0, 0].nbytes
            for row, part in enumerate(block.states.reshape(-1, steps, *state)):
                file.seek((row * frames + block.times.start) * frame)
                file.write(np.ascontiguousarray(part).tobytes())
            if block.times.start + steps < frames:
                continue
            for first in range(0, members, group):
                count = min(group, members - first)
                shape = (count, trajectories, frames, *state)
                file.seek(first * trajectories * frames * frame)
                states = np.frombuffer(file.read(count * trajectories * frames * frame), block.states.dtype).reshape(shape)
                samples = slice(block.samples.start + first, block.samples.start + first + count)
                yield block._replace(samples=samples, states=states, times=slice(0, frames))


def _chunks(sizes: dict[str, int], members: int, trajectories: int, itemsize: int) -> dict[str, int]:
    """Return the sizes of a chunk: the members and trajectories that are written together, and as many frames as keep it small."""
    together = {"sample": members, "trajectory": trajectories}
    chunks = {d: min(together.get(d, n), n) for d, n in sizes.items()}
    frame = itemsize * math.prod(n for d, n in chunks.items() if d != "time")
    return {d: min(n, max(1, CHUNK_BYTES // max(1, frame))) if d == "time" else n for d, n in chunks.items()}


def _progress(partial: Path) -> Any:
    """Return what `_note` wrote; None where there is nothing, or nothing that can be read."""
    try:
        return zarr.open_group(partial, mode="r", use_consolidated=False).attrs.get(PROGRESS)
    except (OSError, ValueError):
        return None


def _note(partial: Path, identity: str, blocks: int) -> None:
    zarr.open_group(partial, mode="r+", use_consolidated=False).update_attributes({PROGRESS: {"identity": identity, "blocks": blocks}})


def _finish(partial: Path, out: Path) -> None:
    if out.suffix == ".zarr":
        os.replace(partial, out)
        del zarr.open_group(out, mode="r+", use_consolidated=False).attrs[PROGRESS]
        return
    with xr.open_zarr(partial, consolidated=False, chunks=None) as dataset:
        del dataset.attrs[PROGRESS]
        with whole(out, ".whole") as temporary:
            dataset.drop_encoding().to_netcdf(temporary, engine="h5netcdf")
    shutil.rmtree(partial)
