"""Old import paths, kept for one more release with a warning that names the new path."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Modules of version 0.1 -> where their names are now.
MODULES = {
    "epns_pyro.backbones.base": "epns_pyro.backbones.bodies.base",
    "epns_pyro.calibration.report": "epns_pyro.report",
    "epns_pyro.data.context": "epns_pyro.data.scales",
    "epns_pyro.inference.checkpoint": "epns_pyro.training.checkpoint",
    "epns_pyro.inference.conditioning": "epns_pyro.conditioning.filtering",
    "epns_pyro.inference.metrics": "epns_pyro.training.metrics",
    "epns_pyro.inference.observations": "epns_pyro.conditioning.observations",
    "epns_pyro.inference.presets": "epns_pyro.training.presets",
    "epns_pyro.inference.problem": "epns_pyro.conditioning.problem",
    "epns_pyro.inference.programs": "epns_pyro.training.stock_pyro",
    "epns_pyro.inference.run": "epns_pyro.training.run",
    "epns_pyro.inference.schedules": "epns_pyro.training.schedules",
    "epns_pyro.inference.simulator": "epns_pyro.runs",
    "epns_pyro.inference.trainer": "epns_pyro.training.trainer",
    "epns_pyro.inference.validation": "epns_pyro.training.validation",
    "epns_pyro.models.cells": "epns_pyro.models.tissues.cells",
    "epns_pyro.models.particles": "epns_pyro.models.bodies.particles",
    "epns_pyro.systems.random": "epns_pyro.systems.rng",
}


def moved(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a module's `__getattr__` that finds names at their new places.

    Parameters
    ----------
    package : str
        The old module, `__name__`.
    homes : mapping of str to str
        Name -> module that holds it now.
    """

    def __getattr__(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = homes[name]
        warnings.warn(f"{package}.{name} has moved: import it from {home}", DeprecationWarning, stacklevel=2)
        return getattr(importlib.import_module(home), name)

    return __getattr__


class OldModules(MetaPathFinder, Loader):
    """Finds modules by their old paths: an old module has the names of the new one, and warns when it is first imported."""

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MODULES else None

    def exec_module(self, module: ModuleType) -> None:
        home = MODULES[module.__name__]
        # Frames of the import machinery are not counted: stacklevel 2 is the importing line.
        warnings.warn(f"{module.__name__} has moved: import from {home}", DeprecationWarning, stacklevel=2)
        new = importlib.import_module(home)
        module.__dict__.update({name: value for name, value in vars(new).items() if not name.startswith("__")})
