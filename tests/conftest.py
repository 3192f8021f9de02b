"""What holds for every test: one thread, no changed globals, and slow tests and those that need a GPU only where they are wanted.

Also one small store and one briefly trained run, made once for all tests that read them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import small
import torch

import epns_pyro
from epns_pyro.data import Store
from epns_pyro.simulator import Simulator

# Name and current value of everything global that a test could leave behind for the next one. Random number generators are free to move.
GLOBALS = {
    "default dtype": torch.get_default_dtype,
    "default device": torch.get_default_device,
    "number of threads": torch.get_num_threads,
    "deterministic algorithms": lambda: (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    ),
    "gradients": torch.is_grad_enabled,
    "anomaly detection": torch.is_anomaly_enabled,
    "matmul precision": torch.get_float32_matmul_precision,
    "cuDNN": lambda: (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
    "Pyro's parameter store": lambda: sorted(sys.modules["pyro"].get_param_store().keys()) if "pyro" in sys.modules else [],
}


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)  # the tensors of tests are small: threads would only wait for each other


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = {
        "slow": "slow" in config.getoption("markexpr") or bool(os.environ.get("RUN_SLOW")),
        "gpu": torch.cuda.is_available(),
    }
    reasons = {"slow": "slow: run with -m slow or RUN_SLOW=1", "gpu": "needs a CUDA device"}
    for item in items:
        for marker, reason in reasons.items():
            if item.get_closest_marker(marker) and not wanted[marker]:
                item.add_marker(pytest.mark.skip(reason=reason))


@contextmanager
def unchanged() -> Iterator[None]:
    """Fail a test that changes a global inside, so that no test depends on what ran before it."""
    before = {name: read() for name, read in GLOBALS.items()}
    yield
    after = {name: read() for name, read in GLOBALS.items()}
    if changed := [f"{name}: {before[name]} before, {after[name]} after" for name in GLOBALS if after[name] != before[name]]:
        pytest.fail(f"the test changed global state: {'; '.join(changed)}", pytrace=False)


@pytest.fixture(autouse=True)
def unchanged_globals() -> Iterator[None]:
    with unchanged():
        yield


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The store of `small.SYSTEM`. Do not write to it."""
    return small.make_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def run(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A briefly trained run on `store`. Do not write to it."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    small.trainer(store, folder, small.config(steps=30, validate_every=30, checkpoint_every=30)).fit()
    return folder


@pytest.fixture
def sim(run: Path) -> Simulator:
    return epns_pyro.load(run)


@pytest.fixture
def x0(store: Store) -> np.ndarray:
    """Two initial states of `store`."""
    return store.read("test", slice(0, 2), stop=1)[:, 0]
