"""Assigning segments of recordings to sets: no two sets share a time of one recording, or are closer than a margin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from epns_pyro.data.description import Split
from epns_pyro.errors import ConfigError

BY_TIME, BY_RECORDING, BY_TRACK = "time", "recording", "track"
MANY = 20  # recordings, or tracks that do not interact: each of them goes to one set
TESTED = 40  # segments that a test set has where possible
FEWEST, SHORTEST = 15, 8  # independent forecasts for a verdict, and steps of the shortest forecast that a trajectory is cut into
CUTS, ENOUGH = 100, 50  # pieces that a default cut aims at (58 are left for training), and those of which 30% are enough for verdicts
SHORT, USUAL, LONG = 10, 15, 100  # frames of the shortest pieces where data are few, of the shortest where not, and of the longest
MARGIN = ""  # the "set" of segments that are left out because they are too close to another set


@dataclass(frozen=True)
class Stretch:
    """Frames of a recording that become one trajectory: kept frames start, ..., stop - 1, of all bodies or of one track."""

    recording: int
    start: int
    stop: int
    track: int | None = None


def default_shares(segments: int) -> Split:
    """Return the fractions of the sets: 10% for the test, up to 30% where that is less than a test needs and enough is left."""
    if segments < TESTED:
        return Split()
    test = min(max(0.1, TESTED / segments), 0.3)
    return Split(train=0.9 - test, val=0.1, test=test)


def default_segment(lengths: Sequence[int], least: int, kept: Callable[[int], float]) -> int | None:
    """Return how many frames a trajectory has where nobody says it, for recordings of so many frames; None if at least `least` do not fit.

    About `CUTS` trajectories give a test set that can speak of calibration. In short recordings margins are costly: segments are then as
    long as they can be so that half of the training set is kept, or as much as possible.

    Parameters
    ----------
    lengths : sequence of int
    least : int
    kept : callable
        Part of the training set that remains with segments of so many frames; 0 if a set is empty.
    """
    longest = min(max(_usual(lengths), least), min(lengths))
    parts = {segment: kept(segment) for segment in range(longest, least - 1, -1)}
    enough = next((segment for segment, part in parts.items() if part >= 0.5), None)
    return enough or max((segment for segment, part in parts.items() if part), key=parts.__getitem__, default=None)


def default_segment_of_tracks(lengths: Sequence[int], least: int) -> int | None:
    """Return the same for single tracks of so many frames: half of those that hold `least` frames are as long; None if there are none."""
    usable = sorted(length for length in lengths if length >= least)
    return min(max(_usual(usable), least), usable[len(usable) // 2]) if usable else None


def _usual(lengths: Sequence[int]) -> int:
    total = sum(lengths)
    return min(max(total // CUTS, min(max(total // ENOUGH, SHORT), USUAL)), LONG)


def kept_for_training(frames: int, segment: int, margin: int, shares: Split) -> float:
    """Return the part of its training set that a recording of so many frames keeps, cut along time; 0 if a set is empty."""
    stretches = [Stretch(0, start, start + segment) for start in range(0, frames - segment + 1, segment)]
    homes = by_time(stretches, margin, shares)
    wanted = {name for name in ("train", "val", "test") if getattr(shares, name)}
    share = shares.train / (shares.train + shares.val + shares.test)
    return homes.count("train") / (share * len(homes)) if wanted <= set(homes) else 0.0


def too_few(tested: int, steps: int) -> bool:
    """Return whether so many test trajectories, each of so many steps, are too few for verdicts."""
    return tested * max(1, steps // 2 // SHORTEST) < FEWEST


def assign(stretches: Sequence[Stretch], names: Sequence[str], *, how: str, margin: int, tests: Sequence[int], shares: Split) -> list[str]:
    """Return the set of every stretch, `MARGIN` for those that are left out.

    Parameters
    ----------
    stretches : sequence of Stretch
        In the order of the recordings and of time.
    names : sequence of str
        Of the recordings.
    how : {"time", "recording", "track"}
        By time: in every recording, training comes first, then validation, then test. By recording: whole recordings. By track: whole
        tracks, which are stretches of one track each.
    margin : int
        Smallest number of frames between two sets of one recording.
    tests : sequence of int
        Recordings of the test set.
    shares : Split
        Of the others.

    Raises
    ------
    ConfigError
        If there are too few recordings.
    """
    others = [number for number in range(len(names)) if number not in tests]
    if not others:
        raise ConfigError(f"all recordings are in the test set ({', '.join(names)}): none is left for training")
    home = [""] * len(stretches)
    for number, stretch in enumerate(stretches):
        home[number] = "test" if stretch.recording in tests else ""
    if how == BY_RECORDING:
        needed = 2 if tests else 3
        if len(others) < needed:
            what = "training and validation" if tests else "training, validation and test"
            raise ConfigError(f"--split recording: {what} need {needed} recordings, found {len(others)}: give more files, or --split time")
        rows = shares.rows(len(others))
        sets = {others[row]: name for name, part in rows.items() for row in part.tolist()}
        return [home[i] or sets[s.recording] for i, s in enumerate(stretches)]
    if how == BY_TRACK:
        tracks = sorted({(s.recording, s.track or 0) for i, s in enumerate(stretches) if not home[i]})
        if len(tracks) < 3:
            raise ConfigError(f"--split track: three sets need at least 3 tracks, found {len(tracks)}: use --split time")
        owner = {tracks[row]: name for name, part in shares.rows(len(tracks)).items() for row in part.tolist()}
        return [home[i] or owner[s.recording, s.track or 0] for i, s in enumerate(stretches)]
    for number in others:
        mine = [i for i, stretch in enumerate(stretches) if stretch.recording == number]
        for i, name in zip(mine, by_time([stretches[i] for i in mine], margin, shares), strict=True):
            home[i] = name
    return home


def by_time(stretches: Sequence[Stretch], margin: int, shares: Split) -> list[str]:
    """Return the sets of the stretches of one recording: training, then validation, then test, a margin of frames between them.

    A recording that is too short for all three sets is used for training only.
    """
    total = shares.train + shares.val + shares.test
    home, end = [MARGIN] * len(stretches), float("inf")
    for name in ("test", "val"):
        share = getattr(shares, name)
        if not share:
            continue
        free = [i for i, stretch in enumerate(stretches) if stretch.stop <= end]
        chosen = free[-max(1, round(len(stretches) * share / total)) :]
        if not chosen:
            return ["train"] * len(stretches)
        for i in chosen:
            home[i] = name
        end = stretches[chosen[0]].start - margin
    free = [i for i, stretch in enumerate(stretches) if stretch.stop <= end]
    if not free:
        return ["train"] * len(stretches)
    for i in free:
        home[i] = "train"
    return home


def used_whole(stretches: Sequence[Stretch], homes: Sequence[str], tests: Sequence[int]) -> list[int]:
    """Return the recordings, but for those of the test set, of which everything is for training."""
    sets: dict[int, set[str]] = {}
    for stretch, home in zip(stretches, homes, strict=True):
        sets.setdefault(stretch.recording, set()).add(home)
    return [number for number, found in sets.items() if found == {"train"} and number not in tests]
