"""Effective number of independent trials in a series of dependent ones, from the decorrelation time of stretches of one recording.

Consecutive stretches of one recording are dependent if the forecast lacks information that persists in the truth. Measurements of
dependent trials have two coordinates along `trajectory`: `recording`, and `order` within it; without them trials are independent. The
variance of the mean of n trials is that of n / tau independent ones, with the integrated autocorrelation time tau = 1 + 2 sum_k rho_k,
in trials and never below 1. The sum ends where pairs of neighbouring terms are no longer positive (the initial positive sequence of
Geyer 1992, doi:10.1214/ss/1177011137).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

RELIABLE = 15  # independent trials; if fewer remain, the decorrelation time itself is too uncertain for a test
CORRECTIONS = 2  # iterations that correct the autocovariances for subtracting the sample mean


def decorrelation(values: xr.Dataset, *series: np.ndarray) -> np.ndarray:
    """Measure the decorrelation time of trials, (*batch), in trials: the longest of those of the given series.

    Parameters
    ----------
    values : Dataset
        Measurements, with the coordinates `recording` and `order` along `trajectory` where trials are dependent.
    series : numpy.ndarray, (*batch, trajectory)
        The values that are averaged over trials; NaN where unknown.

    Returns
    -------
    (*batch)
        All 1 where trials are independent.
    """
    if "recording" not in values.coords:
        return np.ones(series[0].shape[:-1])
    recording, order = values["recording"].values, values["order"].values
    return np.max([autocorrelation_time(x, recording, order) for x in series], axis=0)


def autocorrelation_time(x: np.ndarray, recording: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Estimate the integrated autocorrelation time of series, from 1 to their length.

    Parameters
    ----------
    x : (*batch, trial)
        NaN where unknown; a series with fewer than `RELIABLE` known values counts as one trial.
    recording : (trial,)
        Trials of different recordings are independent.
    order : (trial,)
        Sorts the trials of a recording.

    Returns
    -------
    (*batch)
        In trials.
    """
    rows = _in_rows(x, recording, order)
    known = np.isfinite(rows)
    n = np.maximum(known.sum((-2, -1)), 1)
    mean = np.where(known, rows, 0).sum((-2, -1)) / n
    centred = np.where(known, rows - mean[..., None, None], 0)
    length = rows.shape[-1]
    products, pairs = (
        np.stack([(y[..., k:] * y[..., : length - k]).sum((-2, -1)) for k in range(length)], -1) / n[..., None]
        for y in (centred, known.astype(float))
    )
    lost = np.zeros(n.shape)  # variance of the mean, which centring subtracts from every pair
    tau = np.ones(n.shape)
    for _ in range(1 + CORRECTIONS):
        covariance = products + lost[..., None] * pairs
        variance = covariance[..., 0]
        total = np.maximum(_initial_positive(covariance), variance)
        tau = np.divide(total, variance, out=np.ones(n.shape), where=variance > 0).clip(1, n)
        lost = products[..., 0] * tau / np.maximum(n - tau, 1)
    return np.where(known.sum((-2, -1)) < RELIABLE, n, tau)


def widening(n: np.ndarray, tau: np.ndarray) -> np.ndarray:
    """Return the factor by which dependence widens the standard error of a mean of n trials: 1 where tau is 1."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(tau > 1, np.sqrt(tau * (n - 1) / np.maximum(n - tau, 1)), 1.0)


def enough(n: np.ndarray | int, tau: np.ndarray | float, fewest: int = 1) -> np.ndarray:
    """Return where n trials are enough for a test: `fewest` independent ones, or `RELIABLE` if their number is an estimate."""
    n, tau = np.asarray(n), np.asarray(tau)
    return np.where(tau > 1, n / tau >= RELIABLE, n >= fewest)


def in_words(n: int, tau: float, spacing: float = 0.0, unit: str = "") -> str:
    """Describe n dependent trials; `spacing` is the time between two of them in `unit`, 0 where unknown."""
    time = f", {tau * spacing:.3g} {unit}".rstrip() if spacing else ""
    return f"{n} stretches, equivalent to {int(n / tau)} independent ones (decorrelation time {tau:.1f} stretches{time})"


def _in_rows(x: np.ndarray, recording: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Arrange series (*batch, trial) as (*batch, recording, place), NaN where a recording has no more trials."""
    _, row = np.unique(recording, return_inverse=True)
    by_time = np.lexsort((order, row))
    row = row[by_time]
    place = np.arange(len(row)) - np.searchsorted(row, row)
    out = np.full((*x.shape[:-1], row.max() + 1, place.max() + 1), np.nan)
    out[..., row, place] = x[..., by_time]
    return out


def _initial_positive(covariance: np.ndarray) -> np.ndarray:
    """Sum covariances (*batch, lag) over both directions, until the sum of two consecutive ones is not positive: (*batch)."""
    padded = np.concatenate([covariance, np.zeros((*covariance.shape[:-1], covariance.shape[-1] % 2))], -1)
    two = padded[..., ::2] + padded[..., 1::2]
    return 2 * np.where(np.logical_and.accumulate(two > 0, -1), two, 0).sum(-1) - covariance[..., 0]
