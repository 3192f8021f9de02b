"""Code of your own in one file: a system and a backbone, let in with --import. Nothing of epns-pyro is changed.

    epns-pyro data generate swarm --import examples/outside.py --out swarm.zarr
    epns-pyro train particles --import examples/outside.py --data swarm.zarr --set model.backbone=distances --out runs/swarm
    epns-pyro report runs/swarm

`epns_pyro.load("runs/swarm", imports=["examples/outside.py"])` is the same from Python, and `epns_pyro.testing` holds both to the contract
that ours are held to:

    from epns_pyro.testing import check_backbone, check_system
    check_system(SwarmConfig())
    check_backbone(DistancesConfig(width=8))
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pydantic
import torch
from torch import Tensor

from epns_pyro.backbones import BACKBONES, Backbone, BackboneConfig, Features, Signature
from epns_pyro.backbones.bodies.base import perceptron, safe_norm
from epns_pyro.state import Field, StateSpec
from epns_pyro.symmetry import Euclidean
from epns_pyro.systems import SYSTEMS, Observable, SetConfig, System, SystemConfig

# -- a system: agents in the plane that are drawn to their common centre and kicked at random ------------------------------------


@SYSTEMS.register("swarm")
class SwarmConfig(SystemConfig):
    """Overdamped agents: x' = x + pull (centre - x) dt + sigma sqrt(dt) e, e ~ Normal(0, 1).

    Parameters
    ----------
    agents : int
    pull : float
        Strength of the attraction to the centroid, 1/s.
    sigma : float
        Standard deviation of the kicks, m per square root of s.
    """

    name: Literal["swarm"] = "swarm"
    agents: int = pydantic.Field(default=4, ge=2)
    pull: pydantic.PositiveFloat = 0.5
    sigma: pydantic.PositiveFloat = 0.2
    sets: dict[str, SetConfig] = pydantic.Field(
        default={name: SetConfig(trajectories=n, steps=20) for name, n in (("train", 200), ("val", 40), ("test", 40))}
    )

    def build(self) -> Swarm:
        return Swarm(self)


class Swarm(System):
    """Agents in the plane, with their transition density: an oracle for every model of them."""

    name = "swarm"
    can_simulate = True
    has_oracle = True
    frame_dt = 0.1
    time_unit = "s"

    def __init__(self, config: SwarmConfig) -> None:
        self.config = config
        self.spec = StateSpec((Field("position", "1o", translates=True, unit="m"),), sites=("agent",), space=2)
        self.symmetry = Euclidean(2)

    def initial(self, n: int, rng: np.random.Generator) -> np.ndarray:
        return rng.standard_normal((n, self.config.agents, 2))

    def simulate(self, x0: np.ndarray, steps: int, seeds: np.ndarray, *, workers: int | None = None) -> np.ndarray:
        noise = np.stack([np.random.default_rng(seed).standard_normal((steps, *x0.shape[1:])) for seed in seeds], 1)
        path = [x0]
        for kick in noise:
            path.append(self._mean(path[-1]) + self._std * kick)
        return np.stack(path, 1)

    def transition_log_prob(self, x: np.ndarray, x_next: np.ndarray) -> np.ndarray:
        standard = (x_next - self._mean(x)) / self._std
        return -0.5 * (standard**2 + np.log(2 * np.pi * self._std**2)).sum((-2, -1))

    def observables(self, x: np.ndarray) -> dict[str, Observable]:
        spread = np.sqrt(((x - x.mean(-2, keepdims=True)) ** 2).sum(-1).mean(-1))
        return {"spread": Observable("spread about the centroid", "m", spread)}

    def alive(self, x: np.ndarray) -> np.ndarray:
        return np.logical_and.accumulate(np.isfinite(x).all((-2, -1)), axis=-1)

    @property
    def _std(self) -> float:
        return self.config.sigma * self.frame_dt**0.5

    def _mean(self, x: np.ndarray) -> np.ndarray:
        return x + self.config.pull * self.frame_dt * (x.mean(-2, keepdims=True) - x)


# -- a backbone: messages from distances alone -----------------------------------------------------------------------------------


@BACKBONES.register("distances")
class DistancesConfig(BackboneConfig):
    """Sums over the other bodies of functions of their distance and scalars."""

    name: Literal["distances"] = "distances"
    width: int = pydantic.Field(default=32, gt=0, description="channels of a message")

    def build(self, signature: Signature) -> Distances:
        return Distances(signature, self.width)


class Distances(Backbone):
    """Scalars and weights of directions from the distances between bodies: equivariant, for directions turn with the bodies."""

    equivariant = True

    def __init__(self, signature: Signature, width: int) -> None:
        super().__init__(signature)
        s = signature
        self.message = perceptron(2 * s.in_scalars + 1 + s.in_vectors, width, width)
        self.scalars = perceptron(width, width, s.out_scalars)
        self.along = torch.nn.Linear(width, s.out_vectors)
        self.mix = torch.nn.Linear(s.in_vectors, s.out_vectors, bias=False)

    def evaluate(self, positions: Tensor, features: Features) -> Features:
        apart = positions[..., None, :, :] - positions[..., :, None, :]  # (*batch, body, other body, space)
        own = features.scalars[..., :, None, :].expand(*apart.shape[:-1], -1)
        lengths = safe_norm(features.vectors)[..., None, :, :].expand(*apart.shape[:-1], -1)
        inputs = torch.cat([own, own.transpose(-3, -2), safe_norm(apart)[..., None], lengths], -1)
        messages = torch.nn.functional.silu(self.message(inputs))
        vectors = torch.einsum("...ijk,...ijs->...iks", self.along(messages), apart)
        vectors = vectors + torch.einsum("...iks,lk->...ils", features.vectors, self.mix.weight)
        return Features(self.scalars(messages.sum(-2)), vectors)
