"""Bodies that drift apart let go of each other: what a network makes up beyond its data does not pull at them."""

from __future__ import annotations

import pytest
import torch

from epns_pyro.backbones import BACKBONES, Features, Signature
from epns_pyro.backbones.edges import Edges
from epns_pyro.backbones.graphs import GraphConfig


@pytest.mark.parametrize("name", ["vector", "tensor-product"])
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
