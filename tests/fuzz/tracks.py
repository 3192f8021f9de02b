"""Tables of tracks, as entries of READERS, with mutators of their own: fields, lines, headers, encodings."""

from __future__ import annotations

from pathlib import Path

import mutators
import track_files
from harness import Reader
from importers import TEXTS, change_header, change_values, nothing_left
from mutators import Rng
from small_tracks import walkers

from epns_pyro.data.importers.track_fields import Column, Quantities
from epns_pyro.data.importers.tracks import Options, import_tracks

FRAMES = ("1e18", "-7", "1000000000000", "0.5", "9" * 30, "3", "3.0", "0x10", "1_000", "+4", "NaN", "inf", "True")


def change_field(folder: Path, rng: Rng) -> str:
    """Replace one field of one line, in the header or below it."""
    path = mutators.files(folder, rng)
    lines = path.read_text().split("\n")
    number = int(rng.integers(min(4, len(lines)))) if rng.random() < 0.5 else int(rng.integers(len(lines)))
    fields = lines[number].split(",")
    texts = TEXTS + FRAMES
    place, text = int(rng.integers(len(fields))), texts[rng.integers(len(texts))]
    fields[place] = text
    lines[number] = ",".join(fields)
    path.write_text("\n".join(lines))
    return f"{path.name}: line {number + 1}, field {place} is {text[:40]!r}"


def change_lines(folder: Path, rng: Rng) -> str:
    """Repeat, leave out, shorten, lengthen or mix up lines."""
    path = mutators.files(folder, rng)
    lines = path.read_text().split("\n")
    number = int(rng.integers(len(lines)))
    how = str(rng.choice(["repeat", "leave out", "shorten", "lengthen", "other separator", "comment", "blank", "shuffle", "header again"]))
    line = lines[number]
    lines[number : number + 1] = {
        "repeat": [line, line],
        "leave out": [],
        "shorten": [line[: int(rng.integers(len(line) + 1))]],
        "lengthen": [f"{line},{line}"],
        "other separator": [line.replace(",", str(rng.choice([";", "\t", " ", "|"])))],
        "comment": [f"# {line}"],
        "blank": ["", line, "   "],
        "shuffle": [line],
        "header again": [lines[0], line],
    }[how]
    if how == "shuffle":
        lines = [lines[i] for i in rng.permutation(len(lines))]
    path.write_text("\n".join(lines))
    return f"{path.name}: line {number + 1}: {how}"


def change_text(folder: Path, rng: Rng) -> str:
    """Write the table with another separator, end of line, encoding or decimal sign."""
    path = mutators.files(folder, rng)
    text = path.read_text()
    separator, end = str(rng.choice([";", ",", "\t", " ", "|", ", "])), str(rng.choice(["\n", "\r\n", "\r", "\n\n"]))
    encoding = str(rng.choice(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1", "utf-32"]))
    text = text.replace(".", str(rng.choice([".", ","]))) if separator != "," else text
    path.write_bytes(text.replace(",", separator).replace("\n", end).encode(encoding))
    return f"{path.name}: {separator!r}, {end!r}, {encoding}"


# -- readers ---------------------------------------------------------------------------------------------------------------


def _made(write):
    return lambda folder: write(folder, walkers(tracks=6, length=8, spread=12))


def read_tracks(folder: Path) -> None:
    path = next((path for path in folder.iterdir() if path.is_file()), folder / "lost.csv")
    nothing_left(folder, lambda: import_tracks([path], folder / "out.zarr", Options(segment=4, frame_dt=0.1)))


def read_columns(folder: Path) -> None:
    path = next((path for path in folder.iterdir() if path.is_file()), folder / "lost.csv")
    quantities = Quantities(statics=(Column.parse("mass"),), categories=(Column.parse("kind=mass"),))
    options = Options(columns="y,x,mass,time,id", segment=4, frame_dt=1.0, quantities=quantities, duplicates="first")
    nothing_left(folder, lambda: import_tracks([path], folder / "out.zarr", options))


def deeplabcut(folder: Path, table: object) -> None:
    track_files.deeplabcut([("a",), ("b",)]).to_csv(folder / "mice.csv")


OF_TEXT = (*mutators.BYTES, change_field, change_lines, change_text)
TRACKS = (
    Reader("tracks-trackpy", _made(track_files.trackpy), read_tracks, OF_TEXT),
    Reader("tracks-columns", _made(track_files.trackpy), read_columns, OF_TEXT),
    Reader("tracks-trackmate", _made(track_files.trackmate), read_tracks, OF_TEXT),
    Reader("tracks-idtracker", _made(track_files.idtracker_csv), read_tracks, OF_TEXT),
    Reader("tracks-boxes", _made(track_files.boxes), read_tracks, OF_TEXT),
    Reader("tracks-deeplabcut", _made(deeplabcut), read_tracks, OF_TEXT),
    Reader("tracks-parquet", _made(track_files.parquet), read_tracks, mutators.BYTES),
    Reader("tracks-dictionary", _made(track_files.idtracker_dictionary), read_tracks, mutators.BYTES),
    Reader("tracks-npy", _made(track_files.idtracker_array), read_tracks, (*mutators.BYTES, change_header, change_values)),
)
