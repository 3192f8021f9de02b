"""What baselines that are ordinary differential equations share.

They have no noise in time: what is random are the functions and, in a latent space, the start; the rest is a path that is seen through
observation noise. That makes them no transitions: one draw governs a whole trajectory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyro
from pyro import poutine
from torch import Tensor

from epns_pyro.errors import ConfigError
from epns_pyro.models.program import PathProgram
from epns_pyro.state import StateSpec


class GlobalDrawProgram(PathProgram):
    """A program whose functions are drawn once for all trajectories.

    Parameters
    ----------
    spec : StateSpec
    transitions : int
        Number of transitions of the training data, from all of which the functions are inferred.
    """

    def __init__(self, spec: StateSpec, transitions: int) -> None:
        super().__init__()
        self.transitions, self._spec = transitions, spec

    @property
    def spec(self) -> StateSpec:
        return self._spec

    @contextmanager
    def _of_all(self, path: Tensor | None) -> Iterator[None]:
        """Context of sites shared by all trajectories, batch shape (1,): their KL is scaled by the share of data in the minibatch."""
        scale = 1.0 if path is None else path.shape[:-2].numel() / self.transitions
        with pyro.plate("draw", 1, dim=-1), poutine.scale(scale=scale):
            yield


def rk4(derivative: Callable[[Tensor], Tensor], state: Tensor, dt: float, substeps: int = 1) -> Tensor:
    """Move a state on by dt with the classical Runge-Kutta method, in equal steps; error of order (dt / substeps)^4."""
    step = dt / substeps
    for _ in range(substeps):
        k1 = derivative(state)
        k2 = derivative(state + step / 2 * k1)
        k3 = derivative(state + step / 2 * k2)
        k4 = derivative(state + step * k3)
        state = state + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return state


def moving_fields(spec: StateSpec) -> tuple[str, str]:
    """Return the names of position and velocity, which have to be all that is dynamic.

    Raises
    ------
    ConfigError
        If the state has other fields, which a second-order equation cannot model.
    """
    dynamic = spec.dynamic_fields
    rates = {f.rate_of: f.name for f in dynamic if f.rate_of}
    pairs = [(f.name, rates[f.name]) for f in dynamic if f.translates and f.name in rates]
    if len(pairs) != 1 or len(dynamic) != 2:
        found = ", ".join(f.name for f in dynamic)
        raise ConfigError(f"an equation of second order needs a position and its rate as the only dynamic fields, found {found}")
    return pairs[0]
