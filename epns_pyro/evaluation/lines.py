"""Verdicts as lines of a page or a table: one line per quantity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from epns_pyro.calibration.power import FALSE_ALARM
from epns_pyro.calibration.verdicts import Word, holm, percent
from epns_pyro.evaluation.record import VerdictRecord

GROUPS = {"observables": "observables", "fields": "fields", "labels": "label images"}


@dataclass(frozen=True)
class Line:
    """One verdict as the page shows it: `state` is "good", "fault" or "silent"; `seen` is the sentence without its first word."""

    group: str
    subject: str
    word: str
    state: str
    seen: str
    power: str
    rule: str
    p_value: float
    more: float


def lines(verdicts: Mapping[str, Sequence[VerdictRecord]]) -> list[Line]:
    """Return one line per verdict."""
    return [_line(group, v) for group, some in verdicts.items() for v in some]


def state(word: str) -> str:
    """Return the kind of a verdict: "good", "fault" or "silent" (too few data)."""
    return "good" if word == Word.CALIBRATED else "silent" if word == Word.TOO_FEW_DATA else "fault"


def beyond_chance(judged: Sequence[Line]) -> list[Line]:
    """Return the faults that remain when all quantities are tested together, by Holm's method: at most 5% of right ensembles have any.

    A quantity by itself has 5% false alarms, so of nine right ones about one fails in every third report.
    """
    tested = [line for line in judged if line.state != "silent"]
    adjusted = holm(np.array([line.p_value for line in tested]))
    return [line for line, p_value in zip(tested, adjusted, strict=True) if line.state == "fault" and p_value < FALSE_ALARM]


def after_word(sentence: str, word: str) -> str:
    """Remove the word of a verdict from the start of its sentence, because a badge shows it."""
    return sentence.removeprefix(word).lstrip(": ")


def _line(group: str, v: VerdictRecord) -> Line:
    parts, kind = after_word(v.sentence, v.word).split("; "), state(v.word)
    return Line(
        group=GROUPS.get(group, group),
        subject=v.subject,
        word=v.word,
        state=kind,
        seen="; ".join(part for i, part in enumerate(parts) if i == 0 or "would be found" not in part),  # `power` holds this number
        power=percent(v.power) if math.isfinite(v.power) else "–",
        rule=v.rule,
        p_value=v.p_value if math.isfinite(v.p_value) else float(kind != "fault"),
        more=v.more,
    )
