"""Forecasters with known calibration, to test the tests.

Truth is a stationary Gaussian process; its mean and scale differ between trajectories and are known to the forecaster. Variables are a
level, a count (the level rounded to an integer, with many ties), and a vector of four correlated components. Time 0 is known exactly. A
forecaster samples its members from the same process, but for one defect.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from epns_pyro.calibration.verdicts import Word

COMPONENTS = 4
MEMORY = 0.9  # correlation of consecutive times


@dataclass(frozen=True)
class KnownForecaster:
    """A forecaster with at most one defect.

    Parameters
    ----------
    margins : Word
        The correct verdict on the level and on the count.
    vector : Word
        The correct verdict on the vector.
    spread : float
        Standard deviation of members, relative to the correct one.
    shift : float
        Added to every member, in correct standard deviations.
    correlation : float
        Correlation between the components of the vector; the correct one is 0.6.
    """

    margins: Word
    vector: Word
    spread: float = 1.0
    shift: float = 0.0
    correlation: float = 0.6

    def draw(self, rng: np.random.Generator, *, trajectories: int, members: int, steps: int = 10) -> tuple[xr.Dataset, xr.Dataset]:
        """Sample a forecast (sample, trajectory, time) and a truth (trajectory, time); variables level, count and vector (component)."""
        centre, scale = rng.normal(0, 3, (trajectories, 1, 1)), np.exp(rng.normal(0, 0.3, (trajectories, 1, 1)))
        right = replace(self, spread=1.0, shift=0.0, correlation=KnownForecaster.correlation)
        return (
            _label(centre + scale * self._noise(rng, (members, trajectories), steps)),
            _label(centre + scale * right._noise(rng, (trajectories,), steps)),
        )

    def _noise(self, rng: np.random.Generator, batch: tuple[int, ...], steps: int) -> np.ndarray:
        """Sample noise (*batch, time, component): the first component makes the level, the others the vector; 0 at time 0."""
        shock = rng.normal(size=(*batch, steps + 1, COMPONENTS + 1))
        common = rng.normal(size=(*batch, steps + 1, 1))
        shock[..., 1:] = np.sqrt(self.correlation) * common + np.sqrt(1 - self.correlation) * shock[..., 1:]
        noise = np.zeros(shock.shape)
        noise[..., 1, :] = shock[..., 1, :]
        for t in range(2, steps + 1):
            noise[..., t, :] = MEMORY * noise[..., t - 1, :] + np.sqrt(1 - MEMORY**2) * shock[..., t, :]
        noise[..., 1:, :] = self.spread * noise[..., 1:, :] + self.shift
        return noise


KNOWN: Mapping[str, KnownForecaster] = {
    "perfect": KnownForecaster(Word.CALIBRATED, Word.CALIBRATED),
    "over-dispersed": KnownForecaster(Word.UNDER_CONFIDENT, Word.UNDER_CONFIDENT, spread=1.5),
    "under-dispersed": KnownForecaster(Word.OVER_CONFIDENT, Word.OVER_CONFIDENT, spread=0.65),
    "biased": KnownForecaster(Word.BIASED, Word.BIASED, shift=0.6),
    "right in the margins, wrong in dependence": KnownForecaster(Word.CALIBRATED, Word.WRONG_DEPENDENCE, correlation=0.0),
}


def _label(x: np.ndarray) -> xr.Dataset:
    """Label x (sample, trajectory, time, component) or (trajectory, time, component)."""
    dims = ("sample", "trajectory", "time")[-(x.ndim - 1) :]
    return xr.Dataset(
        {
            "level": (dims, x[..., 0], {"label": "level", "unit": "J", "discrete": 0}),
            "count": (dims, np.round(3 * x[..., 0]), {"label": "count", "unit": "", "discrete": 1}),
            "vector": ((*dims, "component"), x[..., 1:], {"label": "vector", "unit": "AU"}),
        },
        coords={"time": ("time", np.arange(x.shape[-2]) * 0.5, {"units": "yr"})},
    )
