"""What the numbers of a study support, claim by claim."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from scipy import stats

from epns_pyro.calibration.wording import measured, number
from epns_pyro.studies.definition import Claim
from epns_pyro.studies.measures import MEASURES, Row, Summary

LEVEL = 0.95  # of the interval of a difference


class Word(StrEnum):
    """What the numbers say about a claim."""

    SUPPORTED = "supported"
    NOT_SUPPORTED = "not supported"
    TOO_FEW = "too few seeds to say"
    NOT_MEASURED = "not measured"


STATES = {Word.SUPPORTED: "good", Word.NOT_SUPPORTED: "fault", Word.TOO_FEW: "silent", Word.NOT_MEASURED: "silent"}


@dataclass(frozen=True)
class Judgement:
    """A claim, the word on it, and the numbers."""

    claim: Claim
    word: Word
    sentence: str

    @property
    def state(self) -> str:
        return STATES[self.word]


def judge_claim(claim: Claim, rows: list[Row]) -> Judgement:
    """Say what the numbers support: a difference counts if its 95% interval (Welch, over seeds) is on one side of zero."""
    measure = MEASURES[claim.measure]
    found = [_row(name, claim, rows) for name in (claim.model, claim.than) if name]
    for name, row in zip((claim.model, claim.than), found, strict=False):
        if row is None or not len(row.values(claim.measure)):
            why = "was not part of the study" if row is None else listed(row) if row.failures else f"has no {measure.label}"
            return Judgement(claim, Word.NOT_MEASURED, f"{row.model.title if row else name} {why}.")
    known = [row for row in found if row is not None]
    numbers = [row.summary(claim.measure) for row in known]
    parts = [f"{row.model.title} {shown(one, claim.measure)}" for row, one in zip(known, numbers, strict=True)]
    said = f"{_name(claim, known)}: {', '.join(parts)}"
    said += "".join(f"; of {row.model.title} {len(row.failures)} of {row.planned} seeds failed" for row in known if row.failures)
    if claim.at_most is not None:
        worst = float(known[0].values(claim.measure).max())
        word = Word.SUPPORTED if worst <= claim.at_most else Word.NOT_SUPPORTED
        return Judgement(claim, word, f"{said}; at most {claim.at_most:.0e} was expected.")
    return _compared(claim, numbers, said, measure.better)


def _compared(claim: Claim, numbers: list[Summary], said: str, better: int) -> Judgement:
    ours, theirs = numbers
    if min(ours.count, theirs.count) < 2:
        return Judgement(claim, Word.TOO_FEW, f"{said}; one seed has no spread.")
    lead = better * (ours.mean - theirs.mean)
    low, high = interval(ours, theirs, lead)
    word = Word.SUPPORTED if low > 0 else Word.NOT_SUPPORTED if high < 0 or low == high == 0 else Word.TOO_FEW
    ends = " to ".join(number(end, ".3g") for end in (low, high))
    return Judgement(claim, word, f"{said}; lead {number(lead, '+.3g')}, {LEVEL:.0%} interval {ends}.")


def interval(ours: Summary, theirs: Summary, lead: float) -> tuple[float, float]:
    """Return the interval of a difference of two means by Welch's t-distribution."""
    a, b = ours.error**2, theirs.error**2
    if a + b == 0:
        return lead, lead
    freedom = (a + b) ** 2 / (a**2 / (ours.count - 1) + b**2 / (theirs.count - 1))
    reach = float(stats.t.ppf(0.5 + LEVEL / 2, freedom)) * math.sqrt(a + b)
    return lead - reach, lead + reach


def _row(name: str, claim: Claim, rows: list[Row]) -> Row | None:
    """Return the row of a model: that on all data, or on the fewest."""
    own = [row for row in rows if row.name == name and row.whole != claim.fewest]
    return min(own, key=lambda row: row.trajectories, default=None)


def _name(claim: Claim, rows: list[Row]) -> str:
    measure = MEASURES[claim.measure]
    few = f" with {rows[0].trajectories} training trajectories" if claim.fewest else ""
    return f"{measure.label}{few}"


def shown(value: Summary, measure: str) -> str:
    """Write a mean with its spread over seeds."""
    if not value.count:
        return "–"
    if measure in ("symmetry", "minutes") or not math.isfinite(value.spread) or value.spread == 0:
        return number(value.mean, MEASURES[measure].form)
    return measured(value.mean, value.spread)


def listed(row: Row) -> str:
    """Say why runs of a row failed."""
    count = f"{len(row.failures)} of {row.planned} seeds" if row.planned > 1 else "its run"
    return f"failed ({count}: {next(iter(row.failures.values()))})"
