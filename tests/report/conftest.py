"""Evaluations that the tests of the report share."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_evaluations import write_evaluation


@pytest.fixture(scope="session")
def evaluations(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders RUN/evaluation/ by kind; tests that change one work on a copy."""
    return {kind: write_evaluation(tmp_path_factory.mktemp(kind) / "run", kind) for kind in ("particles", "labels")}
