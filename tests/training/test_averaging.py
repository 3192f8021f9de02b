"""The average of weights over the last part of training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from epns_pyro.training.averaging import Average, power_of


def walk(steps: int, width: float) -> tuple[nn.Linear, Average, np.ndarray]:
    """Return a module whose weights moved at random, their average, and the path of its weights (step, weight)."""
    torch.manual_seed(0)
    module = nn.Linear(3, 2).double()
    average, path = Average(module, width), []
    for _ in range(steps):
        with torch.no_grad():
            for weight in module.parameters():
                weight += torch.randn_like(weight)
        average.update()
        path.append(weights(module))
    return module, average, np.stack(path)


def weights(module: nn.Module) -> np.ndarray:
    return torch.cat([weight.detach().flatten() for weight in module.parameters()]).numpy().copy()


@pytest.mark.parametrize("width", [0.02, 0.05, 0.2])
def test_steps_count_by_a_power_of_their_number_and_spread_as_wide_as_asked(width):
    steps, power = 400, power_of(width)
    module, average, path = walk(steps, width)
    # of one update after another: b_n a + (1 - b_n) w_n, worked out as weights of the steps
    kept = np.array([(1 - 1 / n) ** (1 + power) for n in range(1, steps + 1)])
    share = (1 - kept) * np.append(np.cumprod(kept[:0:-1])[::-1], 1.0)
    with average.applied():
        np.testing.assert_allclose(weights(module), share @ path, rtol=1e-12)
    number = np.arange(1, steps + 1)
    spread = np.sqrt(share @ number**2 - (share @ number) ** 2)
    assert spread == pytest.approx(width * steps, rel=0.02)
    late = number > steps // 2
    np.testing.assert_allclose((share / share[-1])[late], ((number / steps) ** power)[late], atol=0.03)


def test_the_module_has_its_own_weights_back_afterwards():
    module, average, path = walk(50, 0.1)
    with average.applied():
        assert not np.array_equal(weights(module), path[-1])
    np.testing.assert_array_equal(weights(module), path[-1])


def test_without_width_the_last_weights_are_kept():
    module, average, path = walk(50, 0.0)
    with average.applied():
        np.testing.assert_array_equal(weights(module), path[-1])
    assert average.state_dict() == {"steps": 0, "weights": {}}


def test_before_the_first_step_the_module_stays_as_it_is():
    module = nn.Linear(2, 2)
    before = weights(module)
    with Average(module, 0.1).applied():
        np.testing.assert_array_equal(weights(module), before)


def test_an_average_is_restored_with_the_weights_of_the_last_step():
    module, average, path = walk(50, 0.1)
    with average.applied():
        state, saved = average.state_dict(), {name: weight.clone() for name, weight in module.state_dict().items()}
        state = {"steps": state["steps"], "weights": {name: weight.clone() for name, weight in state["weights"].items()}}
    other = nn.Linear(3, 2).double()
    other.load_state_dict(saved)
    again = Average(other, 0.1)
    again.load_state_dict(state)
    np.testing.assert_array_equal(weights(other), path[-1])
    for mine, average_of in ((module, average), (other, again)):
        with torch.no_grad():
            for weight in mine.parameters():
                weight += 1.0
        average_of.update()
    with average.applied(), again.applied():
        np.testing.assert_array_equal(weights(module), weights(other))


def test_an_average_that_starts_late_starts_from_the_weights_it_finds():
    module = nn.Linear(3, 2).double()
    average = Average(module, 0.1)
    average.start(1000)
    with torch.no_grad():
        module.bias += 1.0
    average.update()
    late = module.bias.detach().clone()
    with average.applied():
        moved = 1 - (1 - 1 / 1001) ** (1 + power_of(0.1))
        torch.testing.assert_close(module.bias.detach(), late - 1 + moved)


@pytest.mark.parametrize(
    "damage",
    [
        {"steps": -1},
        {"steps": "50"},
        {"weights": {"weight": torch.zeros(2, 3)}},
        {"weights": {"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}},
        {"weights": {"weight": torch.zeros(2, 3), "bias": torch.full((2,), torch.nan)}},
        {"weights": {"weight": torch.zeros(2, 3), "bias": "none"}},
    ],
)
def test_a_damaged_average_is_refused(damage):
    average = Average(nn.Linear(3, 2), 0.1)
    with pytest.raises(ValueError, match=r"expected a number of steps|not of the shape"):
        average.load_state_dict({"steps": 1, "weights": {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}} | damage)
