"""A table of tracks as other programs write it: every function takes a folder and the table, and returns the path of its file."""

from __future__ import annotations

import numpy as np
import pandas as pd


def csv(path, table, **settings):
    table.to_csv(path, index=False, **settings)
    return path


# -- one row per detection -------------------------------------------------------------------------------------------------


def trackpy(folder, table):
    table = table.assign(mass=1.0).rename(columns={"id": "particle"})
    return csv(folder / "trackpy.csv", table[["y", "x", "mass", "frame", "particle"]])


def trackmate(folder, table):
    columns = ["LABEL", "ID", "TRACK_ID", "QUALITY", "POSITION_X", "POSITION_Y", "POSITION_Z", "POSITION_T", "FRAME", "RADIUS"]
    rows = [
        columns,
        ["Label", "Spot ID", "Track ID", "Quality", "X", "Y", "Z", "T", "Frame", "Radius"],
        ["Label", "Spot ID", "Track ID", "Quality", "X", "Y", "Z", "T", "Frame", "R"],
        ["", "", "", "(quality)", "(micron)", "(micron)", "(micron)", "(sec)", "", "(micron)"],
    ]
    for number, row in enumerate(table.itertuples()):
        rows.append([f"ID{number}", number, int(row.id), 1.5, row.x, row.y, 0.0, 0.5 * row.frame, int(row.frame), 2.5])
    path = folder / "spots.csv"
    path.write_text("\n".join(",".join(map(str, row)) for row in rows))
    return path


def napari(folder, table):
    return csv(folder / "tracks.csv", table.rename(columns={"id": "ID", "frame": "T", "x": "X", "y": "Y"})[["ID", "T", "Y", "X"]])


def btrack(folder, table):
    table = table.rename(columns={"frame": "t"}).assign(z=0.0, parent=table.id, root=table.id)
    return csv(folder / "btrack.csv", table[["id", "t", "x", "y", "z", "parent", "root"]], sep=" ")


def boxes(folder, table):
    """As trackers write them for MOTChallenge: boxes in an image, of no known confidence and nowhere in the world."""
    return _boxes(folder / "boxes.txt", table, (-1, -1, -1, -1))


def boxes_in_the_world(folder, table):
    """As MOTChallenge writes the truth: boxes in an image elsewhere, and places on the ground."""
    return _boxes(folder / "gt.txt", table.assign(x=17.0, y=table.id), (1, table.x, table.y, 0))


def _boxes(path, table, rest):
    columns = [table.frame, table.id, table.x - 2, table.y - 4, 4, 8, *rest]
    return csv(path, pd.DataFrame(dict(enumerate(columns))), header=False)


def parquet(folder, table):
    table.rename(columns={"id": "particle"}).to_parquet(folder / "walk.parquet")
    return folder / "walk.parquet"


# -- one row per frame -----------------------------------------------------------------------------------------------------


def dense(table):
    """(frame, animal, xy) from frame 0 on, NaN where an animal was not seen."""
    array = np.full((int(table.frame.max()) + 1, int(table.id.max()), 2), np.nan)
    array[table.frame, table.id - 1] = table[["x", "y"]]
    return array


def idtracker_csv(folder, table):
    array = dense(table)
    names = [f"{axis}{animal + 1}" for animal in range(array.shape[1]) for axis in "xy"]
    wide = pd.DataFrame(array.reshape(len(array), -1), columns=names)
    wide.insert(0, "time", np.arange(len(array)) / 30)
    return csv(folder / "trajectories.csv", wide, na_rep="nan")


def idtracker_text(folder, table):
    array = dense(table)
    names = [f"{name}{animal + 1}" for animal in range(array.shape[1]) for name in ("X", "Y", "ProbId")]
    wide = np.concatenate([array, np.ones((*array.shape[:2], 1))], axis=-1).reshape(len(array), -1)
    return csv(folder / "trajectories.txt", pd.DataFrame(wide, columns=names), sep="\t", na_rep="NaN")


def idtracker_array(folder, table):
    np.save(folder / "positions.npy", dense(table))
    return folder / "positions.npy"


def idtracker_dictionary(folder, table):
    """As idtracker.ai saves a session: a dictionary, pickled by NumPy."""
    session = {
        "trajectories": dense(table),
        "frames_per_second": np.float64(32),
        "body_length": 57.0,
        "setup_points": {"border": np.eye(2)},
    }
    np.save(folder / "trajectories.npy", session)
    return folder / "trajectories.npy"


# -- DeepLabCut ------------------------------------------------------------------------------------------------------------


def deeplabcut(individuals):
    """30 frames of two body parts of every individual; the likelihood falls below 0.5 in five frames of one of them."""
    rng = np.random.default_rng(0)
    keys = [("net", *owner, part, c) for owner in individuals for part in ("nose", "tail") for c in ("x", "y", "likelihood")]
    levels = ["scorer", *(["individuals"] if individuals[0] else []), "bodyparts", "coords"]
    values = rng.normal(size=(30, len(keys))).cumsum(0).round(4)
    values[:, 2::3] = 0.95
    values[4:9, 2] = 0.4
    return pd.DataFrame(values, columns=pd.MultiIndex.from_tuples(keys, names=levels))
