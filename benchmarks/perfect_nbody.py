"""What a perfect model of celestial dynamics scores: the true process, judged as `epns-pyro evaluate` judges a model.

    python benchmarks/perfect_nbody.py [--repetitions 40] [--out benchmarks/results/perfect_nbody.csv]

Every repetition has held-out trajectories and members of its own, of the sizes that `train nbody` evaluates with. Each line of a report may
be a false alarm in 5% of reports, so "9 of 9" is not certain even for the truth: this says how often it is given.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path

from common import write_table

from epns_pyro.calibration.verdicts import Word
from epns_pyro.data import generate
from epns_pyro.evaluation import heldout
from epns_pyro.evaluation.forecasters import Truth
from epns_pyro.systems import NBodyConfig
from epns_pyro.training.presets import preset

SEED = 20261129


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/perfect_nbody.csv"))
    options = parser.parse_args()
    scores: Counter[tuple[int, int]] = Counter()
    for number in range(options.repetitions):
        calibrated, faults = judge(SEED + number)
        scores[calibrated, calibrated + len(faults)] += 1
        print(f"{number + 1}: {calibrated} of {calibrated + len(faults)}", *faults, sep="  ", flush=True)
    total = sum(scores.values())
    rows = [
        {"calibrated": good, "of": judged, "reports": count, "share": round(count / total, 3)}
        for (good, judged), count in sorted(scores.items(), reverse=True)
    ]
    write_table(rows, options.out)


def judge(seed: int) -> tuple[int, list[str]]:
    """Return how many quantities of a fresh ensemble of the true process are called calibrated, and what is said of the others."""
    system = NBodyConfig()
    settings = preset("nbody", "quick", system).evaluation.override({"seed": seed})
    with tempfile.TemporaryDirectory() as folder:
        store = generate(system, Path(folder) / "nbody.zarr", seed, sets=("train", "test"), workers=1)
        found = heldout.measure(Truth(store.system), store, "test", settings, references={})
    verdicts = [verdict for group in found.verdicts.values() for verdict in group]
    faults = [f"{verdict.subject} {verdict.word}" for verdict in verdicts if verdict.word != Word.CALIBRATED]
    return len(verdicts) - len(faults), faults


if __name__ == "__main__":
    main()
