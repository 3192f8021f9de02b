"""What the README and the pages say: numbers are those of the evaluation, commands and code are accepted, links lead somewhere."""

from __future__ import annotations

import csv
import importlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from epns_pyro.cli import main
from epns_pyro.evaluation.record import EvaluationRecord
from epns_pyro.pretrained import HOME

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
README = (ROOT / "README.md").read_text()


def commands(text: str) -> Iterator[list[str]]:
    """Calls of epns-pyro in blocks of code, as lists of arguments; comments, pipes and placeholders are left out."""
    joined = re.sub(r"\\\n\s*", "", text)
    fenced = "\n".join(re.findall(r"^```.*?^```", joined, flags=re.DOTALL | re.MULTILINE))
    lines = re.findall(r"^ *(?:\$ )?(epns-pyro .+)$", fenced, flags=re.MULTILINE)
    lines += re.findall(r"^    (epns-pyro .+)$", re.sub(r"^```.*?^```", "", joined, flags=re.DOTALL | re.MULTILINE), flags=re.MULTILINE)
    for line in lines:
        plain = re.split(r" [|>#] ?| #", line)[0].replace("$history", "1")
        yield shlex.split(plain)[1:]


def reject(arguments: list[str]) -> str | None:
    """Say why a command line would be refused before it does anything; None if it would not."""
    command: click.Command = main
    context = click.Context(main, info_name="epns-pyro")
    while isinstance(command, click.Group) and arguments:
        found = command.get_command(context, arguments[0])
        if found is None:
            return f"no command {arguments[0]}"
        command, arguments = found, arguments[1:]
        context = click.Context(command, info_name=command.name, parent=context)
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)} | {
        "--help",
        "-h",
        "--version",
    }
    return next((f"{command.name} has no option {word}" for word in arguments if word.startswith("--") and word not in known), None)


def test_every_command_of_the_pages_is_one() -> None:
    seen = [(page.name, arguments) for page in PAGES for arguments in commands(page.read_text())]
    assert len(seen) > 40
    assert [f"{name}: {why}" for name, arguments in seen if (why := reject(arguments))] == []


def test_a_command_that_is_none_is_seen() -> None:
    assert reject(["trian", "nbody"]) == "no command trian"
    assert reject(["data", "info", "x.zarr", "--spc", "y"]) == "info has no option --spc"
    assert list(commands("text\n    epns-pyro report RUN --open   # a page\n")) == [["report", "RUN", "--open"]]


def test_the_readme_quotes_the_evaluation_of_what_is_shipped() -> None:
    lines = {line.label: line for line in EvaluationRecord.read(HOME / "nbody" / "evaluation").headline}
    quoted = re.findall(r"^\|[^|]+\| (.+) \|$", README, flags=re.MULTILINE)
    elbo, gap, runs = (lines[name] for name in ("log-likelihood (ELBO)", "gap to the oracle", "plausible after 1000 steps"))
    ahead = re.search(r"ahead by (.+)$", elbo.note)[1]
    assert f"{gap.value.removesuffix(' nats')} (persistence: {ahead} behind the model)" in quoted
    assert lines["calibrated on held-out data"].value in quoted
    assert lines["distributions from one initial state"].value in quoted
    assert f"{runs.value} ({runs.note})" in quoted
    assert lines["symmetry error"].value in quoted


def test_the_results_quote_the_study() -> None:
    """Every number of the table of `epns-pyro reproduce` is in its CSV."""
    text = (ROOT / "docs/results.md").read_text()
    (section,) = re.findall(r"### The claims of the paper\n(.*?)\n### ", text, flags=re.DOTALL)
    rows = list(csv.DictReader(io.StringIO((ROOT / "benchmarks/results/reproduce_celestial.csv").read_text())))

    def cell(row: dict[str, str], name: str, form: str) -> str:
        mean, spread = row[f"{name}_mean"], row[f"{name}_sd"]
        return f"{float(mean):{form}} ± {float(spread):{form}}" if spread else f"{float(mean):{form}}" if mean else "–"

    columns = (("iwae", ".2f"), ("gap", ".2f"), ("path", ".2f"), ("ks", ".3f"), ("crps", ".2f"), ("alive", ".0f"))
    for row in rows:
        line = " | ".join([row["title"], row["trajectories"], *(cell(row, name, form) for name, form in columns)])
        assert f"| {line} |" in section


def test_the_code_of_the_readme_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(code.replace("steps=100, members=100", "steps=3, members=4"), names)
    assert names["ensemble"]["position"].shape == (4, 1, 4, 5, 3)
    assert names["nats"].shape == (20,)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_of_a_page_are_there(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text())
    made_by_the_page = {"paths.png", "fan.png"}
    assert [link for link in links if not (page.parent / link).exists() and link not in made_by_the_page] == []


def test_a_broken_site_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    check = importlib.import_module("check")
    (tmp_path / "good.html").write_text("<h1 id='a'>x</h1><h2>y</h2><a href='#a'>x</a><a href='https://pyro.ai'>y</a>")
    assert list(check.problems(tmp_path)) == []
    for html, said in [
        ("<h1>x</h1><h3>y</h3>", "headings skip a level"),
        ("<h1>x</h1><img src='data:,'>", "do not say what they show"),
        ("<h1>x</h1><script src='https://cdn.example/x.js'></script>", "fetches https://cdn"),
        ("<h1>x</h1><link rel='stylesheet' href='x.css'>", "x.css is not there"),
        ("<h1>x</h1><a href='nowhere.html'>x</a>", "leads nowhere"),
        ("<h1>x</h1><a href='good.html#b'>x</a>", "no such place"),
    ]:
        (tmp_path / "bad.html").write_text(html)
        (line,) = check.problems(tmp_path)
        assert said in line
