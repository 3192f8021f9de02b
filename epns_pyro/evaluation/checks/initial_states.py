"""Checks of many futures of one initial state, model against truth: one observable at a time, and all of them together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from epns_pyro.calibration.power import FALSE_ALARM
from epns_pyro.calibration.wording import listing, measured, number, p_value, sentence
from epns_pyro.evaluation.check import Check, Fault, Inputs, Severity
from epns_pyro.evaluation.evaluated import Evaluated, Subject
from epns_pyro.evaluation.figures import distribution as figures
from epns_pyro.evaluation.figures.distribution import with_unit
from epns_pyro.evaluation.parts import Details, Figure, Key, Section, Table, Text
from epns_pyro.evaluation.record import Distance, HeadlineLine, JointTest

BANDS = (Key("model", "model: median, 10–90%"), Key("truth", "truth: median"), Key("floor", "truth: 10–90%"))


class DistanceCheck(Check[tuple[Distance, ...]]):
    """Its record has one row per observable and time."""

    key, title, record = "same_init", "one initial state", tuple[Distance, ...]

    def measure(self, inputs: Inputs) -> tuple[Distance, ...] | None:
        if inputs.compared is None:
            return None
        inputs.save("fans", inputs.compared.fans)
        return inputs.compared.distances

    def sections(self, record: tuple[Distance, ...] | None, found: Evaluated) -> Iterator[Section]:
        yield _fans(found)
        section = Section(
            "distances",
            "Distances of distributions",
            "How far the distribution of the model is from the true one, from one initial state. Two finite samples of one distribution "
            "always "
            "differ a little, so each distance is shown beside the distance between two true ensembles.",
        )
        if record:
            differing = [row for row in distributions_that_differ(found.record.same_init) if row in record]
            section.items.extend(
                [
                    _distance_figure(record, differing, found.time_unit),
                    _distance_table(record, len(found.record.same_init), found.time_unit),
                ]
            )
        yield section

    def about(self, record: tuple[Distance, ...], subject: Subject | None) -> tuple[Distance, ...]:
        return tuple(row for row in record if subject is not None and row.observable == subject.name)

    def headline(self, record: tuple[Distance, ...]) -> Iterator[HeadlineLine]:
        worst = max(record, key=lambda row: row.ks - row.typical if math.isfinite(row.typical) else -math.inf)
        differing = distributions_that_differ(record)
        yield HeadlineLine(
            label="distributions from one initial state",
            value=f"{len(differing)} of {len(record)} differ",
            note=f"largest D_KS {worst.ks:.2f}, {worst.label} at {worst.time:g}; between two true ensembles: {number(worst.typical)}",
            good=not differing,
        )

    def faults(self, record: tuple[Distance, ...]) -> Iterator[Fault]:
        if differing := distributions_that_differ(record):
            what = listing(sorted({row.label for row in differing}), most=2)
            words = f"from one initial state {len(differing)} of {len(record)} distributions ({what}) differ from the truth"
            yield Fault(Severity.DIFFERENT, words)


class JointCheck(Check[tuple[JointTest, ...]]):
    """Its record has one row per initial state."""

    key, title, record = "two_sample", "one initial state, all observables", tuple[JointTest, ...]

    def measure(self, inputs: Inputs) -> tuple[JointTest, ...] | None:
        return None if inputs.compared is None else inputs.compared.tests

    def sections(self, record: tuple[JointTest, ...] | None, found: Evaluated) -> Iterator[Section]:
        section = Section(
            "two-sample",
            "Can model and truth be told apart?",
            "All observables together, at one time, from one initial state: the energy distance, and the accuracy of a classifier that "
            "is trained "
            "to distinguish runs of the model from true ones. 50% is guessing.",
        )
        tests = [test for test in record or () if math.isfinite(test.classifier_accuracy)]
        if not tests:
            return
        told = ", ".join(f"{test.classifier_accuracy:.0%}" for test in tests)
        section.items.append(
            Figure(
                figures.classifier(tests),
                alt=f"Accuracy of a classifier that distinguishes model from truth, per initial state: {told}.",
                caption="If the model is right, the dots are in the shaded noise floor; two samples of one distribution leave it in 5% "
                "of cases.",
                key=(Key("model", "accuracy, 95% interval"), Key("floor", "noise floor"), Key("bad", "outside the noise floor")),
                size="medium",
            )
        )
        columns = {
            "initial state": lambda t: str(t.initial_state + 1),
            with_unit("time", found.time_unit): lambda t: f"{t.time:g}",
            "p, energy distance": lambda t: p_value(t.energy_p),
            "p, classifier": lambda t: p_value(t.classifier_p),
            "accuracy of a classifier": lambda t: f"{t.classifier_accuracy:.0%}",
            "95% interval": lambda t: f"{t.lower:.0%}–{t.upper:.0%}",
            "floor": lambda t: number(t.floor, ".0%"),
        }
        if not any(math.isfinite(t.classifier_p) for t in tests):
            del columns["p, classifier"]
        rows = [tuple(cell(t) for cell in columns.values()) for t in tests]
        note = "p: of each single test, not corrected for the number of tests."
        section.items.extend([Table(tuple(columns), rows, frozenset([*columns][1:]), note), Text(_told_apart(tests))])
        words = [f"Initial state {t.initial_state + 1}: {sentence(t.sentence)}" for t in tests if t.sentence]
        if words:
            section.items.append(Details("Each test in words, at 5% for a single test", words))
        yield section

    def headline(self, record: tuple[JointTest, ...]) -> Iterator[HeadlineLine]:
        if not (known := [p for test in record for p in test.p_values]):
            return
        told_apart = initial_states_told_apart(record)
        yield HeadlineLine(
            label="all observables together",
            value=f"{len(told_apart)} of {len(record)} initial states differ",
            note=f"energy distance and classifier, 5% over {len(known)} tests; smallest p times {len(known)}: "
            + p_value(min(1.0, len(known) * min(known))),
            good=not told_apart,
        )

    def faults(self, record: tuple[JointTest, ...]) -> Iterator[Fault]:
        if told_apart := initial_states_told_apart(record):
            words = f"for {len(told_apart)} of {len(record)} initial states all observables together differ from the truth"
            yield Fault(Severity.DIFFERENT, words)


def distributions_that_differ(rows: Sequence[Distance]) -> list[Distance]:
    """Return the comparisons from one initial state that differ, with at most 5% false alarms over all of them (Bonferroni)."""
    return [row for row in rows if row.p_value < FALSE_ALARM / len(rows)]


def initial_states_told_apart(tests: Sequence[JointTest]) -> list[JointTest]:
    """Return the initial states from which the observables together distinguish model from truth.

    There are two tests for each, energy distance and classifier, with at most 5% false alarms over all of them (Bonferroni).
    """
    threshold = FALSE_ALARM / max(1, sum(len(test.p_values) for test in tests))
    return [test for test in tests if min(test.p_values, default=1) < threshold]


def _fans(found: Evaluated) -> Section:
    section = Section(
        "fans",
        "Futures of one initial state",
        "Many futures of the same initial state, sampled from the model and from the true process. This is the strictest test: it compares "
        "whole distributions, not single outcomes.",
    )
    data = found.files.get("fans")
    if data is not None:
        for name in map(str, data["observable"].values):
            label, unit = (str(data[key].sel(observable=name).item()) if key in data.coords else "" for key in ("label", "unit"))
            section.items.append(
                Figure(
                    figures.fans(data, name),
                    alt=f"Median and 10 to 90% band of {label or name} over time for each initial state, model drawn over truth.",
                    caption="If the model is right, its lines are the edges of the grey band of the truth, and the two medians agree.",
                    title=with_unit(label or name, unit),
                    key=BANDS,
                )
            )
    return section


def _distance_figure(rows: Sequence[Distance], differing: Sequence[Distance], time_unit: str) -> Figure:
    seen = (
        f"{len(differing)} of {len(rows)} distances are larger than chance allows."
        if differing
        else "No distance is larger than chance allows."
    )
    return Figure(
        figures.distances(rows, differing, time_unit),
        alt="Kolmogorov-Smirnov distance of model and truth over time, with its floor: "
        + "; ".join(f"{row.label} at {row.time:g}: {row.ks:.2f}" for row in rows)
        + ".",
        caption=f"{seen} 0: the same distribution; 1: no overlap; mean over initial states. A right model stays near the dashed line. "
        "The shaded noise floor contains the distance from a single initial state in 95 of 100 cases if both samples have one "
        "distribution.",
        title="Kolmogorov-Smirnov distance over time",
        key=(
            Key("model", "model and truth"),
            Key("dashed", "two true ensembles"),
            Key("floor", "noise floor"),
            Key("bad", "differs (p < 5% over all)"),
        ),
    )


def _distance_table(rows: Sequence[Distance], tests: int, time_unit: str) -> Table:
    columns = {
        "observable": lambda row: row.label,
        with_unit("time", time_unit): lambda row: f"{row.time:g}",
        "D_KS": lambda row: number(row.ks, ".3f"),
        "two true": lambda row: number(row.typical, ".3f"),
        "floor": lambda row: number(row.floor, ".3f"),
        "persistence": lambda row: number(row.persistence_ks, ".2f"),
        "model − truth": lambda row: f"{measured(row.difference, row.error, sign=True)} {row.unit}",
        "p": lambda row: p_value(row.p_value),
    }
    for name, values in (("persistence", [row.persistence_ks for row in rows]), ("two true", [row.typical for row in rows])):
        if not any(map(math.isfinite, values)):
            del columns[name]
    head = tuple(columns)
    return Table(
        head,
        [tuple(str(cell(row)).strip() for cell in columns.values()) for row in rows],
        frozenset(head[1:]),
        note="Means over initial states; model − truth: difference of means with its standard error; p: smallest over the initial states, "
        f"corrected for their number but not for the number of distances: a distance differs only if p times {tests} is below 5%.",
    )


def _told_apart(tests: Sequence[JointTest]) -> str:
    known = sum(len(test.p_values) for test in tests)
    states = [str(test.initial_state + 1) for test in initial_states_told_apart(tests)]
    found = f"from initial state{'s' if len(states) > 1 else ''} {listing(states)}" if states else "from no initial state"
    return f"Corrected for all {known} tests (p times {known} below 5%), model and truth are distinguished {found}."
