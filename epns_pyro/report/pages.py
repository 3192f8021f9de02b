"""Building and writing pages: one self-contained HTML file each.

Text from data or configs never becomes markup: Jinja2 escapes all text, matplotlib escapes that of figures, and JSON has its angle
brackets encoded. In addition, the page's content security policy forbids all requests, and all scripts except the page's own, by hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import xarray as xr
from markupsafe import Markup

from epns_pyro.errors import DataError
from epns_pyro.evaluation import CHECKS, summary
from epns_pyro.evaluation.evaluated import Evaluated, Subject
from epns_pyro.evaluation.figures.model import sparkline
from epns_pyro.evaluation.lines import lines, state
from epns_pyro.evaluation.parts import Page, Panel, Section
from epns_pyro.report import svg
from epns_pyro.report.training import TrainingLog, training
from epns_pyro.report.viewers import player, viewer
from epns_pyro.whole import whole

PLAYERS = {"orbits": ("player.js", "viewer.js"), "film": ("player.js", "film.js")}


def write_report(folder: Path, out: Path, log: TrainingLog | None = None) -> Path:
    """Write the report of a run.

    Parameters
    ----------
    folder : Path
        RUN/evaluation/.
    out : Path
        Path of the page; an older one is replaced after the new one is complete.
    log : sequence of (step, name, value), optional
        The training log.

    Raises
    ------
    DataError
        If there is no evaluation in the folder, or not one that this version can read.
    """
    found = Evaluated.read(folder)
    return write_text(out, _report(found, sections(found, log or []), pages={}))


def write_report_pages(folder: Path, out: Path, log: TrainingLog | None = None) -> Path:
    """Write the report of a run as a folder: an overview, and a page for each quantity; return the overview, index.html.

    The arguments and errors are those of `write_report`, but `out` is a folder. It is created if it does not exist.
    """
    found = Evaluated.read(folder)
    out.mkdir(parents=True, exist_ok=True)
    judged = {line.subject: line for line in lines(found.record.verdicts)}
    pages = {subject.label: f"quantity-{i}.html" for i, subject in enumerate(found.subjects(), 1)}
    template = environment().get_template("quantity.html.j2")
    for subject in found.subjects():
        text = template.render(
            run=found.record.run,
            quantity=subject.label,
            line=judged.get(subject.label),
            pages=pages,
            sections=sections_about(found, subject),
            script_hashes=[],
        )
        write_text(out / pages[subject.label], text)
    overview = [section for section in (*sections_about(found, None), training(log or [])) if section]
    return write_text(out / "index.html", _report(found, overview, pages))


def write_page(page: Page, out: Path) -> Path:
    """Write a page of sections."""
    return write_text(out, environment().get_template("sections.html.j2").render(page=page, script_hashes=[]))


def write_player(data: xr.Dataset, time_unit: str, title: str, out: Path) -> Path:
    """Write a page with only a player: bodies in space, or label images.

    Parameters
    ----------
    data : Dataset, (source, trajectory, time, ...)
        As in examples.nc of an evaluation.
    time_unit, title : str
    out : Path

    Raises
    ------
    DataError
        If the data are neither bodies in two or three dimensions nor label images.
    """
    show = player(data, time_unit)
    if show is None:
        raise DataError(f"a film shows bodies in two or three dimensions or label images, found {', '.join(map(str, data.data_vars))}")
    scripts = ["\n".join(_asset(name) for name in PLAYERS[show.kind])]
    page = (
        environment()
        .get_template("player.html.j2")
        .render(
            title=title, viewer=show, scripts=[Markup(script) for script in scripts], script_hashes=[_hash(script) for script in scripts]
        )
    )
    return write_text(out, page)


def sections(found: Evaluated, log: TrainingLog) -> list[Section]:
    """Return the sections of a report that have something to show."""
    made = [section for check in CHECKS for section in check.sections(check.read(found.record), found)]
    return [section for section in (*made, training(log)) if section]


def sections_about(found: Evaluated, subject: Subject | None) -> list[Section]:
    """Return the sections about one quantity, or with None those about no single quantity."""
    part = found.about(subject)
    made: list[Section] = []
    for check in CHECKS:
        record = check.read(found.record)
        made += check.sections(None if record is None else check.about(record, subject), part)
    return [section for section in made if section]


def _report(found: Evaluated, made: list[Section], pages: Mapping[str, str]) -> str:
    """Return the page of a report; `pages` are those of single quantities, by label."""
    show, judged = viewer(found), lines(found.record.verdicts)
    scripts = ["\n".join(_asset(name) for name in PLAYERS[show.kind])] if show else []
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            run=found.record.run,
            headline=found.record.headline,
            verdict=summary.verdict(found.record),
            lines=judged,
            pages=pages,
            sparklines=_sparklines(found),
            level=found.level,
            rules=list(dict.fromkeys(line.rule for line in judged if line.rule)),
            viewer=show,
            sections=made,
            scripts=[Markup(script) for script in scripts],
            script_hashes=[_hash(script) for script in scripts],
        )
    )


def _sparklines(found: Evaluated) -> dict[str, Panel]:
    return {s.label: sparkline(s.data) for s in found.subjects("observables", "fields") if "coverage" in s.data}


# -- output ------------------------------------------------------------------------------------------------------------------

_LOADER = jinja2.PackageLoader("epns_pyro.report")


def environment() -> jinja2.Environment:
    """Return the environment of the templates of all pages."""
    environment = jinja2.Environment(
        loader=_LOADER, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"safe_json": safe_json, "state": state, "svg": svg.draw}
    environment.globals["style"] = lambda: Markup(_asset("style.css"))
    return environment


def _asset(name: str) -> str:
    return _LOADER.get_source(jinja2.Environment(), name)[0]


def _hash(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def safe_json(value: Any) -> Markup:
    """Write JSON for a script element, so that no character in it can end the element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def write_text(out: Path, page: str) -> Path:
    """Write a page, completely or not at all."""
    if not out.parent.is_dir():
        raise DataError(f"{out.parent}: no such folder: make it first, or name another place for the page")
    with whole(out) as partial:
        partial.write_text(page, encoding="utf-8", newline="\n")
    return out
