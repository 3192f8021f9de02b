"""How many threads work on what is little."""

from __future__ import annotations

import pytest
import torch
from small import config, trainer

from epns_pyro.data import Store
from epns_pyro.machine import threads_for
from epns_pyro.training.presets import preset


@pytest.fixture
def two_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_little_work_is_done_by_one_thread(two_threads):
    with threads_for(little=True):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with threads_for(little=False):
        assert torch.get_num_threads() == 2


def test_what_the_environment_says_stays(two_threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with threads_for(little=True):
        assert torch.get_num_threads() == 2


def test_training_on_a_few_bodies_is_little_work(two_threads, store: Store, tmp_path):
    seen = []
    trainer(store, tmp_path / "run", config()).fit(on_progress=lambda progress: seen.append(torch.get_num_threads()))
    assert set(seen) == {1}
    assert torch.get_num_threads() == 2


def test_many_bodies_are_much_work(store: Store):
    transition = preset("nbody").model.build(store.context())
    assert transition.is_little(64)
    assert not transition.is_little(10_000)
    transition.block_size = 1  # as of states that do not fit into a block
    assert not transition.is_little(1)
