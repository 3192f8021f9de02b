"""Evaluations of many bodies: sizes that fit their number, and no search for neighbours that was made before."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from epns_pyro.backbones.bodies import graphs
from epns_pyro.backbones.bodies.vector import VectorNetwork
from epns_pyro.context import DataContext
from epns_pyro.geometry import Space
from epns_pyro.inference.elbo import path_bounds
from epns_pyro.models.bodies.particles import ParticlesConfig
from epns_pyro.state import Field, StateSpec
from epns_pyro.training.run import EvaluationConfig

SPEC = StateSpec((Field("position", "1o", translates=True), Field("velocity", "1o", rate_of="position")), space=2)


def test_few_bodies_change_no_size_and_many_bodies_lower_what_is_scored():
    settings = EvaluationConfig()
    assert settings.for_bodies(5) == settings.for_bodies(25) == settings
    many = settings.for_bodies(1000)
    assert (many.likelihood_transitions, many.importance_samples, many.guide_transitions) == (50, 50, 50)
    assert (many.members, many.trajectories, many.initial_members) == (settings.members, settings.trajectories, settings.initial_members)
    assert settings.override({"bodies": 2_000_000}).for_bodies(1000) == settings.override({"bodies": 2_000_000})
    huge = settings.for_bodies(10**6)
    assert (huge.likelihood_transitions, huge.importance_samples) == (1, 1)


@pytest.mark.parametrize("graph", [{"kind": "radius", "radius": 0.8}, {"kind": "nearest", "neighbours": 3}])
def test_neighbours_are_searched_once_per_step_however_many_samples(graph, monkeypatch):
    context = DataContext(spec=SPEC, sites=(9,), frame_dt=1.0, step_scales={"position": 1.0, "velocity": 1.0})
    backbone = {"name": "vector", "width": 8, "layers": 1, "graph": graph}
    transition = ParticlesConfig.parse({"backbone": backbone, "integrator": None, "width": 8, "latent": 2}).build(context)
    x = torch.randn(2, 4, 9, SPEC.channels, generator=torch.Generator().manual_seed(0))  # (batch, time, body, channel)
    searches = []
    monkeypatch.setattr(graphs, "find_edges", lambda *a, f=graphs.find_edges, **k: searches.append(1) or f(*a, **k))

    def bounds():
        torch.manual_seed(0)
        return path_bounds(transition, x[:, 0], x[:, 1:], num_samples=16, block_size=32)

    found = bounds()
    assert len(searches) == 3  # 6 transitions, two at a time
    evaluate = VectorNetwork.evaluate
    monkeypatch.setattr(VectorNetwork, "evaluate", lambda network, r, f: evaluate(network, r, replace(f, around=None)))
    again = bounds()
    assert len(searches) == 3 + 3 * 4  # now also by encoder, posterior and emission
    for one, other in zip(found, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("space", [1, 2, 3])
def test_the_edges_within_a_radius_are_counted_where_bodies_fill_a_box(space):
    bodies, radius, side = 400, 0.5, 12**0.5
    generator = np.random.default_rng(0)
    positions = torch.tensor(side * generator.random((8, bodies, space)))
    graph = graphs.GraphConfig(kind="radius", radius=radius)
    around = graph.connect(positions, None, Space(space, (side,) * space))
    found = around.collect(torch.ones_like(around.senders(positions[..., :1]))).sum() / 8
    assert graph.edges(bodies, space) == pytest.approx(float(found), rel=0.1)
    assert graphs.GraphConfig(kind="radius", radius=100.0).edges(bodies, space) == graphs.GraphConfig().edges(bodies, space)


def test_fewer_states_of_more_bodies_pass_through_the_networks_at_a_time():
    backbone = {"name": "vector", "width": 8, "layers": 1, "graph": {"kind": "nearest", "neighbours": 3}}

    def model(bodies):
        context = DataContext(spec=SPEC, sites=(bodies,), frame_dt=1.0, step_scales={"position": 1.0, "velocity": 1.0})
        return ParticlesConfig.parse({"backbone": backbone, "integrator": None, "width": 8, "latent": 2}).build(context)

    few = model(60)
    assert few.at_once(torch.zeros(1, 60, SPEC.channels)) == few.block_size
    many = few.at_once(torch.zeros(1, 600, SPEC.channels))
    assert many == model(600).block_size
    assert few.block_size / 12 < many < few.block_size / 8
    few.block_size = 7
    assert few.at_once(torch.zeros(1, 60, SPEC.channels)) == 7
