"""The Cellular Potts model in plain Python, one formula per line: what the compiled one is compared with."""

from __future__ import annotations

import itertools

import numpy as np


def neighbours_of(y, x, shape, neighbours, periodic):
    """Coordinates of the neighbours of a pixel; None for one that is off the lattice."""
    for dy, dx in itertools.product((-1, 0, 1), repeat=2):
        if (dy, dx) == (0, 0) or (neighbours == 4 and dy and dx):
            continue
        v, u = y + dy, x + dx
        if periodic:
            yield v % shape[0], u % shape[1]
        else:
            yield (v, u) if 0 <= v < shape[0] and 0 <= u < shape[1] else None


def hamiltonian(image, types, J, stiffness, target_area, *, neighbours, periodic):
    """H of one label image (y, x), for the cells 1 .. len(types) - 1; types[0] = 0 is the medium."""
    pairs = 0.0
    for y, x in np.ndindex(image.shape):
        for other in neighbours_of(y, x, image.shape, neighbours, periodic):
            if other is not None and image[other] != image[y, x]:
                pairs += J[types[image[y, x]], types[image[other]]] / 2  # each pair is met twice
    area = np.bincount(image.ravel(), minlength=len(types))[1:]
    return pairs + stiffness * ((area - target_area) ** 2).sum()


def transition_law(image, types, config):
    """Law of one copy attempt: a dict {(pixel y, x, new label): probability} of the changes that can happen."""
    H = energy_of(config)
    before, law = H(image, types), {}
    for y, x in np.ndindex(image.shape):
        for target in neighbours_of(y, x, image.shape, config.neighbours, config.boundary == "periodic"):
            if target is None or image[target] == image[y, x]:
                continue
            after = image.copy()
            after[target] = image[y, x]
            accept = min(1.0, np.exp(-(H(after, types) - before) / config.temperature))
            key = (*target, int(image[y, x]))
            law[key] = law.get(key, 0.0) + accept / (image.size * config.neighbours)
    return law


def energy_of(config):
    """H(image, types) with the numbers of a config."""

    def H(image, types):
        return hamiltonian(
            image,
            types,
            config.contact_matrix,
            config.stiffness,
            config.target_area,
            neighbours=config.neighbours,
            periodic=config.boundary == "periodic",
        )

    return H


def chain_law(image, config, attempts):
    """Exact law of the state after `attempts` attempts on a tiny lattice whose labels are their own types.

    Returns
    -------
    states : numpy.ndarray, (state, y, x)
        All (labels)^pixels images.
    energy : numpy.ndarray, (state,)
    probability : numpy.ndarray, (state,)
    """
    labels, pixels = config.cells + 1, image.size
    states = np.array(list(itertools.product(range(labels), repeat=pixels))).reshape(-1, *image.shape)
    code = labels ** np.arange(pixels)[::-1].reshape(image.shape)
    J, periodic, energy = config.contact_matrix, config.boundary == "periodic", np.zeros(len(states))
    for cell in range(1, labels):
        energy += config.stiffness * ((states == cell).sum((1, 2)) - config.target_area) ** 2
    moves = []
    for y, x in np.ndindex(image.shape):
        for other in neighbours_of(y, x, image.shape, config.neighbours, periodic):
            if other is not None:
                mine, theirs = states[:, y, x], states[:, other[0], other[1]]
                energy += (mine != theirs) * J[mine, theirs] / 2
                moves.append(np.arange(len(states)) + (mine - theirs) * code[other])
    chances = [np.minimum(1.0, np.exp(-(energy[after] - energy) / config.temperature)) for after in moves]
    probability = np.zeros(len(states))
    probability[(image * code).sum()] = 1.0
    for _ in range(attempts):
        flow = [probability * chance / (pixels * config.neighbours) for chance in chances]
        gained = sum(np.bincount(after, amount, len(states)) for after, amount in zip(moves, flow, strict=True))
        probability = probability - sum(flow) + gained
    return states, energy, probability
