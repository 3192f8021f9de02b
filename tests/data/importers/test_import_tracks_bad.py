"""Tables that cannot be right, or not all of them: one clear line each, and nothing is left behind."""

from __future__ import annotations

import os

import numpy as np
import pytest
from click.testing import CliRunner
from small_tracks import walkers

from epns_pyro.cli import main
from epns_pyro.data import open_store
from epns_pyro.data.importers import track_tables, tracks
from epns_pyro.data.importers.track_report import ImportReport

pytestmark = pytest.mark.filterwarnings("error")


def run(*args):
    return CliRunner().invoke(main, ["data", "import-tracks", *map(str, args)], env={"COLUMNS": "200"})


def refused(result, message, folder):
    assert result.exit_code == 2, result.output
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert "Traceback" not in result.output
    assert [p.name for p in folder.iterdir() if "store" in p.name or p.name.startswith(".")] == []


class Command:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch store.ran",)


def lines_of(table, separator=","):
    return [separator.join(map(str, row)) for row in [table.columns.tolist(), *table.astype(object).to_numpy().tolist()]]


def edit(number, change):
    """Change one line of a table, 1 being the header."""

    def apply(lines):
        return [*lines[: number - 1], change(lines[number - 1]), *lines[number:]]

    return apply


def field(number, value):
    return lambda line: ",".join(value if i == number else part for i, part in enumerate(line.split(",")))


BAD = {
    "empty": (lambda lines: [], "walk.csv: is empty: expected a table with one row per detection"),
    "blank": (lambda lines: ["", "  ", ""], "walk.csv: is empty"),
    "comments": (lambda lines: ["# a", "# b"], "walk.csv: holds only comments"),
    "header alone": (lambda lines: lines[:1], "walk.csv: holds no rows: expected one per detection"),
    "one column": (
        lambda lines: [line.split(",")[0] for line in lines],
        "walk.csv: no separator (tab, semicolon, comma or space) gives two",
    ),
    "text in x": (edit(9, field(2, "left")), "walk.csv, line 9: x is 'left', expected a number"),
    "text in frame": (edit(9, field(0, "8b")), "walk.csv, line 9: frame is '8b', expected a number"),
    "infinite": (edit(9, field(3, "-inf")), "walk.csv, line 9: y is infinite: leave the cell empty where nothing was measured"),
    "half a frame": (edit(9, field(0, "8.5")), "walk.csv, line 9: frame is 8.5, expected a whole number: give --columns time=NAME"),
    "endless": (edit(9, field(0, "1e300")), "walk.csv, line 9: frame is 1e+300: too large for a frame"),
    "more columns": (edit(9, lambda line: line + ",1,2"), "walk.csv: line 9 has 6 columns, the lines before it 4 (separated by commas)"),
    "other separator": (
        edit(9, lambda line: line.replace(",", ";")),
        "walk.csv, line 9: frame is '14;10;4.109;-1.756', expected a number: are separators mixed?",
    ),
    "decimal comma": (edit(9, lambda line: line.replace(".", ",")), "walk.csv: line 9 has 6 columns, the lines before it 4"),
    "two places": (
        lambda lines: [*lines, ",".join([*lines[7].split(",")[:3], "99.5"])],
        "walk.csv: id 10 occurs twice in frame 13, at different positions (1 such row in this segment): an id names one body; "
        "--duplicates first",
    ),
    "no id": (lambda lines: [line.replace("id", "who") for line in lines], "walk.csv: the header frame,who,x,y is not known: say what"),
    "no header": (lambda lines: lines[1:], "walk.csv: there is no header above its 4 columns: say what the columns are"),
    "an id of its own for every row": (
        lambda lines: lines[:1] + [field(1, str(i))(line) for i, line in enumerate(lines[1:])],
        "can be used (177 of tracks with one row): is the id in the right column?",
    ),
    "one frame": (lambda lines: lines[:1] + [field(1, str(i))(lines[1]) for i in (1, 2)], "can be used (2 of tracks with one row)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_get_one_line(tmp_path, case):
    change, message = BAD[case]
    path = tmp_path / "walk.csv"
    path.write_text("\n".join(change(lines_of(walkers()))))
    refused(run(path, "--out", tmp_path / "store.zarr"), message, tmp_path)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--columns", "frame,id,x"), "--columns frame,id,x: does not name the column of y"),
        (("--columns", "id,x,y"), "does not name the column of frame: expected frame (or time), x and y"),
        (("--columns", "frame,id,x,y,z,w"), "walk.csv: has 4 columns (frame,id,x,y), --columns names 6"),
        (("--columns", "id,nobody,x,y"), "walk.csv: has a column 'id', but not in that place, and none called 'nobody'"),
        (("--columns", "frame,frame,x,y"), "--columns: 'frame' is given twice"),
        (("--columns", "frame=frame,idd=id,x=x,y=y"), "--columns: unknown role 'idd': did you mean 'id'"),
        (("--columns", "frame=frame,id=id,x=x,y=why"), "walk.csv: has no column 'why'"),
        (("--columns", "frame=frame,id,x,why"), "--columns: unknown role 'why'"),
        (("--columns", "frame=frame,frame,x,y"), "--columns: 'frame' is given twice"),
        (("--field", "intensity"), "walk.csv: has no column 'intensity'"),
        (("--static", "x"), "walk.csv: x of one body is"),
        (("--field", "a-b=x"), "field name 'a-b' is not a plain word"),
        (("--vector", "velocity=x,y,x"), "--vector velocity: positions have 2 axes"),
        (("--segment", 1000), "no recording has as many frames as a segment, 1000; the longest has 67"),
        (("--segment", 5, "--split", "recording"), "--split recording: training, validation and test need 3 recordings, found 1"),
        (("--every", 1000), "can be used"),
    ],
)
def test_bad_options_get_one_line(tmp_path, args, message):
    walkers().to_csv(tmp_path / "walk.csv", index=False)
    refused(run(tmp_path / "walk.csv", "--out", tmp_path / "store.zarr", *args), message, tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("evil.npy", {"trajectories": Command()}, "evil.npy: cannot be read as a dictionary of arrays: it names posix.system, which could"),
        ("a dictionary.npy", {"x": 1.0}, "a dictionary.npy: expected a dictionary of idtracker.ai with 'trajectories', found x"),
        ("words.npy", {"trajectories": "none"}, "words.npy: expected a dictionary of idtracker.ai with 'trajectories'"),
        ("a list.npy", [[1.0], None], "a list.npy: holds ndarray, expected a dictionary"),
        ("a.npy", b"no array", "a.npy: "),
        ("a.npz", b"no archive", "a.npz: cannot be read as a .npz archive"),
        ("a.parquet", b"no table", "a.parquet: cannot be read as Parquet"),
        ("tracks.xml", b"<a/>", "tracks.xml: .xml files are not read: in TrackMate, export the spots as CSV"),
        ("tracks.h5", b"", "tracks.h5: .h5 files are not read: export the tracks as CSV"),
        ("tracks.pkl", b"", "a pickle can run code when it is read"),
        ("a.txt", b"\x1f\x8b\x00\x00\x01", "a.txt: is not a text table: unpack it, or save it as CSV"),
        ("empty", None, "empty: holds no tables: expected files that end in .csv, .tsv"),
        ("nothing.csv", None, "nothing.csv: no such file or folder"),
    ],
)
def test_files_that_are_no_tables(tmp_path, name, content, message):
    if isinstance(content, (dict, list)):
        np.save(tmp_path / name, np.array(content, dtype=object))
    elif name == "empty":
        (tmp_path / name).mkdir()
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    refused(run(tmp_path / name, "--out", tmp_path / "store.zarr"), message, tmp_path)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((5, 3)), "expected numbers (frame, animal, 2 or 3 axes), found float64 (5, 3)"),
        (np.full((5, 3, 2), np.inf), "holds infinite positions: use NaN where an animal was not seen"),
        (np.full((5, 3, 2), np.nan), "none of 15 rows can be used (15 without a position)"),
        (np.zeros((0, 3, 2)), "holds no rows"),
    ],
)
def test_arrays_that_are_no_tracks(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array)
    refused(run(tmp_path / "a.npy", "--out", tmp_path / "store.zarr"), message, tmp_path)


def test_what_is_dropped_is_said(tmp_path):
    """One table with every small fault: all are counted, and what is left is imported."""
    lines = lines_of(walkers(tracks=30, spread=200))
    lines = [lines[0], *lines[:0:-1]]  # backwards
    lines += [lines[-20], "5000,1000,1,1", "40,,1,1", "41,3,,1", ",3,1,1", f"{lines[-30].rsplit(',', 1)[0]},77"]
    path = tmp_path / "walk.csv"
    path.write_text("\n".join(lines))
    result = run(path, "--out", tmp_path / "store.zarr", "--segment", 20, "--duplicates", "first")
    assert result.exit_code == 0, result.output
    said = result.stdout
    for line in (
        "read 1 recording (table): 441 rows, 31 tracks, 184 frames with a body (every 1)",
        "dropped 1 row: without a frame number",
        "dropped 1 row: without a track",
        "dropped 1 row: without a position",
        "dropped 1 row: of tracks with one row",
        "dropped 1 row: that are exact copies of another row",
        "dropped 1 row: with the id and frame of an earlier row",
        "walk.csv: rows were not in order of the frames: sorted",
    ):
        assert line in said
    found = ImportReport.of(tmp_path / "store.zarr")
    assert found.rows == found.kept + sum(found.dropped.values())
    store = open_store(tmp_path / "store.zarr")
    assert store.splits == ("train", "val", "test")
    assert not any((store.read(split) == 77).any() for split in store.splits), "the first of two places counts"


def test_ids_longer_than_a_number_are_names(tmp_path):
    lines = lines_of(walkers())
    lines = [field(1, "9" * 25)(line) if line.split(",")[1] == "4" else line for line in lines]
    (tmp_path / "walk.csv").write_text("\n".join(lines))
    assert run(tmp_path / "walk.csv", "--out", tmp_path / "out.zarr").exit_code == 0
    names = open_store(tmp_path / "out.zarr").dataset("train")["body_id"].attrs["names"]
    assert [name for name in names if len(name) > 2] == ["9" * 25]


def test_a_test_scene_alone_is_no_data_set(tmp_path):
    walkers(spread=100).to_csv(tmp_path / "long.csv", index=False)
    walkers(spread=2, tracks=2, length=4).to_csv(tmp_path / "short.csv", index=False)
    result = run(tmp_path / "short.csv", "--test", tmp_path / "long.csv", "--segment", 40, "--out", tmp_path / "store.zarr")
    refused(result, "short.csv: no segment is left for training: give longer recordings, or a shorter --segment", tmp_path)


def test_a_store_that_exists_is_left_alone(tmp_path):
    walkers().to_csv(tmp_path / "walk.csv", index=False)
    out = tmp_path / "out.zarr"
    assert run(tmp_path / "walk.csv", "--out", out).exit_code == 0
    before = sorted(p.stat().st_mtime_ns for p in out.rglob("*"))
    result = run(tmp_path / "walk.csv", "--out", out)
    assert "exists already: choose another path" in result.stderr
    assert sorted(p.stat().st_mtime_ns for p in out.rglob("*")) == before


def test_a_line_number_counts_all_lines(tmp_path, monkeypatch):
    """Comments, blank lines, other chunks: the line that is named is the one in the file."""
    monkeypatch.setattr(track_tables, "CHUNK_ROWS", 3)
    lines = ["# made up", *lines_of(walkers())]
    lines[4:4] = ["", ""]
    lines[20] = lines[20].rsplit(",", 1)[0] + ",?"
    (tmp_path / "walk.csv").write_text("\n".join(lines))
    refused(run(tmp_path / "walk.csv", "--out", tmp_path / "store.zarr"), "walk.csv, line 21: y is '?', expected a number", tmp_path)


def test_a_trajectory_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tracks, "LARGEST_TRAJECTORY", 1000)
    walkers().to_csv(tmp_path / "walk.csv", index=False)
    refused(run(tmp_path / "walk.csv", "--segment", "50", "--out", tmp_path / "store.zarr"), "cut shorter ones, --segment N", tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--columns", "frame,fish,x,y"), "--columns: 'fish' has no meaning, and no column is the id of bodies: write id in its place"),
        (("--noise", "big"), "expected a standard deviation or learn, found 'big'"),
        (("--noise", "-1"), "noise is a standard deviation of at least 0, or 'learn', found -1.0"),
        (("--noise", "nan"), "noise is a standard deviation of at least 0, or 'learn', found nan"),
        (("--centre", "1,2"), "--centre: only a law about a fixed point has a centre, found --symmetry E"),
        (("--centre", "1,2,3", "--symmetry", "point"), "--centre: positions have 2 axes, found 3 numbers"),
        (("--noise", "learn", "--history", "2"), "history 2 and noise learn: an inferred state needs no earlier frames"),
    ],
)
def test_options_that_make_no_sense(options, message, tmp_path):
    walkers().to_csv(tmp_path / "walk.csv", index=False, header=False)
    refused(run(tmp_path / "walk.csv", "--out", tmp_path / "store.zarr", "--columns", "frame,id,x,y", *options), message, tmp_path)


def test_data_info_says_what_is_hidden(tmp_path):
    walkers().to_csv(tmp_path / "walk.csv", index=False)
    run(tmp_path / "walk.csv", "--out", tmp_path / "a.zarr", "--noise", "learn")
    run(tmp_path / "walk.csv", "--out", tmp_path / "b.zarr", "--history", "1")
    words = [" ".join(CliRunner().invoke(main, ["data", "info", str(tmp_path / f"{name}.zarr")]).output.split()) for name in "ab"]
    assert "position vector, error learn" in words[0]
    assert "velocity vector, hidden" in words[0]
    assert "velocity vector, derived" in words[1]


def test_an_archive_of_arrays_is_read_where_it_is_clear_which(tmp_path):
    place = np.random.default_rng(0).normal(size=(20, 3, 2))
    np.savez(tmp_path / "two.npz", a=place, b=place)
    refused(
        run(tmp_path / "two.npz", "--out", tmp_path / "x.zarr"), "expected an array 'trajectories', or only one, found 'a', 'b'", tmp_path
    )
    np.savez_compressed(tmp_path / "named.npz", trajectories=place, frames_per_second=np.array(25))
    np.savez(tmp_path / "one.npz", place)
    for name in ("named", "one"):
        assert run(tmp_path / f"{name}.npz", "--segment", 5, "--out", tmp_path / f"{name}.zarr").exit_code == 0
        store = open_store(tmp_path / f"{name}.zarr")
        first = int(store.dataset("train")["first_frame"].values[0])
        np.testing.assert_allclose(store.spec.get(store.read("train"), "position")[0], place[first + 1 : first + 5])


def test_one_recording_twice_in_a_folder_is_not_read_twice(tmp_path):
    (tmp_path / "session").mkdir()
    for suffix in ("csv", "txt"):
        walkers().to_csv(tmp_path / "session" / f"walk.{suffix}", index=False)
    refused(run(tmp_path / "session", "--out", tmp_path / "x.zarr"), "walk.csv and walk.txt seem to be one recording", tmp_path)
