"""Modules that take long to import, imported where they are first used."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any


class _Later(ModuleType):
    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


def later(module: str) -> Any:
    """Return a stand-in for a module, which is imported when something of it is asked for: loading a run needs little of what is there."""
    return _Later(module)
