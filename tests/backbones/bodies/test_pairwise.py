"""What sums over pairs promise: no third party changes what two bodies do to each other, and forces span orders of magnitude."""

from __future__ import annotations

import pytest
import slow_bodies
import torch

from epns_pyro.backbones import Features, Signature
from epns_pyro.backbones.bodies.pairwise import NEAR, POWERS, UNIT, PairwiseConfig, PairwiseNetwork


def network(*signature: int) -> PairwiseNetwork:
    torch.manual_seed(0)
    return PairwiseConfig(width=16).build(Signature(*signature)).double()


def test_effects_of_pairs_add_up() -> None:
    """f(i; j, k) - f(i; j) = f(i; k) - f(i; nobody), for scalars and vectors."""
    net, batch = network(2, 2, 3, 2), 5
    positions = torch.randn(batch, 3, 3, dtype=torch.float64)
    features = Features(torch.randn(batch, 3, 2, dtype=torch.float64), torch.randn(batch, 3, 2, 3, dtype=torch.float64))

    def of_first(*bodies: int) -> torch.Tensor:
        some = list(bodies)
        out = net(positions[:, some], Features(features.scalars[:, some], features.vectors[:, some]))
        return torch.cat([out.scalars, out.vectors.flatten(-2)], -1)[:, 0]

    alone, with_second, with_third, with_both = of_first(0), of_first(0, 1), of_first(0, 2), of_first(0, 1, 2)
    assert (with_second - alone).abs().amin(0).max() > 1e-4
    torch.testing.assert_close(with_both - with_second, with_third - alone, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("power", range(POWERS))
def test_a_pull_is_an_expansion_in_powers_of_the_distance(power: int) -> None:
    net = network(0, 0, 0, 1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        net.pair[-1].bias[power] = 1.0
    distance = torch.logspace(-1, 2, 13, dtype=torch.float64)
    positions = torch.stack([torch.zeros(13, 3, dtype=torch.float64), distance[:, None] * torch.tensor([0.0, 1.0, 0.0])], 1)
    pull = net(positions, Features(positions[..., :0], positions[..., None, :][..., :0, :])).vectors[:, 0, 0]
    assert (pull[:, [0, 2]] == 0).all()
    expected = (UNIT / (distance + NEAR)) ** power / (1 + distance)
    torch.testing.assert_close(pull[:, 1], expected, rtol=0.02, atol=0)


def test_bodies_that_meet_pull_with_finite_force_in_no_direction() -> None:
    net = network(1, 1, 1, 1)
    positions = torch.zeros(1, 2, 3, dtype=torch.float64, requires_grad=True)
    features = Features(torch.ones(1, 2, 1, dtype=torch.float64), torch.zeros(1, 2, 1, 3, dtype=torch.float64))
    out = net(positions, features)
    assert (out.vectors == 0).all()
    (gradient,) = torch.autograd.grad(out.scalars.sum() + out.vectors.sum(), positions)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("graph", [{}, {"dense": False}, {"kind": "nearest", "neighbours": 2}, {"kind": "radius", "radius": 1.5}], ids=str)
@pytest.mark.parametrize("signature", [(2, 2, 3, 2), (1, 1, 0, 1), (2, 0, 1, 1), (0, 2, 1, 2), (0, 0, 0, 1)])
@pytest.mark.parametrize("pairs", [0, 2])
def test_split_first_layers_change_nothing(signature: tuple[int, ...], graph: dict, pairs: int) -> None:
    torch.manual_seed(0)
    net = PairwiseConfig.parse({"width": 16, "graph": graph}).build(Signature(*signature, pairs=pairs)).double()
    scalars, vectors, positions = torch.randn(5, 4, signature[0]), torch.randn(5, 4, signature[1], 3), torch.randn(5, 4, 3)
    attributes = torch.randn(5, 4, 4, 2).double() if pairs else None
    mask = torch.rand(5, 4) > 0.2
    features = Features(scalars.double(), vectors.double(), mask, attributes)
    found = []
    for network in (net, lambda *state: slow_bodies.pairwise(net, *state)):
        net.zero_grad()
        place = positions.double().requires_grad_()
        out = network(place, features)
        kept = torch.cat([out.scalars, out.vectors.flatten(-2)], -1)[mask]
        kept.sin().sum().backward()
        found.append([kept, place.grad, *(p.grad for p in net.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1])
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-9, atol=1e-12)
