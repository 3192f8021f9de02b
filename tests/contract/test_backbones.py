"""Every registered backbone on particles: equivariance from raw inputs, independence of batch mates, degenerate states, state dicts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from epns_pyro.backbones import BACKBONES, Backbone, Features, Signature
from epns_pyro.backbones.frames import jacobi_eigh, principal_axes
from epns_pyro.backbones.graphs import DenseGraph, GraphConfig
from epns_pyro.errors import ConfigError, ShapeError

BODIES = 5


def build(name: str, space: int = 3, **settings: object) -> Backbone:
    torch.manual_seed(0)
    config = BACKBONES.parse({"name": name, "width": 12, "layers": 2} | settings)
    return config.build(Signature(4, 2, 6, 3, space, BODIES)).double()


def inputs(*batch: int, space: int = 3, seed: int = 0) -> tuple[torch.Tensor, Features]:
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.as_tensor(rng.standard_normal((*batch, BODIES, *shape)))

    return draw(space), Features(draw(4), draw(2, space))


def moved(x: tuple[torch.Tensor, Features], rotation: torch.Tensor, shift: float, order: torch.Tensor) -> tuple[torch.Tensor, Features]:
    positions, features = x
    return positions[..., order, :] @ rotation.mT + shift, Features(
        features.scalars[..., order, :], features.vectors[..., order, :, :] @ rotation.mT
    )


def errors(network: Backbone, shift: float, seed: int, space: int = 3) -> dict[str, float]:
    """Largest deviation from equivariance of each output, under a random rotation or reflection, translation and permutation."""
    rng = np.random.default_rng(seed)
    rotation = torch.as_tensor(np.linalg.qr(rng.standard_normal((space, space)))[0])
    order = torch.as_tensor(rng.permutation(BODIES))
    x = inputs(3, space=space, seed=seed)
    with torch.no_grad():
        here, there = network(*x), network(*moved(x, rotation, shift, order))
    return {
        "scalars": float((there.scalars - here.scalars[:, order]).abs().max() / here.scalars.abs().max()),
        "vectors": float((there.vectors - here.vectors[:, order] @ rotation.mT).abs().max() / here.vectors.abs().max()),
    }


@pytest.mark.parametrize("name", BACKBONES.names)
@pytest.mark.parametrize("shift", [0.0, 1e3])
def test_equivariance_is_as_declared(name: str, shift: float) -> None:
    network = build(name)
    worst = [errors(network, shift, seed) for seed in range(6)]
    for output in ("scalars", "vectors"):
        largest = max(found[output] for found in worst)
        if network.equivariant:
            assert largest < (1e-11 if shift == 0 else 1e-8), output
        else:
            assert largest > 1e-3, "a network that is not equivariant must fail, or this test proves nothing"


@pytest.mark.parametrize("name", [n for n in BACKBONES.names if n != "tensor-product"])
@pytest.mark.parametrize("space", [1, 2])
def test_other_dimensions_of_space(name: str, space: int) -> None:
    network = build(name, space)
    if network.equivariant:
        assert max(max(errors(network, 10.0, seed, space).values()) for seed in range(4)) < 1e-9
    assert network(*inputs(2, space=space)).vectors.shape == (2, BODIES, 3, space)


def test_tensor_products_need_three_dimensions() -> None:
    with pytest.raises(ConfigError):
        build("tensor-product", 2)


@pytest.mark.parametrize("name", BACKBONES.names)
def test_any_leading_dimensions_and_no_talk_between_batch_mates(name: str) -> None:
    network = build(name)
    positions, features = inputs(2, 3)
    together = network(positions, features)
    alone = network(positions[1, 2], Features(features.scalars[1, 2], features.vectors[1, 2]))
    assert together.scalars.shape == (2, 3, BODIES, 6)
    torch.testing.assert_close(together.scalars[1, 2], alone.scalars)
    torch.testing.assert_close(together.vectors[1, 2], alone.vectors)


def degenerate() -> dict[str, torch.Tensor]:
    line = torch.linspace(-1, 1, BODIES, dtype=torch.float64)[:, None] * torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    plane = torch.as_tensor(np.random.default_rng(0).standard_normal((BODIES, 3))) * torch.tensor([1.0, 1.0, 0.0])
    octahedron = torch.cat([torch.eye(3), -torch.eye(3)])[:BODIES].double()
    return {"collinear": line, "planar": plane, "coincident": torch.zeros(BODIES, 3).double(), "equal eigenvalues": octahedron}


@pytest.mark.parametrize("name", BACKBONES.names)
@pytest.mark.parametrize("state", degenerate())
def test_degenerate_states_give_finite_values_and_gradients(name: str, state: str) -> None:
    positions = degenerate()[state].requires_grad_()
    _, features = inputs()
    out = build(name)(positions, features)
    (out.scalars.sum() + out.vectors.square().sum()).backward()
    assert torch.isfinite(out.scalars).all()
    assert torch.isfinite(out.vectors).all()
    assert torch.isfinite(positions.grad).all()


@pytest.mark.parametrize("name", ["frames", "vector", "tensor-product"])
def test_gradients_are_right(name: str) -> None:
    network = build(name, width=4)
    positions, features = inputs(1)

    def function(r: torch.Tensor, s: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = network(r, Features(s, v))
        return out.scalars, out.vectors

    arguments = [x.clone().requires_grad_() for x in (positions, features.scalars, features.vectors)]
    assert torch.autograd.gradcheck(function, arguments)


@pytest.mark.parametrize("name", BACKBONES.names)
def test_a_state_dict_carries_everything(name: str) -> None:
    first, second = build(name), BACKBONES.parse({"name": name, "width": 12, "layers": 2}).build(Signature(4, 2, 6, 3, 3, BODIES)).double()
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(first(*inputs(2)).vectors, second(*inputs(2)).vectors)


@pytest.mark.parametrize("name", BACKBONES.names)
def test_what_does_not_fit_is_refused(name: str) -> None:
    positions, features = inputs(2)
    with pytest.raises(ShapeError, match="declares"):
        build(name)(positions, Features(features.scalars[..., :3], features.vectors))


# -- graphs and frames -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["message-passing", "frames", "vector", "tensor-product"])
def test_dense_and_sparse_graphs_agree(name: str) -> None:
    dense, sparse = build(name, graph={"dense": True}), build(name, graph={"dense": False})
    sparse.load_state_dict(dense.state_dict())
    torch.testing.assert_close(dense(*inputs(3)).scalars, sparse(*inputs(3)).scalars)
    torch.testing.assert_close(dense(*inputs(3)).vectors, sparse(*inputs(3)).vectors)


@pytest.mark.parametrize("config", [{"kind": "radius", "radius": 1.5}, {"kind": "nearest", "neighbours": 2}])
def test_graphs_have_the_edges_that_brute_force_finds(config: dict) -> None:
    positions, features = inputs(4)
    graph = GraphConfig.parse(config).connect(positions)
    got = graph.collect(graph.senders(features.scalars))
    for b in range(4):
        distance = torch.cdist(positions[b], positions[b])
        distance.fill_diagonal_(torch.inf)
        for i in range(BODIES):
            near = distance[i] < 1.5 if config["kind"] == "radius" else distance[i] <= distance[i].sort().values[1]
            torch.testing.assert_close(got[b, i], features.scalars[b][near].sum(0))


def test_a_complete_graph_leaves_nobody_out() -> None:
    positions, features = inputs(2)
    graph = DenseGraph(positions)
    everybody = features.scalars.sum(-2, keepdim=True) - features.scalars
    torch.testing.assert_close(graph.collect(graph.senders(features.scalars)), everybody)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("space", [1, 2, 3])
def test_eigendecomposition_equals_lapack(space: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(100_000 // space, space, space, generator=generator, dtype=dtype)
    half[: len(half) // 3, :, 0] *= 1e-3  # nearly flat
    matrix = half @ half.mT
    values, axes = jacobi_eigh(matrix)
    trace = matrix.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None]
    tolerance = 20 * torch.finfo(dtype).eps
    torch.testing.assert_close(values, torch.linalg.eigvalsh(matrix).flip(-1) / trace, rtol=0, atol=tolerance)
    torch.testing.assert_close(axes.mT @ axes, torch.eye(space, dtype=dtype).expand_as(axes), rtol=0, atol=tolerance)
    torch.testing.assert_close(axes @ values.diag_embed() @ axes.mT, matrix / trace[..., None], rtol=0, atol=tolerance)


def test_axes_have_finite_gradients_for_100000_random_and_degenerate_states() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(100_000, 3, 3, generator=generator, dtype=torch.float64)
    states[:1000, :, 2] = 0
    states[1000:2000, :, 1:] = 0
    states[2000:3000] = 0
    states = (states - states.mean(-2, keepdim=True)).requires_grad_()
    axes = principal_axes(states)
    (axes * torch.arange(9.0).view(3, 3)).sum().backward()
    assert torch.isfinite(axes).all()
    assert torch.isfinite(states.grad).all()
