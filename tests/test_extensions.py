"""Code from outside: a system and a backbone in one file are let in, trained, loaded in a fresh process, evaluated and reported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import epns_pyro.extensions as extensions
from epns_pyro.errors import ConfigError
from epns_pyro.extensions import load_extensions

OUTSIDE = Path(__file__).parents[1] / "examples" / "outside.py"
TRAIN = """
import sys, torch
torch.set_num_threads(1)
import epns_pyro
from epns_pyro.data import generate
from epns_pyro.extensions import load_extensions
from epns_pyro.testing import check_backbone, check_system
(outside,) = load_extensions([sys.argv[1]])
check_system(outside.SwarmConfig())
check_backbone(outside.DistancesConfig(width=8))
sets = {name: {"trajectories": n, "steps": 4} for name, n in (("train", 8), ("val", 4), ("test", 6))}
store = generate(outside.SwarmConfig.parse({"sets": sets}), "swarm.zarr")
changes = {"model.backbone": "distances", "model.backbone.width": 8, "model.width": 8, "model.latent": 3, "training.steps": 2}
config = epns_pyro.preset("particles", data=store.system.config).override(changes)
sim = epns_pyro.train(config, store, "run", imports=[sys.argv[1]])
assert sim.config.model.backbone.name == "distances"
"""
EVALUATE = """
import sys, torch
torch.set_num_threads(1)
from click.testing import CliRunner
import epns_pyro
from epns_pyro.cli import main
from epns_pyro.errors import ConfigError
try:
    epns_pyro.load("run")
except ConfigError as error:
    print(error)
assert "outside" not in " ".join(sys.modules)
small = "members=3 trajectories=4 importance_samples=2 likelihood_transitions=4 guide_transitions=2 guide_draws=3 recalibrate=false"
for option, command in (("--import", ["evaluate", *(f"--set={setting}" for setting in small.split())]), ("--plugin", ["report"])):
    result = CliRunner().invoke(main, [command[0], "run", option, sys.argv[1], *command[1:]])
    assert result.exit_code == 0, result.output
print(epns_pyro.load("run", imports=[sys.argv[1]]).system.name)
"""


def test_a_system_and_a_backbone_from_outside(tmp_path: Path) -> None:
    said = []
    for script in (TRAIN, EVALUATE):
        done = subprocess.run([sys.executable, "-c", script, str(OUTSIDE)], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    refusal, system = said[1].splitlines()
    assert "unknown system 'swarm'" in refusal
    assert "unknown backbone 'distances'" in refusal
    assert f"this run was made with --import {OUTSIDE}" in refusal
    assert system == "swarm"
    assert "spread about the centroid" in (tmp_path / "run" / "report.html").read_text()


def test_a_module_or_file_is_imported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plug_of_test.py").write_text("import itertools\ncount = itertools.count()\n")
    file = str(tmp_path / "plug_of_test.py")
    (first,), (again,) = load_extensions([file]), load_extensions([file])
    assert first is again
    monkeypatch.syspath_prepend(tmp_path)
    (module,) = load_extensions(["plug_of_test"])
    assert module is not first  # a file and a module of the same name are two things
    assert load_extensions(["json"])[0] is sys.modules["json"]


@pytest.mark.parametrize(
    ("name", "source", "said"),
    [
        ("nowhere.py", None, "--import nowhere.py: no such file"),
        ("no_such_module_anywhere", None, "no such module: install its package, or give the path of a file, no_such_module_anywhere.py"),
        ("no_such_package.inside", None, "no such module"),
        ("bad.py", "x = 1\ny = 1 / 0\n", r"fails with ZeroDivisionError: division by zero \(.*bad.py, line 2\)"),
        ("bad.py", "x = (\n", r"fails with SyntaxError: .* \(.*bad.py, line 1\)"),
        ("bad.py", "import no_such_module_anywhere\n", "fails with ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
    ],
)
def test_what_cannot_be_imported_is_said_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name, source, said) -> None:
    monkeypatch.chdir(tmp_path)
    if source:
        Path(name).write_text(source)
    with pytest.raises(ConfigError, match=said) as caught:
        load_extensions([name])
    assert "\n" not in str(caught.value)


def test_imports_are_a_list() -> None:
    with pytest.raises(ConfigError, match=r"expected a list of modules or files, found the text 'mine.py': write \['mine.py'\]"):
        load_extensions("mine.py")


def test_entry_points_are_loaded_once_and_a_broken_one_is_only_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Entry:
        value = "mine.module"

        def __init__(self, name: str, error: Exception | None = None) -> None:
            self.name, self.error, self.loaded = name, error, 0

        def load(self) -> None:
            self.loaded += 1
            if self.error:
                raise self.error

    entries = [Entry("broken", RuntimeError("too old")), Entry("sound")]
    monkeypatch.setattr(extensions, "_entry_points_done", set())
    monkeypatch.setattr(extensions.importlib.metadata, "entry_points", lambda group: entries if group == "epns_pyro" else [])
    load_extensions()
    load_extensions()
    assert [entry.loaded for entry in entries] == [1, 1]
    assert "broken = mine.module of an installed package does not load: too old" in caplog.text
