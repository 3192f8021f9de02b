"""Verdicts from one long recording: how often they are wrong, and how often they find an ensemble that is too narrow.

    python benchmarks/dependence_size.py [--repetitions 200] [--out benchmarks/results/dependence_size.csv]

A recording of an AR(1) process with correlation times of 1 to 50 frames is cut into 50 stretches of 8 frames, and forecast from their
first frames. "Perfect" knows the law and the first frame; "climate" knows the law alone, so that its trials depend on each other as the
recording does. Both are also tried with 70% of the spread. A fault is any word but "calibrated" and "too few data to say"; the promise is
5%.

"Coverage" is the interval that recalibration gives for the coverage of its 90% intervals: a fault is a true coverage outside of it (promise
5%); silent is where it says that there are too few trajectories. "Innovations" is the test for memory of steps, of a model that knows the
mean of every step and the average size of its noise, which grows and shrinks over so many frames: a fault is memory where there is none.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from epns_pyro.calibration import recalibration
from epns_pyro.calibration.diagnostics import observable_diagnostics
from epns_pyro.calibration.measurements import observable_values
from epns_pyro.calibration.verdicts import Verdict, judge_observables
from epns_pyro.errors import DataError
from epns_pyro.evaluation.checks.innovations import remembered

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
    for frames in CORRELATION:
        for number, (name, trial) in enumerate((("coverage", coverage_missed), ("innovations", memory_found))):
            rng = np.random.default_rng((SEED, 100 + number, frames))
            found = np.array([trial(rng, frames) for _ in range(options.repetitions)], float)
            rows.append(
                {
                    "correlation (frames)": frames,
                    "forecaster": name,
                    "spread": 1.0,
                    "faulted": np.nanmean(found) if np.isfinite(found).any() else 0.0,
                    "silent": np.isnan(found).mean(),
                    "repetitions": options.repetitions,
                }
            )
            print(pd.DataFrame(rows[-1:]).to_string(index=False, header=False), flush=True)
    pd.DataFrame(rows).to_csv(options.out, index=False, float_format="%.4g")


def judge(rng: np.random.Generator, frames: float, spread: float, *, perfect: bool) -> Verdict:
    """Judge one forecaster on one recording with a correlation time of `frames`."""
    forecast, recorded = forecasts(rng, frames, spread, perfect=perfect)
    values = observable_values(forecast, recorded.drop_vars(("recording", "order")), rng=rng)
    values = values.assign_coords({name: recorded[name] for name in ("recording", "order")})
    return judge_observables(observable_diagnostics(values))[0]


def forecasts(
    rng: np.random.Generator, frames: float, spread: float, *, perfect: bool, stretches: int = STRETCHES
) -> tuple[xr.Dataset, xr.Dataset]:
    """Forecasts (sample, trajectory, time) of the stretches of one recording, and the recording itself (trajectory, time)."""
    rho = np.exp(-1 / frames)
    x = ar1(rng, rho, stretches * FRAMES + 1)
    lead = np.arange(FRAMES + 1)
    truth = x[np.arange(stretches)[:, None] * FRAMES + lead]
    noise = rng.normal(size=(MEMBERS, stretches, FRAMES + 1))
    futures = np.empty_like(noise)
    futures[:, :, 0] = truth[:, 0] if perfect else spread * noise[:, :, 0]
    for t in lead[1:]:
        futures[:, :, t] = rho * futures[:, :, t - 1] + spread * np.sqrt(1 - rho**2) * noise[:, :, t]
    time = ("time", lead.astype(float), {"units": "s"})
    forecast = xr.Dataset({"x": (("sample", "trajectory", "time"), futures)}, {"time": time})
    recorded = xr.Dataset({"x": (("trajectory", "time"), truth)}, {"time": time})
    place = {"recording": ("trajectory", np.zeros(stretches, int)), "order": ("trajectory", np.arange(stretches))}
    return forecast, recorded.assign_coords(place)


def ar1(rng: np.random.Generator, rho: float, length: int) -> np.ndarray:
    """Sample a stationary AR(1) process of variance 1."""
    x = rng.normal(size=length)
    for t in range(1, length):
        x[t] = rho * x[t - 1] + np.sqrt(1 - rho**2) * x[t]
    return x


def coverage_missed(rng: np.random.Generator, frames: float) -> float:
    """Whether the true coverage of recalibrated 90% intervals is outside of its interval, at the last lead time; NaN without an answer.

    Of a climate with 70% of the spread, recalibrated on one recording and tested on another; the truth is that of a very long one.
    """
    try:
        learnt = recalibration.fit(*forecasts(rng, frames, 0.7, perfect=False), levels=[0.8, 0.9])
    except DataError:
        return np.nan
    tested, true = (
        recalibration.compare(learnt, *forecasts(rng, frames, 0.7, perfect=False, stretches=n)) for n in (STRETCHES, 100 * STRETCHES)
    )
    tested, true = (one.isel(stage=1, observable=0, lead_time=-1, level=-1) for one in (tested, true))
    return float(not tested["coverage_lower"] <= true["coverage"] <= tested["coverage_upper"])


def memory_found(rng: np.random.Generator, frames: float) -> float:
    """Whether memory is found in the steps of a recording whose noise grows and shrinks over `frames` frames."""
    size = np.exp(0.7 * ar1(rng, np.exp(-1 / frames), STRETCHES * FRAMES))
    draws = np.sqrt(np.mean(size**2)) * rng.normal(size=(19, len(size)))
    noise = size * rng.normal(size=len(size))
    scores = 2 * ((draws < noise).sum(0) + rng.random(len(size))) / 20 - 1
    scores = scores.reshape(STRETCHES, FRAMES, 1, 1)
    return float(remembered(scores, rng.normal(size=scores.shape), rng)[2] < 0.05)


if __name__ == "__main__":
    main()
