"""Interacting Gaussian process ODE (GP-ODE): the self-interaction and the pair interaction are draws of Gaussian processes.

    dr_i/dt = v_i,   dv_i/dt = f(v_i, c_i) + sum_{j != i} g(r_j - r_i, v_j - v_i, c_j, c_i),    f, g ~ GP,   c: static fields
    x_t | f, g ~ Normal(ODE(x_0, t; f, g), s)                                                  s: one number per field

after Yildiz, Kandemir & Rakitsch, Learning interacting dynamical systems with latent Gaussian process ODEs (NeurIPS 2022), for states that
are observed: the start is x_0 itself. Invariant under translations and relabelling, not under rotations: f and g see coordinates.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, cast

import pydantic
import pyro
import torch
from pyro.distributions import Normal
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from epns_pyro.config import Config
from epns_pyro.context import DataContext
from epns_pyro.durations import require_even
from epns_pyro.models.baselines.gaussian_process import Function, SparseGP
from epns_pyro.models.baselines.ode import GlobalDrawProgram, moving_fields, rk4
from epns_pyro.models.program import observed, trajectory_plate


class InteractionField(nn.Module):
    """The two Gaussian processes and the equation of motion that draws of them make."""

    scales: Tensor

    def __init__(self, config: GPODEConfig, context: DataContext) -> None:
        super().__init__()
        self.config, self.spec, self.frame_dt = config, context.spec, context.frame_dt
        spec = self.spec
        require_even(spec, "gp-ode")
        self.position, self.velocity = moving_fields(spec)
        space, traits = spec.space, sum(spec.width(f) for f in spec.static_fields)
        self.processes = nn.ModuleDict(
            {
                "self": SparseGP(space + traits, space, config.inducing, config.features),
                "pair": SparseGP(2 * space + 2 * traits, space, config.inducing, config.features),
            }
        )
        # an acceleration that changes a typical velocity over a typical distance
        self.unit = spec[self.velocity].scale ** 2 / spec[self.position].scale
        scales = torch.tensor([spec[f.name].scale for f in spec.dynamic_fields for _ in range(spec.space)])
        self.log_noise = nn.Parameter(torch.full((len(spec.dynamic_fields),), config.noise).log())
        self.register_buffer("scales", scales, persistent=False)

    def named_processes(self) -> Iterator[tuple[str, SparseGP]]:
        for name, process in self.processes.items():
            yield name, cast(SparseGP, process)

    def place(self, x: Tensor, generator: torch.Generator) -> None:
        """Put the inducing inputs where given states (batch, body, channel) need them."""
        inputs = self.inputs(*self.split(x))
        for name, process in self.named_processes():
            rows = inputs[name].flatten(0, -2)
            chosen = torch.randperm(len(rows), generator=generator)[: len(process.inducing)]
            with torch.no_grad():
                process.inducing[: len(chosen)] = rows[chosen]

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """States as the integrator moves them, (*batch, body, 2, space), and static channels (*batch, body, trait)."""
        spec = self.spec
        traits = [x[..., spec.slice(f.name)] / f.scale for f in spec.static_fields]
        moving = torch.stack([spec.get(x, self.position), spec.get(x, self.velocity)], -2)
        return moving, torch.cat([x[..., :0], *traits], -1)

    def inputs(self, moving: Tensor, traits: Tensor) -> dict[str, Tensor]:
        """What f and g are functions of, for every body and every ordered pair, receiver by receiver: (*batch, point, input)."""
        spec, bodies = self.spec, moving.shape[-3]
        position = moving[..., 0, :] / spec[self.position].scale
        velocity = moving[..., 1, :] / spec[self.velocity].scale
        receiver = torch.arange(bodies, device=moving.device).repeat_interleave(bodies - 1)
        others = torch.arange(bodies - 1, device=moving.device).repeat(bodies)
        sender = others + (others >= receiver).long()
        traits = traits.expand(*moving.shape[:-2], traits.shape[-1])
        relative = [value[..., sender, :] - value[..., receiver, :] for value in (position, velocity)]
        return {
            "self": torch.cat([velocity, traits], -1),
            "pair": torch.cat([*relative, traits[..., sender, :], traits[..., receiver, :]], -1),
        }

    def derivative(self, moving: Tensor, traits: Tensor, functions: dict[str, Function]) -> Tensor:
        """Velocities and accelerations, shaped as `moving`."""
        inputs = self.inputs(moving, traits)
        pulls = functions["pair"](inputs["pair"])
        pulled = pulls.unflatten(-2, (moving.shape[-3], -1)).sum(-2)
        acceleration = self.unit * (functions["self"](inputs["self"]) + pulled)
        return torch.stack(torch.broadcast_tensors(moving[..., 1, :], acceleration), -2)

    def advance(self, moving: Tensor, traits: Tensor, functions: dict[str, Function]) -> Tensor:
        """One frame further."""
        return rk4(lambda state: self.derivative(state, traits, functions), moving, self.frame_dt, self.config.substeps)

    def observation(self, moving: Tensor) -> TorchDistribution:
        """Normal(moving, s) over the dynamic channels, event (body, dynamic channel)."""
        spec = self.spec
        loc = spec.pack_dynamic(**{self.position: moving[..., 0, :], self.velocity: moving[..., 1, :]})
        noise = self.scales * self.log_noise.exp().repeat_interleave(spec.space)
        return Normal(loc, noise.expand_as(loc)).to_event(2)


class GPODEModel(GlobalDrawProgram):
    """p(x_{1:T}, f, g | x_0) = p(f) p(g) prod_t Normal(x_t; ODE(x_0, t; f, g), s).

    Sites: ``self_u``, ``pair_u`` (inducing, space) and ``self_w``, ``pair_w`` (feature, space) in the plate ``draw`` of size 1, for all
    trajectories; ``x_t`` (body, dynamic channel) in the plate ``trajectory``.

    Parameters
    ----------
    field : InteractionField
    transitions : int
        Number of transitions of the training data, from all of which the functions are inferred.
    """

    def __init__(self, field: InteractionField, *, transitions: int) -> None:
        super().__init__(field.spec, transitions)
        self.field = field

    def forward(self, x0: Tensor, path: Tensor | None = None, *, horizon: int | None = None) -> Tensor:
        field = self.field
        spec = field.spec
        steps = self._start(x0, path, horizon)
        functions = {}
        with self._of_all(path):
            for name, process in field.named_processes():
                u = pyro.sample(f"{name}_u", white(process.inducing, len(process.inducing), process.outputs))
                w = pyro.sample(f"{name}_w", white(process.inducing, process.features, process.outputs))
                functions[name] = process.draw(u, w)
        moving, traits = field.split(x0)
        with trajectory_plate(spec, x0):
            for t in range(1, steps + 1):
                moving = field.advance(moving, traits, functions)
                pyro.sample(f"x_{t}", field.observation(moving), obs=None if path is None else spec.dynamic(observed(spec, path, t)))
        return moving


class GPODEGuide(GlobalDrawProgram):
    """q(f, g): Normal whitened inducing outputs. It has its sites with a path and without: forecasts are of the functions learned."""

    def __init__(self, field: InteractionField, *, transitions: int) -> None:
        super().__init__(field.spec, transitions)
        self.field = field
        shapes = {name: (len(process.inducing), process.outputs) for name, process in field.named_processes()}
        self.loc = nn.ParameterDict({name: torch.zeros(shape) for name, shape in shapes.items()})
        self.log_scale = nn.ParameterDict({name: torch.full(shape, -2.0) for name, shape in shapes.items()})

    def forward(self, x0: Tensor, path: Tensor | None = None, *, horizon: int | None = None) -> None:
        self._start(x0, path, horizon)
        with self._of_all(path):
            for name, process in self.field.named_processes():
                pyro.sample(f"{name}_u", Normal(self.loc[name], self.log_scale[name].exp()).to_event(2))
                pyro.sample(f"{name}_w", white(process.inducing, process.features, process.outputs))


def white(like: Tensor, *shape: int) -> TorchDistribution:
    """Normal(0, 1), one event of the given shape."""
    return Normal(like.new_zeros(shape), like.new_ones(shape)).to_event(len(shape))


class GPODEConfig(Config):
    """Settings of a GP-ODE."""

    name: Literal["gp-ode"] = "gp-ode"
    inducing: int = pydantic.Field(default=128, gt=0, description="inducing inputs of either process")
    features: int = pydantic.Field(default=256, gt=0, description="random Fourier features of a prior draw")
    substeps: int = pydantic.Field(default=1, gt=0, description="Runge-Kutta steps per frame")
    noise: float = pydantic.Field(default=0.1, gt=0, description="observation noise before training, in units of the scale of a field")

    def build(self, context: DataContext, *, transitions: int) -> tuple[GPODEModel, GPODEGuide]:
        """Return model and guide for training data with this number of transitions."""
        field = InteractionField(self, context)
        return GPODEModel(field, transitions=transitions), GPODEGuide(field, transitions=transitions)
