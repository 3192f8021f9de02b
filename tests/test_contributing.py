"""The recipes of CONTRIBUTING.md: every block of Python is a file, and its tests pass."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path

import pytest

from epns_pyro.backbones import BACKBONES
from epns_pyro.evaluation import checks
from epns_pyro.evaluation.check import Inputs
from epns_pyro.systems import SYSTEMS
from epns_pyro.training.run import EvaluationConfig

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
FILES = dict(re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", TEXT, flags=re.DOTALL | re.MULTILINE))
RECIPES = [name.removeprefix("test_").removesuffix(".py") for name in FILES if name.startswith("test_")]


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all files, whose modules can be imported; what they register is forgotten afterwards."""
    for name, source in FILES.items():
        (tmp_path / name).write_text(source)
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    for registry in (SYSTEMS, BACKBONES):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    monkeypatch.setattr(checks, "CHECKS", list(checks.CHECKS))
    return tmp_path


def test_every_block_of_python_is_a_file_with_a_test() -> None:
    assert TEXT.count("```python") == len(FILES) == 2 * len(RECIPES)
    assert TEXT.count("## Add a") == len(RECIPES) >= 4
    assert {f"{name}.py" for name in RECIPES} < FILES.keys()


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipe_works(recipe: str, recipes: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    module = importlib.import_module(f"test_{recipe}")
    tests = [value for name, value in vars(module).items() if name.startswith("test_")]
    assert tests
    for test in tests:
        test(**({"tmp_path": tmp_path_factory.mktemp(recipe)} if "tmp_path" in inspect.signature(test).parameters else {}))


def test_the_diagnostic_measures_a_run(recipes: Path, sim, store, tmp_path: Path) -> None:
    module = importlib.import_module("largest_step")
    (check,) = (check for check in checks.CHECKS if check.key == "largest_step")
    record = check.measure(Inputs(sim, store, EvaluationConfig(), {}, tmp_path))
    assert isinstance(record, module.LargestStep)
    assert 0 < record.truth < 10
    assert record.model > 0
    (section,) = check.sections(record, None)
    assert f"{record.truth:.3g} in the data" in section.items[0].words
