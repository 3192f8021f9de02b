"""Figures of likelihood and of distributions from one initial state. Every function returns panels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from epns_pyro.calibration.wording import brief, number
from epns_pyro.evaluation.figures.style import BAD, GREY, INK, LABELLED, LINE, MODEL, MUTED, SMALL, label_ends, largest, thinned
from epns_pyro.evaluation.parts import Panel, PanelSize
from epns_pyro.evaluation.record import Distance, JointTest, LikelihoodRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MODEL_KEYS = ("elbo", "iwae")
NEAR = 0.35  # if the upper rows take less than this fraction of the axis, a second panel shows them magnified


def ladder(rows: Sequence[LikelihoodRow]) -> list[Panel]:
    """Return a panel of scores, one row per distribution; a second panel magnifies the upper rows if they are close together."""
    rows = sorted(rows, key=lambda row: row.value)
    best = rows[-1].value
    near = [row for row in rows if best - row.value < 0.25 * (best - rows[0].value)]
    panels = [_rungs(rows, f"all {len(rows)}, in nats")]
    if 2 <= len(near) < len(rows) and best - near[0].value < NEAR * (best - rows[0].value):
        panels.append(_rungs(near, f"the upper {len(near)} magnified, in nats"))
    return panels


def _rungs(rows: Sequence[LikelihoodRow], title: str) -> Panel:
    errors = np.nan_to_num([row.error for row in rows])
    values = np.array([row.value for row in rows])
    low, high = float((values - errors).min()), float((values + errors).max())
    margin = 0.05 * (high - low or 1)

    def draw(axes: Axes) -> None:
        for y, (row, error) in enumerate(zip(rows, errors, strict=True)):
            colour = MODEL if row.key in MODEL_KEYS else INK if row.key == "oracle" else MUTED
            axes.plot([low - margin, row.value], [y, y], color=colour, linewidth=2.2, alpha=0.35, solid_capstyle="butt")
            axes.errorbar(row.value, y, xerr=error, fmt="o", color=colour, markersize=4.5, elinewidth=1.1)
            axes.annotate(brief(row.name, 36), (0, y), (0, 7), xycoords=("axes fraction", "data"), textcoords="offset points", color=colour)
            value = number(row.value, ".2f" if high - low < 1000 else ".0f")
            axes.annotate(value, (1, y), (0, 7), xycoords=("axes fraction", "data"), textcoords="offset points", ha="right", color=colour)
        axes.set_xlim(low - margin, high + margin)
        axes.set_ylim(-0.45, len(rows) - 0.3)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)

    return Panel(PanelSize(410, 36 * len(rows) + 52, left=4, right=12, bottom=24), draw, title=title)


def by_training_set(lines: Sequence[Sequence[tuple[int, LikelihoodRow]]], oracle: LikelihoodRow | None) -> list[Panel]:
    """Return a panel of scores over the size of the training set, a line per model; a line is a sequence of (trajectories, score)."""
    sizes = sorted({size for line in lines for size, _ in line})

    def draw(axes: Axes) -> None:
        for line in lines:
            some = sorted(line, key=lambda point: point[0])
            values, errors = [row.value for _, row in some], np.nan_to_num([row.error for _, row in some])
            axes.errorbar([size for size, _ in some], values, errors, color=MODEL, marker="o", markersize=4.5, elinewidth=0.9)
            for size, row in some:
                axes.annotate(brief(row.name, 24), (size, row.value), (5, -9), textcoords="offset points", color=MODEL)
        if oracle:
            axes.axhline(oracle.value, color=INK, linewidth=0.8, linestyle=(0, (3, 2)))
            axes.annotate(oracle.name, (0, oracle.value), (3, 3), xycoords=("axes fraction", "data"), textcoords="offset points", color=INK)
        axes.set_xscale("log")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.margins(x=0.12, y=0.15)

    return [Panel(PanelSize(410, 240), draw, title="nats per transition (ELBO)", x="training trajectories")]


def fans(data: xr.Dataset, observable: str) -> list[Panel]:
    """Return panels of median and 10-90% band of one observable, one per initial state: model over truth."""
    one = data["value"].sel(observable=observable)
    one = one.isel(time=thinned(one.sizes["time"]))
    sources = [(name, colour) for name, colour in (("truth", INK), ("model", MODEL)) if name in one["source"].values]
    time = one["time"].values

    def draw(axes: Axes, values: xr.DataArray) -> None:
        ends = []
        for source, colour in sources:
            low, median, high = (values.sel(source=source, quantile=q).values for q in (0.1, 0.5, 0.9))
            if source == "truth":
                axes.fill_between(time, low, high, color=GREY, alpha=0.32, linewidth=0)
            else:
                axes.fill_between(time, low, high, color=colour, alpha=0.08, linewidth=0)
                axes.plot(time, np.stack([low, high], 1), color=colour, linewidth=0.9)
            axes.plot(time, median, color=colour, linewidth=1.5)
            ends.append((float(median[-1]), source, colour))
        axes.set_xlim(time[0], time[-1])
        label_ends(axes, ends)

    unit = str(data["time"].attrs.get("units", ""))
    return [
        Panel(LABELLED, partial(draw, values=one.isel(initial_state=i)), title=f"initial state {i + 1}", x=with_unit("time", unit))
        for i in range(min(one.sizes["initial_state"], 6))
    ]


def distances(rows: Sequence[Distance], differing: Sequence[Distance], time_unit: str) -> list[Panel]:
    """Return panels of D_KS over time with the noise floor, one per observable; rows that differ are marked."""
    names = list(dict.fromkeys(row.observable for row in rows))
    top = largest([row.ks for row in rows], [row.floor for row in rows], default=0.0)

    def draw(axes: Axes, some: list[Distance]) -> None:
        time = [row.time for row in some]
        floor = [row.floor for row in some]
        pad = 0.04 * (time[-1] - time[0] or 1)
        axes.fill_between([time[0] - pad, *time, time[-1] + pad], 0, [floor[0], *floor, floor[-1]], color=GREY, alpha=0.28, linewidth=0)
        if np.isfinite(typical := [row.typical for row in some]).any():
            axes.plot(time, typical, color=INK, linewidth=0.9, linestyle=(0, (3, 2)))
        axes.plot(time, [row.ks for row in some], color=MODEL, marker="o", markersize=4)
        for row in some:
            if row in differing:
                axes.plot(row.time, row.ks, "o", color=BAD, markersize=5)
        axes.set(xlim=(time[0] - pad, time[-1] + pad), ylim=(0, 1.15 * top))

    panels = []
    for name in names:
        some = sorted((row for row in rows if row.observable == name), key=lambda row: row.time)
        title = f"D_KS of {brief(some[0].label, 34)}"
        panels.append(Panel(SMALL, partial(draw, some=some), title=title, x=with_unit("time", time_unit)))
    return panels


def classifier(tests: Sequence[JointTest]) -> list[Panel]:
    """Return a panel of the accuracy of the classifier, with its interval, beside the noise floor; one row per initial state."""

    def draw(axes: Axes) -> None:
        for y, test in enumerate(tests):
            beyond = test.classifier_accuracy > test.floor
            if np.isfinite(test.floor):
                axes.fill_betweenx([y - 0.36, y + 0.36], 0.5, test.floor, color=GREY, alpha=0.3, linewidth=0)
            axes.plot([test.lower, test.upper], [y, y], color=BAD if beyond else MODEL)
            axes.plot(test.classifier_accuracy, y, "o", color=BAD if beyond else MODEL, markersize=4.5)
        axes.axvline(0.5, color=LINE, linewidth=0.8)
        axes.set(ylim=(len(tests) - 0.4, -0.6), xlim=(0.38, 0.03 + largest([test.upper for test in tests], default=0.72)))
        axes.set_yticks(range(len(tests)), [f"initial state {test.initial_state + 1}" for test in tests])
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.tick_params(axis="y", length=0)

    size = PanelSize(410, 26 * len(tests) + 60, left=78)
    return [Panel(size, draw, title="accuracy of a classifier", x="fraction of runs that are classified correctly")]


def with_unit(text: str, unit: str) -> str:
    """Return the label of an axis, with its unit."""
    return f"{text} ({brief(unit, 16)})" if unit else text
