"""Calibration of the guide and use of the latents: simulation-based calibration, gap between bounds, KL per latent dimension.

Simulation-based calibration (Talts et al. 2018, arXiv:1804.06788): sample z from the model's prior and x' from its emission, then
sample from the guide q(z | x, x'). If q is the exact posterior, z has the same distribution as these samples, so its rank is uniform.
Each entry along `transition` must be independent of the others (one transition of one trajectory each): the latents of the bodies of one
state are components, not more data.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from epns_pyro.calibration import scores
from epns_pyro.calibration.diagnostics import pooled_tests, rank_diagnostics
from epns_pyro.calibration.pit import pit_values
from epns_pyro.calibration.power import FALSE_ALARM, POWER, TOO_NARROW, detection_power
from epns_pyro.calibration.verdicts import Family, Verdict, Word, family, name_effect, percent
from epns_pyro.errors import ShapeError

ACTIVE_NATS = 0.01  # a latent dimension with a smaller mean KL is unused
ACTIVE_VARIANCE = 0.01  # Burda, Grosse & Salakhutdinov 2016, arXiv:1509.00519, section 5.3


def sbc_diagnostics(draws: np.ndarray, truth: np.ndarray, *, rng: np.random.Generator, prob: float = 0.95) -> xr.Dataset:
    """Diagnose the guide from its samples.

    Parameters
    ----------
    draws : (sample, transition, *entity, latent)
        Independent draws of q(z | x, x'); entities (bodies, cells) are optional.
    truth : (transition, *entity, latent)
        The z from which x' was sampled.
    rng : numpy.random.Generator
        Ranks the truth among the samples at random within its rank.

    Returns
    -------
    Dataset, dims latent and entity
        p_value, ecdf_difference, band_lower, band_upper (point), rank_count, rank_expected (bin), coverage (level), shift, stretch,
        ...: as in `observable_diagnostics`; pooled_location, pooled_dispersion, their errors and p-values: over all entities and
        latents together, errors from the variation between transitions; attribute `members`: the number of samples.
    """
    draws, truth = np.asarray(draws, float), np.asarray(truth, float)
    if draws.ndim != truth.ndim + 1 or draws.shape[1:] != truth.shape or truth.ndim < 2:
        raise ShapeError(
            f"expected draws (sample, transition, *entity, latent) and truth (transition, *entity, latent), "
            f"found {draws.shape} and {truth.shape}"
        )
    pit = pit_values(draws, truth, rng.random(truth.shape)).reshape(len(truth), -1, truth.shape[-1])
    labelled = xr.DataArray(pit, dims=("trajectory", "entity", "latent"))
    out = rank_diagnostics(labelled, len(draws), prob=prob)
    return out.assign(pooled_tests(labelled.transpose("latent", "trajectory", "entity").values, len(draws)))


def judge_guide(diagnostics: xr.Dataset, subject: str = "guide") -> Verdict:
    """Return the verdict on the guide, from `sbc_diagnostics`.

    The rule is that of `verdicts`, with the latents of all entities instead of lead times.
    """
    p = diagnostics["p_value"].transpose("entity", "latent").values
    tests = family(p.ravel(), [float(diagnostics[f"pooled_p_{name}"]) for name in ("location", "dispersion")])
    n, draws = int(diagnostics["trajectories"].min()), int(diagnostics.attrs["members"])
    power = detection_power(n, draws, p.size, error=float(diagnostics["pooled_dispersion_error"]))
    word, seen = _guide_word(diagnostics, tests, power, n)
    rule = (
        f"simulation-based calibration: at most {FALSE_ALARM:.0%} false alarms, half for the rank tests of {p.size} latents (Holm), half "
        f"for bias and spread over all of them; {n} transitions, {draws} draws; called calibrated only if {TOO_NARROW.words} would be "
        f"found with probability {POWER:.0%}"
    )
    return Verdict(subject, word, f"{word}{seen}", rule, (), tests.smallest, n, power)


def _guide_word(diagnostics: xr.Dataset, tests: Family, power: float, n: int) -> tuple[Word, str]:
    found = f"{TOO_NARROW.words} would be found in {percent(power)} of such tests"
    if tests.smallest >= FALSE_ALARM and power >= POWER:
        return Word.CALIBRATED, f": no test fails; {found}"
    if tests.smallest >= FALSE_ALARM:
        return Word.TOO_FEW_DATA, f": no test fails, but with {n} transitions, {found}"
    fault = (tests.by_lead_time < FALSE_ALARM).reshape(diagnostics.sizes["entity"], diagnostics.sizes["latent"])
    where = fault if fault.any() else np.ones_like(fault)

    def over_fault(values: xr.DataArray) -> np.ndarray:
        return values.transpose("entity", "latent").values[where]

    shift = np.abs(over_fault(diagnostics["shift"]))
    word = name_effect(np.abs(over_fault(diagnostics["shift_z"])).mean(), over_fault(diagnostics["stretch_z"]).mean())
    here = f" in {fault.any(0).sum()} of {fault.shape[1]} latent dimensions" if fault.any() else " with all latents taken together"
    if word == Word.BIASED:
        return word, f"{here}: true z is {shift.mean():.2f} posterior standard deviations off centre there"
    at = diagnostics.sel(level=0.9)
    return word, f"{here}: {100 * float(at['nominal']):.0f}% intervals of q cover {over_fault(at['coverage']).mean():.0%} there"


@dataclass(frozen=True)
class LatentUsage:
    """How much each latent dimension is used.

    Parameters
    ----------
    kl : (latent,)
        Mean KL(q || p), nats per entity and transition.
    movement : (latent,)
        Variance, over transitions, of the posterior mean in prior standard deviations: 0 if q never leaves the prior.
    active : (latent,) booleans
        Both at least 0.01.
    """

    kl: np.ndarray
    movement: np.ndarray
    active: np.ndarray

    def sentence(self) -> str:
        """Describe how many latents are used."""
        used, total = int(self.active.sum()), len(self.active)
        if used == 0:
            return f"none of {total} latent dimensions is used: the KL is {self.kl.sum():.2g} nats in total"
        order = np.argsort(-self.kl)
        share = np.cumsum(self.kl[order]) / self.kl.sum()
        most = int(np.argmax(share >= 0.9)) + 1
        return (
            f"{used} of {total} latent dimensions are used, with {self.kl.sum():.3g} nats per entity and transition in total, "
            f"90% of them in {most}"
        )


def latent_usage(kl: np.ndarray, posterior_mean: np.ndarray, prior_mean: np.ndarray, prior_scale: np.ndarray) -> LatentUsage:
    """Summarise the use of latents.

    Parameters
    ----------
    kl : (transition, *entity, latent)
        KL(q(z | x, x') || p(z | x)) per dimension, nats.
    posterior_mean, prior_mean, prior_scale : (transition, *entity, latent)
        Means of q and p, standard deviation of p. If the prior mean depends on x, the difference of the means counts.
    """
    kl, moved = np.asarray(kl, float), (np.asarray(posterior_mean, float) - prior_mean) / prior_scale
    if kl.shape != moved.shape or kl.ndim < 2:
        raise ShapeError(f"KL and means must have one shape (transition, *entity, latent), found {kl.shape} and {moved.shape}")
    latents = kl.shape[-1]
    mean_kl, movement = kl.reshape(-1, latents).mean(0), moved.reshape(-1, latents).var(0)
    return LatentUsage(mean_kl, movement, (mean_kl >= ACTIVE_NATS) & (movement >= ACTIVE_VARIANCE))


@dataclass(frozen=True)
class BoundGap:
    """ELBO and IWAE bound per transition and the gap between them, nats, each with its standard error over trajectories."""

    elbo: scores.Estimate
    iwae: scores.Estimate
    gap: scores.Estimate
    samples: int

    def sentence(self) -> str:
        """Describe how loose the ELBO is."""
        gap, error = float(self.gap.value), float(self.gap.error)
        loss = "the guide loses at least this much" if gap > 2 * error else "no loss by the guide was found"
        return (
            f"the bound with {self.samples} importance samples is {gap:.3g} ± {error:.2g} nats "
            f"per transition above the ELBO ({float(self.iwae.value):.4g} and {float(self.elbo.value):.4g}): {loss}"
        )


def bound_gap(elbo: np.ndarray, iwae: np.ndarray, *, transitions: int, samples: int) -> BoundGap:
    """Compare bounds on the log-likelihood.

    elbo, iwae (trajectory,): nats per trajectory of `transitions` steps, iwae with `samples` importance samples.
    """
    elbo, iwae = np.asarray(elbo, float) / transitions, np.asarray(iwae, float) / transitions
    if elbo.shape != iwae.shape or elbo.ndim != 1:
        raise ShapeError(f"expected ELBO and IWAE bounds (trajectory,), found {elbo.shape} and {iwae.shape}")
    return BoundGap(scores.mean_estimate(elbo), scores.mean_estimate(iwae), scores.mean_estimate(iwae - elbo), samples)
