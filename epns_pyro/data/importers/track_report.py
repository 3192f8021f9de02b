"""Report of an import of tracks, kept in the store: what was read, what was dropped and why, and what was written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from epns_pyro.errors import DataError
from epns_pyro.later import later

if TYPE_CHECKING:
    import zarr
else:
    zarr = later("zarr")

ATTRIBUTE = "import_report"


@dataclass(frozen=True)
class ImportReport:
    """Report of an import: rows read = rows kept + rows dropped.

    Parameters
    ----------
    recordings : list of str
        Names of the files.
    layouts : list of str
        The programs that wrote them.
    rows, tracks, frames : int
        Totals over all recordings; only kept frames with a body are counted.
    every : int
        Every N-th frame number is kept.
    kept : int
        Rows in the store.
    dropped : dict of str to int
        Rows by the reason for dropping them.
    sets : dict of str to int
        Number of trajectories of every set.
    segment, bodies : int
        Frames of a trajectory, and largest number of bodies in one.
    notes : list of str
        Other changes, in sentences.
    """

    recordings: list[str]
    layouts: list[str]
    rows: int
    tracks: int
    frames: int
    every: int
    kept: int
    dropped: dict[str, int]
    sets: dict[str, int]
    segment: int
    bodies: int
    notes: list[str]

    def lines(self) -> Iterator[str]:
        """Describe the import in a few lines."""
        layouts = ", ".join(dict.fromkeys(self.layouts))
        files = f"{len(self.recordings)} recording{'s' * (len(self.recordings) != 1)} ({layouts})"
        yield f"read {files}: {self.rows:,} rows, {self.tracks:,} tracks, {self.frames:,} frames with a body (every {self.every})"
        for reason, count in self.dropped.items():
            yield f"dropped {count:,} row{'s' * (count != 1)}: {reason}"
        trajectories, bodies = sum(self.sets.values()), f"up to {self.bodies} bodies" if self.bodies > 1 else "one body"
        yield f"kept {self.kept:,} rows in {trajectories:,} trajectories of {self.segment} frames, {bodies} in each"
        yield from self.notes

    def attributes(self) -> dict[str, str]:
        return {ATTRIBUTE: json.dumps(asdict(self))}

    @classmethod
    def of(cls, path: Path) -> ImportReport:
        """Read the report of the store at a path.

        Raises
        ------
        DataError
            If the store was not made by `import_tracks`.
        """
        attributes = zarr.open_group(path, mode="r", use_consolidated=False).attrs
        if ATTRIBUTE not in attributes:
            raise DataError(f"{path}: holds no report of an import of tracks")
        return cls(**json.loads(str(attributes[ATTRIBUTE])))
