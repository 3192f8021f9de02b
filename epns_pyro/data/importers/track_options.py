"""Options for importing recordings of tracks."""

from __future__ import annotations

from dataclasses import dataclass, field

from epns_pyro.data.description import Split
from epns_pyro.data.importers import track_segments, track_splits
from epns_pyro.data.importers.track_fields import Quantities

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
        Frames per trajectory; by default a whole recording.
    quantities : Quantities
        Columns that become fields, besides the positions.
    likelihood : float, optional
        Drop detections with a smaller likelihood.
    duplicates : {"refuse", "first"}
        What to do with two different rows of one id in one frame.
    split : {"time", "recording"}
    margin : int, optional
        Frames between two sets of one recording; by default one segment.
    shares : Split
    history : int
        Number of steps whose velocities (differences of positions) are part of the state; 0: only positions, or the recorded velocity.
    symmetry : {"E", "SE", "axis", "point", "translations", "none"}
        Of the law, as `epns_pyro.data.description.Description` says it; with "point" positions are measured from the fixed centre.
    axis : tuple of float
        With symmetry "axis": its direction, by default the last axis of space.
    box : tuple of float
        Sides of a periodic box, in `unit`; by default that of the file, if it has one.
    """

    columns: str = ""
    frame_dt: float | None = None
    time_unit: str = ""
    every: int | None = None
    scale: float = 1.0
    unit: str = ""
    segment: int | None = None
    quantities: Quantities = field(default_factory=Quantities)
    likelihood: float | None = None
    duplicates: str = track_segments.REFUSE
    split: str = track_splits.BY_TIME
    margin: int | None = None
    shares: Split = field(default_factory=Split)
    history: int = HISTORY
    time_column: str = ""
    symmetry: str = "E"
    axis: tuple[float, ...] = ()
    box: tuple[float, ...] = ()
