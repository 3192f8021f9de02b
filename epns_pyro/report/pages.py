"""Putting pages together and writing them: one self-contained HTML file each.

Nothing from data or configs can become markup: Jinja2 escapes all text, matplotlib that of figures, and JSON travels with its angle
brackets encoded. As a second lock the page's own policy forbids every request and every script but the page's, named by their hashes.
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
from markupsafe import Markup

from epns_pyro.errors import DataError
from epns_pyro.evaluation import summary
from epns_pyro.report import figures_distribution, sections, sections_model
from epns_pyro.report.evaluated import Evaluated
from epns_pyro.report.figures_model import sparkline
from epns_pyro.report.parts import Figure, Key, Section
from epns_pyro.report.viewers import viewer

RUN_FACTS = (
    "name", "system", "system_label", "group", "frame_dt", "time_unit", "seed", "step", "parameters", "train_seconds", "config_yaml",
    "evaluation", "versions", "command", "store", "sets", "sampling_rule", "created", "evaluate_seconds",
)  # fmt: skip
PLAYERS = {"orbits": ("player.js", "viewer.js"), "film": ("player.js", "film.js")}


def write_report(folder: Path, out: Path, training: sections_model.TrainingLog | None = None) -> Path:
    """Write the report of a run.

    Parameters
    ----------
    folder : Path
        RUN/evaluation/.
    out : Path
        The page; an older one is replaced once the new one is complete.
    training : sequence of (step, name, value), optional
        The log of the training.

    Raises
    ------
    DataError
        If there is no evaluation in the folder, or not one that this version reads.
    """
    found = Evaluated.read(folder)
    show, lines = viewer(found), summary.lines(found.metrics)
    scripts = ["\n".join(_asset(name) for name in PLAYERS[show.kind])] if show else []
    page = _environment().get_template("report.html.j2")
    return _write(
        out,
        page.render(
            run=dict.fromkeys(RUN_FACTS) | found.run,
            headline=[{"note": "", "good": None} | line for line in found.metrics.get("headline") or []],
            verdict=summary.verdict(found.metrics),
            lines=lines,
            sparklines=_sparklines(found),
            level=found.level,
            rules=list(dict.fromkeys(line.rule for line in lines if line.rule)),
            viewer=show,
            sections=_sections(found, training or []),
            scripts=[Markup(script) for script in scripts],
            script_hashes=[_hash(script) for script in scripts],
        ),
    )


def write_comparison(folders: Mapping[str, Path], out: Path) -> list[dict[str, Any]]:
    """Write one page for several runs, folders RUN/evaluation/ by name; return the rows of its table.

    A row has the numbers of `summary.comparison_row`, and under `data` a letter: runs with the same letter were evaluated on the same data.
    """
    runs = {name: Evaluated.read(folder) for name, folder in folders.items()}
    data = [json.dumps([found.run.get(key) for key in ("system", "store", "sets")], sort_keys=True) for found in runs.values()]
    letters = {key: _letter(i) for i, key in enumerate(dict.fromkeys(data))}
    rows = [
        summary.comparison_row(name, found.metrics) | {"data": letters[key]} for (name, found), key in zip(runs.items(), data, strict=True)
    ]
    judged = {name: {line.subject: line for line in summary.lines(found.metrics)} for name, found in runs.items()}
    page = _environment().get_template("compare.html.j2")
    _write(
        out,
        page.render(
            rows=rows,
            same_data=len(letters) == 1,
            judged=judged,
            subjects=list(dict.fromkeys(subject for lines in judged.values() for subject in lines)),
            ladders=[
                _ladder(letter, {row["name"]: runs[row["name"]] for row in rows if row["data"] == letter}) for letter in letters.values()
            ],
            script_hashes=[],
        ),
    )
    return rows


def _sections(found: Evaluated, training: sections_model.TrainingLog) -> list[Section]:
    made = [make(found) for make in (*sections.MAKERS, *sections_model.MAKERS)] + [sections_model.training(found, training)]
    return [section for section in made if section]


def _sparklines(found: Evaluated) -> dict[str, Markup]:
    return {s.label: sparkline(s.data) for s in found.subjects("observables", "fields") if "coverage" in s.data}


def _ladder(letter: str, runs: Mapping[str, Evaluated]) -> Figure | None:
    """The ELBO of runs that were evaluated on the same data, and the references of the first that has any."""
    tables = {
        name: [row for row in (found.metrics.get("likelihood") or {}).get("rows") or [] if row.get("value") is not None]
        for name, found in runs.items()
    }
    rows = [row | {"name": name} for name, table in tables.items() for row in table if row.get("key") == "elbo"]
    if not rows:
        return None
    first = next(iter(table for table in tables.values() if table))
    rows += [row for row in first if row.get("key") not in ("elbo", "iwae")]
    return Figure(
        figures_distribution.ladder(rows),
        alt="Scores in nats per transition: " + ", ".join(f"{row['name']} {row['value']:.2f}" for row in rows) + ".",
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
    environment.filters |= {"safe_json": safe_json, "state": summary.state}
    environment.globals["style"] = lambda: Markup(_asset("style.css"))
    return environment


def _asset(name: str) -> str:
    return _LOADER.get_source(jinja2.Environment(), name)[0]


def _hash(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def safe_json(value: Any) -> Markup:
    """Write JSON for a script element: no character in it can end the element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _write(out: Path, page: str) -> Path:
    if not out.parent.is_dir():
        raise DataError(f"{out.parent}: no such folder: make it first, or name another place for the page")
    partial = out.with_name(out.name + ".partial")
    partial.write_text(page, encoding="utf-8", newline="\n")
    os.replace(partial, out)
    return out
