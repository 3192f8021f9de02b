"""The common signature of Pyro programs on trajectories: program(x0, path=None, *, horizon=None), and past= for those that remember."""

from __future__ import annotations

import weakref
from abc import abstractmethod
from typing import Any

import numpy as np
import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor

from epns_pyro.errors import ShapeError
from epns_pyro.presence import check_states
from epns_pyro.state import StateSpec


class PathProgram(PyroModule):
    """A Pyro model or guide of paths (batch, time, *site, channel) from known initial states.

    Parameters of `forward`
    -----------------------
    x0 : Tensor, (batch, *site, channel)
        Full initial states, static fields included.
    path : Tensor, (batch, time, *site, channel), optional
        The observed future; its length is the horizon.
    horizon : int, optional
        Number of steps to forecast if there is no path.
    past : Tensor, (batch, time, *site, channel), optional
        Recorded states before x0, for programs whose steps depend on more than the present state.
    """

    @property
    @abstractmethod
    def spec(self) -> StateSpec:
        """Spec of the states."""

    @property
    def absences(self) -> bool:
        """Whether bodies of x0 may be absent."""
        return False

    def __call__(
        self,
        x0: Tensor | np.ndarray,
        path: Tensor | np.ndarray | None = None,
        *,
        horizon: int | None = None,
        past: Tensor | np.ndarray | None = None,
    ) -> Any:
        """Run the program on tensors or arrays, cast to the dtype and device of its parameters."""
        more = {} if past is None else {"past": self._tensor(past)}
        return super().__call__(self._tensor(x0), None if path is None else self._tensor(path), horizon=horizon, **more)

    def _tensor(self, x: Tensor | np.ndarray) -> Tensor:
        x = torch.as_tensor(x)
        like = next(self.parameters(), x)
        return x.to(like.device, like.dtype if x.is_floating_point() else torch.int64)

    def _start(self, x0: Tensor, path: Tensor | None, horizon: int | None) -> int:
        """Check the arguments; return the number of steps."""
        spec = self.spec
        # SVI.step reads the attribute `unconstrained` of every parameter; with module_local_params Pyro 1.9 sets it on PyroParam only.
        # These parameters are unconstrained, so each is its own unconstrained form.
        for parameter in self.parameters():
            vars(parameter)["unconstrained"] = weakref.ref(parameter)
        check_states(spec, x0, absences=self.absences, what="x0")
        if x0.dim() < 2 + len(spec.sites):
            raise ShapeError(f"x0: expected (batch, {', '.join(spec.sites)}, channel), found {tuple(x0.shape)}: x0[None] for one state")
        if path is None:
            if horizon is None or horizon < 1:
                raise ShapeError(f"without a path the model needs horizon=, a number of steps of at least 1, found {horizon}")
            return horizon
        time = path.dim() - len(spec.sites) - 2
        if path.dim() != x0.dim() + 1 or path.shape[:time] + path.shape[time + 1 :] != x0.shape:
            raise ShapeError(f"path: expected (batch, time, *site, channel) to go with x0 {tuple(x0.shape)}, found {tuple(path.shape)}")
        if horizon is not None and horizon != path.shape[time]:
            raise ShapeError(f"horizon {horizon} contradicts the length of the path, {path.shape[time]}: leave it out")
        return path.shape[time]


def trajectory_plate(spec: StateSpec, x0: Tensor) -> pyro.plate:
    """Return the plate of independent trajectories, the last batch dimension of x0."""
    return pyro.plate("trajectory", x0.shape[x0.dim() - len(spec.sites) - 2], dim=-1)


def observed(spec: StateSpec, path: Tensor, t: int) -> Tensor:
    """Return the full state of step t of a path, counted from 1."""
    return path.select(path.dim() - len(spec.sites) - 2, t - 1)
