"""Equivariant probabilistic neural simulation as a Pyro program.

load(run) -> Simulator                   a trained simulator, to sample, score and condition with
train(config, store, out) -> Simulator   train one; `config` is a preset, changed or not, or its name
preset(family) -> RunConfig              settings to start from
Observations                             observations to condition on
"""

from __future__ import annotations

import importlib
import sys
from os import environ as _environment
from typing import TYPE_CHECKING, Any

from epns_pyro._moved import OldModules
from epns_pyro._version import __version__

if TYPE_CHECKING:
    from epns_pyro.conditioning.observations import Observations
    from epns_pyro.runs import load, train
    from epns_pyro.simulator import Simulator
    from epns_pyro.training.presets import preset

__all__ = ["Observations", "Simulator", "__version__", "load", "preset", "train"]

_HOMES = {
    "Observations": "epns_pyro.conditioning.observations",
    "Simulator": "epns_pyro.simulator",
    "load": "epns_pyro.runs",
    "preset": "epns_pyro.training.presets",
    "train": "epns_pyro.runs",
}

# GNU OpenMP reads this when torch is loaded, which is later unless the caller was first. Left to itself it lets idle threads spin for
# milliseconds, and as soon as another process wants a core work with two threads becomes several times slower; a short spin costs nothing.
if "OMP_WAIT_POLICY" not in _environment:
    _environment.setdefault("GOMP_SPINCOUNT", "3000")

sys.meta_path.append(OldModules())  # last, so that it is asked only for modules not found elsewhere


def __getattr__(name: str) -> Any:
    # torch and Pyro are imported only when they are needed, so that the command line answers at once.
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
