"""Attributes of pairs of bodies (bonds, springs, contact lists) from tables with a row per pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from epns_pyro.data.importers.track_fields import number_names
from epns_pyro.data.importers.track_tables import look, numbers
from epns_pyro.errors import ConfigError, DataError
from epns_pyro.state import Field

BONDED = 1.0  # the value of a pair in a table without values


@dataclass(frozen=True)
class Pairs:
    """A static attribute of pairs of tracks, the same in all recordings; 0 for pairs that are not named.

    Parameters
    ----------
    name : str
        Of the field.
    unit : str
    values : dict of (str, str) to float
        By the names of two tracks, in both orders.
    """

    name: str
    values: Mapping[tuple[str, str], float] = field(repr=False)
    unit: str = ""

    @classmethod
    def read(cls, text: str) -> Pairs:
        """Read NAME=FILE[:UNIT]: a table with the ids of two bodies in its first two columns, and perhaps the value in the third.

        Raises
        ------
        ConfigError
            If the text has another form.
        DataError
            If the file is no such table.
        """
        name, equals, rest = text.partition("=")
        file, _, unit = rest.partition(":") if not Path(rest).exists() else (rest, "", "")
        if not equals or not name.strip() or not file.strip():
            raise ConfigError(f"pairs are given as NAME=FILE[:UNIT], found {text!r}")
        path = Path(file.strip())
        if not path.is_file():
            raise DataError(f"{path}: no such file of pairs")
        table = look(path)
        found: dict[tuple[str, str], float] = {}
        if len(table.names) not in (2, 3):
            raise DataError(f"{path}: pairs have two columns of ids and perhaps one of values, found {len(table.names)} columns")
        for chunk in table.chunks():
            known: dict[str, int] = {}
            both = np.stack([number_names(chunk[column], known) for column in table.names[:2]])
            value = numbers(path, chunk, table.names[2]) if len(table.names) == 3 else np.full(len(chunk), BONDED)
            wrong = (both < 0).any(0) | np.isnan(value) | (both[0] == both[1])
            if wrong.any():
                raise DataError(
                    f"{path}, line {chunk.index[int(np.argmax(wrong))]}: expected two different bodies, and a number if there are values"
                )
            names = list(known)
            found |= {(names[i], names[j]): float(v) for i, j, v in zip(*both, value, strict=True)}
        return cls(name.strip(), _both_ways(found), unit.strip())

    @classmethod
    def of(cls, name: str, pairs: np.ndarray) -> Pairs:
        """Make an attribute that is 1 for these pairs of numbered tracks, (pair, 2)."""
        return cls(name, _both_ways({(str(i), str(j)): BONDED for i, j in np.asarray(pairs).tolist()}))

    def field(self, bodies: int) -> Field:
        return Field(self.name, kind="pair", size=bodies, dynamic=False, unit=self.unit)

    def require(self, recordings: Sequence[Mapping[str, int]]) -> None:
        """Raise DataError if a body is in no recording: `recordings` hold the numbers of tracks by name."""
        known = set().union(*recordings)
        if lost := next((one for pair in self.values for one in pair if one not in known), None):
            raise DataError(f"the pairs {self.name!r} name the body {lost}, which no recording has: are these the ids of the tracks?")

    def matrix(self, tracks: np.ndarray, numbered: Mapping[str, int], bodies: int) -> np.ndarray:
        """Return the values between tracks (body,), by their numbers, on a body axis of size `bodies`: (bodies, bodies)."""
        place = {int(track): i for i, track in enumerate(tracks)}
        out = np.zeros((bodies, bodies))
        for (one, other), value in self.values.items():
            i, j = (place.get(numbered.get(name, -1)) for name in (one, other))
            if i is not None and j is not None:
                out[i, j] = value
        return out


def _both_ways(values: dict[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    return {(j, i): value for (i, j), value in values.items()} | values
