"""Two-sample tests: do two sets of runs from one initial state have the same distribution? Three tests, each with its noise floor.

A distance between finite samples is never zero, so every statistic is given with the values that two samples of ONE distribution of these
sizes reach: their mean and 95% quantile, from relabelling the pooled runs at random. This keeps ties (counts) and dependence between
components. Runs are the independent units; all measurements of one run are relabelled together.

The p-value is the fraction of relabellings with at least this distance. For D_KS it is exact, over all relabellings; for the others it is
estimated from some, (1 + as far) / (1 + relabellings), and never below 1 / (1 + relabellings): if the test is one of many, take as many
relabellings as `relabellings_for` says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from epns_pyro.calibration.bands import proportion_interval
from epns_pyro.calibration.scores import difference_of_means, energy_of_labels, ks_of_weights, pairwise_distance
from epns_pyro.errors import DataError, ShapeError

FALSE_ALARM = 0.05
FOLDS = 5
RANDOM_FEATURES = 64
BLOCK = 2000  # relabellings in memory at once
RIDGE = 0.1  # ridge penalty of the classifier, in units of the variance of a feature, per run


@dataclass(frozen=True)
class TwoSampleTest:
    """A statistic of model against truth, with its noise floor.

    Parameters
    ----------
    name : str
        What was compared.
    statistic : (*batch)
    typical : (*batch)
        Mean for two samples of one distribution.
    floor : (*batch)
        Exceeded in 5% of cases by two samples of one distribution.
    p_value : (*batch)
        Of the hypothesis that both samples have the same distribution.
    runs : tuple of int
        Numbers of runs of the model and of the truth.
    """

    name: str
    statistic: np.ndarray
    typical: np.ndarray
    floor: np.ndarray
    p_value: np.ndarray
    runs: tuple[int, int]

    def sentence(self) -> str:
        """Describe the result of the test of a single comparison."""
        verdict = "differ" if self.p_value < FALSE_ALARM else "cannot be told apart"
        return (
            f"model and truth {verdict}: {self.name} {float(self.statistic):.3g}; two samples of one distribution reach "
            f"{float(self.typical):.3g} "
            f"on average and more than {float(self.floor):.3g} in 5% of cases "
            f"(p = {float(self.p_value):.2g}; {self.runs[0]} and {self.runs[1]} runs)"
        )


@dataclass(frozen=True)
class ClassifierTest(TwoSampleTest):
    """A classifier two-sample test: `statistic` is the cross-validated accuracy, (`lower`, `upper`) its 95% Wilson interval."""

    lower: float
    upper: float

    def sentence(self) -> str:
        """Describe how well a classifier distinguishes runs of the model from true ones."""
        verdict = "can be told apart" if self.p_value < FALSE_ALARM else "cannot be told apart"
        return (
            f"model and truth {verdict}: a classifier is right {self.statistic:.0%} ({self.lower:.0%}-{self.upper:.0%}) of the time, "
            f"for two samples of one distribution up to {self.floor:.0%} (p = {float(self.p_value):.2g}; {self.runs[0]} and "
            f"{self.runs[1]} runs)"
        )


def ks_test(model: np.ndarray, truth: np.ndarray, *, rng: np.random.Generator, relabellings: int = 1000) -> TwoSampleTest:
    """Test each observable by the Kolmogorov-Smirnov distance D_KS; the p-value is exact, with and without ties.

    Parameters
    ----------
    model : (run, *batch)
        An observable, or several (batch), of n independent runs; each is tested by itself.
    truth : (run, *batch)
    relabellings : int
        Used for the values that samples of one distribution reach; the p-value does not depend on them.

    Returns
    -------
    TwoSampleTest
        Every entry (*batch).
    """
    model, truth = _runs(model, truth)
    pooled = np.concatenate([model, truth])
    first = _labels(len(model), len(truth), rng, relabellings)
    weight = np.where(first, 1 / len(model), -1 / len(truth))
    test = _against_floor("D_KS", ks_of_weights(pooled, weight), (len(model), len(truth)))
    return replace(test, p_value=ks_p_value(test.statistic, pooled, len(model)))


def ks_p_value(distance: np.ndarray, pooled: np.ndarray, first: int) -> np.ndarray:
    """Return the fraction of all relabellings, `first` of the pooled values as first sample, with this D_KS or a larger one.

    In the order of the pooled values a relabelling is a walk: i of the first k values are of the first sample. Its probability is
    propagated, and absorbed where the distribution functions i / n and (k - i) / m differ by this distance. They are compared only where a
    run of equal values ends (Schröer & Trenkler 1995, doi:10.1016/0167-9473(94)00040-P); without ties this is the classical exact test.

    Parameters
    ----------
    distance : (*batch)
    pooled : (run, *batch)
    first : int
        Size n of the first sample; the other m values are the second.

    Returns
    -------
    (*batch)
    """
    pooled, shape = np.sort(pooled, axis=0).reshape(len(pooled), -1), np.shape(distance)
    n, m = first, len(pooled) - first
    ends = np.concatenate([pooled[1:] > pooled[:-1], np.ones((1, pooled.shape[1]), bool)])
    far = np.rint(np.reshape(distance, -1) * n * m).astype(np.int64)  # D_KS is an integer multiple of 1 / (n m)
    i = np.arange(n + 1)
    walk, absorbed = np.zeros((pooled.shape[1], n + 1)), np.zeros(pooled.shape[1])
    walk[:, 0] = 1
    for k in range(n + m):
        of_first = walk * ((n - i) / (n + m - k))
        walk = walk * (np.clip(m - k + i, 0, m) / (n + m - k))
        walk[:, 1:] += of_first[:, :-1]
        gone = ends[k, :, None] & (np.abs(i * m - (k + 1 - i) * n) >= far[:, None])
        absorbed += np.where(gone, walk, 0).sum(1)
        walk[gone] = 0
    return np.minimum(absorbed, 1).reshape(shape)


def energy_test(
    model: np.ndarray, truth: np.ndarray, *, rng: np.random.Generator, scale: np.ndarray | None = None, relabellings: int = 1000
) -> TwoSampleTest:
    """Test several observables together by the squared energy distance.

    Parameters
    ----------
    model, truth : (run, component)
    scale : (component,), optional
        Divides the components; by default their standard deviations over the true runs.
    """
    model, truth = _runs(model, truth)
    scale = _spread(truth) if scale is None else scale
    distance = pairwise_distance(np.concatenate([model, truth]).reshape(len(model) + len(truth), -1) / scale)
    first = _labels(len(model), len(truth), rng, relabellings)
    values = _in_blocks(lambda some: energy_of_labels(distance, some), first)
    return _against_floor("squared energy distance", values, (len(model), len(truth)))


def classifier_test(model: np.ndarray, truth: np.ndarray, *, rng: np.random.Generator, relabellings: int = 1000) -> ClassifierTest:
    """Test how well a classifier distinguishes runs of the model from true ones (Lopez-Paz & Oquab 2017, arXiv:1610.06545).

    The classifier is a ridge regression of the label on the components and on random cosines of a Gaussian kernel; it detects means,
    variances, correlations and, roughly, shapes. It is linear in the labels, so that the same five folds can be run for hundreds of
    relabellings at once. Accuracy is averaged over both samples: 50% is chance for any sizes.

    Parameters
    ----------
    model, truth : (run, component)
        At least 10 runs each.
    """
    model, truth = _runs(model, truth)
    if min(len(model), len(truth)) < 2 * FOLDS:
        raise DataError(f"a classifier test needs at least {2 * FOLDS} runs of each, found {len(model)} and {len(truth)}")
    pooled = np.concatenate([model, truth]).reshape(len(model) + len(truth), -1)
    features = _features(pooled, rng)
    first = _labels(len(model), len(truth), rng, relabellings)
    fold = rng.permutation(len(features)) % FOLDS
    accuracy = _in_blocks(lambda some: _cross_validated_accuracy(features, some, fold), first)
    base = _against_floor("accuracy of a classifier", accuracy, (len(model), len(truth)))
    votes = 4 / (1 / len(model) + 1 / len(truth))  # effective number of runs for an average over both samples
    lower, upper = proportion_interval(base.statistic * votes, votes)
    return ClassifierTest(**base.__dict__, lower=float(lower), upper=float(upper))


def relabellings_for(tests: int) -> int:
    """Return the number of relabellings that each of `tests` tests needs: the smallest p-value is a tenth of FALSE_ALARM / tests."""
    return max(1000, round(10 * tests / FALSE_ALARM))


def means_sentence(model: np.ndarray, truth: np.ndarray, *, unit: str = "") -> str:
    """Describe the difference of the means of an observable, with its error: model (run,), truth (run,)."""
    difference = difference_of_means(model, truth)
    z = float(difference.value / difference.error)
    text = f"mean of the model minus mean of the truth: {float(difference.value):+.3g} ± {float(difference.error):.2g} {unit}".rstrip()
    return f"{text} ({abs(z):.1f} standard errors)"


# -- parts ------------------------------------------------------------------------------------------------------------------


def _runs(model: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    model, truth = np.asarray(model, float), np.asarray(truth, float)
    if model.shape[1:] != truth.shape[1:] or model.ndim == 0:
        raise ShapeError(f"model and truth may differ only in the number of runs, found {model.shape} and {truth.shape}")
    if min(len(model), len(truth)) < 2:
        raise DataError(f"two samples need at least 2 runs each, found {len(model)} and {len(truth)}")
    for what, x in (("model", model), ("truth", truth)):
        if not np.isfinite(x).all():
            raise DataError(
                f"the {what} holds NaN or infinite values in {(~np.isfinite(x)).reshape(len(x), -1).any(1).sum()} runs: leave those out"
            )
    return model, truth


def _labels(n: int, m: int, rng: np.random.Generator, relabellings: int) -> np.ndarray:
    """Return which pooled runs count as the first sample: (1 + relabellings, n + m) booleans; the first row is the true assignment."""
    actual = np.arange(n + m) < n
    return np.concatenate([actual[None], rng.permuted(np.broadcast_to(actual, (relabellings, n + m)), axis=1)])


def _in_blocks(statistic: Callable[[np.ndarray], np.ndarray], first: np.ndarray) -> np.ndarray:
    return np.concatenate([statistic(first[start : start + BLOCK]) for start in range(0, len(first), BLOCK)])


def _against_floor(name: str, values: np.ndarray, runs: tuple[int, int]) -> TwoSampleTest:
    statistic, null = values[0], values[1:]
    at_least = (null >= statistic - 1e-12 * np.abs(statistic)).sum(0)
    floor = np.quantile(null, 1 - FALSE_ALARM, axis=0, method="higher")
    return TwoSampleTest(name, statistic, null.mean(0), floor, (1 + at_least) / (1 + len(null)), runs)


def _spread(x: np.ndarray) -> np.ndarray:
    deviation = x.reshape(len(x), -1).std(0)
    return np.where(deviation > 0, deviation, 1)


def _features(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return standardised features of pooled runs, the same for any assignment to samples: x (run, component) -> (run, feature)."""
    x = (x - x.mean(0)) / _spread(x)
    pairs = rng.permutation(len(x))
    width = np.median(np.linalg.norm(x - x[pairs], axis=1))
    frequency = rng.normal(size=(x.shape[1], RANDOM_FEATURES)) / (width if width > 0 else 1)
    cosines = np.cos(x @ frequency + rng.uniform(0, 2 * np.pi, RANDOM_FEATURES))
    features = np.concatenate([x, cosines], axis=1)
    return (features - features.mean(0)) / _spread(features)


def _cross_validated_accuracy(features: np.ndarray, first: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Return the balanced accuracy of ridge regression, cross-validated over fold (run,): first (repeat, run) -> (repeat,)."""
    target = first.T.astype(float)  # (run, repeat)
    right = np.empty(target.shape, bool)
    for k in range(FOLDS):
        train, test = features[fold != k], features[fold == k]
        known, unknown = target[fold != k], target[fold == k]
        penalty = RIDGE * len(train) * np.eye(features.shape[1])
        weight = np.linalg.solve(train.T @ train + penalty, train.T @ (known - known.mean(0)))
        right[fold == k] = (test @ weight > 0) == unknown
    return ((right * target).sum(0) / target.sum(0) + (right * (1 - target)).sum(0) / (1 - target).sum(0)) / 2
