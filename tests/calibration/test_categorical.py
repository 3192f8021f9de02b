"""Label fields: fair Brier score, reliability beside what a perfect ensemble shows, one verdict per field."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy.ndimage import gaussian_filter

from epns_pyro.calibration import categorical as c
from epns_pyro.calibration import scores
from epns_pyro.calibration.verdicts import Word, judge_labels
from epns_pyro.errors import DataError

SIZE = 10


def images(rng: np.random.Generator, base: np.ndarray, batch: tuple[int, ...], noise: float) -> xr.DataArray:
    """Thresholds of a smooth field: labels 0, 1, 2; base (trajectory, y, x)."""
    field = gaussian_filter(rng.normal(size=(*batch, SIZE, SIZE)), (0,) * len(batch) + (2, 2))
    values = np.digitize(noise * field + base[:, None], [-0.1, 0.1])
    return xr.DataArray(values, dims=("sample", "trajectory", "time", "y", "x")[-len(batch) - 2 :], coords={"time": [0.0, 1.0, 2.0, 3.0]})


def drawn(noise: float, true_noise: float = 1.0, n: int = 60, members: int = 20, seed: int = 0) -> tuple[xr.DataArray, xr.DataArray]:
    rng = np.random.default_rng(seed)
    base = gaussian_filter(rng.normal(size=(n, SIZE, SIZE)), (0, 2, 2))
    return images(rng, base, (members, n, 4), noise), images(rng, base, (n, 4), true_noise)


def diagnosed(noise: float, **options) -> xr.Dataset:
    return c.label_diagnostics(c.label_values(*drawn(noise, **options), rng=np.random.default_rng(1)))


@pytest.mark.parametrize(
    ("noise", "true_noise", "word"),
    [(1.0, 1.0, Word.CALIBRATED), (0.3, 1.0, Word.OVER_CONFIDENT), (1.0, 0.3, Word.UNDER_CONFIDENT)],
)
def test_each_defect_is_called_by_its_name(noise, true_noise, word):
    verdict = judge_labels(diagnosed(noise, true_noise=true_noise, n=120), "cell")
    assert verdict.word == word
    assert verdict.subject == "cell"


@pytest.mark.parametrize("members", [2, 3, 8, 9, 20])
def test_ranks_and_probabilities_have_bins_of_their_own(members):
    found = diagnosed(0.3, members=members)
    assert found.sizes["rank_bin"] == min(members + 1, 10)
    assert found.sizes["bin"] == 10
    assert found["joint_rank_count"].sum("rank_bin").max() == 60
    assert 0 < found["bin"].min() < found["bin"].max() < 1


def test_few_images_say_nothing():
    verdict = judge_labels(diagnosed(1.0, n=12), "cell")
    assert verdict.word == Word.TOO_FEW_DATA
    assert "an agreement that is off by half a standard deviation" in verdict.sentence


def test_reliability_of_a_perfect_ensemble_is_what_is_expected_and_not_the_diagonal():
    found = diagnosed(1.0, n=200, members=10).isel(lead_time=0)
    off = (found["frequency"] - found["expected_frequency"]) / found["frequency_error"]
    assert np.abs(off).max() < 4.5
    from_diagonal = (found["frequency"] - found["forecast_probability"]) / found["frequency_error"]
    assert np.abs(from_diagonal).max() > 6
    narrow = diagnosed(0.3, n=200, members=10).isel(lead_time=0)
    assert np.abs((narrow["frequency"] - narrow["expected_frequency"]) / narrow["frequency_error"]).max() > 10


def test_the_brier_score_is_that_of_the_definition_and_unbiased():
    rng = np.random.default_rng(0)
    members, y = rng.integers(0, 4, (7, 30)), rng.integers(0, 4, 30)
    counts = c.label_counts(members, 4)
    np.testing.assert_array_equal(counts.sum(1), 7)
    np.testing.assert_array_equal(counts[:, 2], (members == 2).sum(0))
    p = counts / 7
    by_hand = (((p - np.eye(4)[y]) ** 2).sum(1) - (p * (1 - p)).sum(1) / 6).mean()
    assert c.fair_brier(counts, 7, y) == pytest.approx(by_hand)
    law = np.array([0.7, 0.2, 0.1])
    y = rng.choice(3, 20_000, p=law)
    few = c.fair_brier(c.label_counts(rng.choice(3, (3, 20_000), p=law), 3), 3, y)
    assert few == pytest.approx(scores.brier_score(np.broadcast_to(law, (20_000, 3)), y).mean(), abs=0.02)


def test_sums_count_every_pair_once_and_pieces_join():
    forecast, truth = drawn(1.0, n=6)
    naive = {"naive": forecast.isel(sample=slice(3))}
    whole = c.label_values(forecast, truth, rng=np.random.default_rng(1), references=naive)
    np.testing.assert_allclose(whole["pairs"].sum("bin"), 3 * SIZE**2)
    np.testing.assert_allclose(whole["happened"].sum("bin"), SIZE**2)
    np.testing.assert_allclose(whole["expected"].sum("bin"), SIZE**2)  # the truth shows one label at every site
    np.testing.assert_allclose(whole["expected_pairs"].sum("bin"), 3 * SIZE**2)
    np.testing.assert_allclose(whole["probability"].sum("bin"), SIZE**2)
    rng = np.random.default_rng(1)
    pieces = [
        c.label_values(
            forecast.isel(trajectory=part), truth.isel(trajectory=part), rng=rng, references={"naive": naive["naive"].isel(trajectory=part)}
        )
        for part in (slice(0, 4), slice(4, 6))
    ]
    xr.testing.assert_allclose(xr.concat(pieces, "trajectory"), whole)
    found = c.label_diagnostics(whole)
    assert found["skill"].dims == ("reference", "lead_time")
    ratio = whole["brier"].mean("trajectory") / whole["brier_reference"].mean("trajectory").sel(reference="naive")
    np.testing.assert_allclose(found["skill"].sel(reference="naive"), 1 - ratio)


def test_dead_members_are_left_out():
    forecast, truth = drawn(1.0, n=5)
    alive = xr.DataArray(np.ones((20, 5, 4), bool), dims=("sample", "trajectory", "time"), coords={"time": forecast["time"]})
    alive[6:, 2, 3] = False
    alive[1:, 4, 3] = False
    found = c.label_values(forecast, truth, rng=np.random.default_rng(1), alive=alive)
    few = c.label_values(forecast.isel(sample=slice(6)), truth, rng=np.random.default_rng(1))
    at = {"trajectory": 2, "lead_time": 2}
    assert found["brier"].isel(at) == few["brier"].isel(at)
    assert found["joint_pit"].isel(at) == few["joint_pit"].isel(at)
    assert np.isnan(found["brier"].isel(trajectory=4, lead_time=2))
    assert c.label_diagnostics(found)["trajectories"].values.tolist() == [5, 5, 4]


def test_what_is_no_label_is_refused():
    forecast, truth = drawn(1.0, n=2)
    with pytest.raises(DataError, match="must hold integers from 0, found dtype float64"):
        c.label_values(forecast.astype(float), truth, rng=np.random.default_rng(0))
    with pytest.raises(DataError, match="least value -1"):
        c.label_values(forecast, truth - 1, rng=np.random.default_rng(0))
    with pytest.raises(DataError, match="the forecast of a label field has no dim 'sample'"):
        c.label_values(truth, truth, rng=np.random.default_rng(0))
