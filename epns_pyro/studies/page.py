"""The page of a study: claims first, then the published model beside the others, ablations, what this project adds, and how it was made."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence

from epns_pyro.calibration.wording import listing, sentence
from epns_pyro.evaluation.parts import Details, Figure, Item, Judged, Key, Page, Section, Table, Text
from epns_pyro.studies import figures
from epns_pyro.studies.claims import Judgement, Word, judge_claim, shown
from epns_pyro.studies.measures import MEASURES, TRUTH, Row
from epns_pyro.studies.plan import Plan
from epns_pyro.systems import SystemConfig
from epns_pyro.training.checkpoint import versions

LIKELIHOOD = ("iwae", "elbo", "gap", "path", "parameters", "minutes")
ENSEMBLES = ("ks", "crps", "coverage", "alive", "symmetry")
FEW = ("iwae", "elbo", "gap")
SPREAD = "Mean ± standard deviation over seeds."
OF_LIKELIHOOD = (
    f"{SPREAD} IWAE, ELBO: bounds of the log-likelihood of held-out transitions, nats per transition, higher is better; gap to oracle: how "
    "far the IWAE is below the true transition density; whole paths: log-likelihood of whole paths given their start, nats per transition; "
    "minutes: of training."
)
OF_ENSEMBLES = (
    f"{SPREAD} D_KS: distance of the distributions of model and truth from one initial state, mean over observables and times; CRPS: "
    "relative to the true process, mean over observables; coverage: of central {nominal:.0f}% intervals; plausible: share of runs of "
    "{steps} steps that stay plausible; symmetry error: largest relative change of the log density."
)


EXPLAINED = "Columns as above."


def make_page(plan: Plan, rows: list[Row]) -> Page:
    """Return the page of a study, from what was measured so far."""
    study, judged = plan.study, [judge_claim(claim, rows) for claim in plan.study.claims]
    made = [
        _claims(judged),
        _published(rows),
        _distances(plan, rows),
        _long_runs(plan, rows),
        _ablations(rows),
        _project(rows),
        _curve(rows),
        _failures(rows),
        _how(plan),
    ]
    return Page(
        kicker=f"epns-pyro reproduce {study.file or study.name}",
        title=f"{study.title}: what the numbers support",
        verdict=_verdict(plan, rows, judged),
        lead=study.about,
        sections=[section for section in made if section],
    )


def _verdict(plan: Plan, rows: list[Row], judged: list[Judgement]) -> str:
    counts = {word: sum(one.word == word for one in judged) for word in Word}
    done, planned = sum(len(row.seeds) + len(row.failures) for row in rows), sum(row.planned for row in rows)
    unfinished = f"{done} of {planned} runs are finished. " if done < planned else ""
    tried = len(judged) - counts[Word.NOT_MEASURED]
    if not tried:
        return f"{unfinished}No claim can be judged{' yet' if unfinished else ' with these models'}."
    seeds = f"{plan.seeds} seed{'s' if plan.seeds > 1 else ''}"
    yes, no = counts[Word.SUPPORTED], counts[Word.NOT_SUPPORTED]
    found = f"{yes} {'is' if yes == 1 else 'are'} supported, {no} {'is' if no == 1 else 'are'} not"
    silent = f"; for {counts[Word.TOO_FEW]} there are too few seeds to say" if counts[Word.TOO_FEW] else ""
    return f"{unfinished}Of {tried} claims that were tried with {seeds}, {found}{silent}."


def _claims(judged: list[Judgement]) -> Section:
    tried = [one for one in judged if one.word != Word.NOT_MEASURED]
    items: list[Item] = [Judged(sentence(one.claim.says).removesuffix("."), one.word, one.sentence, one.state) for one in tried]
    if rest := [f"{one.claim.says}: {one.sentence}" for one in judged if one.word == Word.NOT_MEASURED]:
        items.append(Details(f"{len(rest)} claims were not measured", rest))
    return Section(
        "claims",
        "Claims of the paper",
        "Each line is a claim of the EPNS paper, and what the runs of this study say about it. A difference counts if its 95% interval "
        "over seeds (Welch's t-distribution, not corrected for the number of claims) does not contain zero.",
        items,
    )


def _published(rows: list[Row]) -> Section:
    some = _of_the_paper(rows)
    reading = "EPNS as published, without anything that this project adds, beside the models that the paper compares it with."
    section = Section("published", "As published", reading)
    if panels := figures.scores(some, "iwae"):
        section.items.append(
            Figure(
                panels,
                alt="Log-likelihood by model: " + "; ".join(f"{r.model.title} {shown(r.summary('iwae'), 'iwae')}" for r in some) + ".",
                caption="IWAE bound of held-out transitions, nats per transition. Whiskers: standard deviation over seeds.",
                title="Log-likelihood",
                key=(Key("model", "EPNS as published"), Key("truth", "oracle"), Key("reference", "other models")),
                size="medium",
            )
        )
    section.items.extend(_tables(some, explain=True))
    return section


def _distances(plan: Plan, rows: list[Row]) -> Section:
    section = Section(
        "distances",
        "Distributions over time",
        "Many runs from one initial state, of the model and of the true process: the Kolmogorov-Smirnov distance of the distributions of "
        "observables. 0: the same distribution; 1: no overlap.",
    )
    if panels := figures.distances(_of_the_paper(rows), _second(rows), _time_unit(plan)):
        key = (*_key(rows), Key("floor", "between two true ensembles"))
        caption = "Means over seeds and initial states. No model can be better on average than the shaded floor."
        section.items.append(Figure(panels, alt="D_KS over time by model; the table holds the means.", caption=caption, key=key))
    return section


def _long_runs(plan: Plan, rows: list[Row]) -> Section:
    some = _of_the_paper(rows)
    section = Section("long", "Long runs", "Runs ten times as long as training trajectories: how many are still physically plausible?")
    if panels := figures.long_runs(some, _second(rows), _time_unit(plan)):
        ends = "; ".join(f"{row.model.title} {shown(one, 'alive')}%" for row in some if (one := row.summary("alive")).count)
        caption = f"Mean over seeds; at the end: {ends}."
        section.items.append(
            Figure(panels, alt=f"Share of plausible runs over time. {ends}.", caption=caption, key=_key(rows), size="medium")
        )
    return section


def _of_the_paper(rows: list[Row]) -> list[Row]:
    """Return what stands beside the published model: other models of the paper, and the references."""
    return [row for row in rows if row.whole and row.model.group in ("published", "reference")]


def _key(rows: list[Row]) -> list[Key]:
    name = next((row.model.title for row in rows if row.name == _second(rows)), "")
    return [Key("model", "EPNS as published"), *([Key("truth", name)] if name else []), Key("reference", "others")]


def _time_unit(plan: Plan) -> str:
    return plan.jobs[0].config.system.build().time_unit


def _second(rows: list[Row]) -> str:
    """Return the model that the published one is compared with first; "" if there is none."""
    return next((row.name for row in rows if row.model.group == "published" and row.name != figures.FIRST), "")


def _ablations(rows: list[Row]) -> Section:
    some = [row for row in rows if row.whole and row.model.group == "ablation"]
    compared = {row.model.like for row in some} | {row.name for row in some}
    beside = [row for row in rows if row.whole and row.name in compared and row.model.group in ("published", "ablation")]
    items = _tables(beside) if some else []
    return Section("ablations", "Ablations", "One thing changed at a time.", items)


def _project(rows: list[Row]) -> Section:
    some = [row for row in rows if row.whole and row.model.group == "project"]
    first = [row for row in rows if row.whole and row.name in (figures.FIRST, TRUTH)]
    reading = "No claim of the paper rests on these rows: they are models of this project, and the published model with parts of it."
    return Section("project", "What this project adds", reading, _tables([*first[:1], *some, *first[1:]]) if some else [])


def _curve(rows: list[Row]) -> Section:
    with_few = {row.name for row in rows if not row.whole}
    some = [row for row in rows if row.name in with_few]
    reading = "The same budget of training steps, on the first trajectories of the training set, judged on the same data."
    section = Section("few", "Few data", reading)
    oracle = next((row.summary("iwae").mean for row in rows if row.name == TRUTH), math.nan)
    if panels := figures.few_data(some, _second(rows), oracle):
        section.items.append(
            Figure(
                panels,
                alt="Log-likelihood over the number of training trajectories; the table holds the numbers.",
                caption="Whiskers: standard deviation over seeds.",
                title="Data efficiency",
                size="medium",
            )
        )
    if with_few:
        head = ("model", "trajectories", *(MEASURES[name].label for name in FEW), "seeds")
        cells = [(row.model.title, str(row.trajectories), *(shown(row.summary(name), name) for name in FEW), _seeds(row)) for row in some]
        section.items.append(Table(head, cells, frozenset(head[1:])))
    return section


def _failures(rows: list[Row]) -> Section:
    failed = [(row.model.title, str(row.trajectories), str(seed), why) for row in rows for seed, why in sorted(row.failures.items())]
    reading = "These runs have no numbers, and are left out of means. To try one again, remove its folder."
    return Section("failures", "Runs that failed", reading, [Table(("model", "trajectories", "seed", "why"), failed)] if failed else [])


def _how(plan: Plan) -> Section:
    study, system = plan.study, plan.jobs[0].config.system
    settings = study.preset(plan.preset)
    changes = ", ".join(f"{key}={value}" for key, value in sorted(plan.changes.items()))
    facts = [
        ("preset", f"{plan.preset}: {settings.about}"),
        ("settings of the preset", ", ".join(f"{key}={value}" for key, value in settings.settings.items())),
        ("changed in every run", changes or "nothing"),
        ("seeds", str(plan.seeds)),
        ("windows of multi-step training", f"grow from 1 to {settings.multi_step} steps in the second half of training"),
        ("data", _sizes(system)),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions().items())),
        ("command", command(plan)),
    ]
    section = Section("how", "How it was made", "Every run has its folder, with all its settings in config.yaml.")
    section.items.append(Table((), [fact for fact in facts if fact[1]]))
    models = plan.models()
    described = [(model.title, model.about, _changed(model.settings)) for model in models.values()]
    section.items.append(Table(("model", "what it is", "settings beside the preset's"), described))
    if study.left_out:
        section.items.append(Text(f"Not part of this study: {'; '.join(study.left_out.values())}."))
    if missing := [model.title for name, model in study.models.items() if name not in models]:
        section.items.append(Text(f"Left out by --models: {listing(missing, most=20)}."))
    return section


def command(plan: Plan) -> str:
    """Return the command that makes the page, or goes on with it."""
    names = [name for name, model in plan.models().items() if not model.reference]
    every = [name for name, model in plan.study.models.items() if not model.reference]
    words = ["epns-pyro", "reproduce", plan.study.file or plan.study.name, "--preset", plan.preset, "--seeds", str(plan.seeds)]
    words += ["--models", ",".join(names)] if names != every else []
    words += ["--sizes", ",".join(map(str, plan.sizes))] if plan.sizes != plan.study.preset(plan.preset).sizes else []
    for key, value in sorted(plan.changes.items()):
        words += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join([*words, "--out", str(plan.out)])


def _tables(rows: Sequence[Row], *, explain: bool = False) -> list[Item]:
    """Return the tables of models: likelihood and cost, then ensembles."""
    parts = [parts for row in rows for parts in row.seeds.values()]
    nominal = next((100 * p["calibration"]["nominal"] for p in parts if p.get("calibration")), 90.0)
    steps = next((p["long_runs"]["long_steps"] for p in parts if p.get("long_runs")), 0)
    notes = (OF_LIKELIHOOD, OF_ENSEMBLES.format(nominal=nominal, steps=f"{steps:,}")) if explain else ("", EXPLAINED)
    return [_table(rows, measures, note) for measures, note in zip((LIKELIHOOD, ENSEMBLES), notes, strict=True)]


def _table(rows: Sequence[Row], measures: Sequence[str], note: str) -> Table:
    """Return a table of models; measures that no model has are left out."""
    columns = [name for name in measures if any(row.summary(name).count for row in rows)]
    head = ("model", *(MEASURES[name].label for name in columns), "seeds")
    cells = [(row.model.title, *(shown(row.summary(name), name) for name in columns), _seeds(row)) for row in rows]
    return Table(head, cells, frozenset(head[1:]), note=note)


def _seeds(row: Row) -> str:
    if row.model.reference:
        return "–"
    failed = f", {len(row.failures)} failed" if row.failures else ""
    left = row.planned - len(row.seeds) - len(row.failures)
    return f"{len(row.seeds)}{failed}{f', {left} to come' if left else ''}"


def _sizes(system: SystemConfig) -> str:
    return ", ".join(f"{name}: {one.trajectories:,} trajectories of {one.steps:,} steps" for name, one in system.sets.items())


def _changed(settings: dict) -> str:
    return ", ".join(f"{key.removeprefix('model.')}={'off' if value is None else value}" for key, value in settings.items())
