"""Bonds and springs from a table with a row per pair: who is tied to whom, whatever place a body has in a trajectory."""

from __future__ import annotations

import pytest
from click.testing import CliRunner
from small_tracks import walkers

from epns_pyro.cli import main
from epns_pyro.data import Split, check
from epns_pyro.data.importers.track_pairs import Pairs
from epns_pyro.data.importers.tracks import Options, import_tracks
from epns_pyro.errors import ConfigError, DataError

SPRINGS = "one,other,stiffness\n1,2,3.5\n2,7,0.5\n7,1,2\n4,9,-1\n"
STIFFNESS = {(1, 2): 3.5, (2, 7): 0.5, (1, 7): 2.0, (4, 9): -1.0}


@pytest.fixture
def files(tmp_path):
    walkers(tracks=12, spread=60).to_csv(tmp_path / "walk.csv", index=False)
    (tmp_path / "springs.csv").write_text(SPRINGS)
    return tmp_path


def imported(files, text="spring=springs.csv:N/m", **options):
    name, _, file = text.partition("=")
    pairs = Pairs.read(f"{name}={files / file}" if file else text)
    defaults = {"segment": 20, "history": 0, "shares": Split(val=0, test=0), "pairs": (pairs,)}
    return import_tracks([files / "walk.csv"], files / "x.zarr", Options(**(defaults | options)))


def test_pairs_follow_their_bodies_to_their_places_in_every_trajectory(files):
    store = imported(files)
    field, x, ids = store.spec["spring"], store.read("train"), store.dataset("train")["body_id"].values
    assert (field.kind, field.size, field.unit) == ("pair", store.sites("train")[0], "N/m")
    found, met = store.spec.get(x, "spring")[:, 0], 0
    for matrix, row in zip(found, ids, strict=True):
        for i, one in enumerate(row):
            for j, other in enumerate(row):
                expected = STIFFNESS.get((min(one, other), max(one, other)), 0.0)
                assert matrix[i, j] == expected
                met += expected != 0
    assert met >= 4, "some trajectories hold both bodies of a pair"
    assert not [finding for finding in check(store) if finding.level == "error" and finding.split]


def test_two_directions_may_differ_and_a_table_without_values_says_1(files):
    (files / "springs.csv").write_text("1 2\n")
    assert Pairs.read(f"bond={files / 'springs.csv'}").values == {("1", "2"): 1.0, ("2", "1"): 1.0}
    (files / "springs.csv").write_text("1 2 5\n2 1 6\n")
    assert Pairs.read(f"bond={files / 'springs.csv'}").values == {("1", "2"): 5.0, ("2", "1"): 6.0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1,1\n", "line 1: expected two different bodies, and a number if there are values"),
        ("1,2,3\n1,4,\n", "line 2: expected two different bodies, and a number if there are values"),
        ("1,2,3,4\n", "pairs have two columns of ids and perhaps one of values, found 4 columns"),
        ("1,99\n", "the pairs 'spring' name the body 99, which no recording has: are these the ids of the tracks"),
    ],
)
def test_pairs_that_cannot_be_right_are_refused(files, content, message):
    (files / "springs.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        imported(files)


def test_pairs_of_bodies_that_do_not_interact_are_refused(files):
    with pytest.raises(ConfigError, match="bodies that do not influence each other have none: leave out --non-interacting"):
        imported(files, singles=True)
    with pytest.raises(ConfigError, match=r"pairs are given as NAME=FILE\[:UNIT\], found 'spring'"):
        Pairs.read("spring")


def test_the_command(files):
    command = ["data", "import-tracks", str(files / "walk.csv"), "--segment", "40", "--out", str(files / "y.zarr")]
    run = CliRunner().invoke(main, [*command, "--pairs", f"spring={files / 'springs.csv'}"])
    assert run.exit_code == 0, run.output
    run = CliRunner().invoke(main, [*command[:-1], str(files / "z.zarr"), "--pairs", "spring=nothing.csv"])
    assert run.stderr.splitlines()[-1] == "error: nothing.csv: no such file of pairs"
