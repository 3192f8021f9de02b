"""Find test recordings whose positions jitter more, or less, than those that a model is trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from epns_pyro.data.inspection.findings import WARNING, Finding, Inspector
from epns_pyro.derived import has_positions_alone
from epns_pyro.state import StateSpec

LEAST = 200  # pairs of second differences that an estimate needs
WORSE = 2.0  # times the error of the other set, of an error that is told
MATTERS = 0.5  # of the mean square of second differences of the training set, the part an error adds that is told
ROOM = 2.0  # of the errors in training, the largest over that of the test set


class Exactness(Inspector):
    """Estimates the error of positions, which bends a track at one frame and back at the next.

    An error with standard deviation s adds -4 s^2 to the covariance of second differences that follow each other; velocities that change
    at random add nothing.
    """

    def __init__(self, spec: StateSpec) -> None:
        self._name = "" if spec.position is None else spec.position.name
        self._count, self._square, self._product = 0, 0.0, 0.0

    def look(self, arrays: dict[str, np.ndarray], first: int) -> None:
        bends = np.diff(arrays[self._name].astype(np.float64), n=2, axis=1)
        pairs = bends[:, 1:] * bends[:, :-1]
        known = np.isfinite(pairs)
        self._count += int(known.sum())
        self._product += float(pairs[known].sum())
        self._square += float((bends[:, 1:][known] ** 2).sum())

    def findings(self) -> Iterator[tuple[str, str]]:
        return iter(())  # one set says nothing: bodies in a fluid move as if their positions jittered

    @property
    def known(self) -> bool:
        """Whether there is enough for an estimate."""
        return self._count >= LEAST

    @property
    def error(self) -> float:
        """Estimated standard deviation of the error of a position per axis."""
        return float(np.sqrt(max(-self._product, 0.0) / max(self._count, 1) / 4))

    @property
    def bending(self) -> float:
        """Mean square of a second difference."""
        return self._square / max(self._count, 1)


def suits(spec: StateSpec) -> bool:
    """Say whether `training.jitter` is for recordings of a spec, and their second differences need no box."""
    return has_positions_alone(spec) and not spec.geometry.periodic and spec.box_field is None


def differ(spec: StateSpec, sets: Mapping[str, Exactness]) -> Iterator[Finding]:
    """Warn if the test set jitters much more than the training set, or much less."""
    position = spec.position
    if position is None or not {"train", "test"} <= sets.keys():
        return
    train, test = sets["train"], sets["test"]
    rough, exact = max(train.error, test.error), min(train.error, test.error)
    if not (train.known and test.known) or rough < WORSE * exact or 6 * rough**2 < MATTERS * train.bending:
        return
    if rough == train.error and test.bending > 6 * rough**2:  # the tracks of the test set may hide as large an error
        return
    how = [f"jitter by about {s.error:.2g} {position.unit}".rstrip() if s.error else "do not jitter" for s in (test, train)]
    if test.error == rough:
        why, level = "a model that has seen exact tracks alone is too sure of the next step", ROOM * rough
    else:
        why, level = "a model that has seen rough tracks alone takes their errors for those of all", rough
    yield Finding(
        WARNING,
        "test",
        f"its positions {how[0]}, those of the training set {how[1]}: {why}: train with --set training.jitter={level:.2g}",
    )
