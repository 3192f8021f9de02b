"""A try of an installed package, as its first user would: `make dist` runs it in an environment that holds the wheel and nothing else."""

from __future__ import annotations

import importlib.util
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LONGEST = 20  # seconds of one core from nothing to a picture
NOT_NEEDED = ("pytest", "sphinx", "hypothesis", "mypy", "ruff", "rebound")

program = Path(sys.executable).parent / "epns-pyro"
with tempfile.TemporaryDirectory() as folder:

    def run(*arguments: str) -> str:
        return subprocess.run([program, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout

    started = time.perf_counter()
    run("plot", "pretrained:nbody", "--out", "fan.png")
    waited, used = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    took = used.ru_utime + used.ru_stime
    run("simulate", "pretrained:nbody", "--members", "5", "--steps", "5", "--out", "futures.zarr")
    run("report", "pretrained:nbody", "--markdown", "summary.md")
    words = (Path(folder) / "summary.md").read_text()
    found = [name for name in NOT_NEEDED if importlib.util.find_spec(name)]

problems = [f"installed without need: {', '.join(found)}"] if found else []
problems += [] if "No test of 9 quantities" in words else ["the report of pretrained:nbody says something else than it should"]
problems += [f"a picture took {took:.1f} s of one core, more than {LONGEST}"] if took > LONGEST else []
sys.stdout.write("\n".join([*problems, f"a picture of pretrained:nbody took {took:.1f} s of one core, {waited:.1f} s in all"]) + "\n")
sys.exit(bool(problems))
