"""Check: is the law of a single step right, or do errors build up along a forecast?

Every quantity is judged one step after recorded frames, beside the same quantity at the end of forecasts. What is off after one step is a
fault of the law of a step; what is right after one step and off later builds up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from epns_pyro.calibration.verdicts import Word
from epns_pyro.calibration.wording import listing, number, precision
from epns_pyro.evaluation import heldout
from epns_pyro.evaluation.check import Check, Fault, Inputs, Severity
from epns_pyro.evaluation.evaluated import Evaluated, Subject
from epns_pyro.evaluation.lines import state
from epns_pyro.evaluation.parts import Section, Table, Text
from epns_pyro.evaluation.record import Count, HeadlineLine, Real, Record

NOTHING = "–"


class StepOf(Record):
    """How one quantity was judged one step after recorded frames.

    `shift` is how far the truth lies above the centre of its ensemble, in ensemble spreads; `spread` is the ensemble spread over the error
    of the ensemble mean; `word` is the verdict, `later` that on forecasts.
    """

    label: str
    word: str
    shift: Real
    shift_error: Real
    spread: Real
    later: str = ""


class OneStep(Record):
    """Verdicts one step after recorded frames."""

    frames: Count
    quantities: tuple[StepOf, ...]

    @property
    def faults(self) -> list[StepOf]:
        """Quantities that are off after one step."""
        return [one for one in self.quantities if state(one.word) == "fault"]


class OneStepCheck(Check[OneStep]):
    key, title, record = "one_step", "single steps", OneStep

    def measure(self, inputs: Inputs) -> OneStep | None:
        frames = min(inputs.settings.frames, inputs.settings.likelihood_transitions)
        settings = inputs.settings.override({"stretch": 1, "trajectories": frames})
        more: dict[str, Any] = {"references": {}, "progress": inputs.progress, "archive": inputs.archive}
        found = heldout.measure(inputs.model, inputs.store, "test", settings, **more)
        data = found.diagnostics["observables"].isel(lead_time=0)
        inputs.save("one_step", found.diagnostics["observables"])
        words = {v.subject: v.word for v in found.verdicts["observables"]}
        later = {v.subject: v.word for v in inputs.forecasts("test").verdicts.get("observables", ())}
        rows = tuple(
            StepOf(label=label, word=words[label], shift=shift, shift_error=error, spread=spread, later=later.get(label, ""))
            for label, shift, error, spread in zip(
                map(str, data["label"].values), *(data[name].values for name in ("shift", "shift_error", "spread_skill")), strict=True
            )
            if label in words and np.isfinite(shift)
        )
        return OneStep(frames=int(data["trajectories"].max()), quantities=rows) if rows else None

    def sections(self, record: OneStep | None, found: Evaluated) -> Iterator[Section]:
        if record is None:
            return
        section = Section(
            "one-step",
            "One step, or many?",
            "The same quantities one step after recorded frames and at the end of forecasts. What is off after one step is a fault of the "
            "law of a step. What is right after one step and off at the end builds up along a forecast.",
        )
        last = {s.label: s.data.isel(lead_time=-1) for s in found.subjects("observables")}
        words = {line.subject: line.word for line in found.record.verdicts.get("observables", ())}
        rows = []
        for one in record.quantities:
            end = last.get(one.label)
            shift, spread = (math.nan if end is None else float(end[name]) for name in ("shift", "spread_skill"))
            digits = f"+.{precision(one.shift_error)}f"
            word = words.get(one.label, "")
            rows.append(
                (
                    one.label,
                    one.word,
                    number(one.shift, digits),
                    number(one.spread),
                    word,
                    number(shift, digits),
                    number(spread),
                    _origin(one, word),
                )
            )
        section.items.extend(
            [
                Table(
                    ("quantity", "after one step", "bias", "spread", "in forecasts", "bias at the end", "spread at the end", "fault of"),
                    rows,
                    frozenset({"bias", "spread", "bias at the end", "spread at the end"}),
                ),
                Text(
                    f"{record.frames} recorded frames of the test set. Bias: how far the truth lies above the centre of its ensemble, in "
                    "ensemble spreads; 0 is right. Spread: ensemble spread over error of the ensemble mean; 1 is right, below 1 is "
                    "over-confident."
                ),
            ]
        )
        yield section

    def about(self, record: OneStep, subject: Subject | None) -> OneStep | None:
        rows = tuple(one for one in record.quantities if subject is not None and one.label == subject.label)
        return OneStep(frames=record.frames, quantities=rows) if rows else None

    def headline(self, record: OneStep) -> Iterator[HeadlineLine]:
        judged = [one for one in record.quantities if state(one.word) != "silent"]
        off = record.faults
        yield HeadlineLine(
            label="calibrated after one step",
            value=f"{len(judged) - len(off)} of {len(judged)} quantities",
            note=f"the law of a step is off in {listing(one.label for one in off)}" if off else f"{record.frames} recorded frames",
            good=None if not judged else not off,
        )

    def faults(self, record: OneStep) -> Iterator[Fault]:
        """Yield what is off after one step where forecasts are too few to say; where they are not, their verdict says it."""
        if off := [one.label for one in record.faults if one.later == Word.TOO_FEW_DATA]:
            yield Fault(
                Severity.MISCALIBRATED, f"one step after recorded frames {listing(off, most=3)} {'is' if len(off) == 1 else 'are'} off"
            )


def _origin(one: StepOf, later: str) -> str:
    if state(one.word) == "fault":
        return "one step"
    return "errors that build up" if later and state(later) == "fault" and one.word == Word.CALIBRATED else NOTHING
