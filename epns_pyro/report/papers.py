"""Parts of a report for a paper: its figures as files, and its summary as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from epns_pyro.evaluation import summary
from epns_pyro.evaluation.evaluated import Evaluated
from epns_pyro.evaluation.lines import lines
from epns_pyro.evaluation.parts import Figure
from epns_pyro.plots import paper
from epns_pyro.report.pages import TrainingLog, sections, write_text


def write_figures(folder: Path, out: Path, log: TrainingLog | None = None, *, suffix: str = ".svg") -> list[Path]:
    """Write every figure of the report of a run into a folder, named by its section.

    Parameters
    ----------
    folder : Path
        RUN/evaluation/.
    out : Path
        Folder of the files; created if it does not exist.
    log : sequence of (step, name, value), optional
        The log of the training.
    suffix : {".svg", ".pdf", ".png"}

    Raises
    ------
    DataError
        If there is no evaluation in the folder, or not one that this version can read.
    """
    made = sections(Evaluated.read(folder), log or [])
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for section in made:
        figures = [item for item in section.items if isinstance(item, Figure) and item.panels]
        for k, figure in enumerate(figures, 1):
            name = section.key if len(figures) == 1 else f"{section.key}-{k}"
            written.append(paper.save(paper.draw(figure.panels, figure.title), out / f"{name}{suffix}"))
    return written


def write_markdown(folder: Path, out: Path) -> Path:
    """Write as Markdown the verdict, the summary, the verdict by quantity, and how the run was made.

    Raises
    ------
    DataError
        If there is no evaluation in the folder, or not one that this version can read.
    """
    record = Evaluated.read(folder).record
    run, judged = record.run, lines(record.verdicts)
    text = [f"# {run.name or run.system or 'run'}", "", summary.verdict(record), ""]
    text += _table(("", "", ""), [(line.label, line.value, line.note) for line in record.headline])
    if judged:
        text += ["", "## Verdict by quantity", ""]
        text += _table(
            ("quantity", "verdict", "what was found", "power"), [(line.subject, line.word, line.seen, line.power) for line in judged]
        )
    facts = {
        "system": run.system,
        "data": run.store,
        "symmetry": run.group,
        "optimiser steps": run.step,
        "parameters": run.parameters,
        "seed": run.seed,
        "command": f"`{run.command}`" if run.command else None,
        "versions": ", ".join(f"{name} {version}" for name, version in run.versions.items()),
    }
    text += [
        "",
        "## How it was made",
        "",
        *_table(("", ""), [(name, str(value)) for name, value in facts.items() if value not in (None, "")]),
    ]
    return write_text(out, "\n".join(text) + "\n")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def row(cells: Sequence[str]) -> str:
        return f"| {' | '.join(' '.join(cell.replace('|', chr(92) + '|').split()) for cell in cells)} |"

    return [row(head), f"|{'---|' * len(head)}", *map(row, rows)]
