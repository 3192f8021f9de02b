"""Old homes of names that scripts import: they work for one more release, with a warning that names the new home."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def moved(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a module `__getattr__` that finds names in their new homes.

    Parameters
    ----------
    package : str
        The old home, `__name__` of the module.
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
