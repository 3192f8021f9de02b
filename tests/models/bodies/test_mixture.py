"""The mixture of widths against torch's own distributions. False-failure rate of a statistical test: 1e-6."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal
from worlds import WORLDS

from epns_pyro.models.bodies.mixture import MixtureConfig
from epns_pyro.models.normal import unmasked

BODIES = 3


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def law(world: str, batch: int = 4, **settings):
    spec = WORLDS[world]
    config = MixtureConfig(**settings)
    unit = torch.arange(1.0, 1 + len(spec.dynamic_fields), dtype=torch.float64)
    noise = normal(batch, BODIES, config.parameters(spec), seed=1)
    return config.build(spec, normal(batch, BODIES, spec.dynamic_channels), noise, unit)


@pytest.mark.parametrize("world", ["celestial", "warm plane"])  # vectors alone, and with a scalar
def test_log_prob_is_that_of_the_mixture_written_out(world):
    found = law(world)
    one = unmasked(found)
    value = found.mean + 3 * normal(*found.mean.shape, seed=2)
    size = value.shape[-1]
    if world == "celestial":
        factor = one.base.factor
        root = torch.stack([torch.kron(f, torch.eye(3, dtype=torch.float64)) for f in factor.reshape(-1, *factor.shape[-2:])])
        covariance = (root @ root.mT).reshape(*value.shape, size)
    else:
        covariance = torch.diag_embed(one.base.base_dist.scale**2)
    scales = one.log_scales.exp()
    parts = MultivariateNormal(
        one.mean[..., None, :].expand(*value.shape[:-1], len(scales), size), covariance[..., None, :, :] * scales[:, None, None] ** 2
    )
    written_out = Independent(MixtureSameFamily(Categorical(logits=one.log_weights), parts), 1)
    torch.testing.assert_close(found.log_prob(value), written_out.log_prob(value), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.variance, written_out.variance, rtol=1e-10, atol=1e-10)


def test_draws_have_the_density():
    """The distance of draws from the mean, standardised, has the distribution function of the mixture (Kolmogorov, 200,000 draws)."""
    torch.manual_seed(0)
    found = law("line", batch=1)
    one = unmasked(found)
    draws = one.standardise(found.sample((200_000,)))[:, 0, 0, 0].sort().values
    weights, scales = one.log_weights[0, 0].exp(), one.log_scales.exp()
    expected = (weights * Normal(0, scales).cdf(draws[:, None])).sum(-1)
    empirical = torch.arange(1, len(draws) + 1, dtype=torch.float64) / len(draws)
    assert (expected - empirical).abs().max() * math.sqrt(len(draws)) < 2.7


def test_with_all_weight_on_the_middle_width_it_is_the_normal_law():
    spec, config = WORLDS["celestial"], MixtureConfig()
    noise = normal(2, BODIES, config.parameters(spec), seed=1)
    noise[..., 3:] = -200.0
    found = config.build(spec, normal(2, BODIES, 6), noise, torch.tensor([0.02, 0.3], dtype=torch.float64))
    one = unmasked(found)
    noise[..., 3 + int(one.log_scales.abs().argmin())] = 0.0
    found = config.build(spec, normal(2, BODIES, 6), noise, torch.tensor([0.02, 0.3], dtype=torch.float64))
    value = found.sample()
    torch.testing.assert_close(found.log_prob(value), unmasked(found).base.log_prob(value).sum(-1), rtol=1e-9, atol=1e-9)


def test_rare_large_steps_cost_little():
    """A step of thirty widths: hundreds of nats under a Normal law, a few under the mixture."""
    found = law("line", batch=1, widest=40.0)
    one = unmasked(found)
    far = found.mean + 30 * one.base.base_dist.scale if hasattr(one.base, "base_dist") else found.mean + 30 * one.base.variance.sqrt()
    assert (one.log_prob(far) - one.base.log_prob(far)).min() > 200


def test_usual_noise_is_that_of_the_likely_width_however_wide_the_widest() -> None:
    spec, config = WORLDS["celestial"], MixtureConfig(widths=5, narrowest=1e-4, widest=100.0)
    noise = torch.zeros(1, BODIES, config.parameters(spec), dtype=torch.float64)
    noise[..., -5:] = torch.tensor([20.0, 0, 0, 0, 14.0])  # the narrowest, and one in 400 times the widest
    found = config.build(
        spec, torch.zeros(1, BODIES, spec.dynamic_channels, dtype=torch.float64), noise, torch.ones(2, dtype=torch.float64)
    )
    assert config.usual_scale(found).max() < 3e-4
    assert found.variance.sqrt().min() > 1.0
