"""The page that compares runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from small_evaluations import change, copied

from epns_pyro.cli import main
from epns_pyro.errors import DataError
from epns_pyro.report import write_comparison

HOSTILE = "</text></script><img src=x onerror=alert(2)>{{ 7*7 }}"


def test_compare_tells_runs_of_different_data_apart(evaluations: dict[str, Path], tmp_path: Path) -> None:
    runs = {name: tmp_path / name for name in ("one", "two", "three")}
    folders = {name: copied(evaluations["particles"], run) for name, run in runs.items()}
    about = json.loads((folders["three"] / "metrics.json").read_text())["run"]
    change(folders["three"], run=about | {"store": "elsewhere"})
    rows = write_comparison(folders, tmp_path / "compare.html")
    assert [row.data for row in rows] == ["A", "A", "B"]
    page = (tmp_path / "compare.html").read_text()
    assert "3 runs compared" in page
    assert "different held-out data" in page
    result = CliRunner().invoke(main, ["compare", *map(str, runs.values()), "--out", str(tmp_path / "c.html")])
    assert result.exit_code == 0, result.output
    assert "different held-out data" in result.output
    assert all(name in result.output for name in runs)
    write_comparison({name: folders[name] for name in ("one", "two")}, tmp_path / "same.html")
    assert "different held-out data" not in (tmp_path / "same.html").read_text()
    nowhere = CliRunner().invoke(main, ["compare", str(runs["one"]), "--out", str(tmp_path / "no" / "c.html")])
    assert nowhere.exit_code == 2
    assert "no such folder" in nowhere.output


def test_runs_on_training_sets_of_several_sizes_are_compared_on_the_same_held_out_data(
    evaluations: dict[str, Path], tmp_path: Path
) -> None:
    folders = {name: copied(evaluations["particles"], tmp_path / name) for name in ("few", "many", "elsewhere")}
    sizes = {"few": (40, "0f"), "many": (400, "0f"), "elsewhere": (400, "1f")}
    for name, (size, held_out) in sizes.items():
        about = json.loads((folders[name] / "metrics.json").read_text())["run"]
        sets = {"train": {"trajectories": size, "steps": 9}, "test": {"trajectories": 60, "steps": 9}}
        change(folders[name], run=about | {"store": f"{name}.zarr", "sets": sets, "held_out": held_out})
    rows = write_comparison(folders, tmp_path / "compare.html")
    assert [(row.data, row.trajectories) for row in rows] == [("A", 40), ("A", 400), ("B", 400)]
    page = (tmp_path / "compare.html").read_text()
    assert page.count("Data efficiency on data") == 1
    assert "ELBO by number of training trajectories: few, 40:" in page


def test_a_comparison_lives_with_what_a_run_lacks(evaluations: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(evaluations["particles"], tmp_path)
    (folder / "metrics.json").write_text(json.dumps({"format": "epns-pyro evaluation", "version": 1}))
    (row,) = write_comparison({HOSTILE: folder}, tmp_path / "compare.html")
    assert row.elbo is None
    assert "<img" not in (tmp_path / "compare.html").read_text()
    with pytest.raises(DataError, match="no such run"):
        write_comparison({"x": tmp_path / "none" / "evaluation"}, tmp_path / "compare.html")
