"""Which bodies are near each other: from all distances, or by k-d trees, whose time grows as n log n."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from epns_pyro.geometry import Space

if TYPE_CHECKING:
    from scipy.spatial import cKDTree

TREES_FROM = 150  # bodies: with fewer, all distances at once are found sooner than a tree is built
ROUNDING = 1e-4  # relative: a tree is asked for so much more than the radius, and what lies beyond is left out afterwards


def find_edges(
    positions: Tensor, mask: Tensor | None, space: Space | None, *, neighbours: int | None = None, radius: float | None = None
) -> Tensor:
    """Find the edges of the nearest `neighbours` of each body, or of all pairs nearer than `radius`.

    Parameters
    ----------
    positions : Tensor, (state, body, space)
    mask : Tensor, (state, body), optional
        False for bodies that have no edges.
    space : Space, optional
        With the periodic box, in the unit of the positions; boxes (state, 1, space) where each state has its own.

    Returns
    -------
    Tensor, (2, edge)
        Senders and receivers, numbered over all states; ordered by receivers, then by distance or, with a radius, by senders. Which of two
        bodies at the same distance comes first is not defined.
    """
    trees = positions.device.type == "cpu" and positions.shape[1] >= TREES_FROM and not torch.compiler.is_compiling()
    with torch.no_grad():
        if neighbours is not None:
            return (_nearest_by_trees if trees else _nearest)(positions, mask, space, neighbours)
        return (_within_by_trees if trees else _within)(positions, mask, space, torch.inf if radius is None else radius)


# -- from all distances ------------------------------------------------------------------------------------------------------


def _distances(positions: Tensor, mask: Tensor | None, space: Space | None) -> Tensor:
    """Return distances (state, receiver, sender); infinite from a body to itself and where one is absent."""
    if space is not None and space.periodic:
        distance = space.along(lambda sides: sides[:, None]).displacement(positions[:, :, None], positions[:, None]).norm(dim=-1)
    else:
        distance = torch.cdist(positions, positions, compute_mode="donot_use_mm_for_euclid_dist")
    distance.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
    return distance if mask is None else distance.masked_fill_(~(mask[:, :, None] & mask[:, None, :]), torch.inf)


def _nearest(positions: Tensor, mask: Tensor | None, space: Space | None, neighbours: int) -> Tensor:
    states, bodies = positions.shape[:2]
    distance = _distances(positions, mask, space)
    near = distance.topk(min(neighbours, bodies - 1), largest=False).indices  # (state, receiver, neighbour)
    first = bodies * torch.arange(states, device=positions.device)[:, None, None]
    receiver = (first + torch.arange(bodies, device=positions.device)[:, None]).expand_as(near)
    edges = torch.stack([(near + first).reshape(-1), receiver.reshape(-1)])
    if mask is None:
        return edges
    return edges[:, distance.gather(-1, near).isfinite().reshape(-1)]  # there may be fewer bodies than requested neighbours


def _within(positions: Tensor, mask: Tensor | None, space: Space | None, radius: float) -> Tensor:
    state, receiver, sender = (_distances(positions, mask, space) < radius).nonzero(as_tuple=True)
    first = state * positions.shape[1]
    return torch.stack([first + sender, first + receiver])


# -- by k-d trees ------------------------------------------------------------------------------------------------------------


def _nearest_by_trees(positions: Tensor, mask: Tensor | None, space: Space | None, neighbours: int) -> Tensor:
    found = [np.empty((2, 0), np.int64)]
    for first, names, tree in _trees(positions, mask, space):
        count = min(neighbours + 1, len(names))
        near = tree.query(tree.data, k=np.arange(1, count + 1))[1]  # (receiver, neighbour): itself among them
        own = near == np.arange(len(names))[:, None]
        own[~own.any(1), -1] = True  # bodies in one place may leave no room for itself: then one of them too many was found
        sender = near[~own].reshape(len(names), count - 1)
        receiver = np.broadcast_to(np.arange(len(names))[:, None], sender.shape)
        found.append(first + names[np.stack([sender.ravel(), receiver.ravel()])])
    return torch.from_numpy(np.concatenate(found, 1))


def _within_by_trees(positions: Tensor, mask: Tensor | None, space: Space | None, radius: float) -> Tensor:
    found = [np.empty((2, 0), np.int64)]
    for first, names, tree in _trees(positions, mask, space):
        pairs = tree.query_pairs((1 + ROUNDING) * radius, output_type="ndarray").T
        both = np.concatenate([pairs, pairs[::-1]], 1)  # sender, receiver
        found.append(first + names[both[:, np.lexsort(both)]])
    edges = torch.from_numpy(np.concatenate(found, 1))
    flat = positions.reshape(-1, positions.shape[-1])
    sender, receiver = flat[edges]
    here = None if space is None else space.along(lambda sides: sides.expand_as(positions).reshape_as(flat)[edges[1]])
    way = sender - receiver if here is None else here.displacement(receiver, sender)
    return edges[:, way.norm(dim=-1) < radius]


def _trees(positions: Tensor, mask: Tensor | None, space: Space | None) -> list[tuple[int, np.ndarray, cKDTree]]:
    """Return the number of the first body of a state, the bodies that are there, (body,), and their tree; of states that have any."""
    from scipy.spatial import cKDTree  # takes a while to import, and few bodies do without

    points, bodies = positions.detach().double().numpy(), positions.shape[1]
    there = np.isfinite(points).all(-1)
    if mask is not None:
        there &= mask.numpy()
    boxes: list[np.ndarray | None] = [None] * len(points)
    if space is not None and space.periodic:
        sides = np.array(space.box)[None, None] if space.sides is None else space.sides.detach().double().numpy()
        points = np.mod(points, sides)
        points = np.where(points < sides, points, 0.0)  # a remainder may round up to the side
        boxes = list(np.broadcast_to(sides[:, 0], (len(points), sides.shape[-1])))
    states = np.flatnonzero(there.any(1)).tolist()
    return [(i * bodies, np.flatnonzero(there[i]), cKDTree(points[i, there[i]], boxsize=boxes[i])) for i in states]
