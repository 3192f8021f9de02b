"""Fusion blocks against sums over diagrams, against e3nn's own products and against each other; and what they can tell apart."""

from __future__ import annotations

import itertools
import math

import pytest
import slow_fusion
import torch
from e3nn import o3
from slow_fusion import DOUBLE, rank

from epns_pyro.backbones.bodies.fusion import harmonics
from epns_pyro.backbones.bodies.fusion_blocks import CartesianBlock, SphericalBlock
from epns_pyro.backbones.bodies.tensor_product import size

VECTORS = (("A", ("0e", "1o")), ("V", ("1o",)), ("N", ("1o",)))
TENSORS = (("A", ("0e", "1o", "2e")), ("V", ("1o", "2e")), ("N", ("1o",)))
ROOTS = ("0e", "1o")
FORMS = [(CartesianBlock, VECTORS), (SphericalBlock, VECTORS), (SphericalBlock, TENSORS)]


def draw(legs, *batch, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(*batch, channels, sum(map(size, irreps)), **DOUBLE, generator=generator).requires_grad_() for name, irreps in legs
    }


def weights(block, *batch, channels=3, seed=1):
    return torch.randn(*batch, channels, block.weights, **DOUBLE, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def close(found, expected, tolerance=1e-12):
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("most", [1, 2, 3])
@pytest.mark.parametrize(("form", "legs"), FORMS)
def test_a_block_is_the_sum_of_its_diagrams(form, legs, most):
    """Against 3j symbols contracted vertex by vertex, for random weights of every body: values and gradients."""
    block = form(legs, most, ROOTS).double()
    tensors, w = draw(legs, 4, 5), weights(block, 4, 5)
    found, expected = block(tensors, w), slow_fusion.block(block.after, legs, tensors, w)
    close(found, expected)
    inputs = [*tensors.values(), w]
    ours, theirs = (torch.autograd.grad(sum(v.square().sum() for v in out.values()), inputs) for out in (found, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_both_forms_are_the_same(most):
    """Dot and cross products give what Clebsch-Gordan coefficients give, weight by weight."""
    cartesian, spherical = (form(VECTORS, most, ROOTS).double() for form in (CartesianBlock, SphericalBlock))
    tensors, w = draw(VECTORS, 50), weights(cartesian, 50)
    close(cartesian(tensors, w), spherical(tensors, w))


def test_two_legs_are_the_tensor_product_of_e3nn():
    """Path by path a chain of o3.TensorProduct, up to e3nn's single precision."""
    legs = (("a", ("0e", "1o", "2e")), ("b", ("0e", "1o", "2e")))
    block = SphericalBlock(legs, 2, ("1o",)).double()
    tensors = draw(legs, 6, channels=1)
    for number, diagram in enumerate(block.after["1o"]):
        if diagram.legs != ("a", "b"):
            continue
        w = torch.zeros(6, 1, block.weights, **DOUBLE)
        w[..., number] = block.weights**0.5
        first, second = (
            slow_fusion.parts(tensors[n][:, 0], ("0e", "1o", "2e"))[leaf] for n, leaf in zip("ab", diagram.leaves, strict=True)
        )
        theirs = o3.TensorProduct(diagram.leaves[0], diagram.leaves[1], "1o", [(0, 0, 0, "uuu", False)]).double()
        torch.testing.assert_close(block(tensors, w)["1o"][:, 0], theirs(first, second), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("legs", "count", "expected"),
    [
        ((("A", ("0e", "1o", "2e")),), 3, (5, 5)),
        ((("A", ("0e", "1o")),), 3, (2, 2)),
        ((("A", ("1o",)), ("V", ("1o",)), ("N", ("1o",))), 3, (0, 3)),
        ((("A", ("0e", "1o", "2e")), ("V", ("0e", "1o", "2e")), ("N", ("0e", "1o", "2e"))), 3, (11, 21)),
    ],
)
def test_outputs_over_random_inputs_have_the_rank_of_group_theory(legs, count, expected):
    """What the block computes, one weight at a time, for many random legs: so many independent functions, and no fewer."""
    block, samples = SphericalBlock(legs, count, ROOTS).double(), 120
    tensors = {name: value.detach() for name, value in draw(legs, samples, 1, channels=1).items()}
    wanted = [
        d.legs == (tuple(n for n, _ in legs) if len(legs) > 1 else (legs[0][0],) * count) for some in block.after.values() for d in some
    ]
    alone = torch.eye(block.weights, **DOUBLE)[:, None, :][torch.tensor(wanted)]  # (diagram, channel, weight)
    out = block(tensors, alone.expand(samples, *alone.shape))
    for root, multiplicity in zip(ROOTS, expected, strict=True):
        values = out[root][..., 0, :].movedim(1, 0).flatten(1)
        assert rank(values) == multiplicity


@pytest.mark.parametrize(("form", "legs"), FORMS)
def test_blocks_turn_and_reflect(form, legs):
    block = form(legs, 3, ROOTS).double()
    tensors, w = draw(legs, 8), weights(block, 8)
    here = block(tensors, w)
    turn = torch.linalg.qr(torch.randn(3, 3, **DOUBLE, generator=torch.Generator().manual_seed(3))).Q
    for rotation in (turn, -turn):
        turned = {n: turn_leg(tensors[n], irreps, rotation) for n, irreps in legs}
        there = block(turned, w)
        torch.testing.assert_close(there["0e"], here["0e"], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(there["1o"], here["1o"] @ rotation.T, rtol=1e-12, atol=1e-12)


def turn_leg(tensor, irreps, rotation):
    """Rotate every irrep; degree 2 through the polynomial that it is of vectors."""
    axes = torch.eye(3, **DOUBLE)
    places = torch.cat([axes, axes + axes.roll(1, 0)])
    before, after = (harmonics(points, 2)[2] for points in (places, places @ rotation.T))
    matrices = {"0e": torch.ones(1, 1, **DOUBLE), "1o": rotation.T, "2e": torch.linalg.lstsq(before, after).solution}
    return torch.cat([part @ matrices[irrep] for irrep, part in slow_fusion.parts(tensor, irreps).items()], -1)


@pytest.mark.parametrize("form", [CartesianBlock, SphericalBlock])
def test_tables_are_exact_in_any_precision(form):
    block = form(VECTORS, 3, ROOTS)
    tensors, w = draw(VECTORS, 5), weights(block, 5)
    exact = block.double()(tensors, w)
    close(block.float().double()(tensors, w), exact, tolerance=0)
    single = block.float()({n: t.float() for n, t in tensors.items()}, w.float())
    assert single["1o"].dtype == torch.float32
    close({n: v.double() for n, v in single.items()}, exact, tolerance=1e-4)


# -- what can be told apart --------------------------------------------------------------------------------------------------


def around(*angles, lmax=2):
    """The leg of neighbours at distance one in a plane, at angles in degrees: (1, channel, component)."""
    at = torch.tensor([[math.cos(math.radians(a)), math.sin(math.radians(a)), 0.0] for a in angles], **DOUBLE)
    return torch.cat(harmonics(at, lmax), -1).sum(0)[None, None]


def invariants(lmax, most, own=None, **tensors):
    """All invariant diagrams of a leg, and of the body's own vector."""
    degrees = ("0e", "1o", "2e")[: lmax + 1]
    legs = (("A", degrees), *((("N", ("1o", "2e")[:lmax]),) if own is not None else ()))
    block = SphericalBlock(legs, most, ("0e",)).double()
    each = torch.eye(block.weights, **DOUBLE)[:, None]
    if own is not None:
        tensors["N"] = torch.cat(harmonics(own, lmax)[1:], -1)[None, None]
    return block({n: t.expand(block.weights, 1, -1) for n, t in tensors.items()}, each)["0e"].flatten()


def test_angles_take_two_legs_and_vectors():
    """Two neighbours at equal distances, at 60 and at 100 degrees: lists of distances are the same for the body in the middle."""
    for lmax, most in itertools.product((0, 1, 2), (1, 2, 3)):
        one, other = (invariants(lmax, most, A=around(0, angle, lmax=lmax)) for angle in (60, 100))
        assert (torch.allclose(one, other, atol=1e-12)) == (most < 2 or lmax < 1), (lmax, most)


def test_a_two_fold_arrangement_takes_degree_two():
    """Neighbours on both sides: turning them against the body's own vector is seen with quadrupoles only; a four-fold one not even then."""
    own = torch.tensor([1.0, 0.0, 0.0], **DOUBLE)
    for lmax, fold in itertools.product((1, 2), (1, 2, 4)):
        one, other = (
            invariants(lmax, 3, own, A=around(*(angle + 360 * k / fold for k in range(fold)), lmax=lmax)) for angle in (10.0, 40.0)
        )
        assert torch.allclose(one, other, atol=1e-12) == (lmax < fold), (lmax, fold)


@pytest.mark.parametrize(("lmax", "most", "exact"), [(2, 2, True), (2, 1, False), (1, 2, False), (1, 3, False)])
def test_the_energy_of_angles_is_two_legs_of_degree_two(lmax, most, exact):
    """sum_{j<k} w_j w_k (cos theta + 1/3)^2, as in silicon, is a combination of invariants of the legs sum w Y and of sum w^2."""
    generator = torch.Generator().manual_seed(0)
    arms, w = torch.randn(60, 5, 3, **DOUBLE, generator=generator), torch.rand(60, 5, 1, **DOUBLE, generator=generator)
    arms = arms / arms.norm(dim=-1, keepdim=True)
    both = torch.triu(w @ w.mT, 1) * (arms @ arms.mT + 1 / 3).square()
    legs = (w * torch.cat(harmonics(arms, lmax), -1)).sum(-2)
    seen = torch.stack(
        [torch.cat([invariants(lmax, most, A=leg[None, None]), own.square().sum()[None]]) for leg, own in zip(legs, w, strict=True)]
    )
    energy = both.sum((-2, -1))
    left = energy - seen @ torch.linalg.lstsq(seen, energy[:, None], driver="gelsd").solution[:, 0]
    assert (left.std() < 1e-10 * energy.std()) == exact
    assert exact or left.std() > 0.05 * energy.std()


def test_handed_arrangements_are_mirrored_alike():
    """Invariants do not tell a triple of vectors from its mirror image, and vectors are mirrored with them."""
    block = SphericalBlock(VECTORS, 3, ROOTS).double()
    tensors, w = draw(VECTORS, 3), weights(block, 3)
    flip = torch.tensor([1.0, 1.0, -1.0], **DOUBLE)
    mirrored = {n: torch.cat([t[..., :-3], flip * t[..., -3:]], -1) for n, t in tensors.items()}
    here, there = block(tensors, w), block(mirrored, w)
    torch.testing.assert_close(there["0e"], here["0e"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(there["1o"], flip * here["1o"], rtol=1e-12, atol=1e-12)
