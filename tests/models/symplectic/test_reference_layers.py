"""The published layers beside which ours stand, and the test that shows which of them keep the symplectic form."""

from __future__ import annotations

import pytest
import torch
from phase_space import canonical, jacobian, symplectic_error
from sympnets import GeneralisedRidgeLayer, GradientLayer, RidgeLayer, transvections

DEGREES = 4


@pytest.mark.parametrize("layer", [RidgeLayer, GradientLayer, lambda n: GeneralisedRidgeLayer(n, 1.0)], ids=["P", "G", "GR, transposed"])
@pytest.mark.parametrize("seed", range(3))
def test_layers_are_symplectic_at_weights_of_order_one(layer, seed):
    torch.manual_seed(seed)
    matrix = jacobian(layer(DEGREES).double(), torch.randn(2 * DEGREES, dtype=torch.float64))
    assert symplectic_error(matrix) < 1e-12
    assert abs(float(torch.linalg.det(matrix)) - 1) < 1e-9


def test_the_published_generalised_layer_passes_at_its_start_only():
    """A test at initialisation would let it pass: that is how it came to be published."""
    at = torch.randn(2 * DEGREES, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    errors = {}
    for size in (0.001, 0.5):
        torch.manual_seed(0)
        errors[size] = symplectic_error(jacobian(GeneralisedRidgeLayer(DEGREES, size, published=True).double(), at))
    assert errors[0.001] < 1e-12
    assert errors[0.5] > 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_ten_quadratic_layers_are_any_quadratic_flow_of_five_bodies_on_a_line_and_nine_are_not(seed):
    """Nine layers move a space of nine dimensions; the flow moves ten, and misses them by its smallest singular value at least."""
    torch.manual_seed(seed)
    degrees = 5
    hessian = torch.randn(2 * degrees, 2 * degrees, dtype=torch.float64)
    hessian = 0.3 * (hessian + hessian.T)
    flow = torch.linalg.matrix_exp(canonical(degrees) @ hessian)
    found = transvections(flow)
    assert len(found) == 10

    layers = []
    for w, c in reversed(found):  # the last one found is applied first
        layer = RidgeLayer(degrees, order=2).double()
        with torch.no_grad():
            layer.w.copy_(w)
            layer.a.fill_(c / 2)
        layers.append(layer)

    def error(used: list[RidgeLayer]) -> float:
        x = torch.eye(2 * degrees, dtype=torch.float64)
        for layer in used:
            x = layer(x)
        return float((x.T - flow).detach().abs().max())

    assert error(layers) < 3e-14
    least = float(torch.linalg.svdvals(flow - torch.eye(2 * degrees, dtype=torch.float64))[-1]) / (2 * degrees)
    assert least > 1e-8
    for dropped in range(10):
        assert error(layers[:dropped] + layers[dropped + 1 :]) >= least
    optimiser = torch.optim.LBFGS([p for layer in layers[1:] for p in layer.parameters()], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        x = torch.eye(2 * degrees, dtype=torch.float64)
        for layer in layers[1:]:
            x = layer(x)
        value = (x.T - flow).square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    assert error(layers[1:]) >= least
