"""Paths and fans as panels. Every function returns panels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from epns_pyro.calibration.wording import brief
from epns_pyro.errors import DataError
from epns_pyro.evaluation.figures.distribution import fans as fan_panels
from epns_pyro.evaluation.figures.distribution import with_unit
from epns_pyro.evaluation.figures.style import INK, LINE, MODEL, thinned
from epns_pyro.evaluation.parts import Panel, PanelSize
from epns_pyro.plots.futures import TRUTH, Futures, Shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from epns_pyro.state import Field

# Colours of Okabe and Ito, which colour-blind readers can tell apart; yellow is too pale for a line.
BODIES = ("#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#d55e00", "#0072b2", "#999999")
SQUARE = PanelSize(262, 262, left=44, right=8)
IMAGE = PanelSize(180, 208, left=6, right=6, top=24, bottom=6)
MOST_FANS = 6
MOST_FRAMES = 5


def fans(futures: Futures, names: Sequence[str] = ()) -> list[Panel]:
    """Median and 10-90% band over time, model over truth; a panel per observable."""
    data = futures.quantiles(names)
    panels = []
    for name in data["observable"].values[: MOST_FANS if not names else None]:
        one = data.sel(observable=name)
        (panel,) = fan_panels(data, name)
        title = with_unit(brief(str(one["label"].item()), 40), str(one["unit"].item()))
        panels.append(Panel(panel.size, panel.draw, title=title, x=panel.x))
    return panels


def paths(futures: Futures, runs: int = 3) -> list[Panel]:
    """Paths of bodies, or frames of label images; a panel, or a row of panels, per run of a source."""
    shown = futures.shown(runs)
    if (field := futures.spec.position) is not None:
        return _paths(futures, field, shown)
    if "cell" in futures.spec:
        return _frames(futures, shown)
    raise DataError(f"paths: expected bodies with a position or label images, found the fields {', '.join(futures.spec.names)}: draw a fan")


def _paths(futures: Futures, field: Field, shown: list[Shown]) -> list[Panel]:
    positions = [futures.spec.get(x, field.name) for _, _, x in shown]  # (time, body, space)
    everywhere = np.concatenate([p.reshape(-1, p.shape[-1]) for p in positions])
    low, high = np.nanmin(everywhere, axis=0), np.nanmax(everywhere, axis=0)
    middle, reach = (low + high) / 2, 0.54 * float((high - low)[:2].max() or 1)
    line = futures.spec.space == 1  # then the position is drawn over time

    def draw(axes: Axes, source: str, position: np.ndarray) -> None:
        for body in range(position.shape[1]):
            colour = BODIES[body % len(BODIES)] if position.shape[1] <= len(BODIES) else INK if source == TRUTH else MODEL
            along = position[:, body]
            if line:
                axes.plot(futures.start + futures.frame_dt * np.arange(len(along)), along[:, 0], color=colour, linewidth=1.0)
                continue
            x, y = along.T[:2]
            axes.plot(x, y, color=colour, linewidth=1.0, alpha=0.85)
            there = np.flatnonzero(np.isfinite(x))
            if len(there):
                axes.plot(x[there[0]], y[there[0]], "o", color=colour, markersize=3, markerfacecolor="none")
                axes.plot(x[there[-1]], y[there[-1]], "o", color=colour, markersize=3.6)
        if not line:
            axes.set(xlim=(middle[0] - reach, middle[0] + reach), ylim=(middle[1] - reach, middle[1] + reach), aspect="equal")

    x_label = with_unit("time", futures.system.time_unit) if line else with_unit("x", field.unit)
    y_label = with_unit(field.name if line else "y", field.unit)
    return [
        Panel(SQUARE, partial(draw, source=source, position=p), title=f"{y_label}, {name}", x=x_label)
        for (name, source, _), p in zip(shown, positions, strict=True)
    ]


def _frames(futures: Futures, shown: list[Shown]) -> list[Panel]:
    panels = []
    for name, _, x in shown:
        for t in thinned(len(x), MOST_FRAMES):
            time = f"{futures.start + futures.frame_dt * t:.4g} {futures.system.time_unit}".rstrip()
            panels.append(Panel(IMAGE, partial(draw_image, picture=image(futures, x[t])), title=f"{name}, {time}"))
    return panels


def image(futures: Futures, x: np.ndarray) -> np.ndarray:
    """Colour one label image x (y, x, channel) by type, with borders between labels: (y, x, 3), 0 to 1."""
    from matplotlib.colors import to_rgb

    label = futures.spec.get(x, "cell")
    kind = futures.spec.get(x, "type") if "type" in futures.spec else np.ones_like(label)
    table = np.array([to_rgb("white"), *map(to_rgb, BODIES)])
    colours = table[np.where(label > 0, 1 + (np.maximum(kind, 1) - 1) % len(BODIES), 0)]
    zoom = 4
    big, labels = (np.kron(a, np.ones((zoom, zoom, *[1] * (a.ndim - 2)), a.dtype)) for a in (colours, label))
    edge = np.zeros(labels.shape, bool)
    edge[1:] |= labels[1:] != labels[:-1]
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    big[edge] = to_rgb("#1d2733")
    return big


def draw_image(axes: Axes, picture: np.ndarray) -> None:
    """Show a picture (y, x, 3) without ticks."""
    axes.imshow(picture, interpolation="nearest", aspect="equal")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(visible=True, color=LINE)
