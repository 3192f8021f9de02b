"""Inspectors of symmetry: is the motion of bodies the same in all directions and at all places, as a model assumes?"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from epns_pyro.calibration.dependence import autocorrelation_time, widening
from epns_pyro.data.inspection.findings import WARNING, Inspector
from epns_pyro.data.scales import field_changes
from epns_pyro.derived import recorded_space
from epns_pyro.later import later
from epns_pyro.state import Field, StateSpec

if TYPE_CHECKING:
    from scipy import stats
else:
    stats = later("scipy.stats")

LEVEL = 0.01  # of all tests of one field together
LEAST_RATIO = 1.1  # of changes along and across: a smaller one may be sure, as in a molecule that keeps its direction, and matters little
FEWEST = 12  # trajectories; with fewer, the Normal approximation of the rank tests is too coarse
EXCESS = 2.7  # of a decorrelation time over one trajectory, times the square root of their number: independent ones seldom reach it
MARGIN = 2.0  # times the decorrelation time, which short recordings show too short
FEWEST_APART = 3  # independent trajectories
MOST = 2000  # values of which a decorrelation time is measured: of more, means over neighbours
WAY_OUT = (
    "declare `symmetry: axis` (with `axis: [...]`) or `symmetry: translations`, on import --symmetry, or add a static vector field with "
    "the direction"
)


class Directions(Inspector):
    """Tests whether one-step changes of a vector prefer a direction, an axis or a place.

    Under rotations and reflections, three quantities of a trajectory are symmetric: its mean change about zero, the log ratio of the mean
    squares along two axes about zero, and the mean product of two axes about zero. Each is tested by Wilcoxon's signed-rank test over
    trajectories, which start anywhere in any direction. Where trajectories continue each other, a school keeps its direction from one to
    the next: then the test allows for it, and nothing is tested if they are worth too few. Under translations the change of a single body
    does not depend on where it starts: Spearman's rank correlation over trajectories. (With several bodies it may: if data are centred on
    the centre of mass, the position of one body tells where the others are.) Bonferroni's correction keeps the probability of a false alarm
    in a set below 1%; where trajectories depend on each other, it is some per cent. With fewer than 12 trajectories nothing is tested.
    """

    def __init__(self, spec: StateSpec, field: Field) -> None:
        self._spec, self._field = spec, field
        self._position = next((f.name for f in spec.dynamic_fields if f.translates), "")
        self._means: list[np.ndarray] = []  # by trajectory: mean change (space,)
        self._squares: list[np.ndarray] = []  # mean outer product of changes (space, space)
        self._starts: list[np.ndarray] = []  # centroid (space,) in the first frame, and in the last
        self._ends: list[np.ndarray] = []
        self._alone = True  # one body, which is present in every frame

    def look(self, arrays: dict[str, np.ndarray], first: int) -> None:
        space = recorded_space(self._spec, arrays)
        changes = field_changes(self._spec, self._field, arrays[self._field.name].astype(np.float64), space)
        changes = changes.reshape(len(changes), -1, changes.shape[-1])
        known = np.isfinite(changes).all(-1, keepdims=True)
        self._alone &= bool(known.all()) and arrays[self._field.name].shape[2] == 1
        count, changes = np.maximum(known.sum((1, 2)), 1), np.where(known, changes, 0.0)
        self._means += list(changes.sum(1) / count[:, None])
        self._squares += list(np.einsum("tna,tnb->tab", changes, changes) / count[:, None, None])
        if self._position in arrays:
            self._starts += list(_centroid(arrays[self._position][:, 0]))
            self._ends += list(_centroid(arrays[self._position][:, -1]))

    def findings(self) -> Iterator[tuple[str, str]]:
        if not self._means:  # the set is still empty
            return
        means, squares = np.asarray(self._means), np.asarray(self._squares)
        moving = np.einsum("taa->t", squares) > 0
        means, squares = means[moving], squares[moving]
        if len(means) < 2 or means.shape[-1] < 2:
            return
        places = len(self._starts) == len(moving)
        continued = places and self._continued()
        space, name = means.shape[-1], self._field.name
        pairs = list(itertools.combinations(range(space), 2))
        level = LEVEL / (2 * space + 2 * len(pairs))
        typical = np.sqrt(np.einsum("taa->", squares) / len(squares) / space)
        if any(_symmetric(column, continued) < level for column in means.T):
            mean = ", ".join(f"{value:.3g}" for value in means.mean(0))
            yield (
                WARNING,
                f"field {name!r} changes by ({mean}) in a mean step, {np.linalg.norm(means.mean(0)) / typical:.0%} of a typical one: wind, "
                f"gravity or a stream contradicts the symmetry under rotations that a model assumes: {WAY_OUT}",
            )
            both = means[:, :, None] * means.mean(0)
            squares = squares - both - both.mT + np.outer(means.mean(0), means.mean(0))  # about the mean: a drift is reported above
        yield from self._anisotropy(squares, pairs, level, continued)
        if places and self._alone and not continued:
            yield from self._places(means, np.asarray(self._starts)[moving], level)

    def _anisotropy(self, squares: np.ndarray, pairs: list[tuple[int, int]], level: float, continued: bool) -> Iterator[tuple[str, str]]:
        diagonal = np.einsum("taa->ta", squares)
        tilted = False
        for a, b in pairs:
            first, second, product = np.take(diagonal, a, -1), np.take(diagonal, b, -1), squares[:, a, b]
            both = (first > 0) & (second > 0)
            ratio = np.log(first[both] / second[both])
            tilted |= bool(len(ratio)) and min(_symmetric(ratio, continued), _symmetric(product, continued)) < level
        if tilted:
            values, axes = np.linalg.eigh(squares.mean(0))
            longest, ratio = np.take(axes, -1, -1), np.sqrt(values.max() / max(values.min(), 1e-300))
            if ratio < LEAST_RATIO:
                return
            along = ", ".join(f"{value:.2f}" for value in longest * np.sign(longest[np.abs(longest).argmax()]))
            yield (
                WARNING,
                f"field {self._field.name!r} changes {ratio:.3g} times as much along ({along}) as across: a street, a channel or axes in "
                f"different units contradict the symmetry under rotations that a model assumes: check the units; {WAY_OUT}",
            )

    def _places(self, means: np.ndarray, starts: np.ndarray, level: float) -> Iterator[tuple[str, str]]:
        for axis, (change, start) in enumerate(zip(means.T, starts.T, strict=True)):
            if np.ptp(change) == 0 or np.ptp(start) == 0 or len(change) < FEWEST:
                continue
            found = stats.spearmanr(start, change)
            if found.pvalue < level:
                yield (
                    WARNING,
                    f"field {self._field.name!r} changes along axis {axis} by amounts that depend on where the body is (rank "
                    f"correlation {found.statistic:.2f}): a wall, a trap or a slope contradicts the symmetry under translations that a "
                    "model assumes: declare `symmetry: point` or `symmetry: none`, on import --symmetry, and measure positions from the "
                    "trap or wall, or add it as a body",
                )

    def _continued(self) -> bool:
        """Return whether trajectories continue those before them: then they are not independent."""
        starts, ends = np.asarray(self._starts), np.asarray(self._ends)
        seam, apart = (np.linalg.norm(starts[1:] - before[:-1], axis=-1) for before in (ends, starts))
        known = np.isfinite(seam) & np.isfinite(apart)
        return bool(known.any() and np.median(seam[known]) < 0.5 * np.median(apart[known]))


def _centroid(x: np.ndarray) -> np.ndarray:
    """Return the mean place of the bodies that are there, (trajectory, space), of positions (trajectory, body, space); NaN without one."""
    known = np.isfinite(x).all(-1, keepdims=True)
    count = known.sum(1)
    return np.divide(np.where(known, x, 0.0).sum(1), count, out=np.full((len(x), x.shape[-1]), np.nan), where=count > 0)


def _symmetric(values: np.ndarray, continued: bool) -> float:
    """Return the p-value of the hypothesis that values (trajectory,) are symmetric about zero; 1 if there is nothing to test.

    Wilcoxon's test of independent trajectories. Of those that continue each other, and remember how, Student's of their mean, with as many
    degrees of freedom as there are doubled decorrelation times, less one.
    """
    if continued and (together := -(-len(values) // MOST)) > 1:
        values = values[: len(values) // together * together].reshape(-1, together).mean(1)
    n, length = len(values), _decorrelation(values) if continued else 1.0
    if length <= 1 + EXCESS / np.sqrt(n):
        values = values[values != 0]
        return float(stats.wilcoxon(values).pvalue) if len(values) > 1 else 1.0
    length *= MARGIN
    if n < FEWEST_APART * length:
        return 1.0
    error = values.std(ddof=1) / np.sqrt(n) * float(widening(np.asarray(n), np.asarray(length)))
    return float(2 * stats.t.sf(abs(values.mean()) / error, n / length - 1))


def _decorrelation(values: np.ndarray) -> float:
    """Return the decorrelation time of values (trajectory,), in trajectories; of their ranks, too, as heavy tails hide dependence."""
    ranks = np.sign(values) * stats.rankdata(np.abs(values))
    one, order = np.zeros(len(ranks)), np.arange(len(ranks))
    return max(float(autocorrelation_time(x, one, order)) for x in (values, ranks))
