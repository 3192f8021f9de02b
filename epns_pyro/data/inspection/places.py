"""Inspector of places: is a recording held near a place, by a trap or by walls, where a model assumes that no place is special?"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np

from epns_pyro.data.inspection.findings import WARNING, Inspector
from epns_pyro.state import StateSpec

LAGS = 3  # earlier displacements in the regression, for motion that persists from one stretch to the next
CRITICAL = -4.0  # of the unit-root statistic with a constant: about 0.2%, measured with persistent and noisy walks (asymptotically 0.14%)
CRITICAL_MEAN = {1: -4.0, 2: -3.4, 3: -3.1}  # of its mean over the axes of space, which walls bound alike: about 0.1%, likewise
FEWEST = 50  # stretches
FEWEST_APART = 30  # trajectories of which none continues another
KINDS = 8  # classes of a category, at most, of which every one may have a mass of its own
PARTS, SHORTEST = (1, 2, 4), 5  # a trajectory is cut where there are few: parts, and the fewest frames of one
MOSTLY = 0.9  # share of bodies and frames that are there: where many come and go, those that stay are a selection
SEAM, SEAM_STEPS = 0.5, 3.0  # typical distance of two starts, typical steps: consecutive stretches are closer at their seam
NEGLIGIBLE = 1e-3  # of the step of a body: what a centroid moves if data are centred on it


class Places(Inspector):
    """Tests whether the centroid of a recording returns to a place.

    The displacement of the centroid over a stretch is regressed on where the stretch began, on the displacements over the stretches
    before, and on a constant. Where trajectories are few, their parts are the stretches.

    For every law without special places, with motion that lasts or not, the centroid is a walk, and the t-statistic of the place has the
    distribution of Dickey and Fuller (1979, doi:10.1080/01621459.1979.10482531). The place is that of the frame before the displacement is
    measured, so that an error of recording is in one of them only. Only recordings whose bodies are nearly always there are used.

    Where trajectories do not continue each other, each has its own first step in place of earlier displacements. For trajectories that have
    nothing to do with each other the statistic is Student's, which is narrower. Bodies with masses that move about a common centre which
    is the same in all trajectories move their centroid back to it: hence means that are weighted with attributes go in, too.
    """

    def __init__(self, spec: StateSpec) -> None:
        position = spec.position
        if position is None:
            raise ValueError("a spec without a position")
        self._name = position.name
        static = [f for f in spec.fields if not (f.dynamic or f.is_vector or f.is_pair)]
        self._weights = [f.name for f in static if f.kind == "real"]
        self._kinds = {f.name: f.size for f in static if f.kind == "category" and f.size <= KINDS}
        self._apart: list[np.ndarray] = []
        self._stretches: dict[int, list[np.ndarray]] = {parts: [] for parts in PARTS}  # by number of parts of a trajectory
        self._frames = 0  # of a trajectory
        self._least, self._most = np.full(spec.space, np.inf), np.full(spec.space, -np.inf)
        self._there, self._all, self._squares, self._steps = 0, 0, 0.0, 0
        self._centroid, self._moments = 0.0, 0  # squared steps of the centroid, and their number

    def look(self, arrays: dict[str, np.ndarray], first: int) -> None:
        x = arrays[self._name].astype(np.float64)
        known = np.asarray(np.isfinite(x).all(-1))
        used = known.any(1, keepdims=True)  # some places of the body axis may be unused
        self._there, self._all = self._there + int(known.sum()), self._all + int(used.sum()) * x.shape[1]
        for bound, extreme in ((self._least, np.fmin), (self._most, np.fmax)):
            bound[:] = extreme(bound, extreme.reduce(x.reshape(-1, x.shape[-1])))
        step = np.diff(x, axis=1)
        self._squares, self._steps = self._squares + float(np.nansum(step**2)), self._steps + int(np.isfinite(step).sum())
        if x.shape[1] < 3:
            return
        centroid = np.where((known[:, 1:] & known[:, :-1])[..., None], step, np.nan)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # frames without bodies
            centroid = np.nanmean(centroid, axis=2)
        self._centroid += float(np.nansum(centroid**2))
        self._moments += int(np.isfinite(centroid).all(-1).sum())
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            self._apart.append(self._whole(x, known, arrays))
        for parts, found in self._stretches.items():
            if parts == 1 or x.shape[1] >= parts * SHORTEST:
                found.append(_stretches(x, known, parts))
        self._frames = x.shape[1]

    def _whole(self, x: np.ndarray, known: np.ndarray, arrays: dict[str, np.ndarray]) -> np.ndarray:
        """Return of every trajectory what its displacement is regressed on, and that: (column, trajectory, space).

        Columns are the centroid's first place, its step from the second frame to the third, how far from it the mean is that is weighted
        with each attribute, and its displacement from the third frame to the last.
        """
        there = np.asarray(known[:, [0, 1, 2, -1]].all(1))[..., None]
        count = there.sum(1)
        begin, second, third, end = (np.where(there, x[:, frame], 0.0).sum(1) / count for frame in (0, 1, 2, -1))
        static = {name: values.reshape(len(x), -1) for name, values in arrays.items() if name in self._weights or name in self._kinds}
        weights = [static[name] for name in self._weights if name in static]
        weights += [static[name] == kind for name, size in self._kinds.items() if name in static for kind in range(1, size)]
        relative = np.where(there, x[:, 0] - begin[:, None], 0.0)
        shares = [weight / np.maximum(np.abs(weight).sum(1, keepdims=True), np.finfo(float).tiny) for weight in map(np.nan_to_num, weights)]
        about = [(share[..., None] * relative).sum(1) for share in shares]
        return np.stack([begin, third - second, *about, end - third])

    def findings(self) -> Iterator[tuple[str, str]]:
        if self._there < MOSTLY * self._all or not self._steps or not self._apart:
            return
        cut = {parts: np.concatenate(found, axis=1) for parts, found in self._stretches.items() if found}
        parts = next((parts for parts, stretches in cut.items() if stretches.shape[1] >= FEWEST + LAGS), 1)
        starts, moves, gone = cut[parts]
        if len(starts) < FEWEST_APART:
            return
        if not np.sqrt(np.nanmean(moves**2)) > NEGLIGIBLE * np.sqrt(self._squares / self._steps):
            return
        continues = _continues(starts, gone, np.sqrt(self._centroid / max(self._moments, 1)))
        fits = [_unit_root(starts[:, axis], moves[:, axis], continues) for axis in range(starts.shape[1])]
        if not any(t for _, t in fits):
            parts, whole = 1, np.concatenate(self._apart, axis=1)
            starts = whole[0]
            fits = [_regression(whole[:-1, :, axis].T, whole[-1, :, axis], FEWEST_APART) for axis in range(starts.shape[1])]
        slopes, t = np.transpose(fits)
        held = t < CRITICAL
        if not held.any() and t.mean() < CRITICAL_MEAN[len(t)]:
            held = t < t.mean() / 2
        if held.any():
            axes, share = " and ".join(str(axis) for axis in np.flatnonzero(held)), -slopes[held].mean()
            mean, middle = (
                ",".join(f"{value:.4g}" for value in place) for place in (np.nanmean(starts, axis=0), (self._least + self._most) / 2)
            )
            yield (
                WARNING,
                f"field {self._name!r} returns to a place along axis {axes}, by {share:.0%} of its distance in {self._frames // parts} "
                "frames: a trap or walls contradict the symmetry under translations that a model assumes: for a trap import with "
                f"`--symmetry point --centre {mean}`, which is the mean, for a round arena with the middle of all places, `{middle}`, for "
                "any other place with `--symmetry none` (in a YAML: `symmetry: ...`)",
            )


def _stretches(x: np.ndarray, known: np.ndarray, parts: int) -> np.ndarray:
    """Return the centroid's first place, its displacement from the second frame to the last, and from the first: (3, stretch, space).

    Of the bodies of x (trajectory, time, body, space) that are known (trajectory, time, body) in these three frames.
    """
    frames = x.shape[1] // parts
    x, known = (of[:, : parts * frames].reshape(-1, frames, *of.shape[2:]) for of in (x, known))
    whole = (known[:, 0] & known[:, 1] & known[:, -1])[..., None]
    count = whole.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        begin, second, end = (np.where(whole, x[:, frame], 0.0).sum(1) / count for frame in (0, 1, -1))
    return np.stack([begin, end - second, end - begin])


def _continues(starts: np.ndarray, gone: np.ndarray, step: float) -> np.ndarray:
    """Return which trajectories (trajectory,) continue the one before, of centroids that move by about `step` in a frame.

    In a narrow trap all starts are close together, but not closer than some steps.
    """
    seam = np.linalg.norm(starts[1:] - starts[:-1] - gone[:-1], axis=-1)
    apart = np.linalg.norm(starts[:, None] - starts[None, :: max(1, len(starts) // 100)], axis=-1)
    return np.concatenate([[False], seam < max(SEAM * np.nanmedian(apart), SEAM_STEPS * step)])


def _unit_root(place: np.ndarray, move: np.ndarray, continues: np.ndarray) -> tuple[float, float]:
    """Return the slope of displacements (trajectory,) over places (trajectory,), and its t-statistic; 0 with too few consecutive ones."""
    index = np.arange(LAGS, len(place))
    index = index[np.all([continues[index - lag] for lag in range(LAGS)], axis=0)]
    return _regression(np.stack([place[index], *(move[index - lag] for lag in range(1, LAGS + 1))], 1), move[index], FEWEST)


def _regression(x: np.ndarray, y: np.ndarray, fewest: int) -> tuple[float, float]:
    """Regress y (row,) on x (row, column) and a constant, and return the slope of the first column and its t-statistic; 0 with too few."""
    known = np.isfinite(x).all(1) & np.isfinite(y)
    x, y = np.insert(x[known], 1, 1.0, axis=1), y[known]
    spread = np.linalg.norm(x, axis=0)
    x = x[:, spread > 0]  # an attribute that is the same for all says nothing
    if len(y) < fewest or not spread[0] > 0 or np.linalg.matrix_rank(x / spread[spread > 0]) < x.shape[1]:
        return 0.0, 0.0
    inverse = np.linalg.inv(x.T @ x)
    fit = inverse @ x.T @ y
    variance = ((y - x @ fit) ** 2).sum() / (len(y) - x.shape[1]) * inverse[0, 0]
    return float(fit[0]), float(fit[0] / np.sqrt(variance)) if variance > 0 else 0.0
