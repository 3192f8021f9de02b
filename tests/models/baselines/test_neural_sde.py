"""The neural SDE: its integrator, its coordinates of the noise, and what it can learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from worlds import DT, STEP_SCALES, WORLDS, context, trajectories

from epns_pyro.context import DataContext
from epns_pyro.errors import ConfigError
from epns_pyro.inference.elbo import Objective, path_bounds
from epns_pyro.models.baselines.neural_sde import NeuralSDE, NeuralSDEConfig, polynomials

SMALL = {"name": "vector", "width": 8, "vectors": 4, "layers": 1}


def neural_sde(about: DataContext, **settings: object) -> NeuralSDE:
    torch.manual_seed(0)
    transition = NeuralSDEConfig.parse({"backbone": SMALL} | settings).build(about).double()
    with torch.no_grad():
        for parameter in transition.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return transition


@pytest.mark.parametrize("count", [1, 2, 4, 16])
def test_coordinates_of_the_noise_are_orthonormal_polynomials(count):
    basis = polynomials(count)
    torch.testing.assert_close(basis.T @ basis, torch.eye(count, dtype=torch.float64))
    time = torch.linspace(0, 1, count, dtype=torch.float64)
    powers = time[:, None] ** torch.arange(count)
    assert torch.triu(powers.T @ basis, 1).abs().max() < 1e-9  # a degree is orthogonal to all lower powers of time
    assert (basis[:, 0] > 0).all()


@pytest.mark.parametrize("world", WORLDS)
def test_the_end_of_a_path_is_that_of_plain_euler_and_maruyama(world):
    about = context(world)
    transition, (x, _) = neural_sde(about, substeps=3), trajectories(about)
    spec, steps = about.spec, 3
    eps = torch.randn(*x.shape[:-1], steps, spec.dynamic_channels, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    z = torch.linalg.inv(transition.basis) @ eps
    law = transition.at(x).emission(z.flatten(-2))

    y = x
    for k in range(steps):
        drift, diffusion = transition.at(y).h.chunk(2, -1)
        fields = {f.name: spec.get(y, f.name) for f in spec.fields}
        for f in spec.dynamic_fields:
            mu, sigma, noise = (spec.get_dynamic(value, f.name) for value in (drift, diffusion, eps[..., k, :]))
            fields[f.name] = fields[f.name] + STEP_SCALES[f.name] * (mu / steps + sigma * noise / math.sqrt(steps))
        for f in spec.fields:
            if f.rate_of in fields:
                fields[f.rate_of] = fields[f.rate_of] + DT / steps * fields[f.name]
        y = spec.pack(**fields)
    torch.testing.assert_close(law.mean, spec.dynamic(y))


@pytest.mark.parametrize("world", WORLDS)
def test_every_weight_is_trained_on_worlds_of_every_make(world):
    about = context(world)
    transition, (x0, path) = neural_sde(about), trajectories(about)
    loss = Objective(transition)(x0, path).loss
    loss.backward()
    assert loss.isfinite()
    weights = [(name, p) for name, p in transition.named_parameters() if p.numel()]
    assert [name for name, p in weights if p.grad is None or not p.grad.any() or not p.grad.isfinite().all()] == []


def free_bodies(count: int, rng: np.random.Generator) -> tuple[DataContext, Tensor, Tensor, Tensor]:
    """Free bodies that noise kicks, in one dimension; the law of a frame is known: states, next states and log p (count,)."""
    spec, sigma = WORLDS["line"].with_scales({"position": 2.0, "velocity": 1.5}), 0.3
    covariance = sigma**2 * DT * np.array([[DT**2 / 3, DT / 2], [DT / 2, 1]])
    about = DataContext(spec, DT, {"position": covariance[0, 0] ** 0.5, "velocity": covariance[1, 1] ** 0.5}, (2,))
    position, velocity = 2 * rng.standard_normal((count, 2)), 1.5 * rng.standard_normal((count, 2))
    kick = rng.multivariate_normal(np.zeros(2), covariance, (count, 2))
    before = spec.pack(position=position[..., None], velocity=velocity[..., None])
    after = spec.pack(position=(position + DT * velocity + kick[..., 0])[..., None], velocity=(velocity + kick[..., 1])[..., None])
    quadratic = np.einsum("bnf,fg,bng->b", kick, np.linalg.inv(covariance), kick)
    log_prob = -0.5 * quadratic - 2 * (math.log(2 * math.pi) + 0.5 * np.linalg.slogdet(covariance)[1])
    return about, torch.as_tensor(before), torch.as_tensor(after), torch.as_tensor(log_prob)


def test_it_learns_a_law_that_no_independent_channels_have():
    """Position and velocity share their noise. Independent channels lose 0.69 nats per body; a trained one has to win most of that."""
    about, before, after, log_prob = free_bodies(4000, np.random.default_rng(0))
    torch.manual_seed(0)
    transition = NeuralSDEConfig.parse({"backbone": SMALL}).build(about).double()
    objective, optimizer = Objective(transition), torch.optim.Adam(transition.parameters(), lr=1e-2)
    steps = 400
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
        rows = torch.randint(3000, (128,))
        optimizer.zero_grad()
        objective(before[rows], after[rows, None]).loss.backward()
        optimizer.step()
    bounds = path_bounds(transition, before[3000:], after[3000:, None], num_samples=50)
    oracle = float(log_prob[3000:].mean())
    independent = oracle - 2 * 0.5 * math.log(4)  # correlation sqrt(3)/2
    gap = oracle - float(bounds.iwae.mean())
    assert gap < 0.25 * (oracle - independent), (gap, float(bounds.elbo.mean()), oracle, independent)


def test_numbers_of_steps_that_make_no_sense_are_refused():
    for wrong in (0, 17):
        with pytest.raises(ConfigError, match="substeps"):
            NeuralSDEConfig.parse({"substeps": wrong})
