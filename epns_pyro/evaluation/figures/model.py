"""Figures of the model itself: latents, symmetry, long rollouts, recalibration, training. Every function returns panels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from epns_pyro.calibration.sbc import ACTIVE_NATS
from epns_pyro.calibration.wording import brief
from epns_pyro.evaluation.figures.distribution import with_unit
from epns_pyro.evaluation.figures.style import (
    GREY,
    INK,
    LABELLED,
    LINE,
    MODEL,
    MUTED,
    WIDE,
    label_ends,
    largest,
    thinned,
    tick,
    two_sided_decades,
)
from epns_pyro.evaluation.parts import Panel, PanelSize
from epns_pyro.evaluation.record import Symmetry

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROUNDING = 2.2e-16  # what float64 can resolve
STEEP = 10.0  # largest acceleration over the median one, from which a law is drawn logarithmically


def latent_bars(kl: Sequence[float]) -> list[Panel]:
    """Return a panel of the KL of every latent dimension, largest first."""
    ordered = np.sort(np.nan_to_num(kl))[::-1]

    def draw(axes: Axes) -> None:
        axes.bar(np.arange(1, len(ordered) + 1), ordered, width=0.7, color=[MODEL if v >= ACTIVE_NATS else GREY for v in ordered])
        axes.axhline(ACTIVE_NATS, color=INK, linewidth=0.6)
        axes.annotate(f"in use above {ACTIVE_NATS:g}", (1, ACTIVE_NATS), (0, 3), xycoords=("axes fraction", "data"),
                      textcoords="offset points", ha="right", color=MUTED, fontsize=7.5)  # fmt: skip
        axes.set(xlim=(0.3, len(ordered) + 0.7), ylim=(0, 1.1 * max(ordered.max(), 3 * ACTIVE_NATS)))

    return [Panel(WIDE, draw, title="KL per dimension, nats per entity", x="latent dimension, most used first")]


def symmetry(found: Symmetry, allowed: float) -> list[Panel]:
    """Return a panel of the symmetry error, on a scale from rounding errors to visible ones; more than `allowed` is a fault."""

    def draw(axes: Axes) -> None:
        axes.axvspan(allowed, 1, color=GREY, alpha=0.3, linewidth=0)
        for name, value, colour, up in (("median", found.median, MUTED, -13), ("maximum", found.maximum, MODEL, 8)):
            if np.isfinite(value):
                at = max(value, 1e-18)
                axes.plot(at, 0, "o", color=colour, markersize=6)
                axes.annotate(name, (at, 0), (-3, up), textcoords="offset points", ha="left", color=colour)
        axes.annotate("not allowed", (1e-5, 0), (0, -3), textcoords="offset points", color=MUTED, ha="center")
        axes.axvline(ROUNDING, color=LINE, linewidth=0.8)
        axes.annotate("rounding of float64", (ROUNDING, 0.6), (-4, 0), textcoords="offset points", color=MUTED, fontsize=7.5, ha="right")
        axes.set(xscale="log", xlim=(1e-18, 1e-1), ylim=(-1, 1))
        axes.set_xticks([1e-18, 1e-15, 1e-12, 1e-9, 1e-6, 1e-3])
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-"))
        axes.minorticks_off()
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)

    return [Panel(PanelSize(720, 110, left=6, right=20), draw, title="relative change of the log density", x="")]


def pair_law(data: xr.Dataset) -> list[Panel]:
    """Return panels of acceleration against distance, one per kind of pairs: medians, with bands of the model."""
    unit, name = str(data.attrs.get("units", "")), str(data.attrs.get("long_name", "acceleration"))

    def draw(axes: Axes, one: xr.Dataset) -> None:
        known = np.isfinite(one["learned"].sel(quantile=0.5).values)
        distance, ends = one["distance"].values[known], []
        for name, label, colour in (("truth", "truth", INK), ("learned", "model", MODEL)):
            if name in one and known.any():
                low, middle, high = (one[name].sel(quantile=q).values[known] for q in (0.05, 0.5, 0.95))
                axes.fill_between(distance, low, high, color=colour if name == "learned" else GREY, alpha=0.2, linewidth=0)
                axes.plot(distance, middle, color=colour, linewidth=1.1)
                ends.append((float(middle[-1]), label, colour))
        axes.axhline(0, color=LINE, linewidth=0.6)
        if known.any():
            axes.set_xscale("log")
            axes.set_xticks([t for t in np.outer(10.0 ** np.arange(-6, 7), (1, 2, 5)).ravel() if distance[0] <= t <= distance[-1]])
            axes.xaxis.set_major_formatter(lambda value, _: tick(value))
            axes.minorticks_off()
            sizes = np.abs(one["learned"].sel(quantile=0.5).values[known])
            if sizes.max() > STEEP * np.median(sizes) > 0:
                two_sided_decades(axes, 10.0 ** np.floor(np.log10(np.median(sizes))))
        label_ends(axes, ends)

    kinds = [str(kind) for kind in data["kind"].values]
    return [
        Panel(
            LABELLED,
            partial(draw, one=data.sel(kind=kind)),
            title=with_unit(f"{name}, {kind}" if len(kinds) > 1 else name, unit),
            x=with_unit("distance", str(data["distance"].attrs.get("units", ""))),
        )
        for kind in kinds
    ]


def stability(data: xr.Dataset, time_unit: str) -> list[Panel]:
    """Return a panel of the fraction of runs that are still plausible."""
    data = data.isel(time=thinned(data.sizes["time"], 400))

    def draw(axes: Axes) -> None:
        ends = []
        for source, colour in (("truth", INK), ("model", MODEL)):
            if source in data["source"].values:
                alive = data["alive"].sel(source=source).values
                axes.step(data["time"], alive, where="post", color=colour)
                ends.append((float(alive[-1]), source, colour))
        axes.set(ylim=(0, 1.04), xlim=(0, float(data["time"][-1])))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        label_ends(axes, ends)

    size = PanelSize(WIDE.width, WIDE.height, right=40)
    return [Panel(size, draw, title="runs that are still plausible", x=with_unit("time", time_unit))]


def widening(learnt: xr.Dataset, labels: dict[str, str], time_unit: str) -> list[Panel]:
    """Return panels of the width of recalibrated intervals relative to those of the ensemble, one per observable."""
    factor = 1 + learnt["widen_low"] + learnt["widen_high"]
    top = min(4.0, 1.1 * largest(factor.values, default=1.4))

    def draw(axes: Axes, one: xr.DataArray) -> None:
        axes.axhline(1, color=INK, linewidth=0.8)
        levels = list(one["level"].values)
        ends = []
        for j, level in enumerate(levels):
            at = one.sel(level=level)
            axes.plot(at["lead_time"], at, color=MODEL, linewidth=1.4, alpha=0.35 + 0.65 * (j + 1) / len(levels))
            ends.append((float(at[-1]), f"{level:.0%}", MODEL))
        axes.set_ylim(0, top)
        label_ends(axes, ends)

    return [
        Panel(
            LABELLED,
            partial(draw, one=factor.sel(observable=name)),
            title=brief(labels.get(name, name)),
            x=with_unit("lead time", time_unit),
        )
        for name in map(str, learnt["observable"].values)
    ]


def training(rows: Sequence[tuple[int, str, float]]) -> list[Panel]:
    """Return a panel of the ELBO on training batches and on held-out transitions over optimiser steps; none if nothing was logged."""
    series = {name: _series(rows, name) for name in ("train_log_likelihood", "train_kl", "val_elbo", "val_oracle")}
    step, likelihood = series["train_log_likelihood"]
    held_step, held = series["val_elbo"]
    oracle = series["val_oracle"][1][-1:]
    if not len(step) and not len(held):
        return []

    def draw(axes: Axes) -> None:
        ends = []
        if len(step) and np.array_equal(step, series["train_kl"][0]):
            keep = thinned(len(step), 300)
            axes.plot(step[keep], (likelihood - series["train_kl"][1])[keep], color=GREY, linewidth=0.8)
        if len(held):
            axes.plot(held_step, held, color=MODEL, marker="o", markersize=3)
            ends.append((held[-1], "held-out", MODEL))
        if len(oracle):
            axes.axhline(oracle[0], color=INK, linewidth=0.8)
            ends.append((oracle[0], "oracle", INK))
        shown = held if len(held) else likelihood
        top, low = max([*shown, *oracle]), np.quantile(shown, 0.1)
        axes.set_ylim(low - 0.35 * (top - low) - 1, top + 0.08 * (top - low) + 0.5)
        label_ends(axes, ends)

    return [Panel(PanelSize(WIDE.width, 240, right=56), draw, title="ELBO, nats per transition", x="optimiser step")]


def _series(rows: Sequence[tuple[int, str, float]], name: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(step, value) for step, key, value in rows if key == name and np.isfinite(value)]
    return np.array([p[0] for p in points]), np.array([p[1] for p in points])


def sparkline(data: xr.Dataset, level: float = 0.9) -> Panel:
    """Return a panel of coverage at one level over lead time, small enough for a line of a table."""
    at = data.sel(level=level, method="nearest")
    nominal = float(at["nominal"])
    value, low, high = (at[f"coverage{end}"].values for end in ("", "_lower", "_upper"))
    x = np.arange(len(value))

    def draw(axes: Axes) -> None:
        axes.axhline(nominal, color=LINE, linewidth=0.7)
        axes.fill_between(x, low, high, color=MODEL, alpha=0.22, linewidth=0)
        axes.plot(x, value, color=MODEL, linewidth=1.1)
        axes.set(ylim=(nominal - 0.35, 1.0), xlim=(-0.2, max(len(x) - 0.8, 0.2)))
        axes.set_axis_off()

    return Panel(PanelSize(104, 22, left=1, right=1, top=1, bottom=1), draw)
