"""Panels on paper: the panels of the report and of `plots.panels` as figures of matplotlib, in the colours of the page on white."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from epns_pyro.errors import DataError
from epns_pyro.evaluation.figures.style import BAD, GREY, INK, LINE, MODEL, MUTED, SHARED, TINY, tick
from epns_pyro.evaluation.parts import Panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")
# The stand-in colour of a role -> that of the light page (report/templates/style.css).
PALETTE = {INK: "#1d2733", MODEL: "#0b6cb5", GREY: "#98a3b0", LINE: "#aeb7c2", BAD: "#b8430f", MUTED: "#5c6876"}
WIDTH = 1060  # pixels of a page: as many panels to a row as fit
DPI = 96
STYLE = SHARED | {
    "pdf.fonttype": 42,
}


def draw(panels: Sequence[Panel], title: str = "") -> Figure:
    """Draw panels row by row into one figure.

    Parameters
    ----------
    panels : sequence of Panel
    title : str
        Stands above all of them.
    """
    import matplotlib
    from matplotlib import figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    rows = _rows(panels)
    head = 26 if title else 4
    wide = max(sum(panel.size.width for panel in row) for row in rows)
    high = head + sum(max(panel.size.height for panel in row) for row in rows)
    with matplotlib.rc_context(STYLE):
        page = figure.Figure(figsize=(wide / DPI, high / DPI), dpi=DPI, facecolor="white")
        if title:
            page.text(6 / wide, 1 - 6 / high, title, va="top", fontsize=10, color=INK)
        top = head
        for row in rows:
            left = 0
            for panel in row:
                size = panel.size
                box = (left + size.left, high - top - size.height + size.bottom)
                inner = (size.width - size.left - size.right, size.height - size.top - size.bottom)
                axes = page.add_axes((box[0] / wide, box[1] / high, inner[0] / wide, inner[1] / high))
                most = 3 if size is TINY else 5
                axes.xaxis.set_major_locator(MaxNLocator(most, steps=[1, 2, 5, 10]))
                axes.yaxis.set_major_locator(MaxNLocator(most, steps=[1, 2, 5, 10]))
                for axis in (axes.xaxis, axes.yaxis):
                    axis.set_major_formatter(FuncFormatter(tick))
                panel.draw(axes)
                page.text((left + 6) / wide, 1 - (top + 4) / high, panel.title, va="top", fontsize=8.5, color=panel.colour)
                if panel.x:
                    axes.set_xlabel(panel.x, loc="right", labelpad=1)
                left += size.width
            top += max(panel.size.height for panel in row)
        _colour(page)
    return page


def save(page: Figure, out: Path) -> Path:
    """Write a figure as PNG, SVG or PDF, by the ending of the name.

    Raises
    ------
    DataError
        If the name ends otherwise, or if its folder is not there.
    """
    import matplotlib

    if out.suffix not in FORMATS:
        raise DataError(f"{out}: expected a name that ends in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    if not out.parent.is_dir():
        raise DataError(f"{out.parent}: no such folder: make it first, or name another place for the picture")
    dated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(out.suffix)
    with matplotlib.rc_context(STYLE):
        page.savefig(out, dpi=2 * DPI, metadata=dated)
    return out


def _rows(panels: Sequence[Panel]) -> list[list[Panel]]:
    """Put panels into rows that are no wider than the page, about as many to each."""
    rows: list[list[Panel]] = [[]]
    fit = -(-sum(panel.size.width for panel in panels) // WIDTH)  # rows that are needed
    most = -(-len(panels) // max(fit, 1))
    for panel in panels:
        if rows[-1] and (len(rows[-1]) == most or sum(p.size.width for p in rows[-1]) + panel.size.width > WIDTH):
            rows.append([])
        rows[-1].append(panel)
    return rows


def _colour(page: Figure) -> None:
    """Put the colours of the page for the stand-ins that panels are drawn in, in every artist of a figure."""
    from matplotlib.colors import to_rgba

    real = {to_rgba(stand_in)[:3]: to_rgba(colour)[:3] for stand_in, colour in PALETTE.items()}

    def changed(value: Any) -> Any:
        colours = np.atleast_2d(np.asarray([to_rgba(c) for c in _listed(value)]))
        new = [(*real.get(tuple(c[:3]), tuple(c[:3])), c[3]) for c in colours]
        return new if len(new) > 1 else new[0]

    for artist in page.findobj():
        for name in ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor"):
            get, put = getattr(artist, f"get_{name}", None), getattr(artist, f"set_{name}", None)
            if get is None or put is None or (name == "color" and hasattr(artist, "get_facecolor")):
                continue
            value = get()
            if isinstance(value, str) and value in ("none", "auto"):
                continue
            if len(_listed(value)):
                put(changed(value))


def _listed(value: Any) -> list[Any]:
    """Return one colour, or an array of colours (n, 4), as a list."""
    return list(value) if isinstance(value, np.ndarray) and value.ndim == 2 else [value]
