"""Windows of every k-th frame: states made anew of frames that lie farther apart, with the durations of the longer steps."""

from __future__ import annotations

import numpy as np
import torch

from epns_pyro.data.stores import Store
from epns_pyro.derived import derive, lead_frames, memory_frames, recorded_fields
from epns_pyro.errors import ConfigError
from epns_pyro.state import StateSpec


class Strides:
    """Strides to draw windows with.

    Parameters
    ----------
    spec : StateSpec
        Of states that say how long their step lasts.
    frame_dt : float
    strides : tuple of int
        In frames, each at least 1; every window has one of them, with equal probability.
    """

    def __init__(self, spec: StateSpec, frame_dt: float, strides: tuple[int, ...]) -> None:
        if spec.duration is None:
            raise ConfigError("strides: states do not say how long their step lasts: open the store with Store.timed()")
        self._spec, self._frame_dt, self._strides = spec, frame_dt, np.array(strides, dtype=np.int64)
        self._memory, self._lead = memory_frames(spec), lead_frames(spec)
        self._duration = spec.duration.name

    def check(self, store: Store, split: str, length: int, first_frame: int) -> None:
        """Raise ConfigError unless the trajectories of a set hold windows of so many steps at every stride."""
        longest, frames = int(self._strides.max()), store.steps(split) + 1
        needed = first_frame + (self._memory + length) * longest + 1
        if frames < needed:
            raise ConfigError(
                f"strides: a window at stride {longest} takes {needed} frames, those before it that the state remembers included; "
                f"set {split!r} has {frames}: choose smaller strides or cut longer trajectories"
            )

    def frames(self, rng: np.random.Generator, batch: int, length: int, first_frame: int, frames: int) -> np.ndarray:
        """Draw the frames of windows, those that the first state remembers before them: (batch, memory + length + 1)."""
        stride = self._strides[rng.integers(len(self._strides), size=batch)]
        starts = rng.integers(first_frame + self._memory * stride, frames - length * stride)
        return starts[:, None] + stride[:, None] * np.arange(-self._memory, length + 1)

    def states(self, frames: torch.Tensor, trajectories: torch.Tensor, numbers: np.ndarray) -> torch.Tensor:
        """Return the states of windows: (batch, length + 1, *site, channel).

        Parameters
        ----------
        frames : Tensor, (batch, memory + length + 1, *site, channel)
            States at these frames, as they are at stride 1.
        trajectories : Tensor, (batch, time, *site, channel)
            All states of the trajectory of each window.
        numbers : numpy.ndarray, (batch, memory + length + 1)
            Where the frames are in their trajectory.
        """
        spec, x = self._spec, frames.cpu().numpy()
        each = spec.get(trajectories, self._duration).flatten(2)[..., 0].cpu().numpy()  # (batch, time)
        clock = np.concatenate([np.zeros_like(each[:, :1]), np.cumsum(each, 1)], 1)
        times = np.take_along_axis(clock, numbers, 1)
        lasting = np.diff(times, axis=1, append=2 * times[:, -1:] - times[:, -2:-1])  # no step begins in the last frame
        recorded = {f.name: spec.get(x, f.name) if f.dynamic else spec.get(x[:, :1], f.name) for f in recorded_fields(spec)}
        recorded[self._duration] = lasting.reshape(*lasting.shape, *(1,) * len(spec.sites))
        return torch.from_numpy(derive(spec, recorded, self._frame_dt, skip=self._memory - self._lead))
