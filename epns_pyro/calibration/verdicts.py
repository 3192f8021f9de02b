"""Verdicts: one word per observable, vector or label field, with a sentence that says what was found, and the rule.

The rule, for one quantity and L lead times; the probability that a calibrated ensemble fails is at most 5%:

- Half of the 5% goes to the lead times: the exact rank-ECDF p-values, Holm's procedure over the L of them. A lead time is at fault when its
  adjusted p-value is below 2.5%.
- The other half goes to all lead times together: two t-tests, of bias and of spread, on each trajectory's average of the rank contrasts, at
  1.25% each. They find small faults that are the same at all lead times, and under-confidence, which a rank ECDF finds only when large.
- Vectors: the 5% is shared equally between the margins and each pre-rank, and each share is used in this way. Margins have no exact test;
  two t-tests per lead time, of bias and spread averaged over components, replace it.
- The word is that of the larger effect, in units of its standard error for a calibrated ensemble: shift (biased) or stretch
  (over-confident above 1, under-confident below); "wrong in shape" if neither reaches two standard errors. A vector whose margins pass
  but whose multivariate ranks do not is miscalibrated in dependence.
- If no test fails, the ensemble is called calibrated only if the tests had power: they would have found an ensemble so narrow
  that its 90% intervals (of components, for a vector) cover 70% at every lead time, with probability 80% or more. Otherwise there are too
  few data to say. For a vector, nothing is known about the power against wrong dependence.
- Stretches of one recording are dependent: in every test and in the power they count as a smaller number of independent trials (see
  `dependence`); if these are fewer than 15, there are too few data to say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr

from epns_pyro.calibration.dependence import enough, in_words
from epns_pyro.calibration.pit import largest_shift
from epns_pyro.calibration.power import (
    FALSE_ALARM,
    NARROW_COMPONENTS,
    OFF_CENTRE,
    POWER,
    TOO_NARROW,
    Fault,
    detection_power,
    times,
    times_as_many,
)
from epns_pyro.calibration.wording import measured


class Word(StrEnum):
    """The possible words of a verdict."""

    CALIBRATED = "calibrated"
    OVER_CONFIDENT = "over-confident"
    UNDER_CONFIDENT = "under-confident"
    BIASED = "biased"
    WRONG_SHAPE = "wrong in shape"
    WRONG_DEPENDENCE = "miscalibrated in dependence"
    TOO_FEW_DATA = "too few data to say"


@dataclass(frozen=True)
class Verdict:
    """The verdict on one quantity.

    Parameters
    ----------
    subject : str
        What was tested, e.g. "total energy".
    word : Word
    sentence : str
        What was found, in words and numbers.
    rule : str
        The rule, with the false-alarm rate.
    lead_times : tuple of float
        Lead times at fault; empty if none is at fault by itself.
    p_value : float
        Smallest p-value, adjusted for the number of tests: at fault when below the false-alarm rate.
    trajectories : int
        Smallest number of trajectories at any lead time.
    power : float
        Probability of finding the fault that the rule names; it must be high before an ensemble is called calibrated.
    more : float
        About how many times as many data would make that probability high; NaN where it is, or where no number of them would.
    """

    subject: str
    word: Word
    sentence: str
    rule: str
    lead_times: tuple[float, ...]
    p_value: float
    trajectories: int
    power: float
    more: float = math.nan

    def __str__(self) -> str:
        return f"{self.subject}: {self.sentence}"

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, for JSON."""
        return {**asdict(self), "word": str(self.word), "lead_times": list(self.lead_times)}


# -- multiple tests -------------------------------------------------------------------------------------------------------


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's adjusted p-values, (test,) -> (test,).

    If those below alpha are called faults, the probability of any false one is at most alpha.
    """
    p = np.asarray(p_values, float)
    order = np.argsort(p)
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    out = np.empty_like(p)
    out[order] = np.minimum(steps, 1)
    return out


@dataclass(frozen=True)
class Family:
    """Adjusted p-values of one family of tests: if one is below the false-alarm rate, the family is at fault."""

    by_lead_time: np.ndarray
    pooled: np.ndarray

    @property
    def smallest(self) -> float:
        return float(min(self.by_lead_time.min(), self.pooled.min()))


def family(by_lead_time: np.ndarray, pooled: Sequence[float], *, share: float = 1.0) -> Family:
    """Adjust the p-values of a family.

    Half of the false-alarm rate is for the lead times, half for the pooled tests; the family has `share` of the rate.
    """
    known = np.where(np.isfinite(by_lead_time), by_lead_time, 1)
    half = 2 / share
    return Family(np.minimum(holm(known) * half, 1), np.minimum(np.asarray(pooled, float) * len(pooled) * half, 1))


# -- judging --------------------------------------------------------------------------------------------------------------


def judge_observables(diagnostics: xr.Dataset) -> list[Verdict]:
    """Return one verdict per observable, from `observable_diagnostics`."""
    verdicts = []
    for name in diagnostics["observable"].values:
        one = diagnostics.sel(observable=name)
        tests = family(one["p_value"].values, _pooled(one))
        verdicts.append(_margins_verdict(str(one["label"].item()), one, tests, share=1.0, unit=str(one["unit"].item())))
    return verdicts


def judge_fields(diagnostics: xr.Dataset) -> list[Verdict]:
    """Return one verdict per vector, from `field_diagnostics`."""
    verdicts = []
    share = 1 / (1 + diagnostics.sizes["pre_rank"])
    for name in diagnostics["field"].values:
        one = diagnostics.sel(field=name)
        either = 2 * np.minimum(one["p_location"].values, one["p_dispersion"].values)
        margins = family(either, _pooled(one), share=share)
        joint = {str(rank): _joint_family(one.sel(pre_rank=rank), share) for rank in one["pre_rank"].values}
        worst = min(joint, key=lambda rank: joint[rank].smallest)
        if margins.smallest >= FALSE_ALARM > joint[worst].smallest:
            verdicts.append(_dependence_verdict(str(name), one.sel(pre_rank=worst), joint[worst], worst, share))
        else:
            verdicts.append(_margins_verdict(str(name), one, margins, share=share, of=" of components"))
    return verdicts


def judge_labels(diagnostics: xr.Dataset, name: str) -> Verdict:
    """Return the verdict on a label field, from `label_diagnostics`.

    If the truth agrees with the pool less than members do, it lies outside the range of the ensemble: over-confident; if more:
    under-confident.
    """
    one = diagnostics.sel(pre_rank="agreement")
    tests = _joint_family(one, 1.0)
    evidence = Evidence(name, one, tests, 1.0, OFF_CENTRE, float(one["joint_pooled_location_error"]))
    if tests.smallest >= FALSE_ALARM:
        return evidence.passed("images agree with the truth as well as with one another")
    shift = float(one["joint_shift"].values[evidence.where].mean())
    word, how = (Word.OVER_CONFIDENT, "less") if shift < 0 else (Word.UNDER_CONFIDENT, "more")
    size = f"{abs(shift):.1f} standard deviations of a member"
    return evidence.failed(word, f"the truth agrees with the members {how} than they agree with one another (by {size})")


def table(verdicts: Sequence[Verdict]) -> str:
    """Return the verdicts as aligned lines of text."""
    width = max((len(v.subject) for v in verdicts), default=0)
    return "\n".join(f"{v.subject:<{width}}  {v.sentence}" for v in verdicts)


def as_json(verdicts: Mapping[str, Sequence[Verdict]]) -> dict[str, list[dict[str, Any]]]:
    """Return groups of verdicts as plain data."""
    return {group: [v.as_dict() for v in items] for group, items in verdicts.items()}


@dataclass(frozen=True)
class Evidence:
    """The diagnostics of one quantity with its tests; makes the verdict from the word and the phrase."""

    subject: str
    one: xr.Dataset
    tests: Family
    share: float
    must_find: Fault
    pooled_error: float

    @property
    def fault(self) -> np.ndarray:
        """Lead times at fault, (lead_time,) booleans."""
        return self.tests.by_lead_time < FALSE_ALARM

    @property
    def where(self) -> np.ndarray:
        """Lead times at which to measure the size of a fault: those at fault, or all."""
        return self.fault if self.fault.any() else np.ones(len(self.fault), bool)

    @cached_property
    def trajectories(self) -> int:
        return int(self.one["trajectories"].min())

    @cached_property
    def decorrelation(self) -> float | None:
        """Decorrelation time in trials, mean over lead times; None where trials are independent."""
        return next((float(self.one[name].mean()) for name in ("decorrelation", "joint_decorrelation") if name in self.one), None)

    @property
    def trials(self) -> str:
        if self.decorrelation is None:
            return f"{self.trajectories} trajectories"
        return in_words(self.trajectories, self.decorrelation, self.one.attrs.get("spacing", 0.0), self.one.attrs.get("time_unit", ""))

    @cached_property
    def power(self) -> float:
        tau = self.decorrelation or 1.0
        if not enough(self.trajectories, tau):
            return 0.0
        size = int(self.trajectories / tau), int(self.one.attrs["members"]), self.one.sizes["lead_time"]
        return detection_power(*size, error=self.pooled_error, share=self.share, fault=self.must_find)

    @property
    def rule(self) -> str:
        parts = "" if self.share == 1 else f" in {round(1 / self.share)} equal parts for margins and pre-ranks"
        return (
            f"at most {FALSE_ALARM:.0%} false alarms{parts}: half for the tests at {self.one.sizes['lead_time']} lead times (Holm), half "
            f"for bias and spread over all of them; {self.trials}, {self.one.attrs['members']} members; "
            f"called calibrated only if {self.must_find.words} at every lead time would be found with probability {POWER:.0%}"
        )

    def passed(self, seen: str) -> Verdict:
        found = f"{self.must_find.words} would be found in {percent(self.power)} of such tests"
        if self.must_find is NARROW_COMPONENTS:
            found += "; the power against wrong dependence is not known"
        if self.power >= POWER:
            return self._verdict(Word.CALIBRATED, f"{Word.CALIBRATED}: no test fails, {seen}; {found}", ())
        more = times_as_many(
            self.trajectories,
            self.decorrelation or 1.0,
            int(self.one.attrs["members"]),
            error=self.pooled_error,
            share=self.share,
            fault=self.must_find,
        )
        do = f"; {times(more)} as many would do" if math.isfinite(more) else ""
        return replace(
            self._verdict(Word.TOO_FEW_DATA, f"{Word.TOO_FEW_DATA}: no test fails, but with {self.trials}, {found}{do}", ()), more=more
        )

    def failed(self, word: Word, phrase: str) -> Verdict:
        at = tuple(float(t) for t in self.one["lead_time"].values[self.fault])
        return self._verdict(word, f"{word} {_when(self.one, self.fault)}: {phrase}", at)

    def _verdict(self, word: Word, sentence: str, at: tuple[float, ...]) -> Verdict:
        alive = float(self.one["alive"].min())
        more = "" if self.decorrelation is None or word == Word.TOO_FEW_DATA else f"; {self.trials}"
        more += "" if alive > 0.995 else f"; up to {percent(1 - alive)} of the members are left out: no longer plausible, or without bodies"
        return Verdict(self.subject, word, sentence + more, self.rule, at, self.tests.smallest, self.trajectories, self.power)


def _pooled(one: xr.Dataset, prefix: str = "") -> list[float]:
    return [float(one[f"{prefix}pooled_p_{name}"]) for name in ("location", "dispersion")]


def _joint_family(one: xr.Dataset, share: float) -> Family:
    return family(one["joint_p_value"].values, _pooled(one, "joint_"), share=share)


def _margins_verdict(subject: str, one: xr.Dataset, tests: Family, *, share: float, unit: str = "", of: str = "") -> Verdict:
    evidence = Evidence(subject, one, tests, share, NARROW_COMPONENTS if of else TOO_NARROW, float(one["pooled_dispersion_error"]))
    if tests.smallest >= FALSE_ALARM:
        return evidence.passed(_coverage_phrase(one, one.sizes["lead_time"] - 1, of))
    where = evidence.where
    shift, stretch = (float(one[name].values[where].mean()) for name in ("shift_z", "stretch_z"))
    word = name_effect(shift, stretch)
    effect = np.abs(one["shift_z" if word == Word.BIASED else "stretch_z"].values)
    worst = int(np.flatnonzero(where)[np.argmax(effect[where])])
    bias, coverage = _bias_phrase(one, worst, unit), _coverage_phrase(one, worst, of)
    if word != Word.BIASED:
        return evidence.failed(word, coverage + (f"; also biased: {bias}" if abs(shift) > 3 else ""))
    at = one.sel(level=0.9).isel(lead_time=worst)
    misses_too_much = bool(at["coverage"] < at["nominal"])  # bias hides a wrong spread: name the spread only if it is certain
    also = abs(stretch) > 3 and misses_too_much == (stretch > 0)
    return evidence.failed(word, bias + (f"; also {name_effect(0, stretch)}: {coverage}" if also else ""))


def _dependence_verdict(subject: str, one: xr.Dataset, tests: Family, rank: str, share: float) -> Verdict:
    evidence = Evidence(subject, one, tests, share, NARROW_COMPONENTS, float(one["pooled_dispersion_error"]))
    shift, shift_z, stretch, stretch_z = (
        float(one[f"joint_{name}"].values[evidence.where].mean()) for name in ("shift", "shift_z", "stretch", "stretch_z")
    )
    if abs(shift_z) >= abs(stretch_z):
        how = f"the {rank} of the truth is {'higher' if shift > 0 else 'lower'} than the members' (by {abs(shift):.1f} of their spread)"
    else:
        how = f"the {rank} of the truth varies {stretch:.1f} times as much as the members'"
    return evidence.failed(Word.WRONG_DEPENDENCE, f"each component passes, but {how}")


def name_effect(shift: float, stretch: float) -> Word:
    """Return the word of the larger of two effects, each in units of its standard error for a calibrated ensemble."""
    if max(abs(shift), abs(stretch)) < 2:
        return Word.WRONG_SHAPE
    if abs(shift) >= abs(stretch):
        return Word.BIASED
    return Word.OVER_CONFIDENT if stretch > 0 else Word.UNDER_CONFIDENT


# -- phrases --------------------------------------------------------------------------------------------------------------


def _when(one: xr.Dataset, fault: np.ndarray) -> str:
    """Describe which lead times are at fault."""
    times, index = one["lead_time"].values, np.flatnonzero(fault)
    if len(index) == 0:
        return "with all lead times taken together"
    if len(index) == 1:
        return f"at lead time {_time(one, index[0])}"
    if len(index) == len(times):
        return "at every lead time"
    if index[-1] - index[0] + 1 > len(index):
        return f"at {len(index)} of {len(times)} lead times between {times[index[0]]:.4g} and {_time(one, index[-1])}"
    if index[-1] == len(times) - 1:
        return f"at lead times over {_time(one, index[0] - 1)}"
    return f"at lead times {times[index[0]]:.4g} to {_time(one, index[-1])}"


def _time(one: xr.Dataset, i: int) -> str:
    return f"{float(one['lead_time'][i]):.4g} {one.attrs.get('time_unit', '')}".strip()


def _coverage_phrase(one: xr.Dataset, i: int, of: str) -> str:
    at = one.sel(level=0.9).isel(lead_time=i)
    value, low, high = (100 * float(at[f"coverage{end}"]) for end in ("", "_lower", "_upper"))
    return f"{100 * float(at['nominal']):.0f}% intervals{of} cover {value:.0f}% ({low:.0f}-{high:.0f}) at {_time(one, i)}"


def _bias_phrase(one: xr.Dataset, i: int, unit: str) -> str:
    at = one.isel(lead_time=i)
    shift, error = float(at["shift"]), float(at["shift_error"])
    side = "above" if shift > 0 else "below"
    if abs(shift) > 0.9 * largest_shift(int(one.attrs["members"])):
        phrase = f"the truth is {side} nearly all members"
    else:
        phrase = f"the truth is {abs(shift):.2f} ± {error:.2f} ensemble spreads {side} the centre of the ensemble"
    if "bias" in at:
        phrase += f" (ensemble mean minus truth: {measured(float(at['bias']), float(at['bias_error']), sign=True)} {unit}".rstrip() + ")"
    return f"{phrase} at {_time(one, i)}"


def percent(p: float) -> str:
    """Write a probability; values near 1 as "over 99%"."""
    return f"{p:.0%}" if p < 0.995 else "over 99%"
