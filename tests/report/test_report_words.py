"""What the report says: the first sentence, the headline, and what they call a difference."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from scipy import stats
from small_evaluations import write_evaluation

from epns_pyro.evaluation.checks.calibration import pit, ranks, skill
from epns_pyro.evaluation.checks.initial_states import JointCheck, distributions_that_differ, initial_states_told_apart
from epns_pyro.evaluation.checks.stability import runs_die
from epns_pyro.evaluation.evaluated import Evaluated
from epns_pyro.evaluation.lines import lines
from epns_pyro.evaluation.parts import Text
from epns_pyro.evaluation.record import Distance, EvaluationRecord, JointTest, Stability
from epns_pyro.evaluation.summary import headline, verdict
from epns_pyro.report import write_report

GUIDE = {"subject": "guide", "word": "calibrated", "sentence": "calibrated"}
HEADLINE = {
    "likelihood": {"rows": [{"key": "elbo", "value": 1.0}], "kl": 1.0},
    "latents": {"active": 1, "latent": 2, "guide": GUIDE},
    "stability": {"steps": 9, "runs": 20, "final_alive_model": 1.0, "final_alive_truth": 1.0},
    "equivariance": {"maximum": 1e-15, "group": "S_2"},
}


def record(**sections: object) -> EvaluationRecord:
    return EvaluationRecord.model_validate(sections)


def judged(*words: str) -> dict:
    verdicts = [{"subject": f"q{i}", "word": w, "sentence": f"{w}: seen; x would be found", "power": 0.9} for i, w in enumerate(words)]
    return {"verdicts": {"observables": verdicts}}


def needing(*more: float | None) -> dict:
    """Verdicts for which there are too few data, and how many times as many would do."""
    found = judged(*["too few data to say"] * len(more))
    for one, factor in zip(found["verdicts"]["observables"], more, strict=True):
        one["more"] = factor
    return found


def distance(p_value: float | None, label: str = "E") -> dict:
    return {"observable": label, "label": label, "time": 1.0, "ks": 0.2, "typical": 0.1, "p_value": p_value}


def joint(**p_values: float) -> dict:
    return {"initial_state": 0, "time": 1.0, **p_values}


def after_one_step(**words: tuple[str, str]) -> dict:
    """Verdicts after one step, and on forecasts, by quantity."""
    rows = [
        {"label": name, "word": now, "later": later, "shift": 0.1, "shift_error": 0.01, "spread": 1.0}
        for name, (now, later) in words.items()
    ]
    return {"one_step": {"frames": 150, "quantities": rows}}


DYING = {"stability": {"final_alive_model": 0.15, "final_alive_truth": 1.0, "runs": 20, "steps": 9}}
APART = {"two_sample": [joint(energy_p=0.001), joint(energy_p=0.5)]}
DIFFERENT = {"same_init": [distance(0.001), distance(0.9, "L")]}
NO_BETTER = {"likelihood": {"kl": 1.0, "rows": [{"key": "elbo", "value": 1}, {"key": "persistence", "name": "p", "value": 2}]}}


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({}, "No quantity was tested on held-out data."),
        (judged("calibrated", "calibrated"), "No test of 2 quantities on held-out data found a fault in the ensemble."),
        (judged("biased", "calibrated", "biased", "over-confident"), "Use with care: q0 and q2 are biased; q3 is over-confident."),
        (judged("too few data to say"), "There are too few held-out data to say whether the ensemble can be trusted."),
        (
            judged("too few data to say") | after_one_step(q0=("biased", "too few data to say"), q1=("calibrated", "too few data to say")),
            "Use with care: one step after recorded frames q0 is off. There are too few held-out data to say whether the ensemble",
        ),
        (judged("calibrated") | after_one_step(q0=("biased", "calibrated")), "No test of 1 quantities"),
        (judged("calibrated", "too few data to say"), "For 1 more, there are too few data to say."),
        (
            needing(2.04, 5.2, None, 2.05),
            "There are too few held-out data to say whether the ensemble can be trusted: 2.1 to 6 times as many would do.",
        ),
        (needing(3.1), "can be trusted: 4 times as many would do."),
        (judged(*["biased"] * 6), "Use with care: q0, q1, q2 and 3 more are biased."),
        (
            judged("calibrated") | DIFFERENT,
            "Use with care: from one initial state 1 of 2 distributions (E) differ from the truth. No test of 1 quantities",
        ),
        (
            judged("calibrated") | APART,
            "Use with care: for 1 of 2 initial states all observables together differ from the truth. No test",
        ),
        (
            judged("calibrated") | DYING,
            "Use with care: only 15% of 20 long runs stay plausible (100% of the true process). No test of 1 quantities",
        ),
        (DYING, "(100% of the true process). No quantity was tested on held-out data."),
        (
            judged("too few data to say") | DIFFERENT,
            "Use with care: from one initial state 1 of 2 distributions (E) differ from the truth.",
        ),
        (
            judged("biased") | DYING | DIFFERENT | APART,
            "Use with care: only 15% of 20 long runs stay plausible (100% of the true process); q0 is biased; from one initial state "
            "1 of 2 distributions (E) differ from the truth; for 1 of 2 initial states all observables together differ from the truth.",
        ),
        (judged("calibrated") | {"equivariance": {"maximum": 1e-3}}, "Use with care: the symmetry is broken (error 1e-03)."),
        (
            judged("calibrated") | NO_BETTER,
            "Use with care: the forecast of one step is worse than persistence.",
        ),
    ],
)
def test_the_first_sentence_says_what_was_found(metrics: dict, words: str) -> None:
    assert words in verdict(record(**metrics))


def test_the_first_sentence_has_the_strongest_evidence_first() -> None:
    metrics = judged("wrong in shape", "biased", "biased")
    for found, p in zip(metrics["verdicts"]["observables"], (0.03, 0.02, 1e-9), strict=True):
        found["p_value"] = p
    assert verdict(record(**metrics)) == "Use with care: q2 and q1 are biased; q0 is wrong in shape."


@pytest.mark.parametrize(
    ("p_value", "sentence", "note", "good"),
    [
        (
            0.02,
            "No fault beyond chance in 9 quantities on held-out data. By its own test q8 is biased; 5% of right",
            "no more than chance",
            None,
        ),
        (0.005, "Use with care: q8 is biased.", "q8 biased", False),
    ],
)
def test_one_weak_fault_among_many_quantities_is_no_more_than_chance(p_value: float, sentence: str, note: str, good: bool | None) -> None:
    """A quantity by itself has 5% false alarms, so right ensembles of nine quantities often have one."""
    metrics = judged(*["calibrated"] * 8, "biased")
    for found in metrics["verdicts"]["observables"]:
        found["p_value"] = 0.5 if found["word"] == "calibrated" else p_value
    assert verdict(record(**metrics)).startswith(sentence)
    (line,) = (line for line in headline(record(**metrics)) if line.label == "calibrated on held-out data")
    assert (line.value, line.good) == ("8 of 9 quantities", good)
    assert note in line.note


@pytest.mark.parametrize(
    ("changed", "label"),
    [
        (DYING, "plausible after 9 steps"),
        (APART, "all observables together"),
        (DIFFERENT, "distributions from one initial state"),
        ({"equivariance": {"maximum": 1e-3, "group": "S_2"}}, "symmetry error"),
        (NO_BETTER, "log-likelihood (ELBO)"),
    ],
)
def test_what_the_first_sentence_blames_the_headline_marks(changed: dict, label: str) -> None:
    found = record(**HEADLINE | changed)
    assert [line.label for line in headline(found) if line.good is False] == [label]
    assert verdict(found).startswith("Use with care: ")
    assert verdict(record(**HEADLINE)) == "No quantity was tested on held-out data."


def test_a_line_says_nothing_twice() -> None:
    (line,) = lines(record(**judged("calibrated")).verdicts)
    assert (line.seen, line.state, line.power) == ("seen", "good", "90%")


def test_the_page_says_that_the_power_of_a_vector_is_not_against_wrong_dependence(tmp_path: Path) -> None:
    vector = {line.subject: line for line in lines(Evaluated.read(write_evaluation(tmp_path)).record.verdicts)}["vector"]
    assert vector.state == "good"
    assert vector.seen.endswith("; the power against wrong dependence is not known")
    assert "would be found" not in vector.seen
    page = write_report(tmp_path / "evaluation", tmp_path / "report.html").read_text()
    assert "for vectors: intervals of their components" in page
    assert "to find wrong dependence between components" in page


def test_scores_are_shown_with_their_skill_where_there_is_one(tmp_path: Path) -> None:
    found = Evaluated.read(write_evaluation(tmp_path))
    shown = {item.title: item for item in skill(found).items}
    kinds = ["CRPS", "Energy score", "Variogram score"]
    assert list(shown) == [title for kind in kinds for title in (kind, f"Skill, {kind}")]
    skills = {
        name: f"{float(found.groups['fields'][name].isel(field=0, reference=0, lead_time=-1)):.2f}" for name in ("skill", "variogram_skill")
    }
    assert f"vector against persistence: {skills['variogram_skill']}".replace("-", "−") in shown["Skill, Variogram score"].alt
    assert skills["skill"] != skills["variogram_skill"]
    of_old = Evaluated(found.record, {"fields": found.groups["fields"].drop_vars(["variogram_skill", "variogram_skill_error"])}, {})
    assert [item.title for item in skill(of_old).items] == ["Energy score", "Skill, Energy score", "Variogram score"]


@pytest.mark.parametrize("name", ["cell image", "cell"])
def test_a_label_image_has_one_name_in_verdicts_and_figures(tmp_path: Path, name: str) -> None:
    folder = write_evaluation(tmp_path, "labels")
    path = folder / "metrics.json"
    path.write_text(path.read_text().replace('"subject": "cell image"', f'"subject": "{name}"'))
    found = Evaluated.read(folder)
    assert [line.subject for line in lines(found.record.verdicts)][-1] == name
    assert [subject.label for subject in found.subjects("labels")] == [name]
    assert [item.title for item in ranks(found).items] == [f"{name}, by agreement"]


@pytest.mark.parametrize(("members", "level"), [(9, 80), (19, 90)])
def test_the_column_of_coverage_is_headed_by_the_level_that_it_shows(tmp_path: Path, members: int, level: int) -> None:
    folder = write_evaluation(tmp_path, members=members)
    page = write_report(folder, tmp_path / "report.html").read_text()
    assert re.findall(r'class="spark">([^<]*)</th>', page) == [f"{level}% coverage"]
    assert f"{level}% intervals at the last lead time cover" in page
    (folder / "diagnostics.nc").unlink()
    assert re.findall(r'class="spark">([^<]*)</th>', write_report(folder, tmp_path / "r.html").read_text()) == ["coverage"]


def test_distributions_differ_beyond_chance_over_all_of_them() -> None:
    rows = [Distance.model_validate(distance(p)) for p in (0.004, 0.006, None, *[0.5] * 7)]
    assert distributions_that_differ(rows) == [rows[0]]
    assert distributions_that_differ([]) == []


def test_initial_states_are_told_apart_beyond_chance_over_all_tests() -> None:
    of_old = JointTest(**joint(energy_p=0.02))
    tests = [JointTest(**joint(energy_p=e, classifier_p=c)) for e, c in ((0.004, 0.9), (0.006, 0.5), (0.5, 0.001))]
    many = [*tests, *[JointTest(**joint(energy_p=0.5, classifier_p=0.5))] * 2]
    assert initial_states_told_apart(many) == [tests[0], tests[2]]
    assert initial_states_told_apart(tests) == tests
    assert initial_states_told_apart([of_old] * 2) == [of_old] * 2
    assert initial_states_told_apart([JointTest(**joint())]) == initial_states_told_apart([]) == []


def test_the_joint_tests_are_corrected_in_words_and_in_the_headline() -> None:
    """With p = 0.001 from two of five initial states nothing may be marked as good."""
    p_values = (0.001, 0.28, 0.017, 0.48, 0.001)
    about = {"time": 1.0, "classifier_p": 0.3, "classifier_accuracy": 0.5, "lower": 0.4, "upper": 0.6}
    tests = tuple(JointTest(initial_state=i, energy_p=p, **about) for i, p in enumerate(p_values))
    check = JointCheck()
    (section,) = check.sections(tests, Evaluated(EvaluationRecord()))
    assert "Corrected for all 10 tests (p times 10 below 5%), model and truth are distinguished from initial states 1 and 5." in [
        item.words for item in section.items if isinstance(item, Text)
    ]
    (line,) = check.headline(tests)
    assert line.good is False
    assert line.value == "2 of 5 initial states differ"
    assert line.note.endswith("5% over 10 tests; smallest p times 10: 0.01")
    (line,) = check.headline(tests[1:4])
    assert line.good is True


@pytest.mark.parametrize(
    ("left", "runs", "fault"),
    [(4, 5, False), (3, 5, False), (2, 5, True), (16, 20, False), (15, 20, True), (90, 100, False), (0, 0, False)],
)
def test_runs_die_only_beyond_chance(left: int, runs: int, fault: bool) -> None:
    found = Stability(final_alive_model=left / max(runs, 1), final_alive_truth=1.0, steps=9, runs=runs)
    assert runs_die(found) is fault


def test_a_model_as_mortal_as_the_truth_is_blamed_in_at_most_5_percent() -> None:
    """Whatever the true share and the number of runs, with nine tenths of the true share kept."""
    for runs in (5, 20, 100):
        for truth in (0.5, 0.9, 1.0):
            kept = stats.binom(runs, 0.9 * truth)
            of = {"final_alive_truth": truth, "steps": 9, "runs": runs}
            blamed = [k for k in range(runs + 1) if runs_die(Stability(final_alive_model=k / runs, **of))]
            assert kept.pmf(blamed).sum() < 0.05


def test_a_forecaster_with_a_defect_is_called_by_its_name(tmp_path: Path) -> None:
    found = Evaluated.read(write_evaluation(tmp_path, forecaster="under-dispersed"))
    dying = "only 60% of 20 long runs stay plausible (100% of the true process)"
    assert verdict(found.record) == f"Use with care: {dying}; vector, level and count are over-confident."
    assert "outside the band" in pit(found).items[0].alt
