"""Spectra of paths: direct sums, Parseval's theorem, circles, and what must not matter."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from epns_pyro.backbones.bodies.estag import coherence, powers
from epns_pyro.backbones.bodies.spectra import Spectrum, about_centroid, detrended, spectrum

FRAMES, BODIES = 7, 4


def paths(frames: int = FRAMES, space: int = 3, seed: int = 0) -> Tensor:
    x = torch.randn(2, frames, BODIES, space, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x - x[:, -1:]


def everything(x: Tensor) -> Tensor:
    return torch.ones_like(x[..., 0], dtype=torch.bool)


@pytest.mark.parametrize("frames", [2, 3, 7, 10])
def test_spectra_are_direct_sums(frames: int) -> None:
    x = paths(frames)
    found = spectrum(x)
    assert found.real.shape == (2, frames // 2, BODIES, 3)
    for k in range(1, frames // 2 + 1):
        direct = sum(np.exp(-2j * np.pi * k * t / frames) * x[:, t].numpy() for t in range(frames))
        np.testing.assert_allclose(torch.complex(*found).numpy()[:, k - 1], direct, atol=1e-12)
        np.testing.assert_allclose(found.power()[:, k - 1], (abs(direct) ** 2).sum(-1), atol=1e-12)
        cross = np.einsum("bis,bjs->bij", direct.conj(), direct)
        np.testing.assert_allclose(torch.complex(*found.cross()).numpy()[:, k - 1], cross, atol=1e-12)


def test_parseval() -> None:
    x = paths()
    found = spectrum(x, bins=FRAMES - 1).power().sum(-2)
    torch.testing.assert_close(found, FRAMES * (x - x.mean(1, keepdim=True)).square().sum((1, 3)), rtol=1e-12, atol=0)


def test_bins_above_half_are_copies() -> None:
    power = spectrum(paths(), bins=FRAMES - 1).power()
    torch.testing.assert_close(power, power.flip(-2), rtol=1e-12, atol=0)


# -- circles ---------------------------------------------------------------------------------------------------------------


def circle_powers(power: Callable[[Spectrum], Tensor]) -> Tensor:
    """Power of two turns on a circle in ten frames, bins 1 .. 9."""
    angle = 2 * torch.pi * 2 * torch.arange(10, dtype=torch.float64) / 10
    circle = torch.stack([angle.cos(), angle.sin(), torch.zeros_like(angle)], -1)[:, None]
    return power(spectrum(circle, bins=9))[:, 0]


def without_conjugate(found: Spectrum) -> Tensor:
    """The published feature of a body: |sum of F^2 over space|."""
    return (torch.complex(*found) ** 2).sum(-1).abs()


def sees_circles(power: Callable[[Spectrum], Tensor]) -> bool:
    expected = torch.zeros(9, dtype=torch.float64)
    expected[[1, 7]] = 50.0
    return torch.allclose(circle_powers(power), expected, atol=1e-9)


def test_bodies_on_circles_are_seen() -> None:
    assert sees_circles(Spectrum.power)


def test_a_spectrum_without_conjugate_is_caught() -> None:
    assert not sees_circles(without_conjugate)
    assert circle_powers(without_conjugate).max() < 1e-9  # blind


def test_what_networks_read_of_a_circle_is_its_power(monkeypatch: pytest.MonkeyPatch) -> None:
    angle = 2 * torch.pi * 2 * torch.arange(10, dtype=torch.float64) / 10
    found = spectrum(torch.stack([angle.cos(), angle.sin()], -1)[:, None])
    size, share = powers(found)
    assert size[0, 1] == pytest.approx(np.log(51))
    assert share[0, 1] == pytest.approx(50 / 51)
    monkeypatch.setattr(Spectrum, "power", without_conjugate)
    assert powers(found)[0].abs().max() < 1e-9


def test_the_phase_says_who_is_ahead() -> None:
    """The imaginary part changes sign with the order of two bodies, and with the direction of time; the absolute value loses that."""
    t = torch.arange(8, dtype=torch.float64) * 2 * torch.pi / 8
    x = torch.stack([torch.stack([t.cos(), t.sin()], -1), torch.stack([(t - 0.6).cos(), (t - 0.6).sin()], -1)], 1)
    real, imaginary = spectrum(x).cross()[:, 0]
    assert real[0, 1] == pytest.approx(32 * np.cos(0.6))
    assert imaginary[0, 1] == pytest.approx(-32 * np.sin(0.6))
    torch.testing.assert_close(imaginary, -imaginary.mT, rtol=0, atol=1e-12)
    torch.testing.assert_close(spectrum(x.flip(0)).cross()[1, 0], -imaginary, rtol=0, atol=1e-9)


# -- what must not matter --------------------------------------------------------------------------------------------------


def test_every_frame_may_be_shifted_by_a_vector_of_its_own() -> None:
    x = paths()
    shift = torch.randn(2, FRAMES, 1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    moved = x + shift - shift[:, -1:]
    plain, shifted = (spectrum(detrended(about_centroid(each, everything(x)), everything(x))[0]) for each in (x, moved))
    for a, b in zip(plain, shifted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert (spectrum(moved).power() - spectrum(x).power()).abs().max() > 1e-2


def test_paths_about_the_centroid_are_those_of_the_publication() -> None:
    """Up to a constant per body, which no bin but the mean sees."""
    x = paths()
    plain, ours = spectrum(x - x.mean(-2, keepdim=True)), spectrum(about_centroid(x, everything(x)))
    for a, b in zip(plain, ours, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_a_drift_fills_no_bins() -> None:
    slope = torch.tensor([3.0, -1.0, 0.5], dtype=torch.float64)
    drift = torch.arange(1 - FRAMES, 1, dtype=torch.float64)[:, None, None] * slope
    left, found = detrended(drift, everything(drift))
    torch.testing.assert_close(found, slope[None], rtol=1e-12, atol=0)
    assert spectrum(left).power().max() < 1e-20
    assert spectrum(drift).power().min() > 1


def test_lines_are_fitted_where_bodies_are_known() -> None:
    x = paths()[0]
    known = torch.ones(FRAMES, BODIES, dtype=torch.bool)
    known[:3, 1], known[: FRAMES - 1, 2], known[:, 3] = False, False, False
    left, slope = (part.numpy() for part in detrended(x, known))
    for body, first in ((0, 0), (1, 3)):
        t = np.arange(first, FRAMES)
        for axis in range(3):
            fit = np.polyfit(t, x[first:, body, axis].numpy(), 1)
            assert slope[body, axis] == pytest.approx(fit[0])
            np.testing.assert_allclose(left[first:, body, axis], x[first:, body, axis].numpy() - np.polyval(fit, t), atol=1e-12)
    assert not left[~known].any()
    assert not slope[2:].any()  # of one frame, and of none


def test_a_body_that_enters_does_not_make_the_centroid_jump() -> None:
    still = torch.zeros(FRAMES, BODIES, 3, dtype=torch.float64)  # one is known from the fourth frame on
    known = everything(still)
    known[:3, 0] = False
    moving = torch.arange(1 - FRAMES, 1, dtype=torch.float64)[:, None, None].expand(-1, BODIES, 3)
    for x in (still, moving):
        found = about_centroid(x * known[..., None], known)
        assert found.abs().max() < 1e-12


def test_coherence_is_bounded() -> None:
    found = coherence(spectrum(1e6 * paths()))
    assert found.shape == (2, BODIES, BODIES, 2 * (FRAMES // 2))
    assert found.abs().max() <= 1
    torch.testing.assert_close(coherence(spectrum(0 * paths())), torch.zeros_like(found))
