"""Figures of calibration over lead time. Every function returns panels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from epns_pyro.calibration.wording import brief
from epns_pyro.evaluation.evaluated import Subject
from epns_pyro.evaluation.figures.distribution import with_unit
from epns_pyro.evaluation.figures.style import (
    BAD,
    GREY,
    INK,
    LABELLED,
    LINE,
    MODEL,
    MUTED,
    SMALL,
    TINY,
    decades,
    label_ends,
    largest,
    thinned,
)
from epns_pyro.evaluation.parts import Panel, PanelSize

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GRID_TIMES = 6  # lead times of a grid of panels
TRUE_PROCESS = "true process"


def ecdf_differences(one: xr.Dataset, prefix: str = "") -> list[Panel]:
    """Return panels of the rank ECDF minus its expectation with its band, one per lead time; `prefix` of the variable names."""
    names = (f"{prefix}ecdf_difference", f"{prefix}band_lower", f"{prefix}band_upper")
    point = one["point"].values
    height = 1.15 * largest(*(np.abs(one[name].values) for name in names), default=0.05)

    def draw(axes: Axes, k: int) -> None:
        difference, low, high = (one[name].isel(lead_time=k).values for name in names)
        axes.fill_between(point, low, high, color=GREY, alpha=0.3, linewidth=0, step="mid")
        axes.axhline(0, color=LINE, linewidth=0.6)
        axes.step(point, difference, where="mid", color=BAD if leaves(difference, low, high) else MODEL, linewidth=1.2)
        axes.set(xlim=(0, 1), ylim=(-height, height))
        axes.set_xticks([0, 0.5, 1], ["0", "½", "1"])

    panels = []
    for k in grid_times(one):
        outside = leaves(*(one[name].isel(lead_time=k).values for name in names))
        title = brief(f"{float(one['lead_time'][k]):.4g} {one.attrs.get('time_unit', '')}", 14) + (" · outside" if outside else "")
        panels.append(Panel(TINY, partial(draw, k=k), title=title, colour=BAD if outside else INK))
    return panels


def grid_times(one: xr.Dataset) -> np.ndarray:
    """Return the lead times that a grid of panels shows."""
    return thinned(one.sizes["lead_time"], GRID_TIMES)


def leaves(difference: np.ndarray, low: np.ndarray, high: np.ndarray) -> bool:
    """Return whether an ECDF leaves its band; touching it counts as inside, as in the test."""
    return bool(((difference < low - 1e-9) | (difference > high + 1e-9)).any())


def coverage(subjects: Sequence[Subject], time_unit: str) -> list[Panel]:
    """Return panels of coverage of central intervals over lead time with 95% intervals, one per quantity."""

    def draw(axes: Axes, one: xr.Dataset) -> None:
        time = one["lead_time"].values
        _, distinct = np.unique(
            np.round(one["nominal"].values, 9), return_index=True
        )  # in small ensembles several levels have the same interval
        levels = one["level"].values[distinct]
        step = float(np.diff(time).min()) if len(time) > 1 else 1.0
        low = -largest(-one["coverage_lower"].values, default=-0.33)
        ends = []
        for j, level in enumerate(levels):
            at = one.sel(level=level)
            nominal = float(at["nominal"])
            value, lower, upper = (at[f"coverage{end}"].values for end in ("", "_lower", "_upper"))
            moved = time + 0.11 * step * (j - (len(levels) - 1) / 2)
            astray = (lower > nominal) | (upper < nominal)
            axes.axhline(nominal, color=LINE, linewidth=0.6)
            for where, colour in ((~astray, MODEL), (astray, BAD)):
                axes.vlines(moved[where], lower[where], upper[where], color=colour, linewidth=0.9, alpha=0.55)
                axes.plot(moved[where], value[where], "o", color=colour, markersize=2.6)
            axes.plot(moved, value, color=MODEL, linewidth=0.6, alpha=0.5)
            ends.append((nominal, f"{nominal:.0%}", MUTED))
        axes.set(ylim=(low - 0.03, 1.01), xlim=(time[0] - 0.6 * step, time[-1] + 0.6 * step))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        label_ends(axes, ends, gap=0.07)

    return [_panel(s, draw, LABELLED, brief(s.label), time_unit) for s in subjects]


def ratios(subjects: Sequence[Subject], time_unit: str) -> list[Panel]:
    """Return panels of ensemble spread over error of the ensemble mean, with its interval, one per quantity: 1 if calibrated."""
    top = min(3.0, largest(*(s.data["spread_skill_upper"].values for s in subjects), default=1.6))

    def draw(axes: Axes, one: xr.Dataset) -> None:
        time = one["lead_time"].values
        axes.axhline(1, color=INK, linewidth=0.8)
        axes.fill_between(time, one["spread_skill_lower"], one["spread_skill_upper"], color=MODEL, alpha=0.18, linewidth=0)
        axes.plot(time, one["spread_skill"], color=MODEL, marker="o", markersize=2.8)
        axes.set_ylim(0, top)

    return [_panel(s, draw, SMALL, brief(s.label), time_unit) for s in subjects]


def shifts(subjects: Sequence[Subject], time_unit: str) -> list[Panel]:
    """Return panels of the distance of the truth from the centre of its ensemble, in ensemble spreads, one per quantity."""
    ends = [np.abs(s.data["shift"].values) + 2 * s.data["shift_error"].values for s in subjects]
    top = 1.1 * largest(*ends, default=0.4)

    def draw(axes: Axes, one: xr.Dataset) -> None:
        time, value, error = (one[name].values for name in ("lead_time", "shift", "shift_error"))
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.fill_between(time, value - 1.96 * error, value + 1.96 * error, color=MODEL, alpha=0.18, linewidth=0)
        axes.plot(time, value, color=MODEL, marker="o", markersize=2.8)
        axes.set_ylim(-top, top)

    return [_panel(s, draw, SMALL, brief(s.label), time_unit) for s in subjects]


def scores(subjects: Sequence[Subject], score: str, skill: str, time_unit: str) -> list[Panel]:
    """Return panels of a score over lead time, logarithmic, of the model and, where there is a skill, of the references; one per quantity.

    The score of a reference is recovered from its skill: score of the model / (1 - skill).
    """

    def draw(axes: Axes, one: xr.Dataset) -> None:
        time, value = one["lead_time"].values, one[score].values
        lines = [("model", value, MODEL)]
        if skill in one:
            lines += [(name, value / (1 - one[skill].sel(reference=name).values), colour) for name, colour in references(one)]
        ends = []
        for name, line, colour in lines:
            line = np.where(np.isfinite(line) & (line > 0), line, np.nan)
            axes.plot(time, line, color=colour, marker="o" if name == "model" else None, markersize=2.8, zorder=3 if name == "model" else 2)
            known = line[np.isfinite(line)]
            ends.append((known[-1] if len(known) else np.nan, short(name), colour))
        if np.isfinite([end for end, _, _ in ends]).any():
            decades(axes)
        label_ends(axes, ends)

    return [_panel(s, draw, NAMED, with_unit(brief(s.label, 34), s.unit), time_unit) for s in subjects]


def skills(subjects: Sequence[Subject], skill: str, time_unit: str) -> list[Panel]:
    """Return panels of the skill against each reference, one per quantity."""

    def draw(axes: Axes, one: xr.Dataset) -> None:
        time = one["lead_time"].values
        axes.axhline(0, color=INK, linewidth=0.8)
        ends = []
        for name, colour in references(one):
            value, error = (one[key].sel(reference=name).values for key in (skill, f"{skill}_error"))
            axes.fill_between(time, value - 1.96 * error, value + 1.96 * error, color=colour, alpha=0.18, linewidth=0)
            axes.plot(time, value, color=colour, marker="o", markersize=2.8)
            ends.append((value[-1], short(name), colour))
        axes.set_ylim(-min(1.5, 1.15 * largest(-one[skill].values, default=0.25)), 1.05)
        label_ends(axes, ends)

    return [_panel(s, draw, NAMED, brief(s.label), time_unit) for s in subjects]


def references(one: xr.Dataset) -> list[tuple[str, str]]:
    """Return the references of a skill with their colours: black for the true process, grey for the others."""
    names = [str(name) for name in one["reference"].values] if "reference" in one.coords else []
    return [(name, INK if name == TRUE_PROCESS else MUTED) for name in names]


def short(name: str) -> str:
    """Write a reference in the margin of a panel."""
    return brief({TRUE_PROCESS: "truth", "persistence": "persist."}.get(name, name), 11)


def reliability(subject: Subject) -> list[Panel]:
    """Return panels of the frequency of labels over their forecast probability, beside a perfect ensemble; three lead times."""
    data = subject.data

    def draw(axes: Axes, at: xr.Dataset) -> None:
        p, frequency, error, expected = (
            at[name].values for name in ("forecast_probability", "frequency", "frequency_error", "expected_frequency")
        )
        axes.plot([0, 1], [0, 1], color=LINE, linewidth=0.6)
        axes.plot(p, expected, color=INK, linewidth=1.0, linestyle=(0, (3, 2)))
        axes.errorbar(p, frequency, yerr=1.96 * error, color=MODEL, fmt="o-", markersize=3.4, elinewidth=0.9, linewidth=0.8)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))

    unit = str(data.attrs.get("time_unit", ""))
    return [
        Panel(
            SMALL,
            partial(draw, at=data.isel(lead_time=k)),
            title=f"frequency, at {float(data['lead_time'][k]):.4g} {brief(unit, 12)}".rstrip(),
            x="forecast probability",
        )
        for k in thinned(data.sizes["lead_time"], 3)
    ]


NAMED = PanelSize(LABELLED.width, LABELLED.height, left=LABELLED.left, right=58)  # room for names of references


def _panel(subject: Subject, draw, size, title: str, time_unit: str) -> Panel:
    return Panel(size, lambda axes: draw(axes, subject.data), title=title, x=with_unit("lead time", time_unit))
