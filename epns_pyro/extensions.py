"""Loading of user code that registers systems, backbones, models and families.

A module that registers something (`@BACKBONES.register("mine")`, ...) is loaded in one of three ways, all explicit:

    --import MODULE or FILE.py       on the command line
    epns_pyro.load(run, imports=["MODULE or FILE.py"])
    an installed package with an entry point in the group `epns_pyro` that names the module

Stores, configs and checkpoints never load code: a run only stores the names, so that an error can mention them.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import logging
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from epns_pyro.errors import ConfigError

GROUP = "epns_pyro"

logger = logging.getLogger(__name__)
_entry_points_done: set[str] = set()


def load_extensions(imports: Iterable[str] = ()) -> list[ModuleType]:
    """Import the modules of installed entry points, then the named modules and files; each is imported once.

    Parameters
    ----------
    Names of modules, "package.module", or paths of files that end in .py.

    Returns
    -------
    list of module
        Of `imports`, in their order.

    Raises
    ------
    ConfigError
        If there is no such module or file, or if its import fails. A failing entry point is only logged, because it may not be needed.
    """
    if isinstance(imports, str):
        raise ConfigError(f"imports: expected a list of modules or files, found the text {imports!r}: write [{imports!r}]")
    for entry in importlib.metadata.entry_points(group=GROUP):
        if entry.name not in _entry_points_done:
            _entry_points_done.add(entry.name)
            try:
                entry.load()
            except Exception as error:  # user code can raise any type
                logger.warning("the entry point %s = %s of an installed package does not load: %s", entry.name, entry.value, error)
    return [_import(name) for name in imports]


def _import(name: str) -> ModuleType:
    is_file = name.endswith(".py")
    if is_file and not Path(name).is_file():
        raise ConfigError(f"--import {name}: no such file")
    try:
        return _import_file(Path(name)) if is_file else importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not is_file and error.name and f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(f"--import {name}: no such module: install its package, or give the path of a file, {name}.py") from None
        raise ConfigError(_failure(name, error)) from error
    except Exception as error:  # user code can raise any type
        raise ConfigError(_failure(name, error)) from error


def _import_file(path: Path) -> ModuleType:
    """Import a file under a unique module name, so that files of the same name do not collide."""
    path = path.resolve()
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--import {path}: expected a file of Python, {path.stem}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses and pickle look a class's module up by name
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _failure(name: str, error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{error.filename}, line {error.lineno}" if isinstance(error, SyntaxError) else f"{last.filename}, line {last.lineno}"
    message = error.msg if isinstance(error, SyntaxError) else error
    return f"--import {name}: fails with {type(error).__name__}: {message} ({place})"
