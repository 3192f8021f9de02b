"""Neighbours by k-d trees are those of all distances: at cutoffs, with ties, across a box, with bodies that are absent."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from epns_pyro.backbones.bodies import neighbours
from epns_pyro.backbones.bodies.graphs import GraphConfig
from epns_pyro.geometry import Space

BODIES = 200
BOX = Space(3, (4.0, 5.0, 6.0))
SPACES = {"free": None, "box": BOX}
ASKED = {
    "nearest": {"neighbours": 7},
    "many": {"neighbours": 500},
    "radius": {"radius": 0.9},
    "far": {"radius": 3.5},
    "alone": {"radius": 1e-3},
}


def places(dtype: torch.dtype = torch.float64, states: int = 3) -> Tensor:
    """Bodies inside and outside of the box."""
    return 12 * torch.rand(states, BODIES, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype) - 4


def both_ways(monkeypatch, positions: Tensor, mask: Tensor | None, space: Space | None, asked: dict) -> tuple[Tensor, Tensor]:
    found = []
    for fewest in (1, 10**9):
        monkeypatch.setattr(neighbours, "TREES_FROM", fewest)
        found.append(neighbours.find_edges(positions, mask, space, **asked))
    return found[0], found[1]


def lengths(edges: Tensor, positions: Tensor, space: Space | None) -> Tensor:
    sender, receiver = positions.reshape(-1, 3)[edges]
    way = sender - receiver if space is None else space.displacement(receiver, sender)
    return way.norm(dim=-1)


def in_order(edges: Tensor) -> Tensor:
    """Edges by receivers, then senders."""
    return edges[:, (edges[1] * 3 * BODIES + edges[0]).argsort()]


@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_trees_find_what_all_distances_find(monkeypatch, asked: str, space: str, absent: bool, dtype: torch.dtype) -> None:
    positions = places(dtype)
    mask = torch.rand(3, BODIES, generator=torch.Generator().manual_seed(1)) > 0.3 if absent else None
    if absent:
        mask[1] = torch.arange(BODIES) < 4  # fewer than asked for
        mask[2] = False
    by_trees, by_distances = both_ways(monkeypatch, positions, mask, SPACES[space], ASKED[asked])
    assert torch.equal(by_trees[1], by_distances[1])
    assert torch.equal(in_order(by_trees), in_order(by_distances))
    assert (by_trees.shape[1] > 0) == (asked != "alone")
    if dtype == torch.float64:  # in single precision distances that differ by rounding may change places
        assert torch.equal(by_trees, by_distances)


@pytest.mark.parametrize("space", SPACES)
def test_of_bodies_at_one_distance_as_many_are_found(monkeypatch, space: str) -> None:
    """On a lattice, with two bodies in each of its places, nearly all distances are ties."""
    sides = torch.meshgrid(torch.arange(4.0), torch.arange(5.0), torch.arange(6.0), indexing="ij")
    positions = torch.stack(sides, -1).reshape(1, -1, 3).repeat(1, 2, 1)
    for count in (1, 3, 8):
        found = both_ways(monkeypatch, positions, None, SPACES[space], {"neighbours": count})
        near = [lengths(edges, positions, SPACES[space]).reshape(-1, count).sort(-1).values for edges in found]
        assert torch.equal(near[0], near[1])
        assert all((edges[0] != edges[1]).all() for edges in found)
    for radius in (1.0, 1.0001):  # bodies at the radius itself are no neighbours
        by_trees, by_distances = both_ways(monkeypatch, positions, None, SPACES[space], {"radius": radius})
        assert torch.equal(by_trees, by_distances)
        assert (lengths(by_trees, positions, SPACES[space]) < radius).all()


def test_many_bodies_in_one_place_have_neighbours(monkeypatch) -> None:
    by_trees, by_distances = both_ways(monkeypatch, torch.zeros(1, BODIES, 3), None, None, {"neighbours": 3})
    assert by_trees.shape == by_distances.shape == (2, 3 * BODIES)
    assert torch.equal(by_trees[1], by_distances[1])
    assert (by_trees[0] != by_trees[1]).all()


def test_a_body_that_diverged_has_no_edges_and_costs_the_others_none(monkeypatch) -> None:
    monkeypatch.setattr(neighbours, "TREES_FROM", 1)
    positions = places(states=1)
    expected = neighbours.find_edges(positions, torch.arange(BODIES)[None] != 5, None, neighbours=4)
    positions[0, 5] = torch.nan
    assert torch.equal(neighbours.find_edges(positions, None, None, neighbours=4), expected)


def test_graphs_of_many_bodies_are_found_by_trees(monkeypatch) -> None:
    monkeypatch.setattr(neighbours, "_distances", None)
    positions = places()
    for settings in ({"kind": "nearest", "neighbours": 4}, {"kind": "radius", "radius": 0.5}):
        graph = GraphConfig.parse(settings).connect(positions)
        assert graph.collect(torch.ones_like(graph.senders(positions))).sum() > 0
