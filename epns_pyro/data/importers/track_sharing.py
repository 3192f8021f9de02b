"""How recordings of tracks are shared out: how long trajectories are where the user does not say it, and which set each belongs to."""

from __future__ import annotations

from collections.abc import Sequence

from epns_pyro.data.description import Split
from epns_pyro.data.importers import track_splits
from epns_pyro.data.importers.track_options import Options
from epns_pyro.data.importers.track_segments import Recording
from epns_pyro.data.importers.track_splits import Stretch


class Sharing:
    """Shares out recordings as the options say it, or else so that every set has some trajectories.

    Parameters
    ----------
    options : Options
    recordings : sequence of Recording
    tests : sequence of int
        Recordings of the test set.
    every : int
        Every N-th frame number is kept.

    Attributes
    ----------
    notes : list of str
        What the user should know, in sentences.
    """

    def __init__(self, options: Options, recordings: Sequence[Recording], tests: Sequence[int], every: int) -> None:
        self._options, self._recordings, self._tests, self._every = options, recordings, tests, every
        self.notes: list[str] = []

    def segment(self) -> int | None:
        """Return the frames of a trajectory; None for whole recordings or whole tracks."""
        if self._options.segment or not (self._shares(0).val or self._shares(0).test):
            return self._options.segment
        segment, why = self._default()
        if segment:
            self.notes.append(f"cut into trajectories of {segment} frames, so that {why}: --segment N cuts others")
        return segment

    def _default(self) -> tuple[int | None, str]:
        """Return how long trajectories should be, and why."""
        least = self._options.least_segment
        if self._options.singles:
            lengths = [length for recording in self._recordings for length in recording.spans(self._every)]
            return track_splits.default_segment_of_tracks(lengths, least), "many reach their end"
        lengths = [int(r.frames[-1] - r.frames[0]) // self._every + 1 for r in self._recordings if len(r.frames)]
        if not lengths or (self._whole and len(set(lengths)) == 1):
            return None, ""

        def kept(segment: int) -> float:
            shares = self._shares(sum(lengths) // segment)
            return 1.0 if self._whole else track_splits.kept_for_training(min(lengths), segment, self.margin(segment), shares)

        return track_splits.default_segment(lengths, least, kept), "every set has some"

    def homes(self, stretches: Sequence[Stretch], segment: int) -> list[str]:
        """Return the set of every stretch of `segment` frames; `MARGIN` for those that are left out."""
        names, shares, margin = [r.name for r in self._recordings], self._shares(len(stretches)), self.margin(segment)
        tracks = len({(stretch.recording, stretch.track) for stretch in stretches}) if self._options.singles else 0
        usual = track_splits.BY_RECORDING if self._whole else track_splits.BY_TIME
        how = self._options.split or (track_splits.BY_TRACK if tracks >= track_splits.MANY else usual)
        found = track_splits.assign(stretches, names, how=how, margin=margin, tests=self._tests, shares=shares)
        divided = how == track_splits.BY_TIME and (shares.val or shares.test)
        if divided and (whole := track_splits.used_whole(stretches, found, self._tests)):
            others = " or --split track" if self._options.singles else ""
            self.notes.append(
                f"{', '.join(names[number] for number in whole)}: too short to be split by time with a margin of {margin} frames, so all "
                f"of it is for training: use a smaller --margin, a shorter --segment{others}"
            )
        return found

    def warn_of_few(self, tested: int, segment: int, *, simulated: bool, bodies: int) -> None:
        """Note that so many test trajectories of `segment` frames are too few for verdicts, if they are, and what helps."""
        if not (self._shares(0).test or self._tests) or not track_splits.too_few(tested, segment):
            return
        share = "a larger part for the test in --shares, "
        if simulated:
            more = "or a longer simulation"
        elif self._options.singles or bodies == 1 or self._options.pairs:
            more = f"{share}or record more"
        else:
            more = f"{share}record more or, if bodies do not influence each other, let each track be a trajectory: --non-interacting"
        self.notes.append(
            f"the test set has {tested} trajector{'y' if tested == 1 else 'ies'}, too few for verdicts: use a shorter --segment, {more}"
        )

    def margin(self, segment: int) -> int:
        """Return the frames between two sets of one recording."""
        return segment if self._options.margin is None else self._options.margin

    def _shares(self, segments: int) -> Split:
        """Return the parts of the sets in what is not the test already."""
        shares = self._options.shares or (Split() if self._tests else track_splits.default_shares(segments))
        return shares.model_copy(update={"test": 0.0}) if self._tests else shares

    @property
    def _whole(self) -> bool:
        """Whether each recording goes to one set: where the user wants it, or has given many and says nothing."""
        if self._options.split or self._options.singles:
            return self._options.split == track_splits.BY_RECORDING
        return not self._options.segment and len(self._recordings) - len(self._tests) >= track_splits.MANY
