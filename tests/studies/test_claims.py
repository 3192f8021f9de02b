"""The word on a claim: what numbers with a known answer support."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from epns_pyro.studies.claims import Word, interval, judge_claim
from epns_pyro.studies.definition import Claim, StudyModel
from epns_pyro.studies.measures import Row, Summary, as_csv

MORE = Claim(says="a is likelier than b", model="a", than="b", measure="iwae")


def row(name: str, *nats: float | None, whole: bool = True, trajectories: int = 400, **parts: Any) -> Row:
    model = StudyModel(title=name.upper(), about="", group="published")
    seeds = {i: {"likelihood": {"iwae": value}} | parts for i, value in enumerate(nats)}
    return Row(name, model, trajectories, whole, planned=len(nats), seeds=seeds)


@pytest.mark.parametrize(
    ("a", "b", "word"),
    [
        ((10.0, 10.2, 9.9), (7.0, 7.1, 6.8), Word.SUPPORTED),
        ((7.0, 7.1, 6.8), (10.0, 10.2, 9.9), Word.NOT_SUPPORTED),
        ((10.0, 7.0, 9.0), (9.0, 8.0, 8.5), Word.TOO_FEW),
        ((10.0,), (7.0,), Word.TOO_FEW),
        ((10.0, 10.2), (7.0,), Word.TOO_FEW),
        ((5.0, 5.0), (5.0, 5.0), Word.NOT_SUPPORTED),
        ((None, None), (5.0, 6.0), Word.NOT_MEASURED),
    ],
)
def test_the_word_follows_from_the_numbers(a: tuple, b: tuple, word: Word) -> None:
    assert judge_claim(MORE, [row("a", *a), row("b", *b)]).word == word


def test_less_is_better_where_it_is() -> None:
    nearer = Claim(says="a is nearer", model="a", than="b", measure="ks")
    rows = [row("a", 0, 0, 0, distances={"ks": 0.1}), row("b", 0, 0, 0, distances={"ks": 0.4})]
    assert judge_claim(nearer, rows).word == Word.SUPPORTED


def test_the_interval_is_that_of_welch() -> None:
    """Against SciPy."""
    a, b = np.array([3.1, 2.7, 3.4, 2.9]), np.array([2.2, 2.8, 1.9])
    known = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    ours = [row("a", *a).summary("iwae"), row("b", *b).summary("iwae")]
    np.testing.assert_allclose(interval(*ours, ours[0].mean - ours[1].mean), (known.low, known.high))


def test_false_alarms_are_as_rare_as_the_level_says() -> None:
    """Two equal models over three seeds: at most 5% (and the chance of 2,000 draws) of claims are decided either way."""
    rng, decided = np.random.default_rng(0), 0
    for _ in range(2000):
        decided += judge_claim(MORE, [row("a", *rng.normal(size=3)), row("b", *rng.normal(size=3))]).word != Word.TOO_FEW
    assert decided / 2000 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)


def test_equal_shares_of_few_runs_are_no_certainty() -> None:
    """All 5 runs of one model plausible and 4 of 5 of the other, in both seeds: that can be chance."""
    stays = Claim(says="a stays", model="a", than="b", measure="alive")

    def said(ours: float, theirs: float, runs: int) -> Word:
        rows = [row(name, 0, 0, long_runs={"alive": share, "runs": runs}) for name, share in (("a", ours), ("b", theirs))]
        return judge_claim(stays, rows).word

    assert said(1.0, 0.8, 5) == Word.TOO_FEW
    assert said(1.0, 0.0, 20) == Word.SUPPORTED


def test_a_bound_is_on_the_worst_seed() -> None:
    exact = Claim(says="a is exact", model="a", measure="symmetry", at_most=1e-9)
    rows = [row("a", 0.0, symmetry={"symmetry": 1e-12})]
    assert judge_claim(exact, rows).word == Word.SUPPORTED
    rows[0].seeds[1] = {"symmetry": {"symmetry": 1e-3}}
    assert judge_claim(exact, rows).word == Word.NOT_SUPPORTED


def test_a_claim_on_few_data_is_about_the_fewest() -> None:
    few = Claim(says="a needs less", model="a", than="b", measure="iwae", fewest=True)
    rows = [row("a", 9.0, 9.1), row("b", 9.0, 9.1)]
    for size, lead in ((40, 0.0), (10, 5.0)):
        rows += [row("a", 3 + lead, 3.1 + lead, whole=False, trajectories=size), row("b", 3.0, 3.1, whole=False, trajectories=size)]
    found = judge_claim(few, rows)
    assert found.word == Word.SUPPORTED
    assert "with 10 training trajectories" in found.sentence


def test_a_model_that_is_missing_or_failed_is_said() -> None:
    assert judge_claim(MORE, [row("a", 1.0)]).sentence == "b was not part of the study."
    failed = row("b")
    failed.planned, failed.failures = 2, {0: "diverged", 1: "diverged"}
    assert judge_claim(MORE, [row("a", 1.0, 2.0), failed]).sentence == "B failed (2 of 2 seeds: diverged)."
    one = row("b", 0.1, 0.2)
    one.planned, one.failures = 3, {2: "diverged"}
    assert "of B 1 of 3 seeds failed" in judge_claim(MORE, [row("a", 1.0, 2.0), one]).sentence


def test_one_seed_has_a_mean_and_no_spread() -> None:
    summary = row("a", 2.0).summary("iwae")
    assert isinstance(summary, Summary)
    assert summary.mean == 2.0
    assert math.isnan(summary.spread)


def test_the_table_leaves_unknown_numbers_empty() -> None:
    header, line = as_csv([row("a", 1.0, 3.0)]).splitlines()
    cells = dict(zip(header.split(","), line.split(","), strict=True))
    assert (cells["iwae_mean"], cells["iwae_sd"], cells["elbo_mean"], cells["seeds"]) == ("2", "1.41421", "", "2")
