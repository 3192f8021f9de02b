"""Diagnostics at each lead time from measurements of each trajectory: tests, coverage, scores, spread and bias, as labelled arrays.

`diagnose` and `diagnose_fields` do both steps at once; for many trajectories measure them block by block (see `measurements`), join the
blocks and call `observable_diagnostics` and `field_diagnostics`. Everything here averages over independent trajectories at a fixed lead
time. Only the quantities named `pooled_...` and `..._clustered` also average over lead times or components; their standard errors come
from the variation between trajectories, which are the independent units.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import xarray as xr
from scipy import stats

from epns_pyro.calibration import scores
from epns_pyro.calibration.bands import ecdf_difference, proportion_interval, rank_law
from epns_pyro.calibration.dependence import decorrelation, enough, widening
from epns_pyro.calibration.measurements import field_values, observable_values
from epns_pyro.calibration.multivariate import PRE_RANKS, PreRank
from epns_pyro.calibration.pit import central_interval, dispersion, location, normal_score_moments, normal_scores, rank_histogram
from epns_pyro.errors import DataError

LEVELS = (0.5, 0.8, 0.9, 0.95)
BINS = 10


def diagnose(
    forecast: xr.Dataset,
    truth: xr.Dataset,
    *,
    rng: np.random.Generator,
    lead_times: Sequence[float] | None = None,
    references: Mapping[str, xr.Dataset] | None = None,
    prob: float = 0.95,
) -> xr.Dataset:
    """Diagnose scalar observables: `observable_values`, then `observable_diagnostics`; parameters and result as there."""
    return observable_diagnostics(observable_values(forecast, truth, rng=rng, lead_times=lead_times, references=references), prob=prob)


def diagnose_fields(
    forecast: xr.Dataset,
    truth: xr.Dataset,
    *,
    rng: np.random.Generator,
    vectors: Mapping[str, Sequence[str]] | None = None,
    scales: Mapping[str, float] | None = None,
    lead_times: Sequence[float] | None = None,
    references: Mapping[str, xr.Dataset] | None = None,
    pre_ranks: Mapping[str, PreRank] = PRE_RANKS,
) -> xr.Dataset:
    """Diagnose vectors: `field_values`, then `field_diagnostics`; parameters and result as there."""
    values = field_values(
        forecast, truth, rng=rng, vectors=vectors, scales=scales, lead_times=lead_times, references=references, pre_ranks=pre_ranks
    )
    return field_diagnostics(values)


def observable_diagnostics(values: xr.Dataset, *, prob: float = 0.95, levels: Sequence[float] = LEVELS) -> xr.Dataset:
    """Diagnose scalar observables from their measurements.

    Parameters
    ----------
    values : Dataset
        From `observable_values`, one block or several joined along `trajectory`.
    prob : float
        Probability of the bands and intervals.
    levels : sequence of float
        Levels of the central intervals; the nearest levels that this ensemble has exactly are in `nominal`.

    Returns
    -------
    Dataset, dims observable, lead_time and
        ======================== ============ ==========================================================================
        trajectories                          number of trajectories used
        decorrelation                         decorrelation time in trials, where trials are dependent (see `dependence`)
        alive                                 fraction of members alive, where there is a truth
        p_value                               exact p-value of the rank ECDF
        ecdf_difference          point        rank ECDF minus its expectation, at `point` in (0, 1)
        band_lower, band_upper   point        its simultaneous band, probability `prob` at every single lead time
        rank_count               bin          rank histogram; rank_expected: what it should be
        coverage                 level        fraction of truths within the central interval; coverage_lower, _upper: Wilson
        nominal                  level        the exact level of that interval (no other dims)
        shift, shift_error                    mean normal score of the truth in its ensemble: +1 is one ensemble spread above
        stretch, stretch_error                spread of the normal scores: above 1 over-confident, below 1 under-confident
        shift_z, stretch_z                    both in units of their standard error for a calibrated ensemble
        pooled_location, _error               linear rank contrast averaged over lead times, 0 without bias (dims observable)
        pooled_dispersion, _error             quadratic rank contrast averaged over lead times, above 0 over-confident (likewise)
        pooled_p_location, _dispersion        p-values of both being 0 (likewise)
        crps, crps_error                      fair CRPS, unit of the observable
        skill, skill_error       reference    1 - CRPS / CRPS of the reference
        spread, rmse                          root mean ensemble variance (inflated by 1 + 1/m) and error of the ensemble mean
        spread_skill, _lower, _upper          their ratio, unbiased for finite ensembles
        bias, bias_error                      ensemble mean minus truth
        sharpness                             mean width of the central 90% interval
        ======================== ============ ==========================================================================
    """
    members = _members(values)
    pit = values["pit"].transpose("observable", "lead_time", "trajectory").values
    n = np.isfinite(pit).sum(-1)
    at = ("observable", "lead_time")
    judged = values["alive"].where(np.isfinite(values["truth"]))  # where a quantity is absent, no member counts as lost
    tau = _tau(values, pit[..., None], members)
    out = {
        "trajectories": (at, n),
        **_worth(values, tau, at),
        "alive": (at, judged.mean("trajectory").fillna(members).transpose(*at).values / members),
        **_ecdf(pit, members, prob, at, tau),
        **_coverage(pit, members, levels, prob, at, tau),
        **_effects(pit[..., None], members, at, tau),
    }
    out |= {name: (("observable",), value) for name, value in _pooled(values, pit[..., None], members).items()}
    wider = widening(n, tau)
    by_trajectory = {name: values[name].transpose("trajectory", ..., *at).values for name in values.data_vars}
    mean, variance, y = by_trajectory["mean"], by_trajectory["variance"], by_trajectory["truth"]
    relation = scores.spread_skill(mean, variance, by_trajectory["alive"], y)
    out |= {
        **_estimate("crps", scores.mean_estimate(by_trajectory["crps"]), at, wider),
        **_estimate("bias", scores.mean_estimate(mean - y), at, wider),
        "spread": (at, relation.spread),
        "rmse": (at, relation.rmse),
        "spread_skill": (at, relation.ratio),
        "spread_skill_lower": (at, relation.ratio * (relation.lower / relation.ratio) ** wider),
        "spread_skill_upper": (at, relation.ratio * (relation.upper / relation.ratio) ** wider),
        "sharpness": (at, scores.mean_estimate(by_trajectory["width"]).value),
    }
    if "crps_reference" in by_trajectory:
        skill = scores.skill_score(by_trajectory["crps"][:, None], by_trajectory["crps_reference"])
        out |= _estimate("skill", skill, ("reference", *at), wider)
    return _dataset(out, values, members, prob, levels)


def field_diagnostics(values: xr.Dataset, *, prob: float = 0.95, levels: Sequence[float] = LEVELS) -> xr.Dataset:
    """Diagnose vectors from their measurements.

    Margins are tested by averages over components, with errors from the variation between trajectories; dependence by multivariate ranks.

    Parameters
    ----------
    values : Dataset
        From `field_values`, one block or several joined along `trajectory`.

    Returns
    -------
    Dataset, dims field, lead_time and
        ======================== ============ ==========================================================================
        trajectories, alive                   as for observables
        p_location, p_dispersion              p-values of no bias and of the right spread, averaged over components
        pooled_location, pooled_p_..., ...    as for observables, components and lead times together (dims field)
        shift, stretch, ..._error, ..._z      as for observables, averaged over components
        coverage, _lower, _upper level        averaged over components, clustered by trajectory; nominal
        joint_p_value            pre_rank     exact p-value of the multivariate ranks
        joint_ecdf_difference    pre_rank, point  with joint_band_lower, joint_band_upper
        joint_rank_count         pre_rank, bin    with joint_rank_expected
        joint_shift, ...         pre_rank     effects of the multivariate ranks
        joint_pooled_...         pre_rank     contrasts and tests with all lead times together (dims field, pre_rank)
        energy_score, _error                  fair energy score
        variogram_score, _error               fair variogram score, order 0.5
        skill, skill_error       reference    1 - energy score / energy score of the reference
        variogram_skill, _error  reference    the same of the variogram score
        ======================== ============ ==========================================================================
    """
    members = _members(values)
    at = ("field", "lead_time")
    pit = values["pit"].transpose(*at, "trajectory", "component").values
    n, tau = np.isfinite(pit).any(-1).sum(-1), _tau(values, pit, members)
    out = {
        "trajectories": (at, n),
        **_worth(values, tau, at),
        "alive": (at, values["alive"].mean("trajectory").transpose(*at).values / members),
        **_clustered_coverage(pit, members, levels, prob, at, tau),
        **_effects(pit, members, at, tau),
    }
    for name, contrast in (("p_location", location), ("p_dispersion", dispersion)):
        out[name] = (at, _t_test(_component_mean(contrast(pit, members)), tau))
    out |= {name: (("field",), value) for name, value in _pooled(values, pit, members).items()}
    out |= _joint(values, members, prob)
    for name, skill in (("energy_score", "skill"), ("variogram_score", "variogram_skill")):
        score = values[name].transpose("trajectory", *at).values
        out |= _estimate(name, scores.mean_estimate(score), at, widening(n, tau))
        if f"{name}_reference" in values:
            reference = values[f"{name}_reference"].transpose("trajectory", "reference", *at).values
            out |= _estimate(skill, scores.skill_score(score[:, None], reference), ("reference", *at), widening(n, tau))
    return _dataset(out, values, members, prob, levels)


def joint_diagnostics(values: xr.Dataset, *, prob: float = 0.95) -> xr.Dataset:
    """Diagnose multivariate ranks `joint_pit` (*batch, pre_rank, trajectory, lead_time): the joint_... variables of `field_diagnostics`."""
    members = _members(values)
    return _dataset(_joint(values, members, prob), values, members, prob, LEVELS)


def rank_diagnostics(pit: xr.DataArray, members: int, *, prob: float = 0.95, levels: Sequence[float] = LEVELS) -> xr.Dataset:
    """Diagnose PIT values (*batch, trajectory) by themselves: the rank tests, coverage and effects of `observable_diagnostics`."""
    pit = pit.transpose(..., "trajectory")
    dims, values, tau = tuple(map(str, pit.dims[:-1])), pit.values, np.ones(pit.shape[:-1])
    found = {
        "trajectories": (dims, np.isfinite(values).sum(-1)),
        **_ecdf(values, members, prob, dims, tau),
        **_coverage(values, members, levels, prob, dims, tau),
        **_effects(values[..., None], members, dims, tau),
    }
    return _dataset(found, pit.to_dataset(name="pit"), members, prob, levels)


# -- parts ------------------------------------------------------------------------------------------------------------------


def _members(values: xr.Dataset) -> int:
    if "members" not in values.attrs:
        raise DataError("the measurements do not say how many members the ensemble has: join blocks with combine_attrs='override'")
    return int(values.attrs["members"])


def _joint(values: xr.Dataset, members: int, prob: float) -> dict:
    joint = values["joint_pit"].transpose(..., "pre_rank", "lead_time", "trajectory")
    dims, pit = tuple(map(str, joint.dims[:-1])), joint.values
    tau = _tau(values, pit[..., None], members)
    found = {**_worth(values, tau, dims), **_ecdf(pit, members, prob, dims, tau), **_effects(pit[..., None], members, dims, tau)}
    found |= {name: (dims[:-1], p) for name, p in _pooled(values, pit[..., None], members).items()}
    return {f"joint_{name}": value for name, value in found.items()}


def _tau(values: xr.Dataset, pit: np.ndarray, members: int) -> np.ndarray:
    """Return the decorrelation time of trials, pit (*batch, trajectory, component): the longer of those of location and dispersion."""
    return decorrelation(values, *(_component_mean(contrast(pit, members)) for contrast in (location, dispersion)))


def _worth(values: xr.Dataset, tau: np.ndarray, dims: tuple[str, ...]) -> dict:
    return {"decorrelation": (dims, tau)} if "recording" in values.coords else {}


def _ecdf(pit: np.ndarray, members: int, prob: float, dims: tuple[str, ...], tau: np.ndarray) -> dict:
    """Return rank ECDF, band, p-value and histogram of pit (*batch, trajectory); NaN may differ between batch entries.

    Dependent trials are tested as their equivalent number of independent ones; the result is NaN if these are too few.
    """
    points = len(rank_law(1, members).cells)
    batch = pit.shape[:-1]
    p_value, difference, lower, upper = (np.full(shape, np.nan) for shape in (batch, *[(*batch, points)] * 3))
    worth = np.maximum(np.isfinite(pit).sum(-1) / tau, 1).astype(int)
    for n, where in _by_count(pit):
        some = _compact(pit[where], n)
        difference[where] = ecdf_difference(some, rank_law(n, members))
        for fewer in np.unique(worth[where]):
            law, here = rank_law(int(fewer), members), where & (worth == fewer)
            p = law.p_value(_compact(pit[here], n)) if fewer == n else law.p_value_of(difference[here])
            p_value[here] = np.where(enough(n, tau[here]), p, 1.0)
            band = law.band(prob)
            lower[here], upper[here] = band.lower - band.level, band.upper - band.level
    histogram = rank_histogram(pit, members, BINS)
    return {
        "p_value": (dims, p_value),
        "ecdf_difference": ((*dims, "point"), difference),
        "band_lower": ((*dims, "point"), lower),
        "band_upper": ((*dims, "point"), upper),
        "rank_count": ((*dims, "bin"), histogram.count),
        "rank_expected": ((*dims, "bin"), histogram.expected),
    }


def _by_count(pit: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    count = np.isfinite(pit).sum(-1)
    for n in np.unique(count[count > 0]):
        yield int(n), count == n


def _compact(pit: np.ndarray, n: int) -> np.ndarray:
    return np.sort(pit, axis=-1)[..., :n]  # NaN last


def _coverage(pit: np.ndarray, members: int, levels: Sequence[float], prob: float, dims: tuple[str, ...], tau: np.ndarray) -> dict:
    covered = np.stack([central_interval(members, level).covers(pit) for level in levels], -1)  # (*batch, trajectory, level)
    n, hits = np.isfinite(covered).sum(-2), np.nansum(covered, -2)
    lower, upper = proportion_interval(hits / tau[..., None], n / tau[..., None], prob)
    with np.errstate(invalid="ignore", divide="ignore"):
        fraction = hits / n
    return {
        "coverage": ((*dims, "level"), fraction),
        "coverage_lower": ((*dims, "level"), lower),
        "coverage_upper": ((*dims, "level"), upper),
    }


def _clustered_coverage(
    pit: np.ndarray, members: int, levels: Sequence[float], prob: float, dims: tuple[str, ...], tau: np.ndarray
) -> dict:
    covered = np.stack([_component_mean(central_interval(members, level).covers(pit)) for level in levels], -1)  # (..., trajectory, level)
    estimate = _widened(scores.mean_estimate(covered, axis=-2), widening(np.isfinite(covered).sum(-2), tau[..., None]))
    lower, upper = estimate.interval(prob)
    return {
        "coverage": ((*dims, "level"), estimate.value),
        "coverage_lower": ((*dims, "level"), np.clip(lower, 0, 1)),
        "coverage_upper": ((*dims, "level"), np.clip(upper, 0, 1)),
    }


def _effects(pit: np.ndarray, members: int, dims: tuple[str, ...], tau: np.ndarray) -> dict:
    """Return shift and stretch of normal scores: pit (*batch, trajectory, component)."""
    variance, spare = normal_score_moments(members)
    score = normal_scores(pit, members)
    n = np.isfinite(score).any(-1).sum(-1)
    worth, wider = n / tau, widening(n, tau)
    shift = scores.mean_estimate(_component_mean(score), axis=-1)
    centre = scores.mean_estimate(score, axis=-2).value[..., None, :]  # of every component
    with np.errstate(invalid="ignore", divide="ignore"):
        square = scores.mean_estimate(_component_mean((score - centre) ** 2) / variance * (n / (n - 1))[..., None], axis=-1)
        stretch = np.sqrt(square.value)
        return {
            "shift": (dims, shift.value / np.sqrt(variance)),
            "shift_error": (dims, wider * shift.error / np.sqrt(variance)),
            "shift_z": (dims, shift.value / np.sqrt(variance / worth)),
            "stretch": (dims, stretch),
            "stretch_error": (dims, wider * square.error / (2 * stretch)),
            "stretch_z": (dims, (square.value - 1) / np.sqrt(spare / worth)),
        }


def pooled_tests(pit: np.ndarray, members: int) -> dict[str, np.ndarray]:
    """Test bias and spread with lead times and components averaged within each trajectory.

    pit (*batch, lead_time, trajectory, component) -> contrasts, their errors and p-values, each (*batch). Trajectories are independent.
    """
    return _pooled(xr.Dataset(), pit, members)


def _pooled(values: xr.Dataset, pit: np.ndarray, members: int) -> dict[str, np.ndarray]:
    pooled = {
        name: _component_mean(np.moveaxis(_component_mean(contrast(pit, members)), -2, -1))  # (*batch, trajectory)
        for name, contrast in (("location", location), ("dispersion", dispersion))
    }
    tau, out = decorrelation(values, *pooled.values()), {}
    for name, series in pooled.items():
        estimate = _widened(scores.mean_estimate(series, axis=-1), widening(np.isfinite(series).sum(-1), tau))
        out[f"pooled_{name}"], out[f"pooled_{name}_error"] = estimate.value, estimate.error
        out[f"pooled_p_{name}"] = _t_test(series, tau)
    return out


def _t_test(values: np.ndarray, tau: np.ndarray) -> np.ndarray:
    """Two-sided p-value of mean 0 for values (*batch, trajectory) with decorrelation times tau (*batch).

    NaN are left out; with fewer than 3 values p = 1.
    """
    n = np.isfinite(values).sum(-1)
    estimate = _widened(scores.mean_estimate(values, axis=-1), widening(n, tau))
    with np.errstate(invalid="ignore", divide="ignore"):
        t = np.where(estimate.value == 0, 0, estimate.value / estimate.error)
        return np.where(enough(n, tau, fewest=3), 2 * stats.t.sf(np.abs(t), np.maximum(n / tau - 1, 1)), 1.0)


def _component_mean(values: np.ndarray) -> np.ndarray:
    return scores.mean_estimate(values, axis=-1).value


def _widened(estimate: scores.Estimate, factor: np.ndarray) -> scores.Estimate:
    return scores.Estimate(estimate.value, estimate.error * factor)


def _estimate(name: str, estimate: scores.Estimate, dims: tuple[str, ...], wider: np.ndarray) -> dict:
    return {name: (dims, estimate.value), f"{name}_error": (dims, estimate.error * wider)}


def _dataset(variables: dict, values: xr.Dataset, members: int, prob: float, levels: Sequence[float]) -> xr.Dataset:
    edges = rank_histogram(np.array([0.5]), members, BINS).edges
    coords = {
        "point": rank_law(1, members).level,
        "bin": (edges[1:] + edges[:-1]) / 2,
        "level": list(levels),
        "nominal": ("level", [central_interval(members, level).nominal for level in levels]),
    }
    kept = {name: coord for name, coord in values.coords.items() if not {"trajectory", "component"} & set(coord.dims)}
    attrs: dict[str, int | float | str] = {"members": members, "prob": prob}
    if "lead_time" in values.coords:
        attrs["time_unit"] = str(values["lead_time"].attrs.get("units", ""))
    if "order" in values.coords:
        attrs["spacing"] = float(values["order"].attrs.get("spacing", 0))  # time between trials, 0 where unknown
    return xr.Dataset(variables, coords={**kept, **coords}, attrs=attrs)
