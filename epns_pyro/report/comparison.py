"""The page that compares runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from epns_pyro.evaluation import summary
from epns_pyro.evaluation.evaluated import Evaluated
from epns_pyro.evaluation.figures.distribution import by_training_set, ladder
from epns_pyro.evaluation.lines import lines
from epns_pyro.evaluation.parts import Figure, Key
from epns_pyro.evaluation.record import LikelihoodRow, Run
from epns_pyro.report.pages import environment, write_text


def write_comparison(folders: Mapping[str, Path], out: Path) -> list[summary.ComparisonRow]:
    """Write one page that compares runs, given their folders RUN/evaluation/ by name; return the rows of its table."""
    runs = {name: Evaluated.read(folder) for name, folder in folders.items()}
    data = [_data(found.record.run) for found in runs.values()]
    letters = {key: _letter(i) for i, key in enumerate(dict.fromkeys(data))}
    rows = [summary.comparison_row(name, found.record, data=letters[key]) for (name, found), key in zip(runs.items(), data, strict=True)]
    judged = {name: {line.subject: line for line in lines(found.record.verdicts)} for name, found in runs.items()}
    page = environment().get_template("compare.html.j2")
    write_text(
        out,
        page.render(
            rows=rows,
            same_data=len(letters) == 1,
            judged=judged,
            subjects=list(dict.fromkeys(subject for of_run in judged.values() for subject in of_run)),
            figures=[
                figure
                for letter in letters.values()
                for figure in _scores(letter, {row.name: runs[row.name] for row in rows if row.data == letter})
            ],
            script_hashes=[],
        ),
    )
    return rows


def _data(run: Run) -> str:
    """Return a text that differs between runs with different held-out data."""
    if run.held_out:
        return run.held_out
    return json.dumps(run.model_dump(mode="json", include={"system", "store", "sets"}), sort_keys=True)


def _scores(letter: str, runs: Mapping[str, Evaluated]) -> Iterator[Figure]:
    """Yield figures of the ELBO of runs on the same held-out data, with the references of the first run that has any."""
    tables = {name: found.record.likelihood.known for name, found in runs.items() if found.record.likelihood}
    elbo = {name: row.model_copy(update={"name": name}) for name, table in tables.items() for row in table if row.key == "elbo"}
    if not elbo:
        return
    first = next(iter(table for table in tables.values() if table))
    references = [row for row in first if row.key not in ("elbo", "iwae")]
    rows = [*elbo.values(), *references]
    yield Figure(
        ladder(rows),
        alt="Scores in nats per transition: " + ", ".join(f"{row.name} {row.value:.2f}" for row in rows) + ".",
        caption="Nats per transition on held-out data, the ELBO of every run; further right is better.",
        title=f"Likelihood on data {letter}",
        key=(Key("model", "runs"), Key("truth", "oracle"), Key("reference", "references")),
        size="medium",
    )
    models: dict[str, list[tuple[int, LikelihoodRow]]] = {}
    for name, row in elbo.items():
        run = runs[name].record.run
        if "train" in run.sets:
            models.setdefault(json.dumps(run.model, sort_keys=True), []).append((run.sets["train"].trajectories, row))
    points = [point for line in models.values() for point in line]
    if len({size for size, _ in points}) > 1:
        oracle = next((row for row in references if row.key == "oracle"), None)
        yield Figure(
            by_training_set(list(models.values()), oracle),
            alt="ELBO by number of training trajectories: "
            + ", ".join(f"{row.name}, {size}: {row.value:.2f}" for size, row in points)
            + ".",
            caption="The same held-out data, training sets of several sizes. A line joins runs of one model.",
            title=f"Data efficiency on data {letter}",
            size="medium",
        )


def _letter(i: int) -> str:
    return chr(ord("A") + i) if i < 26 else f"A{i}"
