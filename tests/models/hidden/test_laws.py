"""The law of fields of which some are known."""

from __future__ import annotations

import pytest
import torch

from epns_pyro.models.bodies.emissions import CoupledNormal
from epns_pyro.models.hidden.laws import PartlyKnown


def test_it_is_the_coupled_normal_where_nothing_is_known() -> None:
    torch.manual_seed(0)
    loc, value = torch.randn(2, 4, 6, dtype=torch.float64)
    factor = torch.tensor([[0.5, 0.0], [0.3, 0.8]], dtype=torch.float64).expand(4, 2, 2)
    torch.testing.assert_close(PartlyKnown(loc, factor).log_prob(value), CoupledNormal(loc, factor).log_prob(value))


def test_a_known_field_has_its_value_and_no_density() -> None:
    torch.manual_seed(0)
    loc = torch.randn(4, 6, dtype=torch.float64)
    law = PartlyKnown(loc, torch.tensor([[0.0, 0.0], [0.0, 0.8]], dtype=torch.float64).expand(4, 2, 2))
    value = law.rsample()
    assert (value[:, :3] == loc[:, :3]).all()
    assert (value[:, 3:] != loc[:, 3:]).all()
    alone = torch.distributions.Normal(loc[:, 3:], 0.8).log_prob(value[:, 3:]).sum(-1)
    torch.testing.assert_close(law.log_prob(value), alone)
    value[2, 0] += 1e-6
    assert law.log_prob(value)[2] == -torch.inf
    assert law.log_prob(value)[1] == pytest.approx(float(alone[1]))


def test_draws_have_the_stated_moments() -> None:
    torch.manual_seed(0)
    law = PartlyKnown(torch.tensor([1.0, -2.0]), torch.tensor([[0.5, 0.0], [0.3, 0.8]]))
    draws = law.rsample((20_000,))
    torch.testing.assert_close(draws.mean(0), law.mean, atol=0.03, rtol=0)
    torch.testing.assert_close(draws.var(0), law.variance, atol=0.03, rtol=0)
