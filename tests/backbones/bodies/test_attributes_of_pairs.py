"""Attributes of pairs, such as bonds, are read by every backbone on every graph, and move with their bodies."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from epns_pyro.backbones import BACKBONES, Backbone, Features, Signature
from epns_pyro.errors import ShapeError

BODIES = 5
GRAPHS = {
    "dense": {"kind": "complete", "dense": True},
    "sparse": {"kind": "complete", "dense": False},
    "radius": {"kind": "radius", "radius": 5.0},
    "nearest": {"kind": "nearest", "neighbours": 4},
}
VARIANTS = [(name, graph) for name in BACKBONES.names for graph in GRAPHS if "graph" in BACKBONES[name].model_fields]
VARIANTS += [(name, None) for name in BACKBONES.names if "graph" not in BACKBONES[name].model_fields]


def build(name: str, graph: str | None = None) -> Backbone:
    """A small network in float64 with weights of order one."""
    small = {key: value for key, value in {"width": 16, "layers": 2}.items() if key in BACKBONES[name].model_fields}
    torch.manual_seed(0)
    signature = Signature(in_scalars=2, in_vectors=1, out_scalars=3, out_vectors=2, bodies=BODIES, pairs=2)
    network = BACKBONES[name].parse(small | ({"graph": GRAPHS[graph]} if graph else {})).build(signature).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network


def draw(*shape: int) -> Tensor:
    return torch.randn(4, BODIES, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape)))


@pytest.mark.parametrize("name", BACKBONES.names)
def test_they_are_checked(name):
    network = build(name)
    with pytest.raises(ShapeError, match=f"{type(network).__name__} declares 2 attributes of pairs, found 0"):
        network(draw(3), Features(draw(2), draw(1, 3)))


@pytest.mark.parametrize(("name", "graph"), VARIANTS)
def test_a_body_feels_its_own_row_whatever_its_number(name, graph):
    network, r, scalars, vectors, pairs = build(name, graph), 0.3 * draw(3), draw(2), draw(1, 3), draw(BODIES, 2)

    def out(pairs: Tensor, order: Tensor) -> Tensor:
        seen = Features(scalars[:, order], vectors[:, order], pairs=pairs[:, order][:, :, order])
        made = network(r[:, order], seen)
        return torch.cat([made.scalars, made.vectors.flatten(-2)], -1)

    same, order, (near, far) = torch.arange(BODIES), torch.tensor([3, 0, 4, 1, 2]), (1, 2)
    here = out(pairs, same)
    if name != "mlp":  # it is for bodies in one order
        torch.testing.assert_close(out(pairs, order), here[:, order], rtol=1e-9, atol=1e-9)
    changed = pairs.clone()
    changed[:, near, far] += 1.0
    moved = (out(changed, same) - here).abs()
    assert moved[:, near].max() > 1e-6
    if name in ("pairwise", "central"):  # one round of messages: only the receiver feels it
        assert not moved[:, [i for i in range(BODIES) if i != near]].any()
