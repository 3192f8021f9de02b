"""What a perfect model of celestial dynamics scores: the true process, judged as `epns-pyro evaluate` judges a model.

    python benchmarks/perfect_nbody.py [--repetitions 40] [--out benchmarks/results/perfect_nbody.csv]

Every repetition has held-out trajectories and members of its own, of the sizes that `train nbody` evaluates with. Each line of a report may
be a false alarm in 5% of reports, so "9 of 9" is not certain even for the truth: this says how often it is given, and how often the first
sentence of the report is "Use with care" (a fault that remains when all lines are tested together).
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path

from common import write_table

from epns_pyro.data import generate
from epns_pyro.evaluation import heldout
from epns_pyro.evaluation.forecasters import Truth
from epns_pyro.evaluation.lines import Line, beyond_chance, lines
from epns_pyro.evaluation.record import VerdictRecord
from epns_pyro.systems import NBodyConfig
from epns_pyro.training.presets import preset

SEED = 20261129


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/perfect_nbody.csv"))
    options = parser.parse_args()
    scores: Counter[tuple[int, int]] = Counter()
    warned: Counter[tuple[int, int]] = Counter()
    for number in range(options.repetitions):
        judged = judge(SEED + number)
        faults = [f"{line.subject} {line.word}" for line in judged if line.state == "fault"]
        score = len(judged) - len(faults), len(judged)
        scores[score] += 1
        warned[score] += bool(beyond_chance(judged))
        print(f"{number + 1}: {score[0]} of {score[1]}", *faults, sep="  ", flush=True)
    rows = [
        {"calibrated": score[0], "of": score[1], "reports": count, "of these with a fault beyond chance": warned[score]}
        for score, count in sorted(scores.items(), reverse=True)
    ]
    write_table(rows, options.out)


def judge(seed: int) -> list[Line]:
    """Return the verdicts on a fresh ensemble of the true process."""
    system = NBodyConfig()
    settings = preset("nbody", "quick", system).evaluation.override({"seed": seed})
    with tempfile.TemporaryDirectory() as folder:
        store = generate(system, Path(folder) / "nbody.zarr", seed, sets=("train", "test"), workers=1)
        found = heldout.measure(Truth(store.system), store, "test", settings, references={})
    return lines({group: [VerdictRecord.model_validate(v) for v in verdicts] for group, verdicts in found.verdicts.items()})


if __name__ == "__main__":
    main()
