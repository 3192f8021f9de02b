"""Networks and motions of bodies as plainly as they can be written: the oracles of the fast forms.

Every call works everything out anew, from whole states and with one layer after the other; nothing is split, shared or kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from epns_pyro.backbones import Features
from epns_pyro.backbones.bodies.edges import NOWHERE, POINT, Edges, bounded, displacements
from epns_pyro.backbones.bodies.graphs import Graph
from epns_pyro.backbones.bodies.pairwise import NEAR, POWERS, UNIT, PairwiseNetwork
from epns_pyro.durations import along, relative
from epns_pyro.geometry import Space
from epns_pyro.models.bodies.integrator import Integrator, Motion


def inner_products(vectors: Tensor) -> Tensor:
    """All inner products of a body's vectors (*batch, body, vector, space): (*batch, body, pair)."""
    count = vectors.shape[-2]
    return torch.stack([(vectors[..., i, :] * vectors[..., j, :]).sum(-1) for i in range(count) for j in range(i, count)], -1)


def edges(positions: Tensor, graph: Graph, space: Space | None = None, pairs: Tensor | None = None) -> Edges:
    """The edges of a graph, one function of the distance after the other."""
    relative = displacements(positions, graph, space)
    length = (relative.square().sum(-1, keepdim=True) + NOWHERE).sqrt()
    seen = [length / (length + scale) for scale in (0.1, 1.0, 10.0)] + [((length + 0.03) / (length + 3.0)).log()]
    if pairs is not None:
        seen.append(graph.pairs(pairs))
    return Edges(relative / (length + POINT), length, torch.cat(seen, -1), 1 / (1 + length))


def pairwise(network: PairwiseNetwork, positions: Tensor, features: Features) -> Features:
    """The sums over pairs: every layer of a pair reads what both bodies and the pair say, in one vector."""
    s, graph = network.signature, network.graph.connect(positions, features.mask, network.signature.geometry)
    seen, arrows = edges(positions, graph, s.geometry, features.pairs), bounded(features.vectors)
    ours, theirs = graph.receivers(features.scalars), graph.senders(features.scalars)
    ends = torch.cat([seen.distance, ours.expand(*seen.distance.shape[:-1], -1), theirs], -1)
    scalars, along_axis, across = (network.pair(ends) * seen.envelope).split(network.sizes, -1)
    near = UNIT / (seen.length[..., None] + NEAR)
    powers = torch.cat([near**p for p in range(POWERS)], -1)
    pull = (along_axis.unflatten(-1, (-1, POWERS)) * powers).sum(-1, keepdim=True)
    vectors = pull * seen.direction[..., None, :]
    if s.in_vectors:
        vectors = vectors + across.unflatten(-1, (-1, s.in_vectors)) @ (graph.senders(arrows) - graph.receivers(arrows))
    scalars, vectors = graph.collect(scalars), graph.collect(vectors)
    if network.alone is not None:
        seen = [features.scalars] + ([inner_products(arrows)] if s.in_vectors else [])
        change, gates = network.alone(torch.cat(seen, -1)).tensor_split([s.out_scalars], -1)
        scalars = scalars + change
        if s.in_vectors:
            vectors = vectors + gates.unflatten(-1, (-1, s.in_vectors)) @ arrows
    return Features(scalars, vectors)


def motion(integrator: Integrator, x: Tensor, mask: Tensor | None = None) -> Motion:
    """One frame of leapfrog: whole states are built, and the network is asked, at every step."""
    bodies = integrator.bodies
    spec, step, units = bodies.spec, bodies.duration(x) / integrator.steps, integrator.vectors | integrator.scalars

    def ask(x: Tensor) -> Features:
        return integrator.network(bodies.positions(x), bodies.features(x, mask))

    def drift(x: Tensor, dt: Tensor | float) -> Tensor:
        return spec.advance(x, bodies.persistence(x, dt))

    def kicked(x: Tensor, out: Features, kicks: float) -> Tensor:
        changes = [*out.vectors.unbind(-2), *out.scalars.unbind(-1)]
        change = {name: kicks * unit / integrator.steps * c for (name, unit), c in zip(units.items(), changes, strict=True)}
        if (longer := relative(spec, x)) is not None:
            change = {name: along(spec[name], longer) * c for name, c in change.items()}
        return spec.advance(x, spec.pack_dynamic(**{f.name: spec.get(x, f.name) + change.get(f.name, 0) for f in spec.dynamic_fields}))

    start, strengths = x, []
    if bodies.differences:
        start = kicked(x, ask(x), integrator.steps / 2)
    end = drift(start, step / 2)
    for left in reversed(range(integrator.steps)):
        out = ask(end)
        end = drift(kicked(end, out, 1.0), step if left else step / 2)
        strengths.append(torch.cat([out.vectors.square().sum(-1), out.scalars.square()], -1))
    change = bodies.to_free(spec.dynamic(end)) - bodies.to_free(bodies.persistence(x))
    return Motion(bodies.as_differences(change, x, end), (1 + torch.stack(strengths).amax(0)).log() / 2)
