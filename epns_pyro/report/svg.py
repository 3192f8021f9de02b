"""Drawing panels of figures as SVG with matplotlib, in the colours and the font of the page.

A panel is drawn in placeholder colours, one per role, which are replaced by variables of the style sheet: the same SVG works in light
and in dark mode.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from epns_pyro.evaluation.figures.style import BAD, GREY, INK, LINE, MODEL, MUTED, SHARED, TINY, tick
from epns_pyro.evaluation.parts import Panel, PanelSize

_ROLES = {INK: "--ink", MODEL: "--model", GREY: "--grey", LINE: "--axis", BAD: "--bad", MUTED: "--muted"}
_STYLE = SHARED | {
    "font.family": "sans-serif",
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 5,
    "axes.titlecolor": INK,
}


def draw(panel: Panel) -> Markup:
    """Draw one panel as an element of the page."""
    size = panel.size
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the browser has more fonts than matplotlib
        figure = Figure(figsize=(size.width / 96, size.height / 96), facecolor="none")
        inner = (size.width - size.left - size.right) / size.width, (size.height - size.top - size.bottom) / size.height
        axes = figure.add_axes((size.left / size.width, size.bottom / size.height, *inner), facecolor="none")
        axes.xaxis.set_major_locator(MaxNLocator(3 if size is TINY else 5, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_locator(MaxNLocator(3 if size is TINY else 4, steps=[1, 2, 5, 10]))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(tick))
        panel.draw(axes)
        if panel.title:
            left = 2 / size.width if size.left > 20 else 0
            figure.text(left, 1 - 4 / size.height, panel.title, va="top", fontsize=8.5, color=panel.colour)
        if panel.x:
            axes.set_xlabel(panel.x, loc="right", labelpad=1)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, facecolor="none")
    return Markup(_clean(buffer.getvalue(), size))  # matplotlib has escaped every text


def _clean(text: str, size: PanelSize) -> str:
    """Turn matplotlib's file into an element of the page: short, in the page's colours and font, without ids that could collide."""
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
