"""What a network makes up beyond its data stays small: bodies that drift apart let go of each other, and no vector is seen too long."""

from __future__ import annotations

import pytest
import slow_bodies
import torch

from epns_pyro.backbones import BACKBONES, Features, Signature
from epns_pyro.backbones.bodies.edges import REACH, Edges, bounded
from epns_pyro.backbones.bodies.graphs import GraphConfig


@pytest.mark.parametrize("name", ["vector", "tensor-product", "fusion"])
def test_a_body_far_away_changes_nothing(name: str) -> None:
    """Its pull on the others falls off at least like the inverse of the distance, and where it is alone it acts as if alone."""
    torch.manual_seed(0)
    network = BACKBONES[name].parse({"width": 16, "layers": 2}).build(Signature(2, 1, 3, 2)).double()
    positions = torch.randn(4, 3, 3, dtype=torch.float64)
    features = Features(torch.randn(4, 3, 2, dtype=torch.float64), torch.randn(4, 3, 1, 3, dtype=torch.float64))

    def at(distance: float, bodies: slice) -> torch.Tensor:
        moved = positions + torch.tensor([0.0, 0.0, distance])[:, None]
        out = network(moved[:, bodies], Features(features.scalars[:, bodies], features.vectors[:, bodies]))
        return torch.cat([out.scalars, out.vectors.flatten(-2)], -1)

    pair, alone = at(0.0, slice(0, 2)), at(0.0, slice(2, 3))
    near, far, farther = (
        torch.cat([together[:, :2] - pair, together[:, 2:] - alone], 1).abs().max()
        for together in (at(distance, slice(None)) for distance in (1.0, 1e4, 1e6))
    )
    assert near > 1e-3
    assert far < 1e-3 * near
    assert farther < 0.02 * far


def test_edges_are_bounded_however_far_bodies_are() -> None:
    positions = torch.tensor([[0.0, 0.0, 0.0], [1e8, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    edges = Edges.between(positions, GraphConfig().connect(positions))
    assert edges.distance.isfinite().all()
    assert edges.distance.abs().max() < 5
    assert edges.direction.norm(dim=-1).max() <= 1
    assert edges.envelope.min() >= 0
    assert edges.envelope.max() <= 1


@pytest.mark.parametrize("attributes", [0, 2])
@pytest.mark.parametrize("graph", [GraphConfig(), GraphConfig(kind="nearest", neighbours=2)], ids=["complete", "nearest"])
def test_edges_and_their_gradients_are_those_of_the_plain_formulas(graph: GraphConfig, attributes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    positions = torch.randn(3, 5, 2, dtype=torch.float64, generator=generator).mul(3).requires_grad_()
    pairs = torch.randn(3, 5, 5, attributes, dtype=torch.float64, generator=generator) if attributes else None
    connected = graph.connect(positions)
    fast, slow = (make(positions, connected, None, pairs) for make in (Edges.between, slow_bodies.edges))
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
        weight = torch.randn(one.shape, dtype=torch.float64, generator=generator)
        gradients = (torch.autograd.grad((weight * value).sum(), positions, retain_graph=True)[0] for value in (one, other))
        torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["vector", "tensor-product", "fusion"])
def test_a_vector_longer_than_any_in_training_looks_like_the_longest(name: str) -> None:
    torch.manual_seed(0)
    network = BACKBONES[name].parse({"width": 16, "layers": 2}).build(Signature(2, 1, 3, 2)).double()
    positions, scalars = torch.randn(4, 3, 3, dtype=torch.float64), torch.randn(4, 3, 2, dtype=torch.float64)
    vectors = torch.nn.functional.normalize(torch.randn(4, 3, 1, 3, dtype=torch.float64), dim=-1)

    def at(length: float) -> torch.Tensor:
        out = network(positions, Features(scalars, length * vectors))
        return torch.cat([out.scalars, out.vectors.flatten(-2)], -1)

    seen = []
    network.embed_scalars.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][..., 2:].abs().max()))
    longest = at(1e9)
    assert seen[0] <= REACH**2 * (1 + 1e-12)  # no later norm makes up for an input that is beyond all data
    near, far = ((at(length) - longest).abs().max() for length in (1.0, 10 * REACH))
    assert near > 1e-2
    assert far < 1e-2 * near


def test_bounded_vectors_keep_their_direction_and_small_ones_their_length() -> None:
    vectors = torch.randn(1000, 3, dtype=torch.float64) * torch.logspace(-6, 6, 1000, dtype=torch.float64)[:, None]
    short = bounded(vectors)
    assert torch.linalg.cross(short, vectors).norm(dim=-1).max() < 1e-6
    assert (short * vectors).sum(-1).min() > 0
    assert short.norm(dim=-1).max() < REACH
    assert (short - vectors)[vectors.norm(dim=-1) < 0.1].abs().max() < 1e-3
    assert bounded(torch.zeros(3)).equal(torch.zeros(3))
