"""The simulator is an equivariant distribution: log p(g x, g z | g x_0) = log p(x, z | x_0), from raw states, through stock Pyro."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pyro import poutine

from epns_pyro.backbones import BACKBONES
from epns_pyro.data.context import DataContext
from epns_pyro.inference import Objective
from epns_pyro.models import EPNSGuide, EPNSModel
from epns_pyro.models.cells import CellsModelConfig
from epns_pyro.models.particles import ParticlesConfig
from epns_pyro.models.transition import Transition
from epns_pyro.symmetry import density_invariance_error
from epns_pyro.systems import CellsConfig, NBodyConfig, System

STEPS, TRAJECTORIES = 2, 2
NBODY = NBodyConfig(dt=0.01).build()
CELLS = {
    "40 x 40": CellsConfig.small(),
    "72 x 50": CellsConfig.small().override({"lattice": (72, 50)}),
    "periodic": CellsConfig.small().override({"boundary": "periodic"}),
}


def trajectories(system: System) -> torch.Tensor:
    x0 = system.initial(TRAJECTORIES, np.random.default_rng(0))
    x = torch.as_tensor(system.simulate(x0, STEPS, np.arange(TRAJECTORIES, dtype=np.uint64)))
    return x.double() if x.dtype.is_floating_point else x.long()


def context(system: System) -> DataContext:
    spec = system.spec.with_scales({"mass": 4.0, "position": 2.0}) if "mass" in system.spec else system.spec
    scales = {"position": 0.02, "velocity": 0.3} if "mass" in system.spec else {}
    return DataContext(spec, system.frame_dt, scales, tuple(system.initial(1, np.random.default_rng(0)).shape[1:-1]))


def particles(backbone: str = "vector", **settings: object) -> Transition:
    small = {"width": 8, "latent": 3, "hidden_vectors": 3, "backbone": {"name": backbone, "width": 8, "layers": 2}}
    torch.manual_seed(0)
    return ParticlesConfig.parse(small | settings).build(context(NBODY)).double()


def cells(system: System) -> Transition:
    torch.manual_seed(0)
    config = CellsModelConfig.parse({"latent": 3, "prior_width": 8, "network": {"name": "windows", "width": 8, "depth": 1, "window": 9}})
    return config.build(context(system)).double()


def train_a_little(transition: Transition, x: torch.Tensor) -> None:
    optimizer = torch.optim.Adam(transition.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        Objective(transition)(x[:, 0], x[:, 1:]).loss.backward()
        optimizer.step()


def log_joint(transition: Transition):
    """log p(x, z | x_0) of every trajectory, read off a Pyro trace."""

    def density(x0: torch.Tensor, path: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        latents = {f"z_{t + 1}": z[:, t] for t in range(path.shape[1])}
        trace = poutine.trace(poutine.condition(EPNSModel(transition), data=latents)).get_trace(x0, path)
        trace.compute_log_prob()
        return sum(site["log_prob"] for site in trace.nodes.values() if site["type"] == "sample" and site["name"] != "trajectory")

    return density


def violation(transition: Transition, system: System, x: torch.Tensor, group=None) -> float:
    with torch.no_grad():
        event = transition.prior(x[:, 0], transition.forward_model(x[:, 0])).event_shape
    z = torch.randn(len(x), STEPS, *event, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    group = group or system.group
    return density_invariance_error(log_joint(transition), transition.spec, x[:, 0], x[:, 1:], z, group, samples=5).maximum


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("emission", ["diagonal", "coupled"])
@pytest.mark.parametrize("backbone", ["frames", "vector", "tensor-product"])
def test_particles(backbone: str, emission: str, trained: bool) -> None:
    transition, x = particles(backbone, emission=emission), trajectories(NBODY)
    if trained:
        train_a_little(transition, x)
    far = replace(NBODY.group, translation_scale=1e3)
    assert violation(transition, NBODY, x) <= 1e-9
    assert violation(transition, NBODY, x, far) <= 1e-9


def test_latents_of_the_whole_system() -> None:
    transition = particles(latents="shared", linear_path=False)
    assert violation(transition, NBODY, trajectories(NBODY)) <= 1e-9


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("lattice", CELLS)
def test_cells(lattice: str, trained: bool) -> None:
    system = CELLS[lattice].build()
    transition, x = cells(system), trajectories(system)
    if trained:
        train_a_little(transition, x)
    assert violation(transition, system, x) <= 1e-9


@pytest.mark.parametrize("backbone", ["message-passing", "mlp"])
def test_the_check_sees_networks_that_are_not_equivariant(backbone: str) -> None:
    assert violation(particles(backbone), NBODY, trajectories(NBODY)) > 1e-6


def test_the_check_sees_a_velocity_with_a_component_cut_off() -> None:
    """A published defect: the relative speed was computed from two of three components."""
    transition = particles("vector")
    evaluate = transition.encoder.evaluate

    def cut(positions, features):
        return evaluate(positions, type(features)(features.scalars, features.vectors * torch.tensor([1.0, 1.0, 0.0])))

    transition.encoder.evaluate = cut
    assert violation(transition, NBODY, trajectories(NBODY)) > 1e-6


def test_the_check_sees_a_sigma_per_axis() -> None:
    transition = particles("vector", emission="diagonal")
    emission = transition.emission

    def stretched(x, h, z):
        law = emission(x, h, z)
        law.base_dist.scale = law.base_dist.scale * torch.linspace(1, 2, 6)
        return law

    transition.emission = stretched
    assert violation(transition, NBODY, trajectories(NBODY)) > 1e-6


@pytest.mark.parametrize("backbone", BACKBONES.names)
def test_the_guide_is_invariant_where_its_network_is_equivariant(backbone: str) -> None:
    transition, x = particles(backbone), trajectories(NBODY)
    g = NBODY.group.random(x[:, 0].numpy(), np.random.default_rng(0))
    spec = transition.spec

    def of_guide(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        trace = poutine.trace(EPNSGuide(transition)).get_trace(x[:, 0], x[:, 1:])
        return trace.nodes["z_1"]["fn"].base_dist.loc.detach()

    here, there = of_guide(x), of_guide(spec.act(g, x))
    same = torch.allclose(g.act_latent(here), there, rtol=1e-9, atol=1e-10)
    assert same == transition.encoder.equivariant
