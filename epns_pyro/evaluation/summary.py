"""What an evaluation says in one sentence, in one line per quantity, and in one row per run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from epns_pyro.calibration.verdicts import FALSE_ALARM, Word, percent
from epns_pyro.calibration.wording import listing

SILENT = Word.TOO_FEW_DATA
SYMMETRY_ERROR, LEAST_ALIVE = 1e-9, 0.9  # what the log density may change by; the least share of plausible runs, of the true share
GROUPS = {"observables": "observables", "fields": "fields", "labels": "label images"}


@dataclass(frozen=True)
class Line:
    """A verdict as the page shows it: `state` is "good", "fault" or "silent"; `seen` is the sentence without its first word."""

    group: str
    subject: str
    word: str
    state: str
    seen: str
    power: str
    rule: str
    p_value: float


def lines(metrics: dict[str, Any]) -> list[Line]:
    """Return one line per verdict."""
    return [_line(group, v) for group, verdicts in (metrics.get("verdicts") or {}).items() for v in verdicts]


def state(word: str) -> str:
    """Say whether a word is good news, a fault, or silence."""
    return "good" if word == Word.CALIBRATED else "silent" if word == SILENT else "fault"


def _line(group: str, v: dict[str, Any]) -> Line:
    word, power = str(v["word"]), v.get("power")
    parts = after_word(str(v["sentence"]), word).split("; ")
    return Line(
        group=GROUPS.get(group, group),
        subject=str(v["subject"]),
        word=word,
        state=state(word),
        seen="; ".join(part for i, part in enumerate(parts) if i == 0 or "would be found" not in part),  # "power" says it already
        power="–" if power is None else percent(power),
        rule=str(v.get("rule") or ""),
        p_value=1.0 if v.get("p_value") is None else float(v["p_value"]),
    )


def after_word(sentence: str, word: str) -> str:
    """Drop the word of a verdict from the front of its sentence, where a badge says it already."""
    return sentence.removeprefix(word).lstrip(": ")


def verdict(metrics: dict[str, Any]) -> str:
    """Return the first sentence of the page: what is wrong, worst first; praise only where nothing is."""
    judged = lines(metrics)
    faults = [*_faults_of_runs(metrics), *_accusations(judged), *_faults_of_distributions(metrics)]
    if not faults:
        return _praise(judged)
    rest = "" if any(line.state == "fault" for line in judged) else f" {_praise(judged)}"
    return f"Use with care: {'; '.join(faults)}.{rest}"


def _praise(judged: list[Line]) -> str:
    silent = sum(line.state == "silent" for line in judged)
    if not judged:
        return "Nothing was judged on held-out data."
    if silent == len(judged):
        return "There are too few held-out data to say whether the ensemble can be trusted."
    doubt = f" For {silent} more there are too few data to say." if silent else ""
    return f"No test of {len(judged) - silent} quantities on held-out data found fault with the ensemble.{doubt}"


def _faults_of_runs(metrics: dict[str, Any]) -> Iterator[str]:
    stability = metrics.get("stability") or {}
    if breaks_symmetry(metrics.get("equivariance") or {}):
        yield f"the symmetry is broken (error {metrics['equivariance']['maximum']:.0e})"
    if loses_to_persistence(metrics.get("likelihood") or {}):
        yield "one step is predicted worse than by persistence"
    if runs_die(stability):
        alive, true = (stability[f"final_alive_{source}"] for source in ("model", "truth"))
        yield f"only {alive:.0%} of {stability['runs']} long runs stay plausible ({true:.0%} of the true process)"


def _accusations(judged: list[Line]) -> Iterator[str]:
    faults = sorted((line for line in judged if line.state == "fault"), key=lambda line: line.p_value)
    for word in dict.fromkeys(line.word for line in faults):
        subjects = [line.subject for line in faults if line.word == word]
        yield f"{listing(subjects)} {'is' if len(subjects) == 1 else 'are'} {word}"


def _faults_of_distributions(metrics: dict[str, Any]) -> Iterator[str]:
    rows, tests, found = metrics.get("same_init") or [], metrics.get("two_sample") or [], []
    if differing := distributions_that_differ(rows):
        what = listing(sorted({str(row["label"]) for row in differing}), most=2)
        found.append(f"{len(differing)} of {len(rows)} distributions ({what})")
    if told_apart := initial_states_told_apart(tests):
        found.append(f"all observables together (for {len(told_apart)} of {len(tests)} initial states)")
    if found:
        yield f"from one initial state {' and '.join(found)} differ from the truth"


def breaks_symmetry(equivariance: dict[str, Any]) -> bool:
    """Say whether the log density changes by more than rounding under elements of the group."""
    return (equivariance.get("maximum") or 0) > SYMMETRY_ERROR


def loses_to_persistence(likelihood: dict[str, Any]) -> bool:
    """Say whether held-out transitions are less probable than under persistence."""
    values = {row.get("key"): row.get("value") for row in likelihood.get("rows") or []}
    elbo, naive = values.get("elbo"), values.get("persistence")
    return elbo is not None and naive is not None and elbo <= naive


def runs_die(stability: dict[str, Any]) -> bool:
    """Say whether fewer long runs stay plausible than of the true process."""
    alive, true = (stability.get(f"final_alive_{source}") for source in ("model", "truth"))
    return alive is not None and true is not None and alive < LEAST_ALIVE * true


def distributions_that_differ(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the comparisons from one initial state that differ, with at most 5% false alarms over all of them (Bonferroni)."""
    return [row for row in rows if row.get("p_value") is not None and row["p_value"] < FALSE_ALARM / len(rows)]


def initial_states_told_apart(tests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the initial states from which all observables together tell model from truth.

    Two tests of each, energy distance and classifier, with at most 5% false alarms over all of them (Bonferroni).
    """
    threshold = FALSE_ALARM / max(1, sum(len(joint_p_values(test)) for test in tests))
    return [test for test in tests if min(joint_p_values(test), default=1) < threshold]


def joint_p_values(test: dict[str, Any]) -> list[float]:
    """Return the p-values of the tests of all observables together from one initial state."""
    return [test[key] for key in ("energy_p", "classifier_p") if test.get(key) is not None]


def comparison_row(name: str, metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of one run that runs are compared by; None where there is none."""
    run, likelihood, latents = (metrics.get(key) or {} for key in ("run", "likelihood", "latents"))
    rows = {row["key"]: row["value"] for row in likelihood.get("rows") or []}
    judged = [line for line in lines(metrics) if line.state != "silent"]
    same_init = metrics.get("same_init") or []
    elbo, oracle = rows.get("elbo"), rows.get("oracle")
    return {
        "name": name,
        "system": run.get("system", ""),
        "elbo": elbo,
        "iwae": rows.get("iwae"),
        "gap": None if oracle is None or elbo is None else oracle - elbo,
        "kl": likelihood.get("kl", latents.get("kl_total")),
        "active": f"{latents['active']}/{latents['latent']}" if "active" in latents else "–",
        "calibrated": f"{sum(line.state == 'good' for line in judged)}/{len(judged)}",
        "ks": float(np.mean([row["ks"] for row in same_init])) if same_init else None,
        "floor": _mean([row.get("typical") for row in same_init]),
        "alive": (metrics.get("stability") or {}).get("final_alive_model"),
        "symmetry": (metrics.get("equivariance") or {}).get("maximum"),
        "parameters": run.get("parameters"),
        "steps": run.get("step"),
        "store": run.get("store", ""),
    }


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
