"""The tensor products of the network against e3nn's own, and its settings."""

from __future__ import annotations

import pytest
import torch
from e3nn import o3

from epns_pyro.backbones.bodies.base import Features, Signature
from epns_pyro.backbones.bodies.graphs import GraphConfig
from epns_pyro.backbones.bodies.tensor_product import TensorProduct, TensorProductConfig, parse_irreps, plan, products
from epns_pyro.errors import ConfigError

SIGNATURE = Signature(2, 1, 3, 2)


def test_vectors_have_their_components_in_the_order_of_space():
    """e3nn's "1o" is (x, y, z), so that nothing has to be put in another order."""
    rotation = o3.rand_matrix().double()
    torch.testing.assert_close(o3.Irreps("1o").D_from_matrix(rotation), rotation, rtol=0, atol=1e-5)
    x = torch.randn(3, dtype=torch.float64)
    torch.testing.assert_close(o3.spherical_harmonics(1, x, normalize=False, normalization="norm"), x)


@pytest.mark.parametrize("lmax", [1, 2, 3])
def test_products_are_those_of_e3nn(lmax):
    """Path by path what o3.TensorProduct computes with the same weights, summed over the senders of every receiver."""
    before = {"0e": 3, "1o": 2, "1e": 2, "2e": 1, "0o": 1}
    after = ["0e", "0o", "1o", "1e", "2e"]
    ours = TensorProduct(before, after, lmax).double()
    harmonics = o3.Irreps.spherical_harmonics(lmax)
    paths = [(irrep, l, out) for irrep in before for l, out in ours.paths[irrep]]  # noqa: E741
    assert len(paths) == sum(1 for ir in before for _, y in harmonics for out in o3.Irrep(ir) * y if str(out) in after)
    theirs = o3.TensorProduct(
        [(count, irrep) for irrep, count in before.items()],
        harmonics,
        [(before[irrep], out) for irrep, _, out in paths],
        [(list(before).index(irrep), l, number, "uvu", True) for number, (irrep, l, _) in enumerate(paths)],  # noqa: E741
        shared_weights=False,
    ).double()

    torch.manual_seed(0)
    r = torch.randn(2, 4, 3, dtype=torch.float64)
    tensors = {irrep: torch.randn(2, 4, count, o3.Irrep(irrep).dim, dtype=torch.float64) for irrep, count in before.items()}
    graph = GraphConfig().connect(r)
    relative = graph.senders(r) - graph.receivers(r)
    y = o3.spherical_harmonics(list(range(lmax + 1)), relative, normalize=True, normalization="component")
    weights = torch.randn(*relative.shape[:-1], sum(ours.weights.values()), dtype=torch.float64)

    blocks = weights.split(list(ours.weights.values()), -1)  # ours: (channel, path) per irrep; theirs: (path, channel)
    reordered = [w.unflatten(-1, (before[irrep], -1)).mT.flatten(-2) for irrep, w in zip(before, blocks, strict=True)]
    flat = torch.cat([tensors[irrep].flatten(-2) for irrep in before], -1)
    expected = graph.collect(theirs(graph.senders(flat), y, torch.cat(reordered, -1))).split(
        [before[ir] * o3.Irrep(out).dim for ir, _, out in paths], -1
    )
    found = ours(tensors, y, weights, graph)
    for out in after:
        parts = [part.unflatten(-1, (before[ir], -1)) for part, (ir, _, made) in zip(expected, paths, strict=True) if made == out]
        torch.testing.assert_close(found[out], torch.cat(parts, -2), rtol=1e-5, atol=1e-5)  # e3nn keeps its symbols in float32


def test_tables_are_exact_in_any_precision():
    product = TensorProduct({"1o": 1, "2e": 1}, ["0e", "1o", "2e"], 2)
    exact = product.double()._table.clone()
    assert not torch.equal(exact, exact.float().double())
    assert product.float()._table.dtype == torch.float32
    assert torch.equal(product.double()._table, exact)


def test_components_of_products_have_variance_one():
    """For Normal x, uniform directions and unit weights (4e5 draws: to 2%, a failure is 5 sigma away)."""
    torch.manual_seed(0)
    product = TensorProduct({"1o": 1, "2e": 1}, ["0e", "1o", "1e", "2e"], 2)
    r = torch.randn(200_000, 2, 3)
    graph = GraphConfig().connect(r)
    y = o3.spherical_harmonics([0, 1, 2], graph.senders(r), normalize=True, normalization="component")
    tensors = {"1o": torch.randn(200_000, 2, 1, 3), "2e": torch.randn(200_000, 2, 1, 5)}
    for value in product(tensors, y, torch.ones(*y.shape[:-1], sum(product.weights.values())), graph).values():
        torch.testing.assert_close(value.square().mean((0, 1)), torch.ones(value.shape[-2:]), rtol=0, atol=0.02)


def test_products_have_the_parity_of_their_factors():
    assert products("1o", 1) == ["0e", "1e", "2e"]
    assert products("1e", 1) == ["0o", "1o", "2o"]
    assert products("2e", 2) == ["0e", "1e", "2e", "3e", "4e"]
    for irrep in ("0e", "0o", "1o", "1e", "3o"):
        for l in range(4):  # noqa: E741
            expected = [str(out) for out in o3.Irrep(irrep) * o3.Irrep(l, (-1) ** l)]
            assert products(irrep, l) == expected


def test_tensors_are_made_where_they_can_be_and_are_of_use():
    hidden = {"0e": 8, "0o": 4, "1o": 4, "1e": 4}
    levels = plan(hidden, {"0e": 8, "1o": 4}, lmax=1, layers=4)
    assert [sorted(level) for level in levels] == [
        ["0e", "1o"],
        ["0e", "1e", "1o"],
        ["0e", "0o", "1e", "1o"],
        ["0e", "1e", "1o"],
        ["0e", "1o"],
    ]
    assert [sorted(level) for level in plan(hidden, {"0e": 8}, lmax=1, layers=2)] == [["0e", "1o"], ["0e", "1o"], ["0e"]]


def test_irreps_are_read_as_e3nn_reads_them():
    for text in ("64x0e + 16x1o", "8x0e+4x1o+2x2e+2x0e", " 1x0o + 3x1e "):
        expected: dict[str, int] = {}
        for count, irrep in o3.Irreps(text):
            expected[str(irrep)] = expected.get(str(irrep), 0) + count
        assert parse_irreps(text) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden": "64x0e + 16 vectors"}, "hidden: expected irreps such as '64x0e + 16x1o', found the term '16 vectors'"),
        ({"hidden": "64x0e + 0x1o"}, "found the term '0x1o'"),
        ({"hidden": ""}, "found the term ''"),
        ({"hidden": "64x0e"}, "hidden: expected scalars (0e) and vectors (1o) among the irreps, found no 1o in '64x0e'"),
        ({"hidden": "4x1e"}, "found no 0e and no 1o in '4x1e'"),
        (
            {"hidden": "8x0e + 8x1o + 4x4e", "layers": 2, "lmax": 1},
            "hidden: no layer can produce or use 4e with layers = 2 and lmax = 1: leave it out",
        ),
        ({"layers": 1}, "hidden: no layer can produce or use 1e, 2e with layers = 1"),
        ({"lmax": 0}, "lmax: input should be greater than or equal to 1, found 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ConfigError) as error:
        TensorProductConfig.parse(settings)
    assert message in str(error.value)


def test_hidden_irreps_are_a_setting():
    small = TensorProductConfig(hidden="8x0e + 4x1o", layers=1).build(SIGNATURE)
    large = TensorProductConfig(hidden="8x0e + 4x0o + 4x1o + 4x1e + 2x2e + 2x2o + 1x3o", lmax=3, layers=4).build(SIGNATURE)
    assert set(large.layers[1].after) == {"0e", "0o", "1o", "1e", "2e", "2o", "3o"}
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in large.parameters())


def test_tensors_of_every_parity_keep_their_parity():
    """With pseudoscalars, pseudovectors and all the rest inside, what comes out turns and reflects as it should."""
    torch.manual_seed(0)
    hidden = "8x0e + 4x0o + 4x1o + 4x1e + 2x2e + 2x2o"
    network = TensorProductConfig(hidden=hidden, layers=4, width=16).build(SIGNATURE).double()
    assert "0o" in network.layers[1].after
    r, v, s = (torch.randn(3, 5, n, dtype=torch.float64) for n in (3, 3, 2))
    here = network(r, Features(s, v[..., None, :]))
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    for rotation in (turn, -turn):
        there = network(r @ rotation.T, Features(s, (v @ rotation.T)[..., None, :]))
        torch.testing.assert_close(there.scalars, here.scalars, rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(there.vectors, here.vectors @ rotation.T, rtol=1e-10, atol=1e-11)


def test_other_dimensions_are_refused():
    with pytest.raises(ConfigError, match="'tensor-product' works in 3 dimensions, found 2: use 'vector' or 'frames'"):
        TensorProductConfig().build(Signature(2, 1, 3, 2, space=2))
