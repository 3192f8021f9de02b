from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small import config, make_store, trainer

import epns_pyro
from epns_pyro.data import Store
from epns_pyro.simulator import Simulator


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def run(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A briefly trained run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    trainer(store, folder, config(steps=30, validate_every=30, checkpoint_every=30)).fit()
    return folder


@pytest.fixture
def sim(run: Path) -> Simulator:
    return epns_pyro.load(run)


@pytest.fixture
def x0(store: Store) -> np.ndarray:
    """Two initial states."""
    return store.read("test", slice(0, 2), stop=1)[:, 0]
