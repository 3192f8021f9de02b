"""The work that `benchmarks/speed.py` times, in a process of its own for each version of the package.

    python benchmarks/speed_workloads.py ROOT < requests > answers

ROOT is a checkout, whose `epns_pyro` is imported. Requests and answers are lines of JSON; only names that the package has had since
version 0.2 are used, so that older commits can be compared. Weights do not change what is counted or timed: untrained models are measured.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

PAPER = {"width": 128, "layers": 5}
# name -> (family, preset, changes of the settings)
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "default": ("nbody", "quick", {}),
    "default, no integrator": ("nbody", "quick", {"model.integrator": None}),
    "frames (paper preset)": ("nbody", "paper", {}),
    "message-passing, paper size": ("nbody", "paper", {"model.backbone": {"name": "message-passing", **PAPER}}),
    "tensor-product": ("nbody", "quick", {"model.backbone": "tensor-product"}),
    "mlp": ("nbody", "quick", {"model.backbone": "mlp"}),
    "pairs": ("charged", "quick", {}),
    "cells": ("cells", "quick", {}),
}
BODIES = (100, 300, 1000, 3000, 10_000)
NEIGHBOURS = 12
STEPS = 5  # of a timed rollout; what is counted and timed is given per step
SETS = {"train": {"trajectories": 16, "steps": 10}}


class Counter(TorchDispatchMode):
    """Count what is launched: operators, those among them that are no views, and the bytes these read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = self.kernels = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.operators += 1
        if not func.is_view:
            self.kernels += 1
            tensors = [t for t in torch.utils._pytree.tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
            self.bytes += sum(t.numel() * t.element_size() for t in tensors)
        return out


class Work:
    """A model with states to start from; `tasks` are what is timed."""

    def __init__(self, transition: torch.nn.Module, x0: torch.Tensor, path: torch.Tensor) -> None:
        from epns_pyro.inference.elbo import Objective

        self.transition, self.x0, self.path = transition, x0, path
        self.objective = Objective(transition)
        self.optimizer = torch.optim.AdamW(transition.parameters(), fused=True)

    def train(self, batch: int) -> None:
        """One step of the optimiser on a batch of windows."""
        self.optimizer.zero_grad(set_to_none=True)
        self.objective(self._rows(self.x0, batch), self._rows(self.path, batch)).loss.backward()
        self.optimizer.step()

    def rollout(self, members: int, steps: int = STEPS) -> None:
        """Some steps of so many members of one initial state, as `Simulator.rollout` makes them."""
        from epns_pyro.inference.rollout import rollout_blocks

        for _ in rollout_blocks(self.transition, self.x0[:1], steps=steps, members=members, seed=0):
            pass

    @staticmethod
    def _rows(x: torch.Tensor, count: int) -> torch.Tensor:
        return x[torch.arange(count) % len(x)]


@functools.cache
def work(model: str) -> Work:
    """Build an untrained model and the states that it is timed on."""
    if model.endswith(" bodies"):
        return many_bodies(int(model.split()[0]))
    import epns_pyro
    from epns_pyro.data import generate
    from epns_pyro.training.presets import get_preset

    family, name, changes = MODELS[model]
    system = get_preset(family, name).system()
    system = type(system).parse(system.model_dump() | {"sets": SETS})
    with tempfile.TemporaryDirectory() as folder:
        store = generate(system, Path(folder) / "speed.zarr", workers=1)
        context, states = store.context(), store.read("train", None)
    config = epns_pyro.preset(family, name, data=system).override(changes)
    torch.manual_seed(0)
    transition = config.model.build(context)
    x = torch.as_tensor(states)
    x = x.to(torch.float32 if x.is_floating_point() else torch.int64)
    length = max(config.training.horizon.start, config.training.horizon.end)
    return Work(transition, x[:, 0], x[:, 1 : 1 + length])


def many_bodies(bodies: int) -> Work:
    """The default model of recordings with many bodies: each sees its nearest neighbours, at the same density for every number."""
    from epns_pyro.context import DataContext
    from epns_pyro.models.bodies.particles import ParticlesConfig
    from epns_pyro.state import Field, StateSpec

    spec = StateSpec((Field("position", "1o", translates=True), Field("velocity", "1o", rate_of="position")))
    rng, side = np.random.default_rng(0), bodies ** (1 / 3)
    place = side * rng.random((1, bodies, 3))
    context = DataContext(spec.with_scales({"position": side / 12**0.5}), 0.1, {"position": 0.01, "velocity": 0.1}, (bodies,))
    graph = {"kind": "nearest", "neighbours": NEIGHBOURS}
    torch.manual_seed(0)
    settings = {"backbone": {"name": "vector", "graph": graph}, "integrator": {"network": {"name": "pairwise", "graph": graph}}}
    transition = ParticlesConfig.parse(settings).build(context)
    x = torch.tensor(spec.pack(position=place, velocity=rng.standard_normal(place.shape)), dtype=torch.float32)
    following = x + 0.1 * torch.tensor(rng.standard_normal(x.shape), dtype=torch.float32)
    return Work(transition, x, following[:, None])


def task(model: str, name: str) -> tuple[Callable[[], None], int]:
    """Return a task by its name, "train 64" or "rollout 1000", and how many steps it takes."""
    what, size = name.split()
    return functools.partial(getattr(work(model), what), int(size)), STEPS if what == "rollout" else 1


def count(model: str, name: str) -> dict[str, float]:
    """Count the operators, kernels, bytes and floating-point operations of a step, once its tables are made.

    `peak` is the most memory, bytes, that this process has had so far: that of the task where larger tasks come later.
    """
    run, steps = task(model, name)
    run()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with Counter() as counter:
        run()
    with FlopCounterMode(display=False) as flops:
        run()
    parameters = sum(p.numel() for p in work(model).transition.parameters())
    counted = {"operators": counter.operators, "kernels": counter.kernels, "bytes": counter.bytes, "flop": flops.get_total_flops()}
    return {"parameters": parameters, "peak": peak} | {what: round(number / steps) for what, number in counted.items()}


def seconds(model: str, name: str, calls: int) -> float:
    """Return the processor time of a step, over so many calls of a task."""
    run, steps = task(model, name)
    started = time.process_time()
    for _ in range(calls):
        run()
    return (time.process_time() - started) / (calls * steps)


def rates() -> dict[str, float]:
    """Measure the multiply-adds (two operations each) and bytes per second of processor time of this machine, from a few large calls."""
    a, b = torch.randn(1024, 1024), torch.randn(2**25)
    found = {}
    for what, amount, run in (("flop_rate", 2 * 1024**3, lambda: a @ a), ("byte_rate", 2 * b.nbytes, b.clone)):
        run()
        started = time.process_time()
        for _ in range(5):
            run()
        found[what] = 5 * amount / (time.process_time() - started)
    return found


class _PackageFrom:
    """Finds `epns_pyro` in a checkout, before any that is installed."""

    def __init__(self, root: Path) -> None:
        self.home = root / "epns_pyro"

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "epns_pyro":
            return None
        return importlib.util.spec_from_file_location(name, self.home / "__init__.py", submodule_search_locations=[str(self.home)])


def main() -> None:
    sys.meta_path.insert(0, _PackageFrom(Path(sys.argv[1])))
    torch.set_num_threads(1)
    with contextlib.suppress(ImportError):  # as the command line does, in versions that have it
        importlib.import_module("epns_pyro.heap").keep_freed_memory()
    answers = {"count": count, "seconds": seconds, "rates": rates}
    for line in sys.stdin:
        what, *arguments = json.loads(line)
        print(json.dumps(answers[what](*arguments)), flush=True)


if __name__ == "__main__":
    main()
