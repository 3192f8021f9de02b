"""Figures of a study. Every function returns panels, in the roles of the page: the model of the paper in the accent colour."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from epns_pyro.calibration.wording import brief
from epns_pyro.evaluation.figures.distribution import ladder, with_unit
from epns_pyro.evaluation.figures.style import GREY, INK, MODEL, MUTED, SMALL, label_ends, largest
from epns_pyro.evaluation.parts import Panel, PanelSize
from epns_pyro.evaluation.record import LikelihoodRow
from epns_pyro.studies.measures import TRUTH, Row, by_place

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIRST = "epns"
NAMED = PanelSize(410, 240, right=118)  # room for names at the ends of lines


def colour(row: Row, second: str) -> str:
    """Return the colour of a model: the published one, the truth or the one that it is compared with first, or others."""
    return MODEL if row.name == FIRST else INK if row.name in (TRUTH, second) else MUTED


def scores(rows: Sequence[Row], measure: str) -> list[Panel]:
    """Return panels of a likelihood, a line per model, with the spread over seeds."""
    keys = {FIRST: "elbo", TRUTH: "oracle"}
    found = [(row, row.summary(measure)) for row in rows]
    known = [
        LikelihoodRow(key=keys.get(row.name, row.name), name=row.model.title, value=one.mean, error=abs(one.spread))
        for row, one in found
        if one.count
    ]
    return ladder(known) if known else []


def distances(rows: Sequence[Row], second: str, time_unit: str) -> list[Panel]:
    """Return panels of D_KS over time, one per observable: means over seeds, over the distance of two true ensembles."""
    places = {row.name: by_place(row) for row in rows}
    names = list(dict.fromkeys(observable for found in places.values() for observable, _ in found))
    top = largest([place["ks"] for found in places.values() for some in found.values() for place in some], default=0.2)

    def draw(axes: Axes, observable: str) -> None:
        for row in sorted(rows, key=lambda row: (row.name == second, row.name == FIRST)):
            some = [places[row.name][key] for key in sorted(places[row.name]) if key[0] == observable]
            if not some:
                continue
            time = [place[0]["time"] for place in some]
            if row.name == TRUTH:
                floor = [float(np.mean([one["typical"] for one in place])) for place in some]
                axes.fill_between(time, 0, floor, color=GREY, alpha=0.3, linewidth=0)
                continue
            means = [float(np.mean([one["ks"] for one in place])) for place in some]
            main = row.name in (FIRST, second)
            axes.plot(
                time,
                means,
                color=colour(row, second),
                marker="o" if main else None,
                markersize=4,
                linewidth=1.5 if main else 0.8,
            )
        axes.set_ylim(0, 1.05 * top)

    labels = {key[0]: places[row.name][key][0]["label"] for row in rows for key in places[row.name]}
    return [
        Panel(SMALL, partial(draw, observable=name), title=f"D_KS of {brief(labels[name], 34)}", x=with_unit("time", time_unit))
        for name in names
    ]


def long_runs(rows: Sequence[Row], second: str, time_unit: str) -> list[Panel]:
    """Return a panel of the share of runs that are still plausible, over time: means over seeds."""
    curves = {}
    for row in rows:
        found = [parts["long_runs"]["curve"] for parts in row.seeds.values() if parts.get("long_runs")]
        if found:
            curves[row] = np.array(found[0][0]), np.mean([one[1] for one in found], 0)

    def draw(axes: Axes) -> None:
        ends = []
        for row, (time, alive) in curves.items():
            tone = colour(row, second)
            dashes = (0, (3, 2)) if row.name == TRUTH else "-"
            axes.step(time, alive, where="post", color=tone, linestyle=dashes, linewidth=1.5 if row.name in (FIRST, second) else 0.9)
            if row.name in (FIRST, second, TRUTH):  # labels of all would push each other away
                ends.append((float(alive[-1]), brief(row.model.title, 20), tone))
            axes.set_xlim(0, time[-1])
        axes.set_ylim(0, 1.04)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        label_ends(axes, ends)

    return [Panel(NAMED, draw, title="runs that are still plausible", x=with_unit("time", time_unit))] if curves else []


def few_data(rows: Sequence[Row], second: str, oracle: float) -> list[Panel]:
    """Return a panel of the IWAE over the number of training trajectories, a line per model, with the spread over seeds."""
    known = sorted((row for row in rows if row.summary("iwae").count), key=lambda row: row.trajectories)
    lines = [line for name in dict.fromkeys(row.name for row in rows) if len(line := [row for row in known if row.name == name]) > 1]

    def draw(axes: Axes) -> None:
        ends = []
        for some in lines:
            x, found = [row.trajectories for row in some], [row.summary("iwae") for row in some]
            mean, spread = np.array([one.mean for one in found]), np.nan_to_num([one.spread for one in found])
            axes.errorbar(x, mean, spread, color=colour(some[0], second), marker="o", markersize=4, elinewidth=0.9)
            ends.append((float(mean[-1]), brief(some[0].model.title, 20), colour(some[0], second)))
        if np.isfinite(oracle):
            axes.axhline(oracle, color=INK, linewidth=0.8, linestyle=(0, (3, 2)))
            ends.append((oracle, "oracle", INK))
        axes.set_xscale("log")
        ticks = sorted({row.trajectories for some in lines for row in some})
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
        label_ends(axes, ends)

    return [Panel(NAMED, draw, title="nats per transition (IWAE)", x="training trajectories")] if lines else []
