"""The sections about the model itself: latents, symmetry, long rollouts, recalibration, training."""

from __future__ import annotations

from collections.abc import Sequence

from epns_pyro.calibration.wording import number, sentence
from epns_pyro.evaluation.summary import after_word
from epns_pyro.report import figures_model as figures
from epns_pyro.report.evaluated import Evaluated
from epns_pyro.report.parts import Figure, Judged, Key, Section, Table, Text

TrainingLog = Sequence[tuple[int, str, float]]


def latents(found: Evaluated) -> Section:
    section = Section(
        "latents",
        "Latents",
        "How much each latent dimension tells the emission, and whether the guide is honest about it: ranks of latents drawn from "
        "the model "
        "among draws of the guide must be uniform. Idle latents are shown, not hidden.",
    )
    about = found.metrics.get("latents") or {}
    if about.get("kl_by_dimension"):
        section.items.append(
            Figure(
                figures.latent_bars(about["kl_by_dimension"]),
                alt=f"KL per latent dimension: {about.get('sentence', '')}.",
                caption=sentence(about.get("sentence") or "KL per latent dimension")
                + (
                    f" Of {about['entities']} entities together: {number(about['kl_total'])} nats."
                    if {"entities", "kl_total"} <= about.keys()
                    else ""
                ),
                key=(Key("model", "in use"), Key("floor", "idle")),
                size="wide",
            )
        )
    guide = about.get("guide") or {}
    if guide:
        section.items.append(Judged("The guide is", str(guide["word"]), sentence(after_word(str(guide["sentence"]), str(guide["word"])))))
    return section


def equivariance(found: Evaluated) -> Section:
    section = Section(
        "equivariance",
        "Symmetry",
        "A symmetric simulator gives a rotated (or relabelled, ...) future exactly the probability of the original. Measured on "
        "the trained "
        "weights, from raw states.",
    )
    about = found.metrics.get("equivariance") or {}
    if about.get("maximum") is not None:
        section.items.append(
            Figure(
                figures.symmetry(about),
                alt=f"Symmetry error on a logarithmic scale: maximum {about['maximum']:.1e}, up to 1e-9 is allowed.",
                caption=sentence(about.get("sentence") or f"the log density changes by at most {about['maximum']:.1e} of its size")
                + " A symmetric model shows nothing but rounding.",
                size="wide",
            )
        )
        rows = [
            (name, text)
            for name, text in (
                ("group", about.get("group")),
                ("maximum", number(about["maximum"], ".1e")),
                ("median", number(about.get("median"), ".1e")),
                ("group elements tried", about.get("samples")),
                ("arithmetic", about.get("dtype")),
            )
            if text not in (None, "–")
        ]
        section.items.append(Table((), [(name, str(text)) for name, text in rows]))
    return section


def stability(found: Evaluated) -> Section:
    section = Section(
        "stability",
        "Stability of long rollouts",
        "Runs far beyond the length of training trajectories, one per initial state: how many are still physically plausible?",
    )
    about, data = found.metrics.get("stability") or {}, found.files.get("stability")
    if data is not None:
        words = sentence(about.get("sentence") or "share of runs that are still plausible")
        steps = f" {sentence(about['steps_sentence'])}" if "steps_sentence" in about else ""
        section.items.append(
            Figure(
                figures.stability(data, found.time_unit),
                alt=f"Share of runs that are still plausible over time, model and truth. {words}",
                caption=f"{words} An honest model falls no faster than the truth.{steps}",
                key=(Key("model", "model"), Key("truth", "truth")),
                size="wide",
            )
        )
    return section


def recalibration(found: Evaluated) -> Section:
    section = Section(
        "recalibration",
        "Recalibration",
        "What widening or narrowing the intervals after the fact would mend: learnt by conformal prediction on the validation "
        "set, judged on "
        "the test set, which was used for neither. Every other number of this page is of the ensemble as it is.",
    )
    said = found.metrics.get("recalibration") or {}
    labels = {subject.name: subject.label for subject in found.subjects("observables")}
    if said:
        rows = [(labels.get(name, name), sentence(words)) for name, words in said.items()]
        section.items.append(Table(("observable", "before and after, on average over lead times"), rows))
    learnt = found.files.get("recalibration")
    if learnt is not None and {"widen_low", "widen_high"} <= set(learnt.data_vars):
        section.items.append(
            Figure(
                figures.widening(learnt, labels, found.time_unit),
                alt="Width of recalibrated intervals relative to those of the ensemble, over lead time, for every observable and level.",
                caption="Width after over width before. An ensemble that is honest already keeps its intervals: lines near 1, but "
                "for noise.",
                title="Change of width",
                key=(Key("model", "after / before"), Key("truth", "unchanged")),
            )
        )
    return section


def training(found: Evaluated, log: TrainingLog) -> Section:
    section = Section("training", "Training", "ELBO on training batches and on held-out transitions, never annealed.")
    panels = figures.training(log)
    if panels:
        held = [value for _, name, value in log if name == "val_elbo"]
        section.items.append(
            Figure(
                panels,
                alt="ELBO over optimiser steps" + (f"; the last held-out value is {held[-1]:.2f} nats per transition." if held else "."),
                caption="Held-out and training lines should stay together; a held-out line that turns down is over-fitting.",
                key=(Key("model", "held-out"), Key("floor", "training batches"), Key("truth", "oracle")),
                size="wide",
            )
        )
        skipped = sum(value for _, name, value in log if name == "skipped" and value == value)
        if skipped:
            section.items.append(Text(f"{skipped:.0f} steps with a non-finite loss or gradient were skipped."))
    return section


MAKERS = (latents, equivariance, stability, recalibration)  # in the order of the page, before the training
