"""Check: how probable are held-out transitions under the model?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import stats

from epns_pyro.calibration.wording import measured, number, precision, sentence
from epns_pyro.evaluation.check import Check, Fault, Inputs, Severity
from epns_pyro.evaluation.evaluated import Evaluated
from epns_pyro.evaluation.figures import distribution as figures
from epns_pyro.evaluation.parts import Figure, Key, Section, Table, Text
from epns_pyro.evaluation.record import HeadlineLine, Likelihood, LikelihoodRow

GOOD_GAP = 5  # nats below the oracle


class LikelihoodCheck(Check[Likelihood]):
    key, title, record = "likelihood", "likelihood", Likelihood

    def measure(self, inputs: Inputs) -> Likelihood:
        return inputs.scored.table

    def sections(self, record: Likelihood | None, found: Evaluated) -> Iterator[Section]:
        if record is None:
            return
        rows, elbo, oracle = record.known, record.row("elbo"), record.row("oracle")
        lead = "Log-likelihood of held-out transitions under the model, in nats per transition of the whole system: higher is better."
        caption = "A model that has learnt anything is better than the references that need no learning."
        if oracle:
            lead += " The oracle is the true transition density: the distance to it is an absolute measure of the model."
            caption = "The score of a good model is between the references that need no learning and the oracle."
            if elbo:
                caption = f"The model (ELBO) is {_gap(elbo, oracle)} nats per transition below the oracle. {caption}"
        section = Section("likelihood", "Likelihood", lead)
        if rows:
            section.items.extend(
                [
                    Figure(
                        figures.ladder(rows),
                        alt="Scores in nats per transition: " + ", ".join(f"{row.name} {_value(row)}" for row in rows) + ".",
                        caption=f"{caption} Whiskers: one standard error over trajectories.",
                        key=(Key("model", "model"), Key("truth", "oracle"), Key("reference", "references")) if oracle else (),
                        size="medium",
                    ),
                    _table(record),
                ]
            )
            if record.fields:
                fields = [(row.name, _value(row), _error(row)) for row in record.fields]
                section.items.append(Table(("field", "nats", "error"), fields, frozenset({"nats", "error"})))
            if math.isfinite(record.reconstruction + record.kl):
                words = f"The ELBO is the reconstruction, {number(record.reconstruction)}, minus the KL, {number(record.kl)} nats."
                section.items.append(Text(words))
            if record.recording_sentence:
                section.items.append(Text(sentence(record.recording_sentence)))
            if record.left_out_sentence:
                section.items.append(Text(sentence(record.left_out_sentence)))
            if record.gap_sentence:
                section.items.append(Text(sentence(record.gap_sentence)))
        yield section

    def headline(self, record: Likelihood) -> Iterator[HeadlineLine]:
        elbo, naive, oracle = (record.row(key) for key in ("elbo", "persistence", "oracle"))
        if elbo is None:
            return
        note, ahead = "per transition", lead_over_persistence(record)
        if naive and ahead:
            note += f"; {naive.name}: {measured(naive.value, naive.error)}; the model is ahead by {measured(ahead.value, ahead.error)}"
            note += ", which is no clear difference" if ahead.clear == 0 else ""
        yield HeadlineLine(
            label="log-likelihood (ELBO)",
            value=f"{measured(elbo.value, elbo.error)} nats",
            note=note,
            good=ahead.clear > 0 if ahead and ahead.clear else None,
        )
        if record.recording_sentence:
            yield HeadlineLine(label="recording", value="hidden states", note=record.recording_sentence, good=None)
        if oracle:
            note = f"the true transition density scores {_value(oracle)}"
            gap = oracle.value - elbo.value
            yield HeadlineLine(label="gap to the oracle", value=f"{_gap(elbo, oracle)} nats", note=note, good=gap < GOOD_GAP)

    def faults(self, record: Likelihood) -> Iterator[Fault]:
        ahead = lead_over_persistence(record)
        if ahead and ahead.clear < 0:
            yield Fault(Severity.USELESS, "the forecast of one step is worse than persistence")


@dataclass(frozen=True)
class Lead:
    """How far the model is ahead of a reference, paired by trajectory: nats per transition, and its standard error.

    `clear` is 1 or -1 if a paired t-test over trajectories finds the lead above or below 0, each at 1%; 0 if it finds neither.
    """

    value: float
    error: float
    clear: int


def lead_over_persistence(record: Likelihood) -> Lead | None:
    """Compare held-out transitions under the model and under persistence; None where one of the two was not scored."""
    elbo, naive = record.row("elbo"), record.row("persistence")
    if elbo is None or naive is None:
        return None
    value, error = naive.difference, naive.difference_error
    if not math.isfinite(value):  # evaluations before 0.2 did not pair them
        value, error = elbo.value - naive.value, math.hypot(elbo.error, naive.error)
    if not math.isfinite(error):
        return Lead(value, error, 0 if record.trajectories == 1 else int(np.sign(value)))
    bound = error * float(stats.t.ppf(0.99, max((record.trajectories or 100) - 1, 1)))
    return Lead(value, error, int(value > bound) - int(value < -bound))


def _table(record: Likelihood) -> Table:
    head = ("distribution", record.unit, "error", "meaning")
    return Table(head, [(row.name, _value(row), _error(row), row.note) for row in record.known], frozenset({record.unit, "error"}))


def _gap(elbo: LikelihoodRow, oracle: LikelihoodRow) -> str:
    """Return how far the model is below the oracle, with the standard error if the two were paired."""
    if math.isfinite(oracle.difference_error):
        return measured(-oracle.difference, oracle.difference_error)
    return number(oracle.value - elbo.value)


def _value(row: LikelihoodRow) -> str:
    return number(row.value, f".{precision(row.error)}f")


def _error(row: LikelihoodRow) -> str:
    return number(row.error, f".{precision(row.error)}f")
