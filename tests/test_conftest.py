"""The rules of conftest.py, broken on purpose."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pyro
import pytest
import torch


@pytest.fixture
def rules(request):
    return request.config.pluginmanager.get_plugin(str(Path(__file__).with_name("conftest.py")))


@pytest.mark.parametrize(
    ("name", "change", "undo"),
    [
        ("default dtype", lambda: torch.set_default_dtype(torch.float64), lambda: torch.set_default_dtype(torch.float32)),
        ("number of threads", lambda: torch.set_num_threads(2), lambda: torch.set_num_threads(1)),
        ("deterministic", lambda: torch.use_deterministic_algorithms(True), lambda: torch.use_deterministic_algorithms(False)),
        ("gradients", lambda: torch.set_grad_enabled(False), lambda: torch.set_grad_enabled(True)),
        ("parameter store", lambda: pyro.get_param_store().__setitem__("p", torch.ones(1)), pyro.clear_param_store),
    ],
)
def test_a_test_that_changes_a_global_fails(rules, name, change, undo):
    try:
        with pytest.raises(pytest.fail.Exception, match=f"changed global state: .*{name}.* before, .* after"), rules.unchanged():
            change()
    finally:
        undo()


def test_random_numbers_may_be_drawn(rules):
    with rules.unchanged():
        torch.manual_seed(1)
        torch.randn(3)


@pytest.mark.parametrize(
    ("marker", "markexpr", "environment", "device", "skipped"),
    [
        ("slow", "", {}, False, True),
        ("slow", "slow", {}, False, False),
        ("slow", "", {"RUN_SLOW": "1"}, False, False),
        ("gpu", "", {}, False, True),
        ("gpu", "", {}, True, False),
        ("other", "", {}, False, False),
    ],
)
def test_marked_tests_run_where_they_are_wanted(rules, monkeypatch, marker, markexpr, environment, device, skipped):
    monkeypatch.delenv("RUN_SLOW", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.cuda.is_available", lambda: device)
    added = []
    item = SimpleNamespace(get_closest_marker=lambda name: name == marker, add_marker=added.append)
    rules.pytest_collection_modifyitems(SimpleNamespace(getoption=lambda name: markexpr), [item])
    assert [mark.name for mark in added] == ["skip"] * skipped
