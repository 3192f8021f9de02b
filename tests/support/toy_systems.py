"""Two tiny systems: drifting bodies that are kicked at random, and labelled stripes that shift at random."""

from __future__ import annotations

import numpy as np
import pydantic

from epns_pyro.state import Field, StateSpec
from epns_pyro.symmetry import Euclidean
from epns_pyro.systems.base import SYSTEMS, SetConfig, System, SystemConfig

WALKERS = StateSpec(
    fields=(
        Field("mass", dynamic=False, unit="kg"),
        Field("position", irreps="1o", translates=True, unit="m"),
        Field("velocity", irreps="1o", rate_of="position", unit="m/s"),
    ),
    space=2,
)


@SYSTEMS.register("toy_walkers")
class WalkersConfig(SystemConfig):
    name: str = "toy_walkers"
    sets: dict[str, SetConfig] = pydantic.Field(
        default_factory=lambda: {
            "train": SetConfig(trajectories=11, steps=8),
            "val": SetConfig(trajectories=3, steps=8),
            "same_init": SetConfig(trajectories=6, steps=8, initial_states=2),
        }
    )
    kick: float = 0.5

    def build(self) -> Walkers:
        return Walkers(self)


class Walkers(System):
    """Two bodies: v' = v + kick N(0, 1), x' = x + v dt."""

    name = "toy_walkers"
    can_simulate = True
    spec = WALKERS
    symmetry = Euclidean(space=2)
    frame_dt = 0.25
    time_unit = "s"

    def __init__(self, config: WalkersConfig) -> None:
        self.config = config

    def initial(self, n, rng):
        return self.spec.pack(
            mass=rng.uniform(1, 2, (n, 2)), position=10 + rng.standard_normal((n, 2, 2)), velocity=rng.standard_normal((n, 2, 2))
        )

    def simulate(self, x0, steps, seeds, *, workers=None):
        return np.stack([self._run(x, steps, np.random.default_rng(int(s))) for x, s in zip(x0, seeds, strict=True)])

    def _run(self, x, steps, rng):
        frames = [x]
        for _ in range(steps):
            x, v = frames[-1], self.spec.get(frames[-1], "velocity")
            y = self.spec.pack_dynamic(
                position=self.spec.get(x, "position") + v * self.frame_dt, velocity=v + self.config.kick * rng.standard_normal(v.shape)
            )
            frames.append(self.spec.advance(x, y))
        return np.stack(frames)

    def observables(self, x):
        return {}

    def alive(self, x):
        return np.ones(x.shape[:2], dtype=bool)


STRIPES = StateSpec(
    fields=(Field("cell", kind="label", size=4), Field("type", kind="category", size=3, of="cell", dynamic=False)),
    sites=("y", "x"),
    space=2,
    periodic=True,
)


@SYSTEMS.register("toy_stripes")
class StripesConfig(SystemConfig):
    name: str = "toy_stripes"
    sets: dict[str, SetConfig] = pydantic.Field(
        default_factory=lambda: {"train": SetConfig(trajectories=7, steps=5), "val": SetConfig(trajectories=2, steps=5)}
    )

    def build(self) -> Stripes:
        return Stripes(self)


class Stripes(System):
    """Three stripes of two columns on a 6 x 8 torus, which shift by 0 or 1 column a step."""

    name = "toy_stripes"
    can_simulate = True
    spec = STRIPES
    frame_dt = 1.0
    time_unit = "MCS"

    def __init__(self, config: StripesConfig) -> None:
        self.config = config

    def initial(self, n, rng):
        cell = np.broadcast_to(np.repeat(np.arange(4), 2), (n, 6, 8)).astype(np.uint16)
        types = np.concatenate([np.zeros((n, 1), int), rng.integers(1, 3, (n, 3))], 1).astype(np.uint16)
        return self.spec.pack(cell=cell, type=np.take_along_axis(types, cell.reshape(n, -1), 1).reshape(cell.shape))

    def simulate(self, x0, steps, seeds, *, workers=None):
        return np.stack([self._run(x, steps, np.random.default_rng(int(s))) for x, s in zip(x0, seeds, strict=True)])

    def _run(self, x, steps, rng):
        shifts = np.concatenate([[0], np.cumsum(rng.integers(0, 2, steps))])
        return np.stack([np.roll(x, int(s), axis=1) for s in shifts])

    def observables(self, x):
        return {}

    def alive(self, x):
        return np.ones(x.shape[:2], dtype=bool)
