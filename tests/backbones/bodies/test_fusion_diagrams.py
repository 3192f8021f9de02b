"""Fusion diagrams: how many there are, that they are all there is, and that trees of another shape say the same."""

from __future__ import annotations

import math

import pytest
import torch
from e3nn import o3
from slow_fusion import DOUBLE, comb, couple, parts, rank

from epns_pyro.backbones.bodies import fusion_diagrams
from epns_pyro.backbones.bodies.fusion_diagrams import couplings, dense, diagrams, symmetric, vertex
from epns_pyro.backbones.bodies.tensor_product import size

ROOTS = ("0e", "1o", "2e")
# irreps of a leg, number of legs, multiplicity of the roots: of different legs, of equal ones; numbers of a dense tensor to 1o
TABLE = [
    (("1o",), 2, (1, 0, 1), (1, 0, 1), 27),
    (("1o",), 3, (0, 3, 0), (0, 1, 0), 81),
    (("1o",), 4, (3, 0, 6), (1, 0, 1), 243),
    (("0e", "1o"), 3, (4, 6, 3), (2, 2, 1), 192),
    (("0e", "1o", "2e"), 2, (3, 4, 4), (3, 2, 3), 243),
    (("0e", "1o", "2e"), 3, (11, 21, 23), (5, 5, 6), 2187),
    (("0e", "1o", "2e"), 4, (55, 124, 148), (9, 9, 13), 19683),
    (("0e", "1o", "2e", "3o"), 3, (23, 51, 65), (8, 12, 14), 12288),
]


def different(irreps, count):
    """Legs that may hold different tensors."""
    return tuple((name, irreps) for name in "abcd"[:count])


def of_all(legs, count, roots=ROOTS):
    """Diagrams in which every leg has a leaf, or `count` leaves of the one leg there is."""
    names = tuple(name for name, _ in legs) if len(legs) > 1 else (legs[0][0],) * count
    return [d for d in diagrams(legs, count, roots) if d.legs == names]


def counted(found, roots=ROOTS):
    return tuple(sum(d.out == root for d in found) for root in roots)


def rows(found, legs):
    """Diagrams to one root as rows of a matrix."""
    return torch.stack([symmetric(dense(d, legs), d.legs).flatten() for d in found])


@pytest.mark.parametrize(("irreps", "count", "general", "equal", "numbers"), TABLE, ids=str)
def test_multiplicities_are_those_of_group_theory(irreps, count, general, equal, numbers):
    """As many diagrams as there are equivariant maps, and as many of them independent."""
    for legs, expected in ((different(irreps, count), general), ((("a", irreps),), equal)):
        if len(irreps) ** len(legs) > 64:  # 327 combs of 6,561 to 32,805 numbers: counted alone
            assert combs(irreps, count) == expected
            continue
        found = of_all(legs, count)
        assert counted(found) == expected
        for root, multiplicity in zip(ROOTS, expected, strict=True):
            some = [d for d in found if d.out == root]
            tensors = rows(some, legs) if some else torch.zeros(0, 1, **DOUBLE)
            assert rank(tensors @ tensors.mT) == multiplicity
    if vectors := [d for d in of_all((("a", irreps),), count) if d.out == "1o"]:
        assert dense(vectors[0], (("a", irreps),)).numel() == numbers


def combs(irreps, count):
    """Number of combs of different legs to each root."""
    edges = list(irreps)
    for _ in range(count - 1):
        edges = [out for edge in edges for leaf in irreps for out in couplings(edge, leaf)]
    return tuple(edges.count(root) for root in ROOTS)


def test_natural_parities_alone_are_not_enough(monkeypatch):
    """The planted defect: without pseudovectors among the inner edges the table is missed."""

    def natural(first, second):
        return [out for out in couplings(first, second) if (int(out[:-1]) % 2 == 1) == (out[-1] == "o")]

    legs = different(("1o",), 3)
    assert {d.edges[1] for d in of_all(legs, 3, ("1o",))} == {"0e", "1e", "2e"}
    assert counted(of_all(legs, 3, ("0o",)), ("0o",)) == (1,)  # the triple product
    assert counted(of_all(different(("1o",), 2), 2, ("1e",)), ("1e",)) == (1,)  # the cross product
    monkeypatch.setattr(fusion_diagrams, "couplings", natural)
    monkeypatch.setattr(fusion_diagrams, "diagrams", diagrams.__wrapped__)
    lost = [d for d in fusion_diagrams.diagrams(legs, 3, ("1o",)) if len(set(d.legs)) == 3]
    assert len(lost) == 2
    lost = fusion_diagrams.diagrams(different(("0e", "1o", "2e"), 3), 3, ROOTS)
    assert counted([d for d in lost if len(set(d.legs)) == 3])[1] < 21


def test_another_tree_spans_the_same_space():
    """a (b c) beside (a b) c, and (a b) (c d) beside ((a b) c) d: no rank is added."""
    a, b, c, d = (torch.randn(40, 3, **DOUBLE, generator=torch.Generator().manual_seed(i)) for i in range(4))
    for root, multiplicity in ((1, 3), (0, 1)):
        left = [couple(couple(a, b, 1, 1, j), c, j, 1, root) for j in range(3) if abs(j - 1) <= root <= j + 1]
        other = [couple(a, couple(b, c, 1, 1, j), 1, j, root) for j in range(3) if abs(j - 1) <= root <= j + 1]
        values = [torch.stack(some).flatten(1) for some in (left, other, left + other)]
        assert [rank(v) for v in values] == [multiplicity] * 3
    for root, multiplicity in ((0, 3), (2, 6)):
        left = [
            couple(couple(couple(a, b, 1, 1, j), c, j, 1, k), d, k, 1, root)
            for j in range(3)
            for k in range(abs(j - 1), j + 2)
            if abs(k - 1) <= root <= k + 1
        ]
        pairs = [(j, k) for j in range(3) for k in range(3) if abs(j - k) <= root <= j + k]
        other = [couple(couple(a, b, 1, 1, j), couple(c, d, 1, 1, k), j, k, root) for j, k in pairs]
        values = [torch.stack(some).flatten(1) for some in (left, other, left + other)]
        assert [rank(v) for v in values] == [multiplicity] * 3


def test_equal_legs_give_the_symmetric_products_of_e3nn():
    """The span of ReducedTensorProducts, and no change when legs are exchanged."""
    irreps = ("0e", "1o", "2e")
    legs = (("a", irreps),)
    theirs = o3.ReducedTensorProducts("ijk=jik=kij", i=o3.Irreps("0e+1o+2e"), filter_ir_out=[o3.Irrep(r) for r in ROOTS])
    basis, place = theirs.change_of_basis.double(), 0  # (out, in, in, in)
    expected = {root: [] for root in ROOTS}
    for multiplicity, irrep in theirs.irreps_out:
        for _ in range(multiplicity):
            expected[str(irrep)].append(basis[place : place + irrep.dim].movedim(0, -1).flatten())
            place += irrep.dim
    for root in ROOTS:
        found = [d for d in of_all(legs, 3) if d.out == root]
        both = torch.cat([rows(found, legs), torch.stack(expected[root])])
        singular = torch.linalg.svdvals(both)  # e3nn's basis is in single precision
        assert len(found) == len(expected[root]) == int((singular > 1e-4).sum())
        for diagram in found:
            tensor = symmetric(dense(diagram, legs), diagram.legs)
            torch.testing.assert_close(tensor.transpose(0, 1), tensor)
            torch.testing.assert_close(tensor.transpose(1, 2), tensor)


def test_symbols_have_the_known_signs_and_sizes():
    epsilon = torch.zeros(3, 3, 3, **DOUBLE)
    for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        epsilon[i, j, k], epsilon[j, i, k] = 1.0, -1.0
    torch.testing.assert_close(vertex("1o", "1o", "0e")[..., 0], torch.eye(3, **DOUBLE) / 3**0.5)
    torch.testing.assert_close(vertex("1o", "1o", "1e"), epsilon / 2**0.5)
    legs = different(("1o",), 3)
    raw = [dense(d, legs) / math.prod(size(edge) ** 0.5 for edge in d.edges[1:]) for d in of_all(legs, 3, ("1o",))]
    gram = torch.tensor([[(x * y).sum() for y in raw] for x in raw])
    torch.testing.assert_close(gram, torch.diag(torch.tensor([1, 1 / 3, 1 / 5], **DOUBLE)), rtol=0, atol=1e-7)


def test_leaves_of_a_diagram_have_variance_one_in_it():
    """For Normal legs every component of a diagram of different legs has variance one: the squares of its coefficients add up to it."""
    for d in of_all(different(("0e", "1o", "2e"), 3), 3):
        squares = dense(d, different(("0e", "1o", "2e"), 3)).square().sum((0, 1, 2))
        torch.testing.assert_close(squares, torch.ones_like(squares))


def test_a_dense_tensor_is_its_comb():
    """For every diagram of two and three legs: einsum with one tensor, and 3j symbols contracted vertex by vertex."""
    irreps = ("0e", "1o", "2e")
    legs = different(irreps, 3)
    tensors = {name: torch.randn(9, **DOUBLE, generator=torch.Generator().manual_seed(i)) for i, (name, _) in enumerate(legs)}
    for d in diagrams(legs, 3, ROOTS):
        leaves = [parts(tensors[name], irreps)[leaf] for name, leaf in zip(d.legs, d.leaves, strict=True)]
        letters = "abc"[: len(d.legs)]
        contracted = torch.einsum(f"{letters}m,{','.join(letters)}->m", dense(d, legs), *(tensors[name] for name in d.legs))
        torch.testing.assert_close(contracted, comb(leaves, d.leaves, d.edges), rtol=1e-12, atol=1e-12)
