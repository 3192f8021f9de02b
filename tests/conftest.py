"""What holds for every test: one thread, no changed globals, and slow tests and those that need a GPU only where they are wanted.

Also one small store and one briefly trained run, made once for all tests that read them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import small
import torch
from filelock import FileLock

import epns_pyro
from epns_pyro.data import Store, open_store
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
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """`made_once(name, make)` is a folder that `make(folder)` has filled, the same for all processes of a session with pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder, complete = base / name, base / f"{name}.complete"
        with FileLock(base / f"{name}.lock"):
            if not complete.exists():
                folder.mkdir()
                make(folder)
                complete.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def store(made_once: Callable) -> Store:
    """The store of `small.SYSTEM`. Do not write to it."""
    return open_store(made_once("small_store", small.make_store) / "small.zarr")


@pytest.fixture(scope="session")
def run(store: Store, made_once: Callable) -> Path:
    """A briefly trained run on `store`. Do not write to it."""
    training = small.config(steps=30, validate_every=30, checkpoint_every=30)
    return made_once("small_run", lambda folder: small.trainer(store, folder / "run", training).fit()) / "run"


@pytest.fixture
def sim(run: Path) -> Simulator:
    return epns_pyro.load(run)


@pytest.fixture
def x0(store: Store) -> np.ndarray:
    """Two initial states of `store`."""
    return store.read("test", slice(0, 2), stop=1)[:, 0]
