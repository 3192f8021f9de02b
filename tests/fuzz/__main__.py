"""Fuzz every reader at length and print the counts: `make fuzz`, or python tests/fuzz --cases 200 --readers zarr-2,netcdf."""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "support"))  # pytest does so by its settings

import harness
from readers import READERS as FILES
from runs import READERS as RUNS

READERS = (*FILES, *RUNS)


def main() -> int:
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=100, help="per reader and mutator")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", default="", help="names, separated by commas; all by default")
    parser.add_argument("--mutators", default="", help="likewise")
    parser.add_argument("--verbose", action="store_true", help="show every message")
    options = parser.parse_args()
    wanted = set(filter(None, options.readers.split(",")))
    todo = harness.cases([r for r in READERS if not wanted or r.name in wanted], options.cases, options.seed)
    if options.mutators:
        todo = [case for case in todo if case.mutator.__name__ in options.mutators.split(",")]
    by_reader: dict[str, list[harness.Result]] = defaultdict(list)
    for case, result in zip(todo, harness.run(todo), strict=True):
        by_reader[case.reader.name].append(result)
        if result.outcome in (harness.TRACEBACK, harness.HANG) or options.verbose:
            sys.stdout.write(f"{result.outcome}: {result.case}: {result.damage}\n    {result.message}\n")
            sys.stdout.flush()
    for name, results in by_reader.items():
        sys.stdout.write(f"{name:22} {harness.summary(results)}\n")
    everything = [result for results in by_reader.values() for result in results]
    sys.stdout.write(f"{'all':22} {harness.summary(everything)}\n")
    return any(result.outcome in (harness.TRACEBACK, harness.HANG) for result in everything)


if __name__ == "__main__":
    sys.exit(main())
