"""Verdicts on forecasters of known calibration, by their names and at the stated rate. False-failure rate of a statistical test: 1e-6."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from epns_pyro.calibration import verdicts as v
from epns_pyro.calibration.diagnostics import diagnose, diagnose_fields
from epns_pyro.calibration.known import KNOWN, KnownForecaster
from epns_pyro.calibration.measurements import as_paths
from epns_pyro.calibration.power import FALSE_ALARM, POWER, TOO_NARROW, detection_power, times, times_as_many
from epns_pyro.calibration.verdicts import Word

SCALARS = ["level", "count"]
FALSE_FAILURE = 1e-6


def judged(forecaster: KnownForecaster, rng: np.random.Generator, *, trajectories: int, members: int, steps: int) -> dict[str, v.Verdict]:
    forecast, truth = forecaster.draw(rng, trajectories=trajectories, members=members, steps=steps)
    found = v.judge_observables(diagnose(forecast[SCALARS], truth[SCALARS], rng=rng))
    found += v.judge_fields(diagnose_fields(forecast[["vector"]], truth[["vector"]], rng=rng))
    return {one.subject: one for one in found}


def most(rate: float, n: int) -> int:
    """The most hits in n trials of probability `rate` that chance allows."""
    return int(stats.binom.isf(FALSE_FAILURE, n, rate))


@pytest.mark.parametrize("kind", KNOWN)
def test_every_defect_is_called_by_its_name(kind):
    rng, right = np.random.default_rng(0), Counter()
    for _ in range(8):
        for subject, verdict in judged(KNOWN[kind], rng, trajectories=100, members=40, steps=5).items():
            right[subject] += verdict.word == (KNOWN[kind].vector if subject == "vector" else KNOWN[kind].margins)
    assert min(right[subject] for subject in ("level", "count", "vector")) >= 6  # 1 in 20 of the calibrated may be faulted


def false_alarms(repetitions: int, seed: int, **size: int) -> Counter[str]:
    rng, alarms = np.random.default_rng(seed), Counter()
    for _ in range(repetitions):
        for subject, verdict in judged(KNOWN["perfect"], rng, **size).items():
            alarms[subject] += verdict.word not in (Word.CALIBRATED, Word.TOO_FEW_DATA)
    return alarms


def test_a_perfect_forecaster_passes_at_the_stated_rate():
    alarms = false_alarms(200, 0, trajectories=40, members=15, steps=2)
    assert max(alarms.values()) <= most(FALSE_ALARM, 200)


@pytest.mark.slow
def test_a_perfect_forecaster_passes_at_the_stated_rate_in_a_thousand_repetitions():
    alarms = false_alarms(1000, 1, trajectories=100, members=50, steps=10)
    assert max(alarms.values()) <= most(FALSE_ALARM, 1000)
    assert min(alarms.values()) >= 5  # and the tests do fire: they are not merely asleep


def test_too_few_trajectories_say_nothing():
    rng = np.random.default_rng(0)
    for n in (2, 5, 12):
        verdicts = judged(KNOWN["perfect"], rng, trajectories=n, members=20, steps=3)
        assert {one.word for one in verdicts.values()} == {Word.TOO_FEW_DATA}
        assert all(one.power < POWER for one in verdicts.values())
    assert f"with {n} trajectories, 90% intervals that cover 70% would be found in" in verdicts["level"].sentence
    assert f"with {n} trajectories, 90% intervals of components that cover 70% would be found in" in verdicts["vector"].sentence
    loud = judged(KnownForecaster(Word.BIASED, Word.BIASED, shift=5.0), rng, trajectories=12, members=20, steps=3)
    assert {one.word for one in loud.values()} == {Word.BIASED}  # few data can still be enough to find fault


def test_a_verdict_says_what_its_power_is_against():
    verdicts = judged(KNOWN["perfect"], np.random.default_rng(0), trajectories=100, members=40, steps=3)
    assert {verdicts[name].word for name in ("level", "vector")} == {Word.CALIBRATED}
    assert verdicts["level"].sentence.endswith("90% intervals that cover 70% would be found in over 99% of such tests")
    assert "90% intervals of components that cover 70% would be found in over 99% of such tests; " in verdicts["vector"].sentence
    assert verdicts["vector"].sentence.endswith("; the power against wrong dependence is not known")
    assert "only if 90% intervals of components that cover 70% at every lead time" in verdicts["vector"].rule


def test_the_power_that_is_claimed_is_the_power_that_there_is():
    narrow = KnownForecaster(Word.OVER_CONFIDENT, Word.OVER_CONFIDENT, spread=TOO_NARROW.spread)
    rng, found, claimed = np.random.default_rng(0), 0, []
    for _ in range(100):
        forecast, truth = narrow.draw(rng, trajectories=30, members=30, steps=4)
        (verdict,) = v.judge_observables(diagnose(forecast[["level"]], truth[["level"]], rng=rng))
        found += verdict.word not in (Word.CALIBRATED, Word.TOO_FEW_DATA)
        right, truth = KNOWN["perfect"].draw(rng, trajectories=30, members=30, steps=4)
        (verdict,) = v.judge_observables(diagnose(right[["level"]], truth[["level"]], rng=rng))
        claimed.append(verdict.power)
    claimed = np.mean(claimed)
    assert 0.3 < claimed < 0.95
    assert found / 100 > claimed - 4.9 * np.sqrt(claimed * (1 - claimed) / 100)  # no more is claimed than there is
    assert found / 100 < claimed + 0.2


def test_power_grows_with_trajectories_and_members_and_shrinks_with_tests():
    power = detection_power
    assert power(30, 20, 5) < power(60, 20, 5) < power(120, 20, 5)
    assert power(40, 5, 5) < power(40, 50, 5)
    assert power(40, 20, 10, share=0.25) < power(40, 20, 10)
    assert power(40, 20, 10, error=0.05) > power(40, 20, 10)
    assert power(9, 100, 1) == power(100, 1, 1) == 0


@pytest.mark.parametrize(("n", "tau", "error"), [(20, 1.0, math.nan), (12, 1.0, 0.2), (15, 2.1, 0.3), (40, 4.0, 0.5)])
def test_so_many_data_as_are_asked_for_have_the_power(n, tau, error):
    """And a tenth less have not, unless the number of independent trials is what was missing."""
    factor = times_as_many(n, tau, 20, error=error)
    assert factor > 1
    larger, smaller = (int(n * some / tau) for some in (factor, factor / 1.1))
    assert detection_power(larger, 20, 1, error=error / factor**0.5) >= POWER
    assert detection_power(smaller, 20, 99, error=error / (factor / 1.1) ** 0.5) < POWER or n * factor / 1.1 < 15 * tau


def test_more_data_are_asked_for_where_they_are_too_few():
    verdicts = judged(KNOWN["perfect"], np.random.default_rng(0), trajectories=12, members=20, steps=3)
    assert all(one.sentence.endswith(f"; {times(one.more)} as many would do") and 1 < one.more < 10 for one in verdicts.values())
    (enough,) = {one.word for one in judged(KNOWN["perfect"], np.random.default_rng(1), trajectories=150, members=40, steps=3).values()}
    assert enough == Word.CALIBRATED
    assert math.isnan(times_as_many(100, 1.0, 1)), "one member has no intervals, however many data there are"
    assert [times(factor) for factor in (1.1, 1.91, 2.99, 3.0, 7.2)] == ["1.1 times", "2.0 times", "3.0 times", "3 times", "8 times"]


def test_holm_equals_its_definition():
    p = np.array([0.01, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(v.holm(p), [0.03, 0.06, 0.06, 0.02])
    assert v.holm(np.array([0.9, 0.8])).max() == 1


def test_a_family_spends_its_rate_in_halves():
    tests = v.family(np.array([0.01, 1, np.nan]), [0.01, 0.02])
    np.testing.assert_allclose(tests.by_lead_time, [0.06, 1, 1])
    np.testing.assert_allclose(tests.pooled, [0.04, 0.08])
    np.testing.assert_allclose(v.family(np.array([0.01]), [1, 1], share=0.5).by_lead_time, [0.04])
    rng = np.random.default_rng(0)
    alarms = sum(v.family(rng.random(6), rng.random(2)).smallest < 0.05 for _ in range(4000))
    assert alarms <= most(0.05, 4000)
    assert alarms > 100


def faulty_from(first: int) -> v.Verdict:
    """Judge a forecaster that is over-confident from step `first` on."""
    rng = np.random.default_rng(0)
    forecast, truth = (x[["level"]] for x in KNOWN["perfect"].draw(rng, trajectories=150, members=40, steps=6))
    members = forecast["level"].values
    members[..., first:] = members[..., first:].mean(0) + 0.4 * (members[..., first:] - members[..., first:].mean(0))
    (verdict,) = v.judge_observables(diagnose(forecast, truth, rng=rng))
    return verdict


def test_sentences_say_where_and_how_much():
    late = faulty_from(4)
    assert late.word == Word.OVER_CONFIDENT
    assert late.lead_times == (2.0, 2.5, 3.0)
    assert late.sentence.startswith("over-confident at lead times over 1.5 yr: 90% intervals cover ")
    assert str(late).startswith("level: over-confident")
    assert faulty_from(1).sentence.startswith("over-confident at every lead time: ")
    assert faulty_from(6).sentence.startswith("over-confident at lead time 3 yr: ")
    biased = judged(KNOWN["biased"], np.random.default_rng(0), trajectories=100, members=40, steps=2)["level"]
    assert "ensemble spreads below the centre of the ensemble" in biased.sentence
    assert "(ensemble mean minus truth: +" in biased.sentence
    assert " J)" in biased.sentence


def test_faults_in_between_are_described():
    one = xr.Dataset(coords={"lead_time": [1.0, 2.0, 3.0, 4.0]}, attrs={"time_unit": "s"})
    when = {
        (0, 1, 1, 0): "at lead times 2 to 3 s",
        (1, 0, 1, 0): "at 2 of 4 lead times between 1 and 3 s",
        (0, 0, 1, 1): "at lead times over 2 s",
        (0, 0, 0, 0): "with all lead times taken together",
    }
    for fault, words in when.items():
        assert v._when(one, np.array(fault, bool)) == words


def test_an_ensemble_that_is_slightly_too_wide_everywhere_is_found_by_pooling_lead_times():
    wide = KnownForecaster(Word.UNDER_CONFIDENT, Word.UNDER_CONFIDENT, spread=1.3)
    rng, words, by_lead_time = np.random.default_rng(0), Counter(), 0
    for _ in range(20):
        forecast, truth = wide.draw(rng, trajectories=120, members=40, steps=10)
        (verdict,) = v.judge_observables(diagnose(forecast[["level"]], truth[["level"]], rng=rng))
        words[verdict.word] += 1
        by_lead_time += bool(verdict.lead_times)
    assert words[Word.UNDER_CONFIDENT] >= 12
    assert by_lead_time <= 8


def test_strange_shapes_get_no_wrong_name():
    assert v.name_effect(0.5, -1.0) == Word.WRONG_SHAPE
    assert v.name_effect(-5.0, 4.0) == Word.BIASED
    assert v.name_effect(1.0, 4.0) == Word.OVER_CONFIDENT
    assert v.name_effect(1.0, -4.0) == Word.UNDER_CONFIDENT


def test_an_extreme_bias_is_not_taken_for_over_confidence():
    far = KnownForecaster(Word.BIASED, Word.BIASED, shift=20.0)  # every truth below every member: ranks as far out as can be
    verdict = judged(far, np.random.default_rng(0), trajectories=50, members=20, steps=2)["level"]
    assert verdict.word == Word.BIASED
    assert "the truth is below nearly all members" in verdict.sentence
    assert "confident" not in verdict.sentence  # ranks that cannot spread any more say nothing about the spread


def test_a_bias_and_a_wrong_spread_are_both_said_where_both_are_plain():
    both = KnownForecaster(Word.BIASED, Word.BIASED, spread=0.7, shift=0.7)
    sentence = judged(both, np.random.default_rng(0), trajectories=150, members=40, steps=2)["level"].sentence
    assert sentence.startswith("biased at every lead time: ")
    assert "; also over-confident: 90% intervals cover " in sentence
    other = KnownForecaster(Word.OVER_CONFIDENT, Word.OVER_CONFIDENT, spread=0.4, shift=0.4)
    sentence = judged(other, np.random.default_rng(0), trajectories=150, members=40, steps=2)["level"].sentence
    assert sentence.startswith("over-confident at every lead time: ")
    assert "; also biased: the truth is " in sentence


def test_deaths_are_reported():
    forecast, truth = KNOWN["perfect"].draw(np.random.default_rng(0), trajectories=60, members=20, steps=3)
    forecast["level"].values[:4, :, -1] = np.nan
    (verdict,) = v.judge_observables(diagnose(forecast[["level"]], truth[["level"]], rng=np.random.default_rng(0)))
    assert verdict.sentence.endswith("; up to 20% of the members are left out: no longer plausible, or without bodies")


def test_wrong_dependence_over_time_is_found():
    rng = np.random.default_rng(0)
    forecast, truth = KNOWN["perfect"].draw(rng, trajectories=100, members=40, steps=6)
    shuffled = forecast["level"].copy(deep=True)
    for t in range(1, 7):  # members change identity from step to step: right at every lead time, wrong as paths
        shuffled[..., t] = rng.permuted(shuffled.values[..., t], axis=0)
    margins = diagnose(shuffled.to_dataset(), truth[["level"]], rng=rng)
    assert v.judge_observables(margins)[0].word == Word.CALIBRATED
    (verdict,) = v.judge_fields(diagnose_fields(as_paths(shuffled.to_dataset()), as_paths(truth[["level"]]), rng=rng))
    assert verdict.word == Word.WRONG_DEPENDENCE
    assert "each component passes, but" in verdict.sentence


def test_verdicts_become_plain_data_and_lines():
    verdicts = list(judged(KNOWN["perfect"], np.random.default_rng(0), trajectories=60, members=20, steps=2).values())
    back = json.loads(json.dumps(v.as_json({"observables": verdicts})))
    assert back["observables"][0]["word"] == str(verdicts[0].word)
    assert "at most 5% false alarms" in back["observables"][0]["rule"]
    lines = v.table(verdicts).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("level   ")
