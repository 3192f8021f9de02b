"""Panels: small matplotlib axes that become SVG in the colours and the font of the page.

A panel is drawn in stand-in colours, one per role, which are replaced by variables of the style sheet: the same SVG is readable on light
and on dark paper. Roles are fixed throughout: truth is the ink of the page, the model the accent, references a quiet grey.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

INK, MODEL, GREY, LINE, BAD, MUTED = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
_ROLES = {INK: "--ink", MODEL: "--model", GREY: "--grey", LINE: "--axis", BAD: "--bad", MUTED: "--muted"}
MAX_POINTS = 120  # of a line: more would not be seen
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "epns-pyro",
    "text.parse_math": False,  # labels come from outside: a $ is a $
    "font.family": "sans-serif",
    "font.size": 8.5,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 5,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
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


@dataclass(frozen=True)
class Size:
    """Width and height of a panel and the margins around its axes, in pixels of the page."""

    width: int
    height: int
    left: int = 40
    right: int = 12
    top: int = 22
    bottom: int = 34


TINY = Size(160, 112, left=30, right=6, top=20, bottom=16)
SMALL = Size(300, 196)
LABELLED = Size(300, 196, right=34)  # room for labels at the ends of lines
WIDE = Size(720, 210)


def panel(size: Size, draw: Callable[[Axes], None], *, title: str = "", x: str = "", colour: str = INK) -> Markup:
    """Draw one panel.

    Parameters
    ----------
    size : Size
    draw : callable
        Draws into the axes.
    title : str
        Stands above, flush left: the name of the y axis, or what tells the panel from its neighbours.
    x : str
        Name of the x axis.
    colour : str
        Of the title.
    """
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the browser has more fonts than we do
        figure = Figure(figsize=(size.width / 96, size.height / 96), facecolor="none")
        inner = (size.width - size.left - size.right) / size.width, (size.height - size.top - size.bottom) / size.height
        axes = figure.add_axes((size.left / size.width, size.bottom / size.height, *inner), facecolor="none")
        axes.xaxis.set_major_locator(MaxNLocator(3 if size is TINY else 5, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_locator(MaxNLocator(3 if size is TINY else 4, steps=[1, 2, 5, 10]))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(tick))
        draw(axes)
        if title:
            figure.text(2 / size.width if size.left > 20 else 0, 1 - 4 / size.height, title, va="top", fontsize=8.5, color=colour)
        if x:
            axes.set_xlabel(x, loc="right", labelpad=1)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, facecolor="none")
    return Markup(_clean(buffer.getvalue(), size))  # matplotlib has escaped every text


def tick(value: float, _: int | None = None) -> str:
    """Write the number at a tick as short as can be."""
    return f"{value:.4g}".replace("-", "−") if abs(value) < 1e4 else f"{value:.3g}".replace("e+0", "e")


def decades(axes: Axes) -> None:
    """Make y logarithmic, with few ticks at round numbers."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    powers = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    steps = (1, 2, 5) if high / low < 100 else (1,)
    ticks = np.outer(powers, steps).ravel() if high / low > 4 else MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(low, high)
    ticks = ticks[(low <= ticks) & (ticks <= high)]
    axes.set_yticks(ticks[:: max(1, -(-len(ticks) // 6))])
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


def largest(*arrays: np.ndarray, default: float) -> float:
    """Return the largest finite number in some arrays, but not less than `default`."""
    values = np.concatenate([np.ravel(np.asarray(a, float)) for a in arrays])
    return float(max([default, *values[np.isfinite(values)]]))


def thinned(n: int, most: int = MAX_POINTS) -> np.ndarray:
    """Indices of at most `most` of n points, evenly spread, first and last among them."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))


def _clean(text: str, size: Size) -> str:
    """Turn matplotlib's file into an element of the page: small, in the page's colours and font, with ids of its own."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"(\d+\.\d\d)\d+", r"\1", text)
    text = re.sub(r"font: (?:\w+ )??([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    for stand_in, role in _ROLES.items():
        text = text.replace(stand_in, f"var({role})")
    own = hashlib.sha256(text.encode()).hexdigest()[:8]
    text = re.sub(r'((?:id="|href="#|url\(#))', rf"\1f{own}-", text)
    text = re.sub(r"\n\s*", "\n", text)
    head = f'<svg aria-hidden="true" viewBox="0 0 {size.width * 0.75:g} {size.height * 0.75:g}" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return re.sub(r"<svg[^>]*>", head, text, count=1)
