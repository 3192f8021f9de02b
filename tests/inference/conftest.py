from __future__ import annotations

import pytest
from small import make_store

from epns_pyro.data import Store


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("store"))
