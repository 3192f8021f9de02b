"""Equivariant probabilistic neural simulation as a Pyro program."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from epns_pyro._version import __version__

if TYPE_CHECKING:
    from epns_pyro.simulator import Simulator, load
__all__ = ["Simulator", "__version__", "load"]

_LAZY = {"Simulator": "epns_pyro.simulator", "load": "epns_pyro.simulator"}


def __getattr__(name: str) -> Any:
    # torch and Pyro are imported only when they are needed, so that the command line answers at once.
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
