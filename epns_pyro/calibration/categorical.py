"""Forecasts of labels on a lattice: at every pixel, the probability of a label is the fraction of members that have it.

Pixels of one trajectory are dependent, so nothing here has a band over pixels: standard errors come from the variation between
trajectories. The verdict on a label field is a rank test with ONE value per trajectory: how well an image agrees with the pool of
truth and members.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from epns_pyro.calibration import scores
from epns_pyro.calibration.dependence import widening
from epns_pyro.calibration.diagnostics import joint_diagnostics
from epns_pyro.calibration.measurements import choose_lead_times
from epns_pyro.calibration.pit import pit_values
from epns_pyro.errors import DataError

BINS = 10


def label_values(
    forecast: xr.DataArray,
    truth: xr.DataArray,
    *,
    rng: np.random.Generator,
    alive: xr.DataArray | None = None,
    lead_times: Sequence[float] | None = None,
    references: Mapping[str, xr.DataArray] | None = None,
) -> xr.Dataset:
    """Measure a label field, trajectory by trajectory; blocks can be joined along `trajectory`.

    Parameters
    ----------
    forecast : DataArray, (sample, trajectory, time, *site)
        Integer labels from 0; at least 2 samples.
    truth : DataArray, (trajectory, time, *site)
    rng : numpy.random.Generator
        Ranks the truth at random among members that agree with the pool equally well.
    alive : DataArray, (sample, trajectory, time) booleans, optional
        Members that are not alive are left out.
    lead_times : sequence of float, optional
        As for `observable_values`.
    references : mapping of str to DataArray, optional
        Naive forecasts of the same trajectories.

    Returns
    -------
    Dataset, dims (trajectory, lead_time) and more
        joint_pit (pre_rank = "agreement"): PIT value of the mean share of the pool that shows the same label as an image; brier and
        log_score, per site, and brier_reference (reference); alive; and, for the reliability diagram, sums over sites and labels by bin
        of the forecast probability: pairs, probability, happened, and expected_pairs, expected: their averages if any image of the pool
        of truth and members could be the truth.
    """
    _check(forecast, truth)
    references = references or {}
    chosen = choose_lead_times(forecast.to_dataset(name="label"), lead_times)
    forecast, truth, *others = (x.sel(time=chosen, method="nearest") for x in (forecast, truth, *references.values()))
    living = np.ones(tuple(forecast.sizes[d] for d in ("sample", "trajectory", "time")), bool)
    if alive is not None:
        living = alive.sel(time=chosen, method="nearest").transpose("sample", "trajectory", "time").values.astype(bool)
    n = truth.sizes["trajectory"]
    uniforms = rng.random((n, len(chosen)))
    measured = []
    for i in range(n):
        y, *ensembles = (_images(x.isel(trajectory=i)) for x in (truth, forecast, *others))
        for t in range(len(chosen)):
            members, *naive = (x[:, t] for x in ensembles)
            measured.append(_image_values(members[living[:, i, t]], y[0, t], uniforms[i, t], naive))
    table = {name: np.array([one[name] for one in measured]).reshape(n, len(chosen), *np.shape(measured[0][name])) for name in measured[0]}
    lead = ("trajectory", "lead_time")
    out = xr.Dataset({name: ((*lead, *_DIMS.get(name, ())), value) for name, value in table.items() if name != "brier_reference"})
    if references:
        out["brier_reference"] = ((*lead, "reference"), table["brier_reference"])
        out = out.assign_coords(reference=list(references))
    out = out.assign_coords(lead_time=("lead_time", chosen, dict(forecast["time"].attrs)), pre_rank=["agreement"])
    return out.assign_attrs(members=int(forecast.sizes["sample"]), bin_edges=np.linspace(0, 1, BINS + 1).tolist())


def _images(data: xr.DataArray) -> np.ndarray:
    """Return labels of one trajectory as (sample, time, site); the truth is one sample."""
    data = data if "sample" in data.dims else data.expand_dims("sample")
    data = data.transpose("sample", "time", ...)
    return data.values.reshape(*data.shape[:2], -1)


def label_diagnostics(values: xr.Dataset, *, prob: float = 0.95) -> xr.Dataset:
    """Diagnose a label field from its measurements.

    Returns
    -------
    Dataset
        Every variable has the dim `lead_time`; further dims are in the second column.

        ============================== ============ ====================================================================
        joint_p_value, joint_...       pre_rank     rank test of the agreement with the pool, as in `field_diagnostics` (with rank_bin)
        forecast_probability           bin          mean forecast probability of the pairs of site and label in a bin
        frequency, frequency_error     bin          how often the label was present, error clustered by trajectory
        expected_frequency             bin          what a perfect ensemble of this size shows: NOT the diagonal, because
                                                    the frequency among few members is noisy
        pairs                          bin          number of pairs of site and label
        brier, brier_error                          Brier score per site, fair
        log_score, log_score_error                  logarithmic score per site, nats, one pseudo-member spread over all labels
        skill, skill_error             reference    1 - Brier / Brier of the reference
        trajectories, alive                         as for observables
        ============================== ============ ====================================================================
    """
    members = int(values.attrs["members"])
    out = joint_diagnostics(values, prob=prob).rename(bin="rank_bin")  # bins of ranks, fewer in small ensembles
    n = np.isfinite(values["joint_pit"].isel(pre_rank=0).transpose("trajectory", "lead_time").values).sum(0)
    wider = widening(n, out["joint_decorrelation"].values[0]) if "joint_decorrelation" in out else np.ones(n.shape)
    out["trajectories"] = ("lead_time", n)
    binned = {name: values[name].transpose("trajectory", "lead_time", "bin").values for name in _BINNED}
    frequency = scores.ratio_of_means(binned["happened"], binned["pairs"])
    at = ("lead_time", "bin")
    out["forecast_probability"] = (at, scores.ratio_of_means(binned["probability"], binned["pairs"]).value)
    out["frequency"], out["frequency_error"] = (at, frequency.value), (at, frequency.error * wider[:, None])
    out["expected_frequency"] = (at, scores.ratio_of_means(binned["expected"], binned["expected_pairs"]).value)
    out["pairs"] = (at, binned["pairs"].sum(0))
    for name in ("brier", "log_score"):
        estimate = scores.mean_estimate(values[name].transpose("trajectory", "lead_time").values)
        out[name], out[f"{name}_error"] = ("lead_time", estimate.value), ("lead_time", estimate.error * wider)
    if "brier_reference" in values:
        brier = values["brier"].transpose("trajectory", "lead_time").values
        skill = scores.skill_score(brier[:, None], values["brier_reference"].transpose("trajectory", "reference", "lead_time").values)
        out["skill"], out["skill_error"] = (("reference", "lead_time"), skill.value), (("reference", "lead_time"), skill.error * wider)
        out = out.assign_coords(reference=values["reference"])
    out["alive"] = ("lead_time", values["alive"].mean("trajectory").values / members)
    edges = np.asarray(values.attrs["bin_edges"])
    return out.assign_coords(bin=(edges[1:] + edges[:-1]) / 2)


_BINNED = ("pairs", "probability", "happened", "expected_pairs", "expected")


_DIMS = {"joint_pit": ("pre_rank",), **{name: ("bin",) for name in _BINNED}}


def _image_values(images: np.ndarray, y: np.ndarray, uniform: float, references: list[np.ndarray]) -> dict[str, np.ndarray | float]:
    """Measure one image: members and references images (sample, site), truth y (site,)."""
    m = len(images)
    size = int(max(x.max(initial=0) for x in (images, y, *references))) + 1
    out: dict[str, np.ndarray | float] = {
        "alive": m,
        "joint_pit": np.full(1, np.nan),
        "brier": np.nan,
        "log_score": np.nan,
        **{name: np.zeros(BINS) for name in _BINNED},
    }
    if m >= 2:
        counts = label_counts(images, size)
        out |= {
            "joint_pit": _agreement_pit(counts, images, y, uniform),
            "brier": fair_brier(counts, m, y),
            "log_score": _log_score(counts, m, y),
            **_reliability(counts, m, y),
        }
    out["brier_reference"] = np.array([fair_brier(label_counts(x, size), len(x), y) for x in references])
    return out


def label_counts(images: np.ndarray, size: int) -> np.ndarray:
    """Count the members with each label at each site: images (sample, site) of labels below `size` -> (site, label)."""
    sites = images.shape[1]
    flat = images.astype(np.int64) + np.arange(sites) * size
    return np.bincount(flat.ravel(), minlength=sites * size).reshape(sites, size)


def fair_brier(counts: np.ndarray, members: int, y: np.ndarray) -> float:
    """Return the Brier score per site, unbiased for finite ensembles: subtracts p (1 - p) / (m - 1); counts (site, label), y (site,)."""
    p = counts / members
    return float((scores.brier_score(p, y) - (p * (1 - p)).sum(-1) / (members - 1)).mean())


def _log_score(counts: np.ndarray, members: int, y: np.ndarray) -> float:
    labels = counts.shape[1]
    return float(scores.log_score_categorical((counts + 1 / labels) / (members + 1), y).mean())


def _agreement_pit(counts: np.ndarray, images: np.ndarray, y: np.ndarray, uniform: float) -> np.ndarray:
    site = np.arange(len(y))
    pool = counts.copy()
    pool[site, y] += 1
    of_truth = pool[site, y].sum()  # integers, so ties are exact
    of_members = pool[site, images].sum(1)
    return pit_values(of_members[:, None], of_truth[None], np.array([uniform]))


def _reliability(counts: np.ndarray, m: int, y: np.ndarray) -> dict[str, np.ndarray]:
    """Return sums over pairs of site and label, by bin of forecast probability.

    If truth and members have the same distribution, each of the m + 1 images of the pool could be the truth: if t of them have a label, the
    truth has it with probability t / (m + 1), and then t - 1 members have it.
    """
    # every pair has a count in 0 .. m, or 0 .. m + 1 with the truth: sum by count first, then by bin
    pairs = np.bincount(counts.ravel(), minlength=m + 1).astype(float)
    shown = np.bincount(counts[np.arange(len(y)), y], minlength=m + 1).astype(float)
    pool = np.append(pairs - shown, 0)
    pool[1:] += shown
    total = np.arange(m + 2)
    truth_shows = pool * total / (m + 1)
    count = np.arange(m + 1)
    expected, rest = truth_shows[1:], (pool - truth_shows)[:-1]  # by count of members: one less if the truth has the label, or the same
    bins = np.minimum(count * BINS // m, BINS - 1)
    sums = {"pairs": pairs, "probability": pairs * count / m, "happened": shown, "expected_pairs": expected + rest, "expected": expected}
    return {name: np.bincount(bins, weight, BINS) for name, weight in sums.items()}


def _check(forecast: xr.DataArray, truth: xr.DataArray) -> None:
    for what, data, dims in (("forecast", forecast, ("sample", "trajectory", "time")), ("truth", truth, ("trajectory", "time"))):
        if missing := [d for d in dims if d not in data.dims]:
            raise DataError(f"the {what} of a label field has no dim {missing[0]!r}, found {data.dims}")
        if not np.issubdtype(data.dtype, np.integer) or int(data.min()) < 0:
            raise DataError(
                f"the {what} of a label field must hold integers from 0, found dtype {data.dtype}, least value {data.min().item()}"
            )
