"""Which state is kept: a later one unless it is worse beyond chance, so that no state is kept for its luck on a few transitions."""

from __future__ import annotations

import pytest
import torch

from epns_pyro.training.keeping import Keeper


def elbos(mean: float, spread: float = 1.0, transitions: int = 400, seed: int = 0) -> torch.Tensor:
    """ELBOs with a mean; those of several seeds differ by `spread`."""
    noise = torch.randn(transitions, generator=torch.Generator().manual_seed(seed))
    return mean + spread * (noise - noise.mean()) / noise.std()


def test_a_later_state_is_kept_unless_it_is_worse_beyond_chance():
    keeper = Keeper()
    assert keeper.takes(elbos(1.0), later=False)
    assert keeper.takes(elbos(2.0, seed=1), later=True)
    error = (2.0 / 400) ** 0.5  # of the difference of two independent states
    assert keeper.takes(elbos(2.0 - 0.8 * error, seed=2), later=True)
    assert keeper.kept == pytest.approx(2.0 - 0.8 * error, abs=1e-6)
    assert not keeper.takes(elbos(2.0 - 1.3 * error, seed=3), later=True), "compared with the best, not with the one that is kept"
    assert keeper.takes(elbos(2.5, seed=4), later=True)


def test_what_differs_everywhere_by_the_same_is_no_chance():
    keeper = Keeper()
    keeper.takes(elbos(2.0), later=False)
    assert not keeper.takes(elbos(1.99), later=True)


def test_the_state_before_training_is_kept_unless_a_state_is_better():
    keeper = Keeper()
    keeper.takes(elbos(2.0), later=False)
    assert not keeper.takes(elbos(1.999, seed=1), later=False)
    assert keeper.takes(elbos(2.001, seed=1), later=False)


def test_numbers_that_are_not_finite_are_never_kept():
    keeper = Keeper()
    assert not keeper.takes(torch.tensor([1.0, torch.nan]), later=False)
    assert keeper.takes(elbos(-5.0), later=False)
    assert not keeper.takes(torch.tensor([1.0, torch.inf]), later=True)
    assert not keeper.takes(torch.full((400,), torch.nan), later=True)
    assert keeper.kept == pytest.approx(-5.0)


def test_a_checkpoint_without_elbos_of_transitions_leaves_comparing_means():
    keeper = Keeper()
    keeper.resume(None, 2.0)
    assert not keeper.takes(elbos(1.99, seed=1), later=True)
    assert keeper.takes(elbos(2.1, seed=2), later=True)
    for damaged in (torch.ones(3, 2), torch.ones(3, dtype=torch.long), torch.tensor([torch.nan])):
        with pytest.raises(ValueError, match="one for each transition"):
            keeper.resume(damaged, 2.0)
