"""Stores of the toy systems, in chunks of two trajectories so that small sets have several."""

from __future__ import annotations

import os

import numpy as np
import pytest
from toy_systems import StripesConfig, WalkersConfig

from epns_pyro.data import generate, writing


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(writing, "CHUNK_TRAJECTORIES", 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)


@pytest.fixture(scope="session")
def walkers(tmp_path_factory):
    """A store of 11, 3 and 6 trajectories of two bodies. Do not write to it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "CHUNK_TRAJECTORIES", 2)
        return generate(WalkersConfig(), tmp_path_factory.mktemp("walkers") / "store.zarr", seed=3)


@pytest.fixture(scope="session")
def stripes(tmp_path_factory):
    """A store of 7 and 2 trajectories of label images. Do not write to it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "CHUNK_TRAJECTORIES", 2)
        return generate(StripesConfig(), tmp_path_factory.mktemp("stripes") / "store.zarr", seed=3)


@pytest.fixture
def rng():
    return np.random.default_rng(0)
