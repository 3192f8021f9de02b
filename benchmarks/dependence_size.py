"""Verdicts from one long recording: how often they are wrong, and how often they find an ensemble that is too narrow.

    python benchmarks/dependence_size.py [--repetitions 200] [--out benchmarks/results/dependence_size.csv]

A recording of an AR(1) process with correlation times of 1 to 50 frames is cut into 50 stretches of 8 frames, and forecast from their
first frames. "Perfect" knows the law and the first frame; "climate" knows the law alone, so that its trials depend on each other as the
recording does. Both are also tried with 70% of the spread. A fault is any word but "calibrated" and "too few data to say"; the promise is
5%.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from epns_pyro.calibration.diagnostics import observable_diagnostics
from epns_pyro.calibration.measurements import observable_values
from epns_pyro.calibration.verdicts import Verdict, judge_observables

STRETCHES, FRAMES, MEMBERS = 50, 8, 39
CORRELATION, SPREADS, SEED = (1, 5, 20, 50), (1.0, 0.7), 20261128
SILENT, GOOD = "too few data to say", "calibrated"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/dependence_size.csv"))
    options = parser.parse_args()
    rows = []
    for number, (frames, perfect, spread) in enumerate((c, p, s) for c in CORRELATION for p in (True, False) for s in SPREADS):
        rng = np.random.default_rng((SEED, number))
        words = [str(judge(rng, frames, spread, perfect=perfect).word) for _ in range(options.repetitions)]
        rows.append(
            {
                "correlation (frames)": frames,
                "forecaster": "perfect" if perfect else "climate",
                "spread": spread,
                "faulted": np.mean([word not in (SILENT, GOOD) for word in words]),
                "silent": np.mean([word == SILENT for word in words]),
                "repetitions": options.repetitions,
            }
        )
        print(pd.DataFrame(rows[-1:]).to_string(index=False, header=number == 0), flush=True)
    pd.DataFrame(rows).to_csv(options.out, index=False, float_format="%.4g")


def judge(rng: np.random.Generator, frames: float, spread: float, *, perfect: bool) -> Verdict:
    """Judge one forecaster on one recording with a correlation time of `frames`."""
    rho = np.exp(-1 / frames)
    x = np.empty(STRETCHES * FRAMES + 1)
    x[0] = rng.normal()
    for t in range(1, len(x)):
        x[t] = rho * x[t - 1] + np.sqrt(1 - rho**2) * rng.normal()
    lead = np.arange(FRAMES + 1)
    truth = x[np.arange(STRETCHES)[:, None] * FRAMES + lead]
    noise = rng.normal(size=(MEMBERS, STRETCHES, FRAMES + 1))
    futures = np.empty_like(noise)
    futures[:, :, 0] = truth[:, 0] if perfect else spread * noise[:, :, 0]
    for t in lead[1:]:
        futures[:, :, t] = rho * futures[:, :, t - 1] + spread * np.sqrt(1 - rho**2) * noise[:, :, t]
    time = ("time", lead.astype(float), {"units": "s"})
    forecast = xr.Dataset({"x": (("sample", "trajectory", "time"), futures)}, {"time": time})
    recorded = xr.Dataset({"x": (("trajectory", "time"), truth)}, {"time": time})
    values = observable_values(forecast, recorded, rng=rng)
    values = values.assign_coords(recording=("trajectory", np.zeros(STRETCHES, int)), order=("trajectory", np.arange(STRETCHES)))
    return judge_observables(observable_diagnostics(values))[0]


if __name__ == "__main__":
    main()
