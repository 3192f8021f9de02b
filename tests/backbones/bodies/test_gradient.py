"""Forces with a potential: the gradient of it, whatever the network; who is there; and no gradients where none are asked for."""

from __future__ import annotations

import pytest
import torch

from epns_pyro.backbones import BACKBONES, Features, Signature
from epns_pyro.backbones.bodies.gradient import Gradient

DOUBLE = {"dtype": torch.float64}
NETWORKS = {
    "fusion": {"name": "fusion", "width": 16, "channels": 4, "layers": 1},
    "fusion, quadrupoles": {"name": "fusion", "width": 16, "channels": 4, "layers": 1, "lmax": 2},
    "vector": {"name": "vector", "width": 16, "vectors": 4, "layers": 2},
}


def build(name="fusion", scalars=1, vectors=1):
    torch.manual_seed(0)
    config = BACKBONES.parse(NETWORKS[name])
    network = Gradient(Signature(2, 1, scalars, vectors), config.build).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network


def states(bodies=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    r, v, s = (torch.randn(bodies, *shape, **DOUBLE, generator=generator) for shape in ((3,), (1, 3), (2,)))
    return r, Features(s, v)


@pytest.mark.parametrize("name", NETWORKS)
def test_forces_are_minus_the_gradient_of_a_sum_over_bodies(name):
    """They add up to zero, their derivatives are symmetric, and a small step changes the energy by what they say."""
    network, (r, features) = build(name, vectors=2), states()
    out = network(r, features)
    torch.testing.assert_close(out.vectors.sum(0), torch.zeros(2, 3, **DOUBLE), rtol=0, atol=1e-12)
    for number in range(2):
        matrix = torch.autograd.functional.jacobian(lambda x, number=number: network(x, features).vectors[:, number], r).reshape(12, 12)
        assert matrix.abs().max() > 0.01
        torch.testing.assert_close(matrix, matrix.mT, rtol=1e-10, atol=1e-12)

    def energy(x):
        return network.network(x, Features(features.scalars, features.vectors[:, :0])).scalars.sum(0)[1:]

    step = 1e-5 * torch.randn(4, 3, **DOUBLE)
    torch.testing.assert_close((energy(r + step) - energy(r - step)) / 2, -(out.vectors * step[:, None]).sum((0, 2)), rtol=1e-6, atol=1e-10)


def test_vectors_are_not_read():
    network, (r, features) = build(), states()
    assert not network.reads_vectors
    still = network(r, Features(features.scalars, 0 * features.vectors))
    torch.testing.assert_close(network(r, features).vectors, still.vectors, rtol=0, atol=0)


def test_gradients_are_there_where_they_are_wanted_and_nowhere_else():
    network, (r, features) = build(), states()
    expected = network(r, features)
    (expected.vectors.square().sum() + expected.scalars.square().sum()).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    with torch.no_grad():
        found = network(r, features)
    frozen = network.requires_grad_(False)(r, features)
    for out in (found, frozen):
        assert not out.vectors.requires_grad
        assert not out.scalars.requires_grad
        torch.testing.assert_close(out.vectors, expected.vectors.detach(), rtol=1e-12, atol=1e-12)
    moved = r.clone().requires_grad_()
    assert torch.autograd.grad(network(moved, features).vectors.square().sum(), moved)[0].any()


def test_the_energy_of_bodies_that_are_absent_does_not_count():
    network, (r, features) = build(), states(bodies=5)
    there = torch.tensor([True] * 4 + [False])
    expected = network(r[:4], Features(features.scalars[:4], features.vectors[:4]))
    found = network(r, Features(features.scalars, features.vectors, there))
    torch.testing.assert_close(found.vectors[:4], expected.vectors, rtol=1e-12, atol=1e-12)
