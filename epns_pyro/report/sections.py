"""The sections that compare forecasts with the truth: likelihood, distributions from one initial state, calibration over lead time.

Every function takes an evaluation and returns a section, an empty one where the evaluation lacks what it would show.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from epns_pyro.calibration.wording import listing, number, p_value, sentence
from epns_pyro.evaluation.summary import distributions_that_differ, initial_states_told_apart, joint_p_values
from epns_pyro.report import figures_calibration as calibration
from epns_pyro.report import figures_distribution as distribution
from epns_pyro.report.evaluated import Evaluated, Subject
from epns_pyro.report.figures_distribution import with_unit
from epns_pyro.report.parts import Details, Figure, Key, Section, Table, Text
from epns_pyro.report.svg import largest

BANDS = (Key("model", "model: median, 10–90%"), Key("truth", "truth: median"), Key("floor", "truth: 10–90%"))


def likelihood(found: Evaluated) -> Section:
    table: dict[str, Any] = found.metrics.get("likelihood") or {}
    rows = [row for row in table.get("rows") or [] if row.get("value") is not None]
    by_key = {row.get("key"): row["value"] for row in rows}
    lead = "How probable held-out transitions are under the model, in nats per transition of the whole system: higher is better."
    caption = "A model that has learned anything stands above the references that need no learning."
    if "oracle" in by_key:
        lead += " The oracle is the true transition density, so the distance to it says how good the model is in absolute terms."
        caption = "An honest model stands between the references that need no learning and the oracle, never above it."
        if "elbo" in by_key:
            gap = number(by_key["oracle"] - by_key["elbo"])
            caption = f"The model (ELBO) is {gap} nats per transition below the oracle. {caption}"
    section = Section("likelihood", "Likelihood", lead)
    if not rows:
        return section
    section.items.append(
        Figure(
            distribution.ladder(rows),
            alt="Scores in nats per transition: " + ", ".join(f"{row['name']} {number(row['value'])}" for row in rows) + ".",
            caption=f"{caption} Whiskers: one standard error over trajectories.",
            key=(Key("model", "model"), Key("truth", "oracle"), Key("reference", "references")) if "oracle" in by_key else (),
            size="medium",
        )
    )
    body = [(row["name"], number(row["value"]), number(row.get("error")), row.get("note") or "") for row in rows]
    section.items.append(
        Table(("law", table.get("unit") or "nats", "error", "what it is"), body, frozenset({table.get("unit") or "nats", "error"}))
    )
    if table.get("fields"):
        fields = [(str(row["name"]), number(row["value"]), number(row.get("error"))) for row in table["fields"]]
        section.items.append(Table(("field", "nats", "error"), fields, frozenset({"nats", "error"})))
    if table.get("reconstruction") is not None and table.get("kl") is not None:
        section.items.append(Text(f"The ELBO is reconstruction, {number(table['reconstruction'])}, minus KL, {number(table['kl'])} nats."))
    if table.get("gap_sentence"):
        section.items.append(Text(sentence(table["gap_sentence"])))
    return section


def fans(found: Evaluated) -> Section:
    section = Section(
        "fans",
        "Futures of one initial state",
        "Many futures of the same initial state, drawn from the model and from the true process. This is the sharpest test: it compares "
        "whole distributions, not single outcomes.",
    )
    data = found.files.get("fans")
    if data is not None:
        for name in map(str, data["observable"].values):
            label, unit = (str(data[key].sel(observable=name).item()) if key in data.coords else "" for key in ("label", "unit"))
            section.items.append(
                Figure(
                    distribution.fans(data, name),
                    alt=f"Median and 10 to 90% band of {label or name} over time for each initial state, model drawn over truth.",
                    caption="If the model is honest, its lines bound the grey band of the truth, and the medians lie on each other.",
                    title=with_unit(label or name, unit),
                    key=BANDS,
                )
            )
    return section


def distances(found: Evaluated) -> Section:
    section = Section(
        "distances",
        "Distances of distributions",
        "How far the distribution of the model is from the true one, from one initial state. Two finite samples of one law are never "
        "alike, so every distance stands beside the distance of two true ensembles.",
    )
    rows = found.metrics.get("same_init") or []
    if rows:
        section.items.extend([_distance_figure(rows, found.time_unit), _distance_table(rows, found.time_unit)])
    return section


def _distance_figure(rows: list[dict[str, Any]], time_unit: str) -> Figure:
    differing = distributions_that_differ(rows)
    seen = (
        f"{len(differing)} of {len(rows)} distances are larger than chance allows."
        if differing
        else "No distance is larger than chance allows."
    )
    return Figure(
        distribution.distances(rows, time_unit),
        alt="Kolmogorov-Smirnov distance of model and truth over time, with its floor: "
        + "; ".join(f"{row['label']} at {row['time']:g}: {row['ks']:.2f}" for row in rows)
        + ".",
        caption=f"{seen} 0 is the same distribution, 1 one without overlap; mean over initial states. An honest model stays near "
        "the dashed "
        "line. The shaded floor holds the distance from a single initial state 95 times in 100 if both are samples of one law.",
        title="Kolmogorov-Smirnov distance over time",
        key=(
            Key("model", "model and truth"),
            Key("dashed", "two true ensembles"),
            Key("floor", "floor"),
            Key("bad", "differs (p < 5% over all)"),
        ),
    )


def _distance_table(rows: list[dict[str, Any]], time_unit: str) -> Table:
    columns = {
        "observable": lambda row: row["label"],
        with_unit("time", time_unit): lambda row: f"{row['time']:g}",
        "D_KS": lambda row: number(row["ks"], ".3f"),
        "two true": lambda row: number(row.get("typical"), ".3f"),
        "floor": lambda row: number(row.get("floor"), ".3f"),
        "persistence": lambda row: number(row.get("persistence_ks"), ".2f"),
        "model − truth": lambda row: f"{number(row.get('difference'), '+.3g')} ± {number(row.get('error'), '.2g')} {row.get('unit') or ''}",
        "p": lambda row: p_value(row.get("p_value")),
    }
    for name, key in (("persistence", "persistence_ks"), ("two true", "typical")):
        if all(row.get(key) is None for row in rows):
            del columns[name]
    head = tuple(columns)
    return Table(
        head,
        [tuple(str(cell(row)).strip() for cell in columns.values()) for row in rows],
        frozenset(head[1:]),
        note="Means over initial states; model − truth: difference of means with its standard error; p: smallest over the initial states, "
        "corrected for their number, not for that of the lines: a distance differs only where p times the lines is below 5%.",
    )


def two_sample(found: Evaluated) -> Section:
    section = Section(
        "two-sample",
        "Can model and truth be told apart?",
        "All observables together, at one time, from one initial state: the energy distance, and a classifier trained to tell runs of the "
        "model from true ones. 50% is guessing.",
    )
    tests = [test for test in found.metrics.get("two_sample") or [] if test.get("classifier_accuracy") is not None]
    if not tests:
        return section
    told = ", ".join(f"{test['classifier_accuracy']:.0%}" for test in tests)
    section.items.append(
        Figure(
            distribution.classifier(tests),
            alt=f"Accuracy of a classifier that tells model from truth, per initial state: {told}.",
            caption="If the model is honest, the dots lie in the shaded floor, which samples of one law leave one time in twenty.",
            key=(Key("model", "accuracy, 95% interval"), Key("floor", "floor"), Key("bad", "beyond the floor")),
            size="medium",
        )
    )
    columns = {
        "initial state": lambda t: str(t["initial_state"] + 1),
        with_unit("time", found.time_unit): lambda t: f"{t['time']:g}",
        "p, energy distance": lambda t: p_value(t.get("energy_p")),
        "p, classifier": lambda t: p_value(t.get("classifier_p")),
        "accuracy of a classifier": lambda t: f"{t['classifier_accuracy']:.0%}",
        "95% interval": lambda t: f"{t['lower']:.0%}–{t['upper']:.0%}",
        "floor": lambda t: number(t.get("floor"), ".0%"),
    }
    if all(t.get("classifier_p") is None for t in tests):
        del columns["p, classifier"]
    rows = [tuple(cell(t) for cell in columns.values()) for t in tests]
    note = "p: of each test by itself, not corrected for their number."
    section.items.extend([Table(tuple(columns), rows, frozenset([*columns][1:]), note), Text(_told_apart(tests))])
    words = [f"Initial state {t['initial_state'] + 1}: {sentence(t['sentence'])}" for t in tests if t.get("sentence")]
    if words:
        section.items.append(Details("Each test in words, at 5% by itself", words))
    return section


def _told_apart(tests: list[dict[str, Any]]) -> str:
    known = sum(len(joint_p_values(test)) for test in tests)
    states = [str(test["initial_state"] + 1) for test in initial_states_told_apart(tests)]
    found = f"from initial state{'s' if len(states) > 1 else ''} {listing(states)}" if states else "from no initial state"
    return f"Corrected for all {known} tests (p times {known} below 5%), model and truth are told apart {found}."


def pit(found: Evaluated) -> Section:
    section = Section(
        "pit",
        "PIT-ECDF by lead time",
        "Where the truth falls among its ensemble members, as a distribution function minus what it should be. The grey band "
        "holds the whole "
        "line of a calibrated ensemble 95 times in 100, at each lead time by itself: of 20 panels about one leaves it by chance, which the "
        "verdicts allow for. A line that falls and then rises through 0 means an ensemble too wide, one that rises and then falls one too "
        "narrow, a bow to one side a bias.",
    )
    for subject in found.subjects("observables"):
        if "ecdf_difference" in subject.data:
            section.items.append(_ecdf(subject.data, subject.label))
    return section


def ranks(found: Evaluated) -> Section:
    section = Section(
        "ranks",
        "Multivariate ranks",
        "Whether components go together as they should. Each state, truth or member, is boiled down to one number (the pre-rank), and the "
        "truth must rank among the members like any of them. An ensemble can be right in every component and fail here.",
    )
    for subject in found.subjects("fields", "labels"):
        for rank in map(str, subject.data["pre_rank"].values if "joint_ecdf_difference" in subject.data else ()):
            section.items.append(_ecdf(subject.data.sel(pre_rank=rank), f"{subject.label}, by {rank}", "joint_"))
    return section


def _ecdf(one: xr.Dataset, title: str, prefix: str = "") -> Figure:
    names = (f"{prefix}ecdf_difference", f"{prefix}band_lower", f"{prefix}band_upper")
    shown = calibration.grid_times(one)
    outside = [k for k in shown if calibration.leaves(*(one[name].isel(lead_time=k).values for name in names))]
    times = ", ".join(f"{float(one['lead_time'][k]):.4g}" for k in outside)
    seen = f"outside the band at lead time {times}" if outside else "inside the band at every lead time shown"
    return Figure(
        calibration.ecdf_differences(one, prefix),
        alt=f"Rank ECDF minus its expectation for {title}, by lead time: {seen}.",
        caption=f"{seen.capitalize()}.",
        title=title,
        size="tiny",
    )


def coverage(found: Evaluated) -> Section:
    section = Section(
        "coverage",
        "Coverage of intervals",
        "How often the truth falls into central intervals of the ensemble. Lines across: what was promised. Whiskers: 95% intervals; of 20 "
        "dots about one misses its line by chance.",
    )
    subjects = [s for s in found.subjects("observables", "fields") if "coverage" in s.data]
    if subjects:
        last = "; ".join(f"{s.label} {float(s.data['coverage'].sel(level=0.9, method='nearest')[-1]):.0%}" for s in subjects)
        section.items.append(
            Figure(
                calibration.coverage(subjects, found.time_unit),
                alt=f"Coverage of central intervals over lead time. {found.level:.0%} intervals at the last lead time cover: {last}.",
                caption="If the model is honest, dots lie on their lines: below, intervals are too narrow; above, too wide.",
                key=(Key("model", "coverage"), Key("bad", "its interval misses the line")),
            )
        )
    return section


def spread(found: Evaluated) -> Section:
    section = Section(
        "spread",
        "Spread and bias",
        "An honest ensemble is as wide as its mean is wrong, and centred on the truth. Bands: 95%, over trajectories, unbiased for finite "
        "ensembles.",
    )
    subjects = list(found.subjects("observables", "fields"))
    with_ratio = [s for s in subjects if "spread_skill" in s.data]
    if with_ratio:
        ends = ", ".join(f"{s.label} {float(s.data['spread_skill'][-1]):.2f}" for s in with_ratio)
        section.items.append(
            Figure(
                calibration.ratios(with_ratio, found.time_unit),
                alt=f"Spread-skill ratio over lead time; at the last: {ends}.",
                caption="Ensemble spread over error of the ensemble mean: 1 is honest, below 1 over-confident, above 1 under-confident.",
                title="Spread-skill ratio",
                key=(Key("model", "model"), Key("truth", "honest")),
            )
        )
    with_shift = [s for s in subjects if "shift" in s.data]
    if with_shift:
        ends = ", ".join(f"{s.label} {number(float(s.data['shift'][-1]), '+.2f')}" for s in with_shift)
        section.items.append(
            Figure(
                calibration.shifts(with_shift, found.time_unit),
                alt=f"Bias over lead time in ensemble spreads; at the last: {ends}.",
                caption="How far the truth lies above (+) or below (−) the centre of its ensemble, in ensemble spreads: 0 is honest.",
                title="Bias",
                key=(Key("model", "model"), Key("truth", "honest")),
            )
        )
    return section


_SCORES = (
    ("observables", "crps", "skill", "CRPS"),
    ("fields", "energy_score", "skill", "Energy score"),
    ("fields", "variogram_score", "variogram_skill", "Variogram score"),
    ("labels", "brier", "skill", "Brier score"),
    ("labels", "log_score", "", "Log score"),
)


def skill(found: Evaluated) -> Section:
    section = Section(
        "skill",
        "Scores and skill",
        "Proper scores reward an ensemble for being sharp and right; lower is better. The true process is another ensemble of the truth, "
        "which nothing can beat; persistence needs no learning. The variogram score of a vector looks at pairs of components: it sees how "
        "they go together, where the energy score sees mostly the components.",
    )
    for group, score, saved, name in _SCORES:
        subjects = [s for s in found.subjects(group) if score in s.data]
        if not subjects:
            continue
        skilled = [s for s in subjects if saved in s.data]
        ends = ", ".join(f"{s.label} {float(s.data[score][-1]):.3g}" for s in subjects)
        section.items.append(
            Figure(
                calibration.scores(subjects, score, saved, found.time_unit),
                alt=f"{name} over lead time, logarithmic scale, model and references; model at the last: {ends}.",
                caption="Logarithmic scale. "
                + (
                    "An honest and sharp model lies on the line of the true process, far below naive references."
                    if skilled
                    else "Lower is better."
                ),
                title=name,
                key=(Key("model", "model"), Key("truth", "true process"), Key("reference", "naive references")) if skilled else (),
            )
        )
        if skilled:
            section.items.append(
                Figure(
                    calibration.skills(skilled, saved, found.time_unit),
                    alt=f"Skill of the {name} over lead time against each reference. " + _skills_in_words(skilled, saved),
                    caption="Share of the score of a reference that the model saves, with 95% intervals: near 1 against a naive "
                    "reference is good, "
                    "0 against the true process is the best there is.",
                    title=f"Skill, {name}",
                    key=(Key("truth", "against the true process"), Key("reference", "against naive references")),
                )
            )
    return section


def _skills_in_words(subjects: list[Subject], skill: str) -> str:
    said = []
    for s in subjects:
        last = s.data[skill].isel(lead_time=-1)
        said += [f"{s.label} against {name}: {number(float(last.sel(reference=name)))}" for name in last["reference"].values]
    return "At the last lead time: " + "; ".join(said) + "."


def reliability(found: Evaluated) -> Section:
    section = Section(
        "reliability",
        "Reliability of labels",
        "When a share p of the members show a label at a site, how often is it there? A perfect ensemble of this size does not lie on the "
        "diagonal, because shares of few members are noisy: compare with the dashed line.",
    )
    for subject in found.subjects("labels"):
        if "frequency" in subject.data:
            off = largest(np.abs(subject.data["frequency"] - subject.data["expected_frequency"]).values, default=0.0)
            section.items.append(
                Figure(
                    calibration.reliability(subject),
                    alt=f"Reliability diagrams at three lead times; the largest distance from a perfect ensemble is {off:.2f}.",
                    caption="If the model is honest, dots lie on the dashed line; a flatter run of dots is over-confident. "
                    "Whiskers: 95%, over trajectories.",
                    key=(Key("model", "model"), Key("dashed", "a perfect ensemble of this size")),
                )
            )
    return section


MAKERS = (likelihood, fans, distances, two_sample, pit, coverage, spread, skill, ranks, reliability)  # in the order of the page
