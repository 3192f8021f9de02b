"""The house rules that a reader relies on, read off the source: who may import whom, and what nobody does."""

from __future__ import annotations

import ast
import configparser
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "epns_pyro").rglob("*.py"), *(ROOT / "cli").rglob("*.py")])
WRITTEN = sorted(p for folder in ("epns_pyro", "cli", "tests", "examples", "benchmarks") for p in (ROOT / folder).rglob("*.py"))
MAXIMUM_LINES = 400

# What each part may import of the others. Its own part goes without saying.
_GROUND = {
    "_version",
    "_moved",
    "errors",
    "once",
    "whole",
    "later",
    "threads",
    "heap",
    "plain",
    "machine",
    "extensions",
    "cluster",
    "config",
    "state",
    "presence",
    "lineage",
    "derived",
    "durations",
    "fields",
    "geometry",
    "symmetry",
    "context",
}
_MODELS = _GROUND | {"systems", "data", "backbones"}
LAYERS = {
    "_version": set(),
    "_moved": set(),
    "errors": set(),
    "once": set(),
    "whole": set(),
    "later": set(),
    "threads": {"errors", "later"},
    "heap": set(),
    "plain": {"errors"},
    "config": {"errors", "plain"},
    "geometry": {"errors"},
    "fields": {"errors"},
    "state": {"errors", "once", "plain", "fields", "geometry"},
    "extensions": {"errors"},
    "machine": {"errors"},
    "cluster": {"errors", "heap", "machine"},
    "presence": {"errors", "state"},
    "lineage": {"state", "fields"},
    "durations": {"errors", "state", "fields"},
    "derived": {"errors", "state", "presence", "durations", "geometry"},
    "symmetry": {"errors", "state", "fields", "geometry"},
    "context": {"errors", "state"},
    "systems": _GROUND,
    "data": _GROUND | {"systems", "calibration"},
    "backbones": _GROUND,
    "models": _GROUND | {"backbones"},
    "inference": _MODELS | {"models"},
    "training": _MODELS | {"models", "inference"},
    "conditioning": _MODELS | {"models", "inference"},
    "simulator": _MODELS | {"models", "inference", "training", "conditioning"},
    "pretrained": {"errors"},
    "runs": _MODELS | {"models", "training", "simulator", "pretrained"},
    "sampling": _MODELS | {"models", "simulator", "runs"},
    "testing": _MODELS | {"models", "inference"},
    "calibration": {"errors", "state"},
    "evaluation": _MODELS | {"models", "inference", "training", "simulator", "calibration"},
    "studies": _MODELS | {"models", "inference", "training", "simulator", "runs", "calibration", "evaluation"},
    "plots": _MODELS | {"simulator", "calibration", "evaluation"},
    "report": {"errors", "whole", "plain", "state", "calibration", "evaluation", "plots"},
    "cli": _MODELS
    | {"models", "inference", "training", "conditioning", "simulator", "calibration", "evaluation", "report", "epns_pyro"}
    | {"pretrained", "plots", "studies", "sampling"},
    "epns_pyro": {"_moved", "_version", "conditioning", "simulator", "runs", "training"},
}
# Libraries that only the named parts or modules may import.
ONLY_IN = {
    "pyro": ("epns_pyro.testing", "epns_pyro.models", "epns_pyro.inference", "epns_pyro.training", "epns_pyro.conditioning"),
    "torch_geometric": ("epns_pyro.backbones",),
    "e3nn": ("epns_pyro.backbones",),
    "lightning_fabric": ("epns_pyro.training.trainer",),
    "arviz": ("epns_pyro.calibration",),
    "click": ("epns_pyro.cli",),
    "dask": ("epns_pyro.cluster",),
    "distributed": ("epns_pyro.cluster",),
    "dask_jobqueue": ("epns_pyro.cluster",),
}
NEVER_IN = {"epns_pyro.calibration": ("torch",)}
HEAVY = ("torch_geometric", "e3nn", "scoringrules")
# The published files have channels by position: reading them is the one place where a position means something.
BY_POSITION = ("epns_pyro.data.importers.epns_format",)


# -- reading the source ----------------------------------------------------------------------------------------------------


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = ("epns_pyro", *parts) if parts[0] == "cli" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def parse(source: str) -> ast.Module:
    return ast.parse(source)


def imports(source: str) -> Iterator[str]:
    """Modules that a source imports, at its top or inside, but for those that only annotations need."""
    pending: list[ast.AST] = [parse(source)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            pending += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (imported(f"{'.' * node.level}{node.module or ''}", alias.name) for alias in node.names)
        pending += ast.iter_child_nodes(node)


def imported(module: str, name: str) -> str:
    """What `from module import name` depends on; the version of the package is free to everybody."""
    if module == "epns_pyro":
        return "" if name == "__version__" else f"epns_pyro.{name}"
    return module


def part(module: str) -> str:
    """Part of the house that a module belongs to; "" for what is not ours."""
    first, *rest = module.split(".")
    if first != "epns_pyro":
        return ""
    return rest[0] if rest and rest[0] in LAYERS else "epns_pyro"


def layering(module: str, source: str) -> list[str]:
    here = part(module)
    there = {part(target): target for target in imports(source)}
    return [f"{module} imports {there[p]}" for p in sorted(there) if p not in {"", here} | LAYERS[here]]


def borders(module: str, source: str) -> list[str]:
    def inside(parents: tuple[str, ...]) -> bool:
        return any(module == parent or module.startswith(f"{parent}.") for parent in parents)

    libraries = {target.split(".")[0] for target in imports(source)}
    wrong = [library for library, homes in ONLY_IN.items() if library in libraries and not inside(homes)]
    wrong += [library for home, barred in NEVER_IN.items() if inside((home,)) for library in barred if library in libraries]
    return [f"{module} imports {library}" for library in wrong]


def heavy_at_the_top(module: str, source: str) -> list[str]:
    """Libraries that take seconds to import and that most runs do without, imported outside of a function."""
    at_the_top = ast.unparse(ast.Module([node for node in parse(source).body if isinstance(node, (ast.Import, ast.ImportFrom))], []))
    return [f"{module} imports {name} at its top" for name in HEAVY if name in {target.split(".")[0] for target in imports(at_the_top)}]


def channels_by_number(module: str, source: str) -> list[str]:
    """Places like x[..., 5:8] or x[..., 3]: channels are known by name. x[..., 0], x[..., -1] and open slices are no channels."""
    found = []
    for node in ast.walk(parse(source)):
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple) and is_ellipsis(node.slice.elts[0]):
            last = node.slice.elts[-1]
            bounds = (last.lower, last.upper) if isinstance(last, ast.Slice) else (last,)
            numbers = [b.value for b in bounds if isinstance(b, ast.Constant) and isinstance(b.value, int)]
            if len(numbers) == len(bounds) and max(numbers) > 0:
                found.append(f"{module}:{node.lineno}: {ast.unparse(node)}")
    return [] if module in BY_POSITION else found


def is_ellipsis(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is ...


def prints(module: str, source: str) -> list[str]:
    calls = [node for node in ast.walk(parse(source)) if isinstance(node, ast.Call)]
    return [f"{module}:{c.lineno}: print" for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]


def asserts(module: str, source: str) -> list[str]:
    return [f"{module}:{n.lineno}: assert" for n in ast.walk(parse(source)) if isinstance(n, ast.Assert)]


def passes_keywords_through(module: str, source: str) -> list[str]:
    """Functions that take **kwargs and hand them on as **kwargs; classes derived from click's have to."""
    found = []
    for node in ast.walk(parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.Lambda)) and node.args.kwarg:
            name = node.args.kwarg.arg
            handed = [k for call in ast.walk(node) if isinstance(call, ast.Call) for k in call.keywords if k.arg is None]
            if any(isinstance(k.value, ast.Name) and k.value.id == name for k in handed):
                found.append(f"{module}:{node.lineno}: **{name}")
    return [] if part(module) == "cli" else found


RULES = (layering, borders, heavy_at_the_top, channels_by_number, prints, asserts, passes_keywords_through)

# -- the rules hold --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_the_rule_holds_everywhere(rule):
    assert len(SOURCES) > 40
    assert [line for path in SOURCES for line in rule(module_name(path), path.read_text())] == []


def test_no_file_is_too_long():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in WRITTEN}
    assert {name: n for name, n in lengths.items() if n > MAXIMUM_LINES} == {}


def test_every_part_has_its_place():
    parts = {path.relative_to(ROOT / "epns_pyro").parts[0].removesuffix(".py") for path in SOURCES if "epns_pyro" in path.parts[-3:]}
    assert parts - {"__init__"} <= LAYERS.keys()


def test_every_package_is_installed():
    """setup.cfg names the packages of a wheel one by one, because the commands lie in a folder of their own."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    installed = settings["options"]["packages"].split()
    assert installed == sorted(installed)
    assert set(installed) == {module_name(path) for path in SOURCES if path.name == "__init__.py"}


def test_the_tests_mirror_the_tree():
    """A test of `epns_pyro/data/importers/` is in `tests/data/importers/`; pytest needs the names of test files to differ."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    folders = {path.parent.relative_to(ROOT / "tests") for path in files} - {Path("contract"), Path("fuzz")}
    homes = {path.parent.relative_to(ROOT / "epns_pyro") for path in (ROOT / "epns_pyro").rglob("*.py")} | {Path("cli")}
    assert folders - homes == set()
    assert len({path.name for path in files}) == len(files)


# -- and would be seen to be broken ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "module", "source", "found"),
    [
        (layering, "epns_pyro.systems.nbody", "from epns_pyro.models import EPNSModel", "imports epns_pyro.models"),
        (
            layering,
            "epns_pyro.data.stores",
            "def f():\n    import epns_pyro.backbones.bodies.frames",
            "imports epns_pyro.backbones.bodies.frames",
        ),
        (layering, "epns_pyro.errors", "from epns_pyro import config", "imports epns_pyro.config"),
        (layering, "epns_pyro.models.epns", "from epns_pyro import load", "imports epns_pyro.load"),
        (layering, "epns_pyro.calibration.scores", "import epns_pyro.systems", "imports epns_pyro.systems"),
        (
            layering,
            "epns_pyro.backbones.bodies.frames",
            "from epns_pyro.data.scales import compute_context",
            "imports epns_pyro.data.scales",
        ),
        (layering, "epns_pyro.inference.elbo", "from epns_pyro.cli import main", "imports epns_pyro.cli"),
        (borders, "epns_pyro.backbones.bodies.frames", "import pyro.distributions as dist", "imports pyro"),
        (borders, "epns_pyro.models.bodies.particles", "from e3nn import o3", "imports e3nn"),
        (
            borders,
            "epns_pyro.models.bodies.particles",
            "def f():\n    from torch_geometric.utils import scatter",
            "imports torch_geometric",
        ),
        (borders, "epns_pyro.inference.elbo", "from lightning_fabric import Fabric", "imports lightning_fabric"),
        (borders, "epns_pyro.evaluation", "import arviz", "imports arviz"),
        (borders, "epns_pyro.calibration.scores", "import torch", "imports torch"),
        (heavy_at_the_top, "epns_pyro.backbones.bodies.graphs", "from torch_geometric.utils import scatter", "torch_geometric at its top"),
        (heavy_at_the_top, "epns_pyro.calibration.scores", "import scoringrules", "scoringrules at its top"),
        (channels_by_number, "epns_pyro.models.epns", "v = x[..., 5:8]", r"x[..., 5:8]"),
        (channels_by_number, "epns_pyro.models.epns", "v = x[..., :, 0:3]", r"x[..., :, 0:3]"),
        (channels_by_number, "epns_pyro.models.epns", "m = x[..., 3]", r"x[..., 3]"),
        (prints, "epns_pyro.cli.train", "print('done')", "print"),
        (asserts, "epns_pyro.data.stores", "assert x, 'no x'", "assert"),
        (passes_keywords_through, "epns_pyro.config", "def f(**kwargs):\n    return g(**kwargs)", "**kwargs"),
    ],
)
def test_breaking_a_rule_is_seen(rule, module, source, found):
    (line,) = rule(module, source)
    assert found in line


@pytest.mark.parametrize(
    ("rule", "module", "source"),
    [
        (layering, "epns_pyro.state", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from epns_pyro.symmetry import Group"),
        (layering, "epns_pyro.data.writing", "from epns_pyro._version import __version__"),
        (layering, "epns_pyro.models.epns", "from epns_pyro.models.transition import Transition\nimport torch"),
        (borders, "epns_pyro.training.trainer", "from lightning_fabric import Fabric"),
        (borders, "epns_pyro.models.epns", "import pyro"),
        (heavy_at_the_top, "epns_pyro.backbones.bodies.graphs", "import torch\ndef f():\n    from torch_geometric.utils import scatter"),
        (channels_by_number, "epns_pyro.models.epns", "x[..., 0], x[..., -1], x[..., 1:], x[..., :n], x[..., None]"),
        (passes_keywords_through, "epns_pyro.state", "def f(**values):\n    return g(values)"),
    ],
)
def test_what_is_allowed_passes(rule, module, source):
    assert rule(module, source) == []
