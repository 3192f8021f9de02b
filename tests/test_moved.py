"""Import paths of version 0.1: each still works, with a warning that names the new one."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import epns_pyro
from epns_pyro import inference
from epns_pyro._moved import MODULES, moved

# What the documentation, the examples and the benchmarks of version 0.1 imported, and where it is now.
NAMES = {
    "epns_pyro.data.context": ("DataContext", "compute_context"),
    "epns_pyro.inference.conditioning": ("unweighted", "filter_states", "smooth_paths"),
    "epns_pyro.inference.observations": ("Observations", "InitialNormal"),
    "epns_pyro.inference.presets": ("preset",),
    "epns_pyro.inference.programs": ("fit", "sample_futures"),
    "epns_pyro.inference.run": ("EvaluationConfig", "RunConfig", "RunFolder", "TrainingConfig"),
    "epns_pyro.inference.schedules": ("HorizonSchedule",),
    "epns_pyro.inference.simulator": ("Simulator", "load"),
    "epns_pyro.inference.trainer": ("Hardware", "Trainer"),
    "epns_pyro.inference.validation": ("as_tensor", "draw_transitions"),
    "epns_pyro.models.cells": ("CellsModelConfig", "CellsTransition"),
    "epns_pyro.models.particles": ("ParticlesConfig",),
    "epns_pyro.systems.random": ("uniform",),
}
PACKAGE = "EvaluationConfig InitialNormal Observations Proposal RunConfig RunFolder Simulator TrainingConfig Validation load preset"
PACKAGE += " read_observations unweighted"


@pytest.mark.parametrize("old", MODULES)
def test_an_old_module_has_the_names_of_the_new_one(old):
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"^{old} has moved: import from {MODULES[old]}$") as caught:
        module = importlib.import_module(old)
    assert len(caught) == 1
    new = importlib.import_module(MODULES[old])
    public = [name for name in vars(new) if not name.startswith("__")]
    assert public
    assert all(getattr(module, name) is getattr(new, name) for name in public)
    assert set(NAMES.get(old, ())) <= set(public)
    assert new.__name__ == new.__spec__.name == MODULES[old]  # the new module is untouched


@pytest.mark.parametrize("name", PACKAGE.split())
def test_a_name_that_left_the_package_inference_is_found(name):
    with pytest.warns(DeprecationWarning, match=f"^epns_pyro.inference.{name} has moved: import it from ") as caught:
        found = getattr(inference, name)
    home = str(caught[0].message).split()[-1]
    assert found is getattr(importlib.import_module(home), name)
    assert caught[0].filename == __file__
    assert getattr(epns_pyro, name, found) is found


def test_what_never_was_is_not_found():
    with pytest.raises(AttributeError, match=r"module 'epns_pyro.inference' has no attribute 'nothing'"):
        _ = inference.nothing
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("epns_pyro.inference.nothing")
    with pytest.raises(AttributeError, match="module 'here' has no attribute 'there'"):
        moved("here", {"that": "epns_pyro.errors"})("there")


def test_the_warning_points_at_the_line_that_imports(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import os\n\nfrom epns_pyro.inference.schedules import HorizonSchedule\n")
    done = subprocess.run([sys.executable, "-W", "default", script], capture_output=True, text=True, check=True)
    assert f"{script}:3: DeprecationWarning: epns_pyro.inference.schedules has moved" in done.stderr


def test_the_package_itself_uses_no_old_path():
    sources = [path.read_text() for path in Path(epns_pyro.__file__).parent.rglob("*.py")]
    imported = {node.module for source in sources for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)}
    assert "epns_pyro.errors" in imported
    assert imported & MODULES.keys() == set()
