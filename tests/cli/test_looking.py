"""The commands that people look at results with: plot, list, report and its files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from small_evaluations import write_evaluation

from epns_pyro.cli import main


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.mark.parametrize("name", ["x.png", "x.gif", "x.html"])
def test_plot_takes_runs_stores_and_futures(name, run, store, tmp_path) -> None:
    futures = tmp_path / "futures.zarr"
    assert invoke("simulate", run, "--members", 2, "--steps", 3, "--out", futures).exit_code == 0
    for what, options in ((run, ("--steps", 3, "--members", 2)), (store.path, ("--steps", 3)), (futures, ())):
        out = tmp_path / f"{Path(what).stem}-{name}"
        result = invoke("plot", what, "--out", out, *options)
        assert result.exit_code == 0, result.output
        assert out.stat().st_size > 1000
        assert str(out) in result.output


def test_what_plot_cannot_do_is_one_line(run, store, tmp_path) -> None:
    futures = tmp_path / "futures.zarr"
    assert invoke("simulate", run, "--members", 2, "--steps", 3, "--out", futures).exit_code == 0
    for arguments, said in [
        ((futures, "--steps", 1, "--set", "val"), "holds futures, and --set, --steps is not for these"),
        ((store.path, "--members", 5), "holds recordings, and --members is not for these"),
        ((tmp_path / "no",), "no such run, store or file of futures"),
        ((run, "--out", "x.jpg"), "expected a name that ends in .png"),
        ((run, "--out", tmp_path / "no" / "x.png"), "no such folder"),
        ((run, "--trajectory", 77), "found 77"),
        ((run, "--observable", "x"), "no observable 'x'"),
    ]:
        result = invoke("plot", *arguments)
        assert result.exit_code == 2
        assert said in result.output
        assert len(result.output.strip().splitlines()) == 1


def test_list_shows_runs_with_what_is_known_of_them(run, tmp_path) -> None:
    for name in ("evaluated", "deep/er/fresh"):
        (tmp_path / name).mkdir(parents=True)
        for file in ("config.yaml", "metrics.csv"):
            shutil.copy(run / file, tmp_path / name)
    write_evaluation(tmp_path / "evaluated")
    (tmp_path / "not a run").mkdir()
    lines = {line.split()[0]: line for line in invoke("list", tmp_path).output.splitlines()}
    assert list(lines)[:3] == ["run", "deep/er/fresh", "evaluated"]
    assert "not evaluated" in lines["deep/er/fresh"]
    assert "30" in lines["deep/er/fresh"]
    assert "pretrained:nbody" in lines
    assert "no such folder" in invoke("list", tmp_path / "no").output
    assert "is a file: name one that holds runs" in invoke("list", tmp_path / "evaluated" / "config.yaml").output


def test_report_writes_its_summary_and_figures_and_opens_the_page(run, tmp_path, monkeypatch) -> None:
    folder, opened = tmp_path / "run", []
    folder.mkdir()
    shutil.copy(run / "metrics.csv", folder)
    write_evaluation(folder)
    monkeypatch.setattr("click.launch", opened.append)
    page = tmp_path / "page.html"
    result = invoke("report", folder, "--out", page, "--open", "--markdown", tmp_path / "s.md", "--figures", tmp_path / "figures")
    assert result.exit_code == 0, result.output
    assert opened == [page.as_uri()]
    assert not (folder / "report.html").exists()
    words = (tmp_path / "s.md").read_text()
    assert "| quantity | verdict |" in words
    assert "calibrated" in words
    assert {"likelihood.svg", "coverage.svg", "training.svg"} <= {path.name for path in (tmp_path / "figures").iterdir()}


def test_cells_of_the_summary_cannot_break_its_tables(tmp_path) -> None:
    from small_evaluations import Texts

    from epns_pyro.report import write_markdown

    write_evaluation(tmp_path, texts=Texts(label="a | b\nc"))
    text = write_markdown(tmp_path / "evaluation", tmp_path / "s.md").read_text()
    rows = [line.replace(r"\|", "").count("|") for line in text.splitlines() if line.startswith(r"| a \| b c |")]
    assert rows == [4, 4, 4, 5]  # three lines of the summary, and the verdict
