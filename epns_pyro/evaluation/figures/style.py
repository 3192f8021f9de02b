"""What the figures share: colours by role, sizes of panels, and labels that do not overlap.

Colours are placeholders, one per role, which a page replaces with its own. Roles have the same colour everywhere: the truth that of the
text, the model the accent colour, references grey.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from epns_pyro.evaluation.parts import PanelSize

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MODEL, GREY, LINE, BAD, MUTED = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
# Settings of matplotlib that pages and paper share.
SHARED = {
    "svg.fonttype": "none",
    "svg.hashsalt": "epns-pyro",
    "text.parse_math": False,  # labels come from users: a $ is a $
    "font.size": 8.5,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.xmargin": 0.02,
    "text.color": INK,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.3,
    "lines.solid_capstyle": "round",
}
MAX_POINTS = 120  # of a line: more cannot be seen

TINY = PanelSize(160, 112, left=30, right=6, top=20, bottom=16)
SMALL = PanelSize(300, 196)
LABELLED = PanelSize(300, 196, right=34)  # room for labels at the ends of lines
WIDE = PanelSize(720, 210)


def tick(value: float, _: int | None = None) -> str:
    """Write the number at a tick in as few characters as possible."""
    return f"{value:.4g}".replace("-", "−") if abs(value) < 1e4 else f"{value:.3g}".replace("e+0", "e")


def decades(axes: Axes) -> None:
    """Make y logarithmic, with few ticks at round numbers."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    powers = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    steps = (1, 2, 5) if high / low < 100 else (1,)
    round_numbers = np.outer(powers, steps).ravel() if high / low > 4 else MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(low, high)
    ticks = np.asarray(round_numbers)
    ticks = ticks[(low <= ticks) & (ticks <= high)]
    axes.set_yticks(ticks[:: max(1, -(-len(ticks) // 6))])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(tick))
    axes.set_ylim(low, high)


def two_sided_decades(axes: Axes, threshold: float) -> None:
    """Make y logarithmic above a threshold on both sides of zero, and linear below, with ticks at whole powers of ten."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    axes.set_yscale("symlog", linthresh=threshold)
    low, high = (1.5 * float(end) for end in axes.dataLim.intervaly)
    powers = 10.0 ** np.arange(np.ceil(np.log10(threshold)), np.ceil(np.log10(max(-low, high, threshold))) + 1)
    axes.set_yticks([0.0, *(y for power in powers for y in (-power, power) if low <= y <= high)])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(tick))
    axes.set_ylim(low, high)


def label_ends(axes: Axes, entries: Sequence[tuple[float, str, str]], *, gap: float = 0.085) -> None:
    """Write labels at the right ends of lines, moved apart where they would overlap: entries of (y, text, colour)."""
    to_axes = axes.transData + axes.transAxes.inverted()
    right = axes.get_xlim()[1]
    placed = sorted((float(to_axes.transform((right, y))[1]), text, colour) for y, text, colour in entries if np.isfinite(y))
    last = -np.inf
    heights = []
    for height, _, _ in placed:
        last = max(min(max(height, 0), 1), last + gap)
        heights.append(last)
    over = max(0.0, heights[-1] - 1) if heights else 0.0
    for height, (_, text, colour) in zip(heights, placed, strict=True):
        axes.text(1.015, height - over, text, transform=axes.transAxes, color=colour, fontsize=7.5, va="center", clip_on=False)


def largest(*arrays: ArrayLike, default: float) -> float:
    """Return the largest finite number in some arrays, but at least `default`."""
    values = np.concatenate([np.ravel(np.asarray(a, float)) for a in arrays])
    return float(max([default, *values[np.isfinite(values)]]))


def thinned(n: int, most: int = MAX_POINTS) -> np.ndarray:
    """Return indices of at most `most` of n points, evenly spread, with the first and the last."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))
