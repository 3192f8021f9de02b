"""Emissions against torch's own distributions. False-failure rate of a statistical test: 1e-6."""

from __future__ import annotations

import math

import pytest
import torch
from pyro.distributions import Normal
from torch import Tensor
from torch.distributions import MultivariateNormal
from worlds import WORLDS

from epns_pyro.errors import ConfigError
from epns_pyro.models.bodies.emissions import EMISSIONS, CoupledConfig, CoupledNormal, DiagonalConfig, innovation

BODIES = 3


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def coupled(*batch: int, fields: int = 2, space: int = 3) -> CoupledNormal:
    factor = normal(*batch, BODIES, fields, fields, seed=1).tril(-1)
    factor = factor + torch.diag_embed(0.2 + normal(*batch, BODIES, fields, seed=2).abs())
    return CoupledNormal(normal(*batch, BODIES, fields * space), factor)


def dense(law: CoupledNormal) -> MultivariateNormal:
    """The same law of every body, with its covariance written out: (L ⊗ I)(L ⊗ I)^T."""
    channels, fields = law.loc.shape[-1], law.factor.shape[-1]
    one = torch.eye(channels // fields, dtype=torch.float64)
    roots = torch.stack([torch.kron(factor, one) for factor in law.factor.reshape(-1, fields, fields)])
    return MultivariateNormal(law.loc, (roots @ roots.mT).reshape(*law.loc.shape, channels))


@pytest.mark.parametrize("fields", [1, 2, 3])
@pytest.mark.parametrize("space", [1, 2, 3])
def test_coupled_log_prob_is_that_of_the_dense_normal(fields, space):
    law = coupled(4, fields=fields, space=space)
    value = normal(4, BODIES, fields * space, seed=3)
    torch.testing.assert_close(law.log_prob(value), dense(law).log_prob(value), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(law.mean, dense(law).mean)
    torch.testing.assert_close(law.variance, dense(law).variance)
    assert (law.batch_shape, law.event_shape) == ((4, BODIES), (fields * space,))


def test_coupled_samples_have_the_covariance_they_should():
    law, draws = coupled(), 200_000
    torch.manual_seed(0)
    noise = law.sample((draws,)) - law.loc
    expected = dense(law).covariance_matrix
    found = torch.einsum("nbi,nbj->bij", noise, noise) / draws
    variance = expected.diagonal(dim1=-2, dim2=-1)
    error = ((variance[:, :, None] * variance[:, None, :] + expected.square()) / draws).sqrt()  # of a sample covariance (Isserlis)
    assert ((found - expected).abs() / error).max() < 5.7
    assert (noise.mean(0).abs() / (variance / draws).sqrt()).max() < 5.4
    across = torch.einsum("ni,nj->ij", noise[:, 0], noise[:, 1]) / draws  # bodies are independent
    assert (across.abs() / (variance[0][:, None] * variance[1] / draws).sqrt()).max() < 5.4


def test_coupled_samples_carry_gradients():
    law = coupled()
    loc, factor = law.loc.requires_grad_(), law.factor.requires_grad_()
    torch.manual_seed(0)
    sample = CoupledNormal(loc, factor).rsample((5,))
    found = torch.autograd.grad(sample.square().sum(), [loc, factor])
    noise = law.standardise(sample.detach()).unflatten(-1, (2, 3))
    torch.testing.assert_close(found[0], 2 * sample.sum(0))
    torch.testing.assert_close(found[1], 2 * torch.einsum("nbfs,nbgs->bfg", sample.unflatten(-1, (2, 3)), noise))


def test_coupled_expands():
    law = coupled(4)
    wide = law.expand((5, 4, BODIES))
    value = normal(5, 4, BODIES, 6, seed=3)
    assert (wide.batch_shape, wide.event_shape) == ((5, 4, BODIES), (6,))
    torch.testing.assert_close(wide.log_prob(value), torch.stack([law.log_prob(v) for v in value]))
    torch.testing.assert_close(law.log_prob(value), wide.log_prob(value))
    assert wide.sample((2,)).shape == (2, 5, 4, BODIES, 6)


@pytest.mark.parametrize("fields", [1, 2, 3])
def test_standardise_takes_the_noise_back(fields):
    law = coupled(4, fields=fields)
    noise = normal(7, 4, BODIES, fields * 3, seed=4)
    value = law.loc + (law.factor @ noise.unflatten(-1, (fields, 3))).flatten(-2)
    torch.testing.assert_close(law.standardise(value), noise, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(innovation(law.to_event(1), value), noise, rtol=1e-9, atol=1e-10)


def test_the_innovation_of_a_diagonal_law_is_standard_too():
    loc, scale, noise = normal(4, BODIES, 6), normal(4, BODIES, 6, seed=1).abs() + 0.1, normal(4, BODIES, 6, seed=2)
    law = Normal(loc, scale).to_event(2)
    torch.testing.assert_close(innovation(law, loc + scale * noise), noise)


def test_factors_that_are_none_are_refused():
    law = coupled()
    with pytest.raises(ValueError, match="factor"):
        CoupledNormal(law.loc, -law.factor, validate_args=True)


# -- configs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["coupled", "diagonal"])
def test_standard_deviations_stay_within_bounds(name):
    config, spec = EMISSIONS[name](minimum=1e-3, maximum=5.0), WORLDS["celestial"]
    unit = torch.tensor([0.02, 0.3], dtype=torch.float64)
    raw = torch.linspace(-60, 60, 241, dtype=torch.float64)
    scale = config.scales(raw[:, None].expand(-1, 2), unit) / unit
    assert (scale[1:] >= scale[:-1]).all()
    assert scale.min() == pytest.approx(1e-3)
    assert scale.max() == pytest.approx(5.0)
    assert scale[120, 0] == pytest.approx(1, rel=0.2)  # at zero

    noise = torch.full((1, config.parameters(spec)), -60.0, dtype=torch.float64)
    noise[:, 2:] = 0  # no coupling
    law = config.build(spec, torch.zeros(1, 6, dtype=torch.float64), noise, unit)
    torch.testing.assert_close(law.variance.sqrt(), 1e-3 * unit.repeat_interleave(3)[None])


@pytest.mark.parametrize("name", EMISSIONS.names)
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"minimum": 0.0}, "greater than 0"),
        ({"maximum": -1.0}, "greater than 0"),
        ({"minimum": 2.0, "maximum": 1.0}, "smaller than maximum"),
    ],
)
def test_bounds_that_make_no_sense_are_refused(name, settings, words):
    with pytest.raises(ConfigError, match=words):
        EMISSIONS[name].parse(settings)


@pytest.mark.parametrize(("name", "world"), [(n, w) for n in EMISSIONS.names for w in WORLDS if (n, w) != ("coupled", "warm plane")])
def test_noise_is_isotropic_and_its_parameters_are_counted(name, world):
    """One number per vector field, not per axis: the law turns with its mean."""
    config, spec = EMISSIONS[name](), WORLDS[world]
    fields = spec.dynamic_fields
    count = config.parameters(spec)
    full, plain = len(fields) * (len(fields) + 1) // 2, len(fields)
    vectors = all(f.is_vector for f in fields)
    assert count == {"diagonal": plain, "coupled": full, "mixture": 6 + (full if vectors else plain)}[name]
    unit = torch.arange(1.0, 1 + len(fields), dtype=torch.float64)
    law = config.build(spec, normal(4, BODIES, spec.dynamic_channels), normal(4, BODIES, count, seed=1), unit)
    assert (law.batch_shape, law.event_shape) == ((4,), (BODIES, spec.dynamic_channels))
    for f in fields:
        spread = law.variance[..., spec.slice(f.name, among_dynamic=True)]
        torch.testing.assert_close(spread, spread[..., :1].expand_as(spread))


def test_without_coupling_both_emissions_are_one_law():
    spec, loc = WORLDS["celestial"], normal(4, BODIES, 6)
    unit, noise = torch.tensor([0.02, 0.3], dtype=torch.float64), normal(4, BODIES, 2, seed=1)
    diagonal = DiagonalConfig().build(spec, loc, noise, unit)
    joint = CoupledConfig().build(spec, loc, torch.nn.functional.pad(noise, (0, 1)), unit)
    value = diagonal.sample()
    torch.testing.assert_close(joint.log_prob(value), diagonal.log_prob(value))


def test_the_coupling_is_a_regression_of_the_later_field_on_the_earlier():
    """x = s_x e_x, v = s_v (c e_x + e_v): the correlation is c / sqrt(1 + c^2)."""
    spec, c = WORLDS["celestial"], 1.7
    unit, noise = torch.tensor([0.02, 0.3], dtype=torch.float64), torch.tensor([[0.0, 0.0, c]], dtype=torch.float64)
    law = CoupledConfig().build(spec, torch.zeros(1, 6, dtype=torch.float64), noise, unit)
    covariance = law.base_dist.factor[0] @ law.base_dist.factor[0].T
    correlation = covariance[0, 1] / (covariance[0, 0] * covariance[1, 1]).sqrt()
    assert float(correlation) == pytest.approx(c / math.sqrt(1 + c**2))


def test_a_coupled_emission_refuses_scalars():
    with pytest.raises(
        ConfigError, match=r"emission 'coupled' correlates vector fields; temperature is a dynamic scalar: use emission 'diagonal'"
    ):
        CoupledConfig().parameters(WORLDS["warm plane"])
