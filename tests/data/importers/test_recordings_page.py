"""The commands and the script of docs/how/recordings.md, run as they stand there on made-up tables of the same names."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from small_tracks import walkers

from epns_pyro.cli import main
from epns_pyro.data import open_store

PAGE = (Path(__file__).parents[3] / "docs" / "how" / "recordings.md").read_text()


@pytest.fixture
def scenes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("hotel", "zara01", "zara02")):
        table = walkers(tracks=60, spread=300, every=10, seed=seed)
        table.to_csv(tmp_path / f"{name}.txt", sep="\t", header=False, index=False)
    walkers(tracks=60, spread=300).to_csv(tmp_path / "beads.csv", index=False)
    return tmp_path


def test_the_commands(scenes):
    lines = re.findall(r"^    (epns-pyro data .*)$", PAGE.replace("\\\n        ", ""), flags=re.MULTILINE)
    assert [line.split()[2] for line in lines] == ["import-tracks", "info", "import-tracks"]
    results = [CliRunner().invoke(main, shlex.split(line)[1:]) for line in lines]
    assert [result.exit_code for result in results] == [0, 0, 0], "".join(result.output for result in results)
    assert "bodies in a frame" in results[1].stdout
    assert open_store(scenes / "hotel.zarr").frame_dt == 0.4
    assert open_store(scenes / "beads.zarr").spec["velocity"].hidden


def test_the_script(scenes, capsys):
    (script,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    exec(script, {})
    assert "read 3 recordings (table)" in capsys.readouterr().out
    assert open_store(scenes / "scenes.zarr").splits == ("train", "val", "test")
