"""Central forces stay numbers where bodies nearly touch, whatever powers a fit has left out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from epns_pyro.backbones import Features
from epns_pyro.backbones.bodies.base import BACKBONES, Signature
from epns_pyro.backbones.bodies.central import ATOMS, CentralNetwork

LARGEST = 40.0


def law(*, axes: bool = False, largest: float = LARGEST) -> CentralNetwork:
    """A charge whose force goes as r^-2, unsoftened; the other powers, some of them steep, are left out."""
    torch.manual_seed(0)
    network = BACKBONES.parse({"name": "central"}).build(Signature(1, 0, 0, 1, axes=axes))
    with torch.no_grad():
        network.exponents[:, 0] = torch.tensor(ATOMS)
        network.log_lengths[0] = -9.0
        network.log_largest.fill_(largest).log_()
        network.linear.weight.zero_()
        network.bend[-1].weight.zero_()
        network.bend[-1].bias.zero_()
        network.product.fill_(-1.0)
    network.keep((1,))
    return network


def force(network: CentralNetwork, apart: float) -> Tensor:
    """Of two opposite charges, (body, space)."""
    positions = torch.tensor([[0.0, 0.0, 0.0], [0.6, 0.0, 0.8]]) * apart
    return network(positions, Features(torch.tensor([[1.0], [-1.0]]), torch.zeros(2, 0, 3))).vectors[:, 0]


@pytest.mark.parametrize("axes", [False, True], ids=["bound on the length", "bound on components"])
@pytest.mark.parametrize("apart", [1e-2, 1e-3, 1e-6, 0.0])
def test_forces_of_bodies_that_nearly_touch_are_finite_and_bounded(apart, axes):
    network = law(axes=axes)
    found = force(network, apart)
    assert (found.norm(dim=-1) if not axes else found.abs()).max() <= LARGEST * (1 + 1e-6)
    found.square().sum().backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in network.parameters())


def test_forces_are_those_of_the_law_far_from_the_bound():
    torch.testing.assert_close(force(law(), 2.0), 0.25 * torch.tensor([[0.6, 0.0, 0.8], [-0.6, 0.0, -0.8]]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strength", [0.1, 1.0, 3.0])
def test_the_bound_on_the_length_is_smooth(strength):
    """L u / (1 + u^4)^(1/4) at a force of u times L."""
    unbounded, bounded = (force(law(largest=largest), 1.0).norm(dim=-1) for largest in (1e6, 1 / strength))
    torch.testing.assert_close(unbounded, torch.ones(2), rtol=1e-4, atol=0)
    torch.testing.assert_close(bounded, unbounded / (1 + strength**4) ** 0.25, rtol=1e-4, atol=0)
