"""Docstrings of this package are plain text with `code` in single backticks: escape what reStructuredText would read as markup."""

from __future__ import annotations

import re
from typing import Any

VERBATIM = re.compile(r"\s*(>>>|\.\.\.|-+$|=[= ]+$)")  # examples, and the rules under headings and of tables
MARKUP = re.compile(r"(`+[^`]*`+)|(\*|\|)|(\w)_(?=[\s).,;:\]]|$)")


def escape(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Escape stars, bars and trailing underscores outside of code, in place."""
    lines[:] = [line if VERBATIM.match(line) else MARKUP.sub(_escaped, line) for line in lines]


def _escaped(found: re.Match[str]) -> str:
    code, mark, before = found.groups()
    return code or (rf"\{mark}" if mark else rf"{before}\_")


def setup(app: Any) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", escape, priority=400)  # before napoleon, which reads the sections
    return {"parallel_read_safe": True}
