"""Check: are the ensembles calibrated on held-out trajectories?"""

from __future__ import annotations

from collections.abc import Iterator

import xarray as xr

from epns_pyro.calibration.verdicts import Word
from epns_pyro.calibration.wording import listing, number, sentence
from epns_pyro.evaluation.check import Check, Fault, Inputs, Severity
from epns_pyro.evaluation.evaluated import Evaluated, Subject
from epns_pyro.evaluation.figures import calibration
from epns_pyro.evaluation.figures.style import largest
from epns_pyro.evaluation.heldout import VIEW
from epns_pyro.evaluation.lines import beyond_chance, lines
from epns_pyro.evaluation.parts import Figure, Key, Section
from epns_pyro.evaluation.record import HeadlineLine, VerdictRecord

NAMED = 3  # faults named in a line of the summary; the table of verdicts names all
Verdicts = dict[str, tuple[VerdictRecord, ...]]


class CalibrationCheck(Check[Verdicts]):
    """Its record holds the verdicts of every group: observables, fields, labels."""

    key, title, record = "verdicts", "held-out forecasts", Verdicts

    def measure(self, inputs: Inputs) -> Verdicts:
        judged = inputs.forecasts("test")
        for name, data in judged.diagnostics.items():
            inputs.save("diagnostics", data, group=name)
        return {group: tuple(VerdictRecord.model_validate(v) for v in verdicts) for group, verdicts in judged.verdicts.items()}

    def sections(self, record: Verdicts | None, found: Evaluated) -> Iterator[Section]:
        for make in (pit, coverage, spread, skill, ranks, reliability):  # in the order of the page
            yield make(found)

    def headline(self, record: Verdicts) -> Iterator[HeadlineLine]:
        judged = [v for group in record.values() for v in group if v.word != Word.TOO_FEW_DATA]
        good = [v for v in judged if v.word == Word.CALIBRATED]
        faults = [f"{v.subject} {v.word}" for v in judged if v.word != Word.CALIBRATED]
        more = f" and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
        certain = bool(beyond_chance(lines(record)))
        chance = ": no more than chance" if faults and not certain else ""
        yield HeadlineLine(
            label="calibrated on held-out data",
            value=f"{len(good)} of {len(judged)} quantities",
            note=", ".join(faults[:NAMED]) + more + chance or "no test fails",
            good=None if chance or not judged else not faults,
        )

    def faults(self, record: Verdicts) -> Iterator[Fault]:
        """Yield what failed, unless all of it is no more than chance among so many quantities."""
        if not beyond_chance(lines(record)):
            return
        at_fault = sorted((line for line in lines(record) if line.state == "fault"), key=lambda line: line.p_value)
        for word in dict.fromkeys(line.word for line in at_fault):
            subjects = [line.subject for line in at_fault if line.word == word]
            yield Fault(Severity.MISCALIBRATED, f"{listing(subjects)} {'is' if len(subjects) == 1 else 'are'} {word}")


BODIES = {
    "kept": " Forecasts hold the bodies of their initial state, and are judged by those that the recording still has.",
    "recorded": " Bodies enter forecasts where they were first recorded and leave when they left, and all that are there are judged.",
}


def pit(found: Evaluated) -> Section:
    run = found.record.run
    bodies = BODIES.get(run.evaluation.get("entries", ""), "") if run.system == "recorded" else ""
    if region := found.groups.get("observables", xr.Dataset()).attrs.get(VIEW):
        bodies += f" Bodies leave the field of view: each counts until it leaves {region}, in the truth and in every member by itself."
    if run.sizes:
        bodies += f" Sizes were chosen for many bodies; the verdicts say what such tests would find. {sentence(run.sizes)}"
    section = Section(
        "pit",
        "PIT-ECDF by lead time",
        "Each line is the distribution function of the truth's rank among the members, minus the uniform one. The grey band contains the "
        "whole line of a calibrated ensemble in 95 of 100 cases, at each lead time separately: of 20 panels, about one leaves its band by "
        "chance, and the verdicts allow for this. A line that is first below and then above 0 shows an ensemble that is too wide; first "
        "above, "
        "then below: too narrow; on one side only: a bias." + bodies,
    )
    for subject in found.subjects("observables"):
        if "ecdf_difference" in subject.data:
            section.items.append(_ecdf(subject.data, subject.label))
    return section


def ranks(found: Evaluated) -> Section:
    section = Section(
        "ranks",
        "Multivariate ranks",
        "Are dependences between components right? Each state, truth or member, is reduced to one number (the pre-rank), and the rank of "
        "the truth among the members must be uniform. An ensemble can be right in every component and fail here.",
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
        "How often the truth is inside central intervals of the ensemble. Horizontal lines: the nominal level. Whiskers: 95% intervals; "
        "of 20 "
        "dots, about one misses its line by chance.",
    )
    subjects = [s for s in found.subjects("observables", "fields") if "coverage" in s.data]
    if subjects:
        last = "; ".join(f"{s.label} {float(s.data['coverage'].sel(level=0.9, method='nearest')[-1]):.0%}" for s in subjects)
        section.items.append(
            Figure(
                calibration.coverage(subjects, found.time_unit),
                alt=f"Coverage of central intervals over lead time. {found.level:.0%} intervals at the last lead time cover: {last}.",
                caption="If the model is right, dots are on their lines. Dots below: intervals too narrow; above: too wide.",
                key=(Key("model", "coverage"), Key("bad", "its 95% interval misses the line")),
            )
        )
    return section


def spread(found: Evaluated) -> Section:
    section = Section(
        "spread",
        "Spread and bias",
        "The spread of a calibrated ensemble equals the error of its mean, and its centre is the truth on average. Bands: 95% intervals "
        "over "
        "trajectories, corrected for the size of the ensemble.",
    )
    subjects = list(found.subjects("observables", "fields"))
    with_ratio = [s for s in subjects if "spread_skill" in s.data]
    if with_ratio:
        ends = ", ".join(f"{s.label} {float(s.data['spread_skill'][-1]):.2f}" for s in with_ratio)
        section.items.append(
            Figure(
                calibration.ratios(with_ratio, found.time_unit),
                alt=f"Spread-skill ratio over lead time; at the last: {ends}.",
                caption="Ensemble spread divided by the error of the ensemble mean: 1 is right, below 1 over-confident, above 1 "
                "under-confident.",
                title="Spread-skill ratio",
                key=(Key("model", "model"), Key("truth", "calibrated")),
            )
        )
    with_shift = [s for s in subjects if "shift" in s.data]
    if with_shift:
        ends = ", ".join(f"{s.label} {number(float(s.data['shift'][-1]), '+.2f')}" for s in with_shift)
        section.items.append(
            Figure(
                calibration.shifts(with_shift, found.time_unit),
                alt=f"Bias over lead time in ensemble spreads; at the last: {ends}.",
                caption="Distance of the truth above (+) or below (−) the centre of its ensemble, in ensemble spreads: 0 is right.",
                title="Bias",
                key=(Key("model", "model"), Key("truth", "calibrated")),
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
        "Proper scores are best for an ensemble that is both calibrated and narrow; lower is better. The true process is a second "
        "ensemble of "
        "the truth, and no model can be better on average; persistence needs no learning. The variogram score of a vector compares pairs "
        "of "
        "components, so it sees their dependence; the energy score sees mostly single components.",
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
                    "A right and sharp model is on the line of the true process, far below the references that need no learning."
                    if skilled
                    else "Lower is better."
                ),
                title=name,
                key=(Key("model", "model"), Key("truth", "true process"), Key("reference", "references without learning"))
                if skilled
                else (),
            )
        )
        if skilled:
            section.items.append(
                Figure(
                    calibration.skills(skilled, saved, found.time_unit),
                    alt=f"Skill of the {name} over lead time against each reference. " + _skills_in_words(skilled, saved),
                    caption="Skill: 1 − score of the model / score of the reference, with 95% intervals. Near 1 is good against a "
                    "reference without "
                    "learning; 0 is the best possible against the true process.",
                    title=f"Skill, {name}",
                    key=(Key("truth", "against the true process"), Key("reference", "against references without learning")),
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
        "When a fraction p of the members has a label at a site, how often does the truth have it? A perfect ensemble of this size is "
        "not on "
        "the diagonal, because fractions of few members are noisy: compare with the dashed line.",
    )
    for subject in found.subjects("labels"):
        if "frequency" in subject.data:
            off = largest(abs(subject.data["frequency"] - subject.data["expected_frequency"]), default=0.0)
            section.items.append(
                Figure(
                    calibration.reliability(subject),
                    alt=f"Reliability diagrams at three lead times; the largest distance from a perfect ensemble is {off:.2f}.",
                    caption="If the model is right, dots are on the dashed line; dots on a flatter line show over-confidence. "
                    "Whiskers: 95%, over trajectories.",
                    key=(Key("model", "model"), Key("dashed", "a perfect ensemble of this size")),
                )
            )
    return section
