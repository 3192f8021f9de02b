"""Films: runs side by side as they move, as GIF or MP4."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from epns_pyro.errors import DataError
from epns_pyro.evaluation.figures.style import thinned
from epns_pyro.plots.futures import Futures
from epns_pyro.plots.panels import BODIES, draw_image, image

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FRAMES, RATE = 120, 15  # most frames of a film, frames per second
TAIL = 25  # frames that a body leaves behind
SIDE = 2.4  # inches of a picture


def save_film(futures: Futures, runs: int, out: Path) -> Path:
    """Write a film of some runs side by side.

    Raises
    ------
    DataError
        If the states are neither bodies in two or three dimensions nor label images, or if MP4 is asked for without ffmpeg.
    """
    import matplotlib
    from matplotlib import animation, figure

    if out.suffix == ".mp4" and not animation.writers.is_available("ffmpeg"):
        raise DataError(f"{out}: MP4 needs the program ffmpeg, which is not there: name a .gif or .html file")
    shown = futures.shown(runs)
    frames = thinned(max(len(x) for _, _, x in shown), FRAMES)
    writer: Any = animation.PillowWriter(fps=RATE) if out.suffix == ".gif" else animation.FFMpegWriter(fps=RATE)
    with matplotlib.rc_context({"font.size": 8.5}):
        page = figure.Figure(figsize=(SIDE * len(shown), SIDE + 0.3), dpi=110, layout="constrained", facecolor="white")
        axes = page.subplots(1, len(shown), squeeze=False)[0]
        box = _box(futures, [x for _, _, x in shown])
        with writer.saving(page, str(out), 110):
            for t in frames:
                for ax, (name, _, x) in zip(axes, shown, strict=True):
                    ax.clear()
                    _draw(ax, futures, x[: t + 1], box)
                    ax.set_title(name, loc="left", fontsize=8.5)
                axes[0].set_xlabel(f"time {futures.start + futures.frame_dt * t:.4g} {futures.system.time_unit}".rstrip(), loc="left")
                writer.grab_frame()
    return out


def _box(futures: Futures, states: list[np.ndarray]) -> tuple[np.ndarray, float]:
    """Centre and half the side of a square that holds nine tenths of all positions: a body that is ejected leaves the picture."""
    field = futures.spec.position
    if field is None and "cell" in futures.spec:
        return np.zeros(2), 1.0
    if field is None or field.irreps != "1o" or futures.spec.space < 2:
        raise DataError(f"a film shows bodies in two or three dimensions or label images, found {', '.join(futures.spec.names)}")
    places = np.concatenate([futures.spec.get(x, field.name)[..., :2].reshape(-1, 2) for x in states])
    low, high = np.nanquantile(places, (0.03, 0.97), axis=0)
    return (low + high) / 2, 0.7 * float((high - low).max() or 1)


def _draw(axes: Axes, futures: Futures, x: np.ndarray, box: tuple[np.ndarray, float]) -> None:
    """Draw the last frame of x (time, *site, channel), and the way of the bodies to it."""
    field = futures.spec.position
    if field is None:
        draw_image(axes, image(futures, x[-1]))
        return
    (middle, reach), position = box, futures.spec.get(x[-TAIL:], field.name)
    size = np.ones(position.shape[1])
    if "mass" in futures.spec:
        mass = futures.spec.get(x[-1], "mass").reshape(-1)
        size = np.clip(np.cbrt(mass / mass.max()), 0.35, None)
    for body in range(position.shape[1]):
        colour, along = BODIES[body % len(BODIES)], position[:, body]
        axes.plot(*along.T[:2], color=colour, linewidth=1.0, alpha=0.6)
        axes.plot(*along[-1:].T[:2], "o", color=colour, markersize=6 * size[body])
    axes.set(xlim=(middle[0] - reach, middle[0] + reach), ylim=(middle[1] - reach, middle[1] + reach), aspect="equal")
    axes.set_xticks([])
    axes.set_yticks([])
