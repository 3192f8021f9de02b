"""Inspector of memory: do bodies go on as they went in the step before, or turn back, where their velocity is not recorded?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from epns_pyro.data.inspection.findings import WARNING, Inspector
from epns_pyro.data.scales import field_changes
from epns_pyro.derived import recorded_space
from epns_pyro.later import later
from epns_pyro.state import Field, StateSpec

if TYPE_CHECKING:
    from scipy import stats
else:
    stats = later("scipy.stats")

PARTS, SHORTEST = 8, 4  # a trajectory is cut into: parts, and the fewest pairs of consecutive steps of one
FEWEST = 12  # parts; with fewer nothing is tested
LEVEL = 1e-3
LEAST = 0.3  # correlation: forces on bodies without inertia, which last, make smaller ones
NOISE = -0.5  # correlation of the steps of independent positions, the least without vibrations
ERRING = -0.2  # correlation: errors of positions that are at least 40% of the mean square of a step
ALONE = 0.15  # of that correlation: what errors leave in that of steps two apart is nothing, and springs hold a body longer
TURNING = -0.6  # correlation of an oscillation of 2.8 frames per period is cos(2 pi / 2.8)


class Memory(Inspector):
    """Tests whether a step has the direction of the step before, or turns back, by Wilcoxon's signed-rank test over parts of trajectories.

    The mean step is taken off: a stream that carries all bodies alike is no memory. An error of recorded positions with variance s^2 adds
    -s^2 to the covariance of consecutive steps, and nothing to that of steps further apart (Vestergaard et al. 2014).
    `alone`: whether no velocity is made of positions; one that is says how bodies coast, but not how they vibrate.
    """

    def __init__(self, spec: StateSpec, field: Field, *, alone: bool = True) -> None:
        self._spec, self._field, self._alone = spec, field, alone
        self._sums: list[np.ndarray] = []  # by part: products of consecutive steps, mean squares, steps (space,), their number
        self._two_apart: list[np.ndarray] = []  # by block: sums of products of steps two apart, of steps (space,), their number

    def look(self, arrays: dict[str, np.ndarray], first: int) -> None:
        space = recorded_space(self._spec, arrays)
        steps = field_changes(self._spec, self._field, arrays[self._field.name].astype(np.float64), space)
        pairs = steps.shape[1] - 1
        if pairs < 1:
            return
        before, after = steps[:, :-1], steps[:, 1:]
        both = (np.isfinite(before) & np.isfinite(after)).all(-1, keepdims=True)
        before, after = np.where(both, before, 0.0), np.where(both, after, 0.0)
        numbers = np.concatenate(
            [
                (before * after).sum(-1, keepdims=True),
                (before**2 + after**2).sum(-1, keepdims=True) / 2,
                before + after,
                both,
            ],
            axis=-1,
        ).sum(2)
        for part in np.array_split(numbers, max(1, min(PARTS, pairs // SHORTEST)), axis=1):
            self._sums += list(part.sum(1))
        known = np.isfinite(steps[:, :-2]) & np.isfinite(steps[:, 2:])
        early, late = steps[:, :-2][known.all(-1)], steps[:, 2:][known.all(-1)]
        self._two_apart.append(np.array([(early * late).sum(), *((early + late) / 2).sum(0), len(early)]))

    def findings(self) -> Iterator[tuple[str, str]]:
        sums = np.asarray([one for one in self._sums if one[-1] > 0])
        if len(sums) < FEWEST:
            return
        products, squares, steps, count = sums[:, 0], sums[:, 1], sums[:, 2:-1], sums[:, -1]
        mean = steps.sum(0) / (2 * count.sum())
        products = products - steps @ mean + count * (mean @ mean)
        squares = squares - steps @ mean + count * (mean @ mean)
        if not squares.sum() > 0:
            return
        correlation = products.sum() / squares.sum()
        name, turns_back = self._field.name, stats.wilcoxon(products, alternative="less").pvalue < LEVEL
        if correlation < TURNING and stats.wilcoxon(products - NOISE * squares, alternative="less").pvalue < LEVEL:
            yield (
                WARNING,
                f"steps of field {name!r} turn back (correlation {correlation:.2f}): bodies vibrate with a period of fewer than three "
                "frames, which recorded positions do not show: record frames closer together",
            )
        elif correlation < ERRING and turns_back and abs(self._apart(mean)) < ALONE * -products.sum() / count.sum():
            error = np.sqrt(-products.sum() / count.sum() / steps.shape[1])
            yield (
                WARNING,
                f"steps of field {name!r} turn back at once, and no later (correlation {correlation:.2f}): positions have an error of "
                + f"about {error:.2g} {self._field.unit}".rstrip()
                + " per axis, or bodies are back at their places within a frame: let the model infer where they are, on import --noise "
                "learn, in a description `noise: learn`",
            )
        if self._alone and correlation > LEAST and stats.wilcoxon(products).pvalue < LEVEL:
            yield (
                WARNING,
                f"steps of field {name!r} go on like the step before (correlation {correlation:.2f}): bodies that coast have a velocity, "
                "and positions alone do not hold it: record it, or take it from earlier positions, on import --history, in a "
                "description `history: 4`",
            )

    def _apart(self, mean: np.ndarray) -> float:
        """Return the covariance of steps two apart, in which errors of positions leave nothing; infinite without such steps."""
        product, *steps, count = np.sum(self._two_apart, axis=0)
        return float(product / count - 2 * (np.asarray(steps) @ mean) / count + mean @ mean) if count else np.inf
