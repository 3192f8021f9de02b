"""A report as a page for each quantity."""

from __future__ import annotations

import html
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from page_structure import Structure

from epns_pyro.cli import main
from epns_pyro.evaluation.evaluated import Evaluated
from epns_pyro.report import write_report
from epns_pyro.report.pages import sections_about


@pytest.mark.parametrize("kind", ["particles", "labels"])
def test_the_pages_of_quantities_and_the_overview_hold_what_one_page_holds(kind: str, evaluations: dict[str, Path], tmp_path: Path) -> None:
    run = evaluations[kind].parent
    (run / "metrics.csv").write_text("step,name,value\n")
    result = CliRunner().invoke(main, ["report", str(run), "--pages", str(tmp_path / "pages")])
    assert result.exit_code == 0, result.output
    found = Evaluated.read(evaluations[kind])
    labels = [subject.label for subject in found.subjects()]
    overview = (tmp_path / "pages" / "index.html").read_text()
    texts = [(tmp_path / "pages" / f"quantity-{i}.html").read_text() for i in range(1, len(labels) + 1)]
    assert len([*(tmp_path / "pages").iterdir()]) == 1 + len(labels)
    whole = Structure(write_report(evaluations[kind], tmp_path / "report.html").read_text())
    parts = [Structure(text) for text in (overview, *texts)]
    assert {name for part in parts for name in part.found["section"]} == set(whole.found["section"])
    pits = [text.count('aria-label="Rank ECDF minus its expectation for') for text in texts]
    assert sum(pits) == (tmp_path / "report.html").read_text().count('aria-label="Rank ECDF minus its expectation for')
    assert "Rank ECDF" not in overview
    for label, text, part in zip(labels, texts, parts[1:], strict=True):
        assert f"<h1>{html.escape(label)}</h1>" in text
        assert {link for link in part.found["href"] if not link.startswith("#")} <= {
            "index.html",
            *(f"quantity-{i}.html" for i in range(1, 9)),
        }
    assert [link for link in parts[0].found["href"] if link.startswith("quantity")] == [
        f"quantity-{i}.html" for i in range(1, len(labels) + 1)
    ]


def test_a_mark_for_a_distance_allows_for_all_distances(evaluations: dict[str, Path]) -> None:
    found = Evaluated.read(evaluations["particles"])
    first, *others = found.record.same_init
    of_one = sum(row.observable == first.observable for row in (first, *others))
    assert of_one < len(found.record.same_init)
    close = first.model_copy(update={"p_value": 0.99 * 0.05 / of_one})  # below 5% for the tests of one quantity, but not for all
    found = replace(found, record=found.record.model_copy(update={"same_init": (close, *others)}))
    subject = next(subject for subject in found.subjects("observables") if subject.name == first.observable)
    (section,) = (section for section in sections_about(found, subject) if section.key == "distances")
    assert "No distance is larger than chance allows" in section.items[0].caption


def test_one_page_or_many(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["report", "pretrained:nbody", "--pages", str(tmp_path / "a"), "--out", str(tmp_path / "b.html")])
    assert result.exit_code == 2
    assert "give --out for one page, or --pages for a folder of pages" in result.output
