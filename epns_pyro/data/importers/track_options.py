"""Options for importing recordings of tracks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from epns_pyro.data.description import Split
from epns_pyro.data.importers import track_segments, track_splits
from epns_pyro.data.importers.track_fields import VELOCITY, Quantities
from epns_pyro.data.importers.track_pairs import Pairs
from epns_pyro.data.importers.track_recording import ROLES, TRACK, Tracks
from epns_pyro.derived import with_hidden_velocity, with_history
from epns_pyro.errors import ConfigError, nearest
from epns_pyro.state import StateSpec
from epns_pyro.systems import RecordedConfig

HISTORY = 4  # steps: enough to distinguish walking from standing, and a noisy position from a turn


@dataclass(frozen=True)
class Options:
    """Options for reading and cutting tables of tracks.

    Parameters
    ----------
    columns : str
        Meaning of the columns, e.g. "frame,id,x,y" or "frame=t,id=cell,x=X,y=Y"; "" if the header is a known one.
    frame_dt : float, optional
        Time between two frame numbers, in `time_unit`; 1 by default. Times in a column are whole multiples of it, or, without it, are
        taken as they are: frames may be uneven.
    time_column : str
        The column with the times of frames; "" where there is none, or where `columns` says it.
    every : int, optional
        Keep every N-th frame number, starting with the first; by default N is the greatest common divisor of all differences of frame
        numbers, so that nothing is lost.
    scale : float
        Size of the file's unit of length in `unit`, e.g. of a pixel.
    segment : int, optional
        Frames per trajectory; by default 15 to 100, fewer in short recordings, so that every set has some, or for single tracks so that
        half of them are as long. 20 or more recordings of one length are not cut.
    quantities : Quantities
        Columns that become fields, besides the positions.
    pairs : tuple of Pairs
        Attributes of pairs of bodies.
    likelihood : float, optional
        Drop detections with a smaller likelihood.
    duplicates : {"refuse", "first"}
        What to do with two different rows of one id in one frame.
    singles : bool
        Bodies do not influence each other: every trajectory holds one body, cut from one track.
    split : {"time", "recording", "track"}, optional
        By default "track" for 20 single tracks or more, "recording" for 20 recordings or more that are not cut by `segment`, else "time".
    margin : int, optional
        Frames between two sets of one recording; by default one segment.
    shares : Split, optional
        Fractions of the segments in each set. By default 10% are for validation and 10% for the test; of fewer than 400
        segments more, up to 30%, because a test should have about 40.
    history : int, optional
        Number of steps whose velocities (differences of positions) are part of the state; 0: only positions, or the recorded velocity.
        By default HISTORY, and 0 with `noise` or a recorded velocity.
    noise : float or "learn", optional
        Standard deviation of the error of positions, in `unit`; 0: none. Velocities are then hidden: a model infers them.
    symmetry : {"E", "SE", "axis", "point", "translations", "none"}
        Of the law, as `epns_pyro.data.description.Description` says it; with "point" positions are measured from the fixed centre.
    centre : tuple of float
        With symmetry "point": the fixed centre, in `unit`; by default zero.
    axis : tuple of float
        With symmetry "axis": its direction, by default the last axis of space.
    box : tuple of float
        Sides of a periodic box, in `unit`; by default that of the file, if it has one.
    boxes : dict of str to tuple of float
        The same for single recordings, by their names: those of their files without the ending.
    """

    columns: str = ""
    frame_dt: float | None = None
    time_unit: str = ""
    every: int | None = None
    scale: float = 1.0
    unit: str = ""
    segment: int | None = None
    quantities: Quantities = field(default_factory=Quantities)
    pairs: tuple[Pairs, ...] = ()
    likelihood: float | None = None
    duplicates: str = track_segments.REFUSE
    singles: bool = False
    split: str | None = None
    margin: int | None = None
    shares: Split | None = None
    history: int | None = None
    noise: float | str | None = None
    time_column: str = ""
    symmetry: str = "E"
    axis: tuple[float, ...] = ()
    box: tuple[float, ...] = ()
    boxes: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    centre: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.noise is not None and self.history:
            raise ConfigError(f"history {self.history} and noise {self.noise}: an inferred state needs no earlier frames: leave one out")
        if self.split == track_splits.BY_TRACK and not self.singles:
            raise ConfigError("--split track: only bodies that do not influence each other can be in different sets: add --non-interacting")
        if self.pairs and self.singles:
            raise ConfigError(
                f"pairs {self.pairs[0].name!r}: bodies that do not influence each other have none: leave out --non-interacting"
            )
        if self.centre and self.symmetry != "point":
            raise ConfigError(f"--centre: only a law about a fixed point has a centre, found --symmetry {self.symmetry}")

    def state(self, spec: StateSpec) -> StateSpec:
        """Return the spec of states, for that of what is recorded."""
        if self.noise is not None:
            return with_hidden_velocity(spec, self.noise, self.time_unit)
        return with_history(spec, self._steps, self.time_unit) if self._steps else spec

    @property
    def in_a_row(self) -> int:
        """How many detections a single track needs in a row: those that make a state, and one to be forecast."""
        return 2 + self._steps

    @property
    def least_segment(self) -> int:
        """Fewest frames of a trajectory to train on and judge by: with hidden velocities, those given and as many to be forecast."""
        return self.in_a_row if self.noise is None else 2 * RecordedConfig.model_fields["given"].default

    @property
    def _steps(self) -> int:
        """Steps whose velocities are in the state."""
        if self.history is not None:
            return self.history
        known = self.noise is not None or any(vector.name == VELOCITY for vector in self.quantities.vectors)
        return 0 if known else HISTORY

    def boxes_of(self, tracks: Sequence[Tracks]) -> list[tuple[float, ...]]:
        """Return the sides of the box of every recording, in `unit`; empty without one."""
        names = [t.name for t in tracks]
        for name in self.boxes:
            if name not in names:
                raise ConfigError(f"--box {name}=...: {nearest(name, names)}")
        boxes = [tuple(self.boxes.get(t.name, self.box)) or tuple(self.scale * side for side in t.box) for t in tracks]
        if len({len(box) for box in boxes}) > 1:
            with_box, without = (next(name for name, box in zip(names, boxes, strict=True) if bool(box) == has) for has in (True, False))
            raise ConfigError(
                f"{with_box} is in a periodic box, {without} is in none: import them apart, or give its box, --box {without}=..."
            )
        return boxes

    @property
    def names_bodies(self) -> bool:
        """Whether `columns` says which column is the id of bodies."""
        return any(entry.split("=")[0].strip() == TRACK for entry in self.columns.split(","))

    def unused(self) -> list[str]:
        """Return the words of a list of columns that nothing uses: neither a role nor a column of a quantity."""
        words = [entry.strip() for entry in self.columns.split(",") if "=" not in entry]
        used = {column for quantity in self.quantities.all for column in quantity.columns} | {*ROLES, "-", "", self.time_column}
        return [word for word in words if word not in used]
