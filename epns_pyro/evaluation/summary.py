"""Summary of an evaluation: the first sentence, the headline, and the row in a comparison of runs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from epns_pyro.calibration.power import FALSE_ALARM, times
from epns_pyro.calibration.wording import precision
from epns_pyro.evaluation.checks import CHECKS
from epns_pyro.evaluation.lines import Line, beyond_chance, lines
from epns_pyro.evaluation.record import EvaluationRecord, HeadlineLine


def verdict(record: EvaluationRecord) -> str:
    """Return the first sentence of the page: the faults, most serious first, or that no test failed."""
    judged = lines(record.verdicts)
    found = ((check, check.read(record)) for check in CHECKS)
    faults = sorted((fault for check, seen in found if seen is not None for fault in check.faults(seen)), key=lambda fault: fault.severity)
    if not faults:
        return _praise(judged)
    rest = "" if beyond_chance(judged) else f" {_praise(judged)}"
    return f"Use with care: {'; '.join(fault.words for fault in faults)}.{rest}"


def headline(record: EvaluationRecord) -> tuple[HeadlineLine, ...]:
    """Return the lines of the summary, in the order of the checks."""
    found = ((check, check.read(record)) for check in CHECKS)
    return tuple(line for check, seen in found if seen is not None for line in check.headline(seen))


def _praise(judged: list[Line]) -> str:
    silent = sum(line.state == "silent" for line in judged)
    if not judged:
        return "No quantity was tested on held-out data."
    if silent == len(judged):
        return f"There are too few held-out data to say whether the ensemble can be trusted{_needed(judged)}."
    doubt = f" For {silent} more, there are too few data to say{_needed(judged)}." if silent else ""
    failed = sorted((line for line in judged if line.state == "fault"), key=lambda line: line.p_value)
    if failed and not beyond_chance(judged):
        own = " and ".join(f"{line.subject} is {line.word}" for line in failed)
        tests = "its own test" if len(failed) == 1 else "their own tests"
        share = f"{FALSE_ALARM:.0%} of right quantities fail such a test"
        return f"No fault beyond chance in {len(judged) - silent} quantities on held-out data. By {tests} {own}; {share}.{doubt}"
    return f"No test of {len(judged) - silent} quantities on held-out data found a fault in the ensemble.{doubt}"


def _needed(judged: list[Line]) -> str:
    """Say how many times as many data would do, where that is known."""
    more = [line.more for line in judged if math.isfinite(line.more)]
    if not more:
        return ""
    least, most = times(min(more)), times(max(more))
    span = most if least == most else f"{least.removesuffix(' times')} to {most}"
    return f": {span} as many would do"


@dataclass(frozen=True)
class ComparisonRow:
    """The numbers that runs are compared by; None where one is missing.

    `data` is a letter: runs with the same letter were evaluated on the same data. `trajectories` is the size of
    the training set. `decimals` suits the standard error of the ELBO.
    """

    name: str
    data: str
    system: str
    elbo: float | None
    iwae: float | None
    gap: float | None
    kl: float | None
    active: str
    calibrated: str
    ks: float | None
    floor: float | None
    alive: float | None
    symmetry: float | None
    parameters: int | None
    trajectories: int | None
    steps: int | None
    store: str
    decimals: int


def comparison_row(name: str, record: EvaluationRecord, *, data: str = "") -> ComparisonRow:
    """Return the row of one run in a comparison of runs."""
    scores, latents, run = record.likelihood, record.latents, record.run
    model = scores.row("elbo") if scores else None
    elbo, iwae, oracle = (None if scores is None or (row := scores.row(key)) is None else row.value for key in ("elbo", "iwae", "oracle"))
    judged = [line for line in lines(record.verdicts) if line.state != "silent"]
    return ComparisonRow(
        name=name,
        data=data,
        system=run.system or "",
        elbo=elbo,
        iwae=iwae,
        gap=None if oracle is None or elbo is None else oracle - elbo,
        kl=_first(scores.kl if scores else None, latents.kl_total if latents else None),
        active=f"{latents.active}/{latents.latent}" if latents else "–",
        calibrated=f"{sum(line.state == 'good' for line in judged)}/{len(judged)}",
        ks=_mean([row.ks for row in record.same_init]),
        floor=_mean([row.typical for row in record.same_init]),
        alive=_first(record.stability.final_alive_model if record.stability else None),
        symmetry=_first(record.equivariance.maximum if record.equivariance else None),
        parameters=run.parameters,
        trajectories=run.sets["train"].trajectories if "train" in run.sets else None,
        steps=run.step,
        store=run.store or "",
        decimals=precision(model.error if model else None),
    )


def _first(*values: float | None) -> float | None:
    """Return the first number that is known."""
    return next((value for value in values if value is not None and math.isfinite(value)), None)


def _mean(values: list[float]) -> float | None:
    known = [value for value in values if math.isfinite(value)]
    return float(np.mean(known)) if known else None
