"""Building and writing pages: one self-contained HTML file each.

Text from data or configs never becomes markup: Jinja2 escapes all text, matplotlib escapes that of figures, and JSON has its angle
brackets encoded. In addition, the page's content security policy forbids all requests, and all scripts except the page's own, by hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import xarray as xr
from markupsafe import Markup

from epns_pyro.errors import DataError
from epns_pyro.evaluation import CHECKS, summary
from epns_pyro.evaluation.evaluated import Evaluated
from epns_pyro.evaluation.figures.distribution import ladder
from epns_pyro.evaluation.figures.model import sparkline
from epns_pyro.evaluation.lines import lines, state
from epns_pyro.evaluation.parts import Figure, Key, Page, Panel, Section
from epns_pyro.evaluation.record import Run
from epns_pyro.report import svg
from epns_pyro.report.training import TrainingLog, training
from epns_pyro.report.viewers import player, viewer

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
    show, judged = viewer(found), lines(found.record.verdicts)
    scripts = ["\n".join(_asset(name) for name in PLAYERS[show.kind])] if show else []
    page = _environment().get_template("report.html.j2")
    return write_text(
        out,
        page.render(
            run=found.record.run,
            headline=found.record.headline,
            verdict=summary.verdict(found.record),
            lines=judged,
            sparklines=_sparklines(found),
            level=found.level,
            rules=list(dict.fromkeys(line.rule for line in judged if line.rule)),
            viewer=show,
            sections=sections(found, log or []),
            scripts=[Markup(script) for script in scripts],
            script_hashes=[_hash(script) for script in scripts],
        ),
    )


def write_page(page: Page, out: Path) -> Path:
    """Write a page of sections."""
    return write_text(out, _environment().get_template("sections.html.j2").render(page=page, script_hashes=[]))


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
        _environment()
        .get_template("player.html.j2")
        .render(
            title=title, viewer=show, scripts=[Markup(script) for script in scripts], script_hashes=[_hash(script) for script in scripts]
        )
    )
    return write_text(out, page)


def write_comparison(folders: Mapping[str, Path], out: Path) -> list[summary.ComparisonRow]:
    """Write one page that compares runs, given their folders RUN/evaluation/ by name; return the rows of its table."""
    runs = {name: Evaluated.read(folder) for name, folder in folders.items()}
    data = [_data(found.record.run) for found in runs.values()]
    letters = {key: _letter(i) for i, key in enumerate(dict.fromkeys(data))}
    rows = [summary.comparison_row(name, found.record, data=letters[key]) for (name, found), key in zip(runs.items(), data, strict=True)]
    judged = {name: {line.subject: line for line in lines(found.record.verdicts)} for name, found in runs.items()}
    page = _environment().get_template("compare.html.j2")
    write_text(
        out,
        page.render(
            rows=rows,
            same_data=len(letters) == 1,
            judged=judged,
            subjects=list(dict.fromkeys(subject for of_run in judged.values() for subject in of_run)),
            ladders=[_ladder(letter, {row.name: runs[row.name] for row in rows if row.data == letter}) for letter in letters.values()],
            script_hashes=[],
        ),
    )
    return rows


def sections(found: Evaluated, log: TrainingLog) -> list[Section]:
    """Return the sections of a report that have something to show."""
    made = [section for check in CHECKS for section in check.sections(check.read(found.record), found)]
    return [section for section in (*made, training(log)) if section]


def _data(run: Run) -> str:
    """Return a text that differs between runs with different data."""
    return json.dumps(run.model_dump(mode="json", include={"system", "store", "sets"}), sort_keys=True)


def _sparklines(found: Evaluated) -> dict[str, Panel]:
    return {s.label: sparkline(s.data) for s in found.subjects("observables", "fields") if "coverage" in s.data}


def _ladder(letter: str, runs: Mapping[str, Evaluated]) -> Figure | None:
    """Return a figure of the ELBO of runs on the same data, with the references of the first run that has any."""
    tables = {name: found.record.likelihood.known for name, found in runs.items() if found.record.likelihood}
    rows = [row.model_copy(update={"name": name}) for name, table in tables.items() for row in table if row.key == "elbo"]
    if not rows:
        return None
    first = next(iter(table for table in tables.values() if table))
    rows += [row for row in first if row.key not in ("elbo", "iwae")]
    return Figure(
        ladder(rows),
        alt="Scores in nats per transition: " + ", ".join(f"{row.name} {row.value:.2f}" for row in rows) + ".",
        caption="Nats per transition on held-out data, the ELBO of every run; further right is better.",
        title=f"Likelihood on data {letter}",
        key=(Key("model", "runs"), Key("truth", "oracle"), Key("reference", "references")),
        size="medium",
    )


def _letter(i: int) -> str:
    return chr(ord("A") + i) if i < 26 else f"A{i}"


# -- output ------------------------------------------------------------------------------------------------------------------

_LOADER = jinja2.PackageLoader("epns_pyro.report")


def _environment() -> jinja2.Environment:
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
    """Write a file atomically: after a crash it is the old one or the new one, never a part of one."""
    if not out.parent.is_dir():
        raise DataError(f"{out.parent}: no such folder: make it first, or name another place for the page")
    partial = out.with_name(out.name + ".partial")
    partial.write_text(page, encoding="utf-8", newline="\n")
    os.replace(partial, out)
    return out
