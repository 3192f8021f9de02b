"""Random windows of trajectories for training, read from a store."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import numpy as np
import torch

from epns_pyro.context import DataContext
from epns_pyro.data.crops import check_crop, cropped
from epns_pyro.data.jitter import Jitter
from epns_pyro.data.stores import Store
from epns_pyro.data.strides import Strides
from epns_pyro.errors import CheckpointError, ConfigError, DataError
from epns_pyro.presence import missing

SHORT = 0.25  # share of windows that know fewer earlier frames than they could, as a forecast from a single state does


class Batch(NamedTuple):
    """x0 (batch, *site, channel) and its observed future, path (batch, time, *site, channel)."""

    x0: torch.Tensor
    path: torch.Tensor


class PastBatch(NamedTuple):
    """A batch, and the recorded states before its x0, past (batch, time, *site, channel); NaN in dynamic channels where not known."""

    past: torch.Tensor
    x0: torch.Tensor
    path: torch.Tensor


class Windows:
    """An endless stream of windows (x_t, x_{t+1..t+length}), uniform over trajectories and start frames.

    A set that fits into `memory` is kept there as one tensor. A larger one is read through a pool of that size: one block of
    trajectories (a few chunks) is replaced, first in first out, after as many windows as a block has were sampled. Blocks come in a
    shuffled order, each once per round, and all stay for the same time. Over many rounds every trajectory is therefore sampled equally
    often; over a short time, sampling is uniform only over the pool.

    Every process samples the same global minibatch and takes its own rows, so 1 and 2 processes see the same data.

    Parameters
    ----------
    store : Store
    split : str
    length : int
        Steps of a window after its first state; can be changed between batches.
    batch : int
        Windows of the global minibatch, over all ranks.
    seed : int
    first_frame : int, optional
        Windows start at this frame or later; by default after the burn-in of the system.
    rank, world_size : int
    memory : int
        Memory for the trajectories, in bytes.
    device : str or torch.device
        Device of the pool and of the windows.
    dtype : torch.dtype
        Dtype of real states. States of only labels and categories are int64.
    context : DataContext, optional
        Says from where positions are measured; by default from zero.
    strides : tuple of int
        A window takes every k-th frame, with k drawn from these; other strides than 1 need states that say how long their step lasts.
    earlier : int
        Frames before x0 that `draw_with_past` gives, for models with a history.
    crop : int, optional
        Of large label images a window shows a square of this side, pixels, around a random cell; see `epns_pyro.data.crops`.
    jitter : float
        Largest standard deviation of errors that are added to recorded positions, in their unit; see `epns_pyro.data.jitter`.
    """

    def __init__(
        self,
        store: Store,
        split: str,
        length: int,
        batch: int,
        *,
        seed: int = 0,
        first_frame: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        memory: int = 2 * 2**30,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        context: DataContext | None = None,
        strides: tuple[int, ...] = (1,),
        earlier: int = 0,
        crop: int | None = None,
        jitter: float = 0.0,
    ) -> None:
        if batch < 1 or batch % world_size:
            raise ConfigError(f"batch: {batch} windows cannot be shared evenly by {world_size} processes")
        store.require(split)
        if crop is not None:
            check_crop(store.spec)
        self.split, self.batch, self._earlier, self._crop = split, batch, earlier, crop
        if earlier and strides != (1,):
            raise ConfigError(f"strides {strides}: a window of earlier frames needs even frames: use strides (1,), or no history")
        self.first_frame = store.system.first_frame if first_frame is None else first_frame
        self._store, self._rank, self._world_size, self._context = store, rank, world_size, context
        self._frames = store.steps(split) + 1
        self._strides = None if strides == (1,) else Strides(store.spec, store.frame_dt, strides)
        self._jitter = Jitter(store, jitter) if jitter else None
        self.length = length
        self._rng = np.random.default_rng(seed)
        self._blocks = store.blocks(split)
        self._held, self._out = _dtypes(store, split, dtype)
        if self._strides:  # states are made anew of frames that lie farther apart, from positions as exact as they are stored
            self._held = torch.float64
        self._pool = self._allocate(memory, torch.device(device))
        self._queue: list[int] = []  # blocks still to come in this round
        self._resident = [-1] * len(self._pool)  # block in each slot
        self._oldest = 0  # slot to be replaced next
        self._drawn = 0  # windows since the last replacement
        self._fill(list(range(len(self._pool))) if self.in_memory else [self._next_block() for _ in self._pool])

    # -- drawing -----------------------------------------------------------------------------------------------------------

    def draw(self) -> Batch:
        """Return this process's rows of the next minibatch."""
        return self._draw(0)[1]

    def draw_with_past(self) -> PastBatch:
        """Return this process's rows of the next minibatch, with the frames before them.

        Before the first frame of a trajectory nothing is known. In a quarter of the windows some frames more are hidden, so that a model
        learns to go on from few.
        """
        past, batch = self._draw(self._earlier)
        return PastBatch(past, *batch)

    def _draw(self, earlier: int) -> tuple[torch.Tensor, Batch]:
        if not self.in_memory:
            self._refresh()
        rows = self._rng.integers(len(self._rows), size=self.batch)
        share = self.batch // self._world_size
        mine = slice(self._rank * share, (self._rank + 1) * share)
        if self._strides:
            frames = self._strides.frames(self._rng, self.batch, self.length, self.first_frame, self._frames)
        else:
            starts = self._rng.integers(self.first_frame, self._frames - self.length, size=self.batch)
            before = earlier + (self._jitter.earlier if self._jitter else 0)
            frames = starts[:, None] + np.arange(-before, self.length + 1)
        slots, device = torch.from_numpy(self._rows[rows[mine]]), self._pool.device
        windows = self._pool.flatten(0, 1)[slots[:, None].to(device), torch.from_numpy(frames[mine].clip(min=0)).to(device)]
        if self._strides:
            between = self._pool.flatten(0, 1)[slots.to(device)]
            windows = self._strides.states(windows, between, frames[mine]).to(device)
        if self._crop is not None:
            windows = cropped(self._store.spec, windows, self._crop, self._rng.random((self.batch, 3))[mine])
        if self._jitter:
            seeds = self._rng.integers(2**63, size=self.batch)
            windows = self._jitter(windows, frames[mine], seeds[mine])[:, self._jitter.earlier :]
            frames = frames[:, self._jitter.earlier :]
        windows = windows.to(self._out)
        past = windows[:, :earlier]
        if earlier:
            short = self._rng.random(self.batch) < SHORT
            kept = np.where(short, self._rng.integers(0, earlier, self.batch), earlier)
            known = (np.arange(earlier) >= (earlier - kept)[:, None]) & (frames[:, :earlier] >= 0)
            there = torch.from_numpy(known[mine]).to(past.device).view(*past.shape[:2], *[1] * (past.dim() - 2))
            past = torch.where(there, past, missing(self._store.spec, past))
        return past, Batch(windows[:, earlier], windows[:, earlier + 1 :])

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return self.draw()

    @property
    def length(self) -> int:
        """Steps of a window after its first state."""
        return self._length

    @length.setter
    def length(self, length: int) -> None:
        check_window(self._store, self.split, length, self.first_frame)
        if self._strides:
            self._strides.check(self._store, self.split, length, self.first_frame)
        self._length = length

    @property
    def count(self) -> int:
        """Number of different windows of the current length: one epoch."""
        return sum(map(len, self._blocks)) * (self._frames - self.first_frame - self._length)

    @property
    def in_memory(self) -> bool:
        """Whether the whole set is in memory."""
        return len(self._pool) == len(self._blocks)

    # -- the pool ----------------------------------------------------------------------------------------------------------

    def _allocate(self, memory: int, device: torch.device) -> torch.Tensor:
        """Make the pool (slot, trajectory, time, *site, channel)."""
        return torch.zeros(pool_shape(self._store, self.split, memory, self._held), dtype=self._held, device=device)

    def _next_block(self) -> int:
        if not self._queue:
            self._queue = self._rng.permutation(len(self._blocks)).tolist()
        return self._queue.pop()

    def _refresh(self) -> None:
        windows_of_a_block = self._pool.shape[1] * (self._frames - self.first_frame - 1)
        if self._drawn >= windows_of_a_block:
            resident = self._resident.copy()
            resident[self._oldest] = self._next_block()
            self._oldest = (self._oldest + 1) % len(resident)
            self._drawn = 0
            self._fill(resident)
        self._drawn += self.batch

    def _fill(self, resident: list[int]) -> None:
        """Read the blocks that have changed, and list the rows of the pool that hold a trajectory."""
        for slot, (old, new) in enumerate(zip(self._resident, resident, strict=True)):
            if old != new:
                block = self._blocks[new]
                x = self._store.read(self.split, block)
                x = self._context.to_local(x) if self._context else x
                self._pool[slot, : len(block)] = torch.from_numpy(x).to(self._held)
        self._resident = resident
        size = self._pool.shape[1]
        self._rows = np.concatenate([slot * size + np.arange(len(self._blocks[b])) for slot, b in enumerate(resident)])

    # -- checkpoints -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return plain data from which `load_state_dict` continues exactly."""
        return {
            "set": [self.split, sum(map(len, self._blocks)), self._frames, len(self._blocks), len(self._pool)],
            "rng": self._rng.bit_generator.state,
            "length": self.length,
            "queue": list(self._queue),
            "resident": list(self._resident),
            "oldest": self._oldest,
            "drawn": self._drawn,
        }

    def load_state_dict(self, state: dict[str, Any]) -> Self:
        """Continue from a `state_dict`.

        Raises
        ------
        CheckpointError
            If the state was taken with another set or another amount of memory.
        """
        expected = self.state_dict()["set"]
        if list(state["set"]) != expected:
            raise CheckpointError(
                "the checkpoint was made with other data: (set, trajectories, frames, blocks, blocks in memory) "
                f"was {tuple(state['set'])} and is {tuple(expected)}"
            )
        self._rng.bit_generator.state = state["rng"]
        self.length, self._oldest, self._drawn = state["length"], state["oldest"], state["drawn"]
        self._queue = list(state["queue"])
        self._fill(list(state["resident"]))
        return self


def check_window(store: Store, split: str, length: int, first_frame: int) -> None:
    """Raise ConfigError unless the trajectories of a set hold a window of so many steps from `first_frame` on."""
    frames = store.steps(split) + 1
    longest = frames - 1 - first_frame
    if not 1 <= length <= longest:
        raise ConfigError(
            f"window length: set {split!r} has {frames} frames and windows start at frame {first_frame} or later, "
            f"so a length (training.horizon) is 1 to {longest}; found {length}"
        )


def pool_shape(store: Store, split: str, memory: int, dtype: torch.dtype = torch.float32) -> tuple[int, ...]:
    """Return the shape (slot, trajectory, time, *site, channel) of the pool of a set in `memory` bytes.

    Raises
    ------
    DataError
        If not even one block fits.
    """
    blocks = store.blocks(split)
    shape = (max(map(len, blocks)), store.steps(split) + 1, *store.sites(split), store.spec.channels)
    slot = math.prod(shape) * dtype.itemsize
    slots = min(memory // slot, len(blocks))
    if slots < 1:
        raise DataError(
            f"{store.path}: {shape[0]} trajectories of set {split!r} are read at a time and take {slot / 2**20:.3g} MiB, "
            f"more than the memory of {memory / 2**20:.3g} MiB for windows: allow more, or write the store in smaller chunks"
        )
    return (slots, *shape)


def _dtypes(store: Store, split: str, real: torch.dtype) -> tuple[torch.dtype, torch.dtype]:
    """Return the dtype in which states are held and the one in which they are given out."""
    if any(f.kind == "real" for f in store.spec.fields):
        return real, real
    return torch.from_numpy(store.read(split, 0, stop=1)).dtype, torch.int64
