"""The guide: exact posteriors pass simulation-based calibration, wrong ones are named; idle latents are seen."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from epns_pyro.calibration import sbc
from epns_pyro.calibration.verdicts import Word
from epns_pyro.errors import ShapeError


def model(rng: np.random.Generator, *, width: float = 1.0, shift: float = 0.0, transitions: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """z ~ N(0, 1), x' = z + N(0, 1): the posterior is N(x' / 2, 1 / 2). Draws of a guide that is off by width and shift, and the true z."""
    z = rng.normal(size=(transitions, 3, 2))
    x = z + rng.normal(size=z.shape)
    draws = x / 2 + np.sqrt(0.5) * (width * rng.normal(size=(49, *z.shape)) + shift)
    return draws, z


@pytest.mark.parametrize(
    ("width", "shift", "word"),
    [(1.0, 0.0, Word.CALIBRATED), (0.7, 0.0, Word.OVER_CONFIDENT), (1.5, 0.0, Word.UNDER_CONFIDENT), (1.0, 0.6, Word.BIASED)],
)
def test_guides_are_called_by_their_name(width, shift, word):
    rng = np.random.default_rng(0)
    verdict = sbc.judge_guide(sbc.sbc_diagnostics(*model(rng, width=width, shift=shift), rng=rng))
    assert verdict.word == word
    assert verdict.sentence.startswith(str(word))
    assert "120 transitions, 49 draws" in verdict.rule


def test_an_exact_guide_passes_at_the_stated_rate():
    rng = np.random.default_rng(0)
    alarms = sum(
        sbc.judge_guide(sbc.sbc_diagnostics(*model(rng, transitions=40), rng=rng)).word not in (Word.CALIBRATED, Word.TOO_FEW_DATA)
        for _ in range(150)
    )
    assert alarms <= stats.binom.isf(1e-6, 150, 0.05)


def test_one_bad_latent_is_counted():
    rng = np.random.default_rng(0)
    draws, z = model(rng, transitions=200)
    draws[..., 1] = draws[..., 1].mean(0) + 0.4 * (draws[..., 1] - draws[..., 1].mean(0))
    verdict = sbc.judge_guide(sbc.sbc_diagnostics(draws, z, rng=rng))
    assert verdict.sentence.startswith("over-confident in 1 of 2 latent dimensions: 92% intervals of q cover ")


def test_few_transitions_say_nothing():
    rng = np.random.default_rng(0)
    assert sbc.judge_guide(sbc.sbc_diagnostics(*model(rng, transitions=6), rng=rng)).word == Word.TOO_FEW_DATA


def test_diagnostics_are_labelled_and_entities_optional():
    rng = np.random.default_rng(0)
    draws, z = model(rng)
    found = sbc.sbc_diagnostics(draws, z, rng=rng)
    assert dict(found["p_value"].sizes) == {"entity": 3, "latent": 2}
    assert found.attrs["members"] == 49
    np.testing.assert_allclose(found["coverage"].mean(), found["nominal"].mean(), atol=0.05)
    assert sbc.sbc_diagnostics(draws[:, :, 0], z[:, 0], rng=rng).sizes["entity"] == 1
    with pytest.raises(ShapeError, match=r"found \(49, 120, 3, 2\) and \(120, 2\)"):
        sbc.sbc_diagnostics(draws, z[:, 0], rng=rng)


def test_idle_latents_are_seen():
    rng = np.random.default_rng(0)
    prior = rng.normal(size=(300, 5, 4))  # the prior itself moves: that is no use of the latents
    moved = rng.normal(size=(300, 5, 4)) * [1.0, 0.5, 0.0, 0.01]
    kl = moved**2 / 2
    usage = sbc.latent_usage(kl, prior + 2 * moved, prior, np.full_like(prior, 2.0))
    assert usage.active.tolist() == [True, True, False, False]
    np.testing.assert_allclose(usage.kl, kl.mean((0, 1)))
    np.testing.assert_allclose(usage.movement, moved.reshape(-1, 4).var(0), atol=1e-12)
    assert usage.sentence().startswith("2 of 4 latent dimensions are used, with 0.6")
    stuck = sbc.latent_usage(kl + 1, prior + 3, prior, np.ones_like(prior))  # far from the prior, but always at the same place
    assert not stuck.active.any()
    faint = sbc.latent_usage(0.006 + 0 * kl, prior + 0.12 * rng.normal(size=prior.shape), prior, np.ones_like(prior))
    assert not faint.active.any()  # it moves, but it says less than a hundredth of a nat
    idle = sbc.latent_usage(0 * kl, prior, prior, np.ones_like(prior))
    assert idle.sentence() == "none of 4 latent dimensions is used: the KL is 0 nats in total"
    with pytest.raises(ShapeError, match="must have one shape"):
        sbc.latent_usage(kl[0], prior, prior, prior)


def test_the_gap_is_paired():
    rng = np.random.default_rng(0)
    elbo = rng.normal(1000, 100, 50)
    gap = sbc.bound_gap(elbo, elbo + 20 + rng.normal(size=50), transitions=10, samples=64)
    assert gap.gap.value == pytest.approx(2, abs=0.1)
    assert gap.gap.error < gap.elbo.error / 10
    assert gap.sentence().startswith("the bound with 64 importance samples is 2 ± 0.01")
    assert gap.sentence().endswith("the guide loses at least this much")
    assert (
        sbc.bound_gap(elbo, elbo + rng.normal(size=50) - 1, transitions=10, samples=64)
        .sentence()
        .endswith("no loss by the guide was found")
    )
    with pytest.raises(ShapeError, match=r"found \(50,\) and \(3,\)"):
        sbc.bound_gap(elbo, elbo[:3], transitions=10, samples=64)
