"""Interaction graphs against brute force."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from epns_pyro.backbones import BACKBONES, Features, Signature
from epns_pyro.backbones.bodies.graphs import DENSE_BODIES, DenseGraph, GraphConfig, SparseGraph
from epns_pyro.errors import ConfigError

RADIUS, NEIGHBOURS = 1.5, 2
CONFIGS = {
    "dense": {"dense": True},
    "sparse": {"dense": False},
    "radius": {"kind": "radius", "radius": RADIUS},
    "nearest": {"kind": "nearest", "neighbours": NEIGHBOURS},
}


def positions(*batch: int, bodies: int = 6) -> Tensor:
    return torch.randn(*batch, bodies, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def brute_force(kind: str, r: Tensor) -> Tensor:
    """Who hears whom, one pair at a time: (receiver, sender) booleans, for positions (body, space)."""
    hears = torch.zeros(len(r), len(r), dtype=torch.bool)
    for i in range(len(r)):
        others = sorted((float((r[i] - r[j]).norm()), j) for j in range(len(r)) if j != i)
        if kind == "nearest":
            others = others[:NEIGHBOURS]
        for distance, j in others:
            hears[i, j] = kind != "radius" or distance < RADIUS
    return hears


def edges(config: dict, r: Tensor) -> Tensor:
    """How often each body hears each, as the graph says: (*batch, receiver, sender)."""
    graph = GraphConfig.parse(config).connect(r)
    names = torch.eye(r.shape[-2], dtype=r.dtype).expand(*r.shape[:-1], -1)
    return graph.collect(graph.senders(names))


@pytest.mark.parametrize("kind", CONFIGS)
def test_edges_are_those_of_brute_force(kind):
    r = positions(2, 3)
    expected = torch.stack([torch.stack([brute_force(kind, r[a, b]) for b in range(3)]) for a in range(2)])
    assert torch.equal(edges(CONFIGS[kind], r), expected.double())
    assert not expected.all()  # nobody hears itself


def test_the_radius_leaves_some_out_and_lets_some_in():
    degrees = edges(CONFIGS["radius"], positions(20)).sum(-1)
    assert degrees.min() == 0
    assert degrees.max() >= 4


@pytest.mark.parametrize("kind", CONFIGS)
def test_both_ends_of_an_edge_are_right(kind):
    """Receivers broadcast against senders, and come back to themselves."""
    r = positions(4)
    graph = GraphConfig.parse(CONFIGS[kind]).connect(r)
    degree = graph.collect(torch.ones_like(graph.senders(r[..., :1])))
    relative = graph.collect(graph.senders(r) - graph.receivers(r))
    torch.testing.assert_close(relative, graph.collect(graph.senders(r)) - degree * r)
    wide = torch.stack([r, 2 * r], -2)  # any number of feature dimensions
    torch.testing.assert_close(graph.collect(graph.senders(wide))[..., 1, :], 2 * graph.collect(graph.senders(r)))


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_body_alone_hears_nobody(kind):
    assert torch.equal(edges(CONFIGS[kind], positions(2, bodies=1)), torch.zeros(2, 1, 1).double())


def test_no_more_neighbours_than_there_are():
    r = positions(2, bodies=4)
    assert torch.equal(edges({"kind": "nearest", "neighbours": 9}, r), edges({"dense": True}, r))


def test_large_complete_graphs_go_the_sparse_way():
    for bodies, kind in ((DENSE_BODIES, DenseGraph), (DENSE_BODIES + 1, SparseGraph)):
        assert type(GraphConfig().connect(positions(bodies=bodies))) is kind
    assert type(GraphConfig(dense=True).connect(positions(bodies=DENSE_BODIES + 1))) is DenseGraph


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "radius"}, "graph kind 'radius' and the setting 'radius' go together; found kind 'radius', radius None"),
        ({"radius": 1.0}, "graph kind 'radius' and the setting 'radius' go together; found kind 'complete', radius 1.0"),
        ({"kind": "nearest"}, "graph kind 'nearest' and the setting 'neighbours' go together"),
        ({"kind": "radius", "radius": 1.0, "dense": True}, "only a complete graph has a dense path, found kind 'radius'"),
        ({"kind": "ring"}, "kind: input should be 'complete', 'radius' or 'nearest', found 'ring'"),
        ({"kind": "nearest", "neighbours": 0}, "neighbours: input should be greater than 0, found 0"),
    ],
)
def test_graphs_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ConfigError) as error:
        GraphConfig.parse(settings)
    assert message in str(error.value)


@pytest.mark.parametrize("kind", ["complete", "radius", "nearest"])
@pytest.mark.parametrize("bodies", [33, 100, 1000])
@pytest.mark.parametrize("name", [name for name in BACKBONES.names if "graph" in BACKBONES[name].model_fields])
def test_positions_alone_of_many_bodies_are_enough(name, bodies, kind):
    """From one body more than `DENSE_BODIES`, so that complete graphs are sparse too."""
    if kind == "complete" and bodies == 1000:
        bodies = 200  # a million pairs are no small test
    graph = {"kind": kind} | {"radius": {"radius": 0.5}, "nearest": {"neighbours": 3}}.get(kind, {})
    small = {key: value for key, value in {"width": 8, "layers": 2}.items() if key in BACKBONES[name].model_fields}
    network = BACKBONES[name].parse(small | {"graph": graph}).build(Signature(0, 0, 2, 1, 3, bodies)).double()
    r = positions(1, bodies=bodies)
    out = network(r, Features(r.new_zeros(1, bodies, 0), r.new_zeros(1, bodies, 0, 3)))
    assert (out.scalars.shape, out.vectors.shape) == ((1, bodies, 2), (1, bodies, 1, 3))
    assert out.scalars.isfinite().all()
    assert out.vectors.isfinite().all()


def test_index_tables_serve_training_after_inference_and_are_no_stand_ins_of_a_tracer():
    bodies = 11  # a number that no other test has made a table for
    with torch.inference_mode():
        GraphConfig().connect(positions(bodies=bodies))
    nodes = positions(bodies=bodies).requires_grad_()
    graph = GraphConfig().connect(nodes)
    graph.collect(graph.senders(nodes).square()).sum().backward()
    torch.testing.assert_close(nodes.grad, 2 * (bodies - 1) * nodes)

    class Sum(torch.nn.Module):
        def forward(self, r):
            graph = GraphConfig().connect(r)
            return graph.collect(graph.senders(r))

    r = positions(bodies=bodies + 1)
    made = torch.export.export(Sum(), (r,)).module()(r)
    assert torch.equal(made, Sum()(r))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", CONFIGS)
def test_networks_share_who_is_around_and_find_the_same_as_by_themselves(kind, masked):
    """Also for samples of the same states, which stand in front of them."""
    signature = Signature(in_scalars=2, in_vectors=1, out_scalars=3, out_vectors=2)
    network = BACKBONES["vector"].parse({"width": 8, "vectors": 4, "layers": 2, "graph": CONFIGS[kind]}).build(signature).double()
    r = positions(4)
    mask = torch.arange(6) < torch.tensor([6, 3, 5, 1])[:, None] if masked else None
    around = network.look(r, Features(torch.zeros(4, 6, 2), torch.zeros(4, 6, 1, 3), mask))
    for batch in (torch.Size([4]), torch.Size([5, 4]), torch.Size([2, 5, 4])):
        given = torch.randn(*batch, 6, 5, dtype=torch.float64)
        features = Features(given[..., :2], given[..., None, 2:], None if mask is None else mask.expand(*batch, -1))
        places = r.expand(*batch, -1, -1)
        alone, shared = (network(places, replace(features, around=one)) for one in (None, around.expand(batch)))
        torch.testing.assert_close(shared.scalars, alone.scalars, rtol=0, atol=1e-12)
        torch.testing.assert_close(shared.vectors, alone.vectors, rtol=0, atol=1e-12)
    assert around.expand(torch.Size([4, 5])) is None
