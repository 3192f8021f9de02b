"""The most memory that `simulate` and `evaluate` take, over members, trajectories and steps, each 100, 1,000 and 10,000, the others small.

    python benchmarks/memory.py                          # table, then benchmarks/results/memory.csv
    python benchmarks/memory.py --command simulate --over steps

Every row is a process of its own, which does what the command does with an untrained model of five bodies; the largest resident memory of
that process is taken from the operating system (`ru_maxrss`), less that of one with 10 of everything, which holds the libraries. Small
means 10 members, 10 trajectories, 10 steps; an evaluation has few samples where these do not depend on what is varied.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from common import write_table

ROOT = Path(__file__).parents[1]
COMMANDS, OVER, SIZES, SMALL = ("simulate", "evaluate"), ("members", "trajectories", "steps"), (100, 1000, 10_000), 10
EVALUATION: dict[str, Any] = {
    "importance_samples": 4,
    "likelihood_transitions": 200,
    "guide_transitions": 20,
    "guide_draws": 9,
    "long_trajectories": 2,
    "frames": 20,
    "recalibrate": False,
}


def measure(command: str, members: int, trajectories: int, steps: int) -> None:
    """Do what a command does, in this process, and print megabytes and seconds of processor time."""
    import torch

    from epns_pyro.data import open_store
    from epns_pyro.heap import keep_freed_memory
    from epns_pyro.sampling import Ensemble, Request
    from epns_pyro.simulator import Simulator
    from epns_pyro.systems import NBodyConfig
    from epns_pyro.systems.base import SetConfig
    from epns_pyro.training.presets import preset
    from epns_pyro.training.run import RunFolder

    keep_freed_memory()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        sets = {"train": SetConfig(trajectories=4, steps=10), "test": SetConfig(trajectories=trajectories, steps=steps)}
        subprocess.run([sys.executable, __file__, "--make", f"{trajectories},{steps}", str(home / "data.zarr")], check=True)
        store = open_store(home / "data.zarr")
        config = preset("nbody", "quick", NBodyConfig(sets=sets)).override({"model.integrator": None})
        context = store.context()
        sim = Simulator(config.model.build(context).eval(), store.system, context, config, store=str(store.path))
        started = time.process_time()
        if command == "simulate":
            request = Request(home, members=members, steps=steps, store=store.path)
            Ensemble(request, sim, store.read("test", stop=1)[:, 0]).write(home / "futures.zarr")
        else:
            from epns_pyro.evaluation import evaluate

            changes = EVALUATION | {"members": members, "trajectories": trajectories}
            evaluate(sim, store, RunFolder(home), config.evaluation.override(changes))
        seconds = time.process_time() - started
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, seconds)


def make(sizes: str, path: Path) -> None:
    """Write a store of so many trajectories and steps; made by a process of its own, which takes memory too."""
    from epns_pyro.data import generate
    from epns_pyro.systems import NBodyConfig
    from epns_pyro.systems.base import SetConfig

    trajectories, steps = map(int, sizes.split(","))
    sets = {"train": SetConfig(trajectories=4, steps=10), "test": SetConfig(trajectories=trajectories, steps=steps)}
    generate(NBodyConfig(sets=sets), path)


def ask(command: str, sizes: dict[str, int]) -> tuple[float, float]:
    """Measure in a process of its own: MB, seconds."""
    words = [sys.executable, __file__, "--measure", ",".join([command, *(str(sizes[name]) for name in OVER)]), "-"]
    found = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    return float(found[-2]), float(found[-1])


@click.command()
@click.option("--command", "commands", multiple=True, type=click.Choice(COMMANDS), help="By default both.  Repeatable.")
@click.option("--over", multiple=True, type=click.Choice(OVER), help="By default all.  Repeatable.")
@click.option("--most", type=int, default=SIZES[-1], show_default=True, help="Largest size.")
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "benchmarks" / "results" / "memory.csv", show_default=True)
def main(commands: tuple[str, ...], over: tuple[str, ...], most: int, out: Path) -> None:
    rows = []
    for command in commands or COMMANDS:
        small, _ = ask(command, dict.fromkeys(OVER, SMALL))
        rows.append({"command": command, "over": "none", "size": SMALL, "MB": round(small), "more MB": 0, "seconds": ""})
        click.echo(rows[-1])
        for name in over or OVER:
            for size in (n for n in SIZES if n <= most):
                peak, seconds = ask(command, dict.fromkeys(OVER, SMALL) | {name: size})
                row = {"command": command, "over": name, "size": size, "MB": round(peak), "more MB": round(peak - small)}
                rows.append(row | {"seconds": round(seconds, 1)})
                click.echo(rows[-1])
                write_table(rows, out)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        what, *numbers = sys.argv[2].split(",")
        measure(what, *map(int, numbers))
    elif sys.argv[1:2] == ["--make"]:
        make(sys.argv[2], Path(sys.argv[3]))
    else:
        main()
