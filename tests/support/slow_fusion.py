"""Fusion diagrams the slow, obvious way: e3nn's 3j symbols contracted vertex by vertex, no code shared with the library."""

from __future__ import annotations

import torch
from e3nn import o3

DOUBLE = {"dtype": torch.float64}


def couple(first, second, a, b, out):
    """The component-normalised product of tensors (..., 2 a + 1) and (..., 2 b + 1) of degrees a and b: (..., 2 out + 1)."""
    symbol = o3.wigner_3j(a, b, out, **DOUBLE)
    return (2 * out + 1) ** 0.5 * torch.einsum("abc,...a,...b->...c", symbol, first, second)


def comb(parts, leaves, edges):
    """Couple tensors from the left: parts (..., component) of irreps `leaves`, through irreps `edges`."""
    value = parts[0]
    for part, leaf, before, after in zip(parts[1:], leaves[1:], edges, edges[1:], strict=False):
        assert after[-1] == ("e" if before[-1] == leaf[-1] else "o")
        value = couple(value, part, int(before[:-1]), int(leaf[:-1]), int(after[:-1]))
    return value


def parts(tensor, irreps):
    """Take a leg (..., component) apart: by irrep."""
    return dict(zip(irreps, tensor.split([2 * int(irrep[:-1]) + 1 for irrep in irreps], -1), strict=True))


def block(after, legs, tensors, weights):
    """Every output of a block: a loop over its diagrams, with weights (..., channel, diagram)."""
    split, position, found = {n: parts(tensors[n], irreps) for n, irreps in legs}, 0, {}
    for out, some in after.items():
        total = 0.0
        for diagram in some:
            value = comb([split[n][leaf] for n, leaf in zip(diagram.legs, diagram.leaves, strict=True)], diagram.leaves, diagram.edges)
            total = total + weights[..., position, None] * value
            position += 1
        found[out] = total / len(some) ** 0.5
    assert position == weights.shape[-1]
    return found


def rank(rows):
    """Number of independent rows of a matrix."""
    return int(torch.linalg.matrix_rank(rows, rtol=1e-9))
