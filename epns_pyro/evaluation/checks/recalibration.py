"""Check: how much better would intervals be after recalibration?"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from epns_pyro.calibration import recalibration
from epns_pyro.calibration.wording import sentence
from epns_pyro.errors import DataError
from epns_pyro.evaluation import heldout
from epns_pyro.evaluation.check import Check, Inputs
from epns_pyro.evaluation.evaluated import Evaluated, Subject
from epns_pyro.evaluation.figures import model as figures
from epns_pyro.evaluation.parts import Figure, Key, Section, Table
from epns_pyro.evaluation.trials import trials

logger = logging.getLogger(__name__)


class RecalibrationCheck(Check[dict[str, str]]):
    """Its record has one sentence per observable."""

    key, title, record = "recalibration", "recalibration", dict[str, str]

    def measure(self, inputs: Inputs) -> dict[str, str] | None:
        if not inputs.settings.recalibrate or "val" not in inputs.store.splits:
            return None
        if (count := len(trials(inputs.store, "val", inputs.settings))) < recalibration.FEWEST:
            logger.info("no recalibration: the set 'val' has %d trajectories, %d are needed", count, recalibration.FEWEST)
            return None
        try:
            learnt, sentences = heldout.recalibrate(inputs.forecasts("val"), inputs.forecasts("test"))
        except DataError as error:
            logger.info("no recalibration: %s", error)
            return None
        inputs.save("recalibration", learnt)
        return sentences

    def sections(self, record: dict[str, str] | None, found: Evaluated) -> Iterator[Section]:
        section = Section(
            "recalibration",
            "Recalibration",
            "How much better the intervals would be if they were widened or narrowed afterwards: factors are learnt by conformal "
            "prediction on the validation set, and tested on the test set. All other numbers of this page are without recalibration.",
        )
        labels = {subject.name: subject.label for subject in found.subjects("observables")}
        if record:
            rows = [(labels.get(name, name), sentence(words)) for name, words in record.items()]
            section.items.append(Table(("observable", "before and after, on average over lead times"), rows))
        learnt = found.files.get("recalibration")
        if learnt is not None and {"widen_low", "widen_high"} <= set(learnt.data_vars):
            section.items.append(
                Figure(
                    figures.widening(learnt, labels, found.time_unit),
                    alt="Width of recalibrated intervals relative to those of the ensemble, over lead time, for every observable and "
                    "level.",
                    caption="Width after recalibration divided by width before. Intervals of a calibrated ensemble keep their width: "
                    "lines near 1, apart from noise.",
                    title="Change of width",
                    key=(Key("model", "after / before"), Key("truth", "unchanged")),
                )
            )
        yield section

    def about(self, record: dict[str, str], subject: Subject | None) -> dict[str, str]:
        return {name: words for name, words in record.items() if subject is not None and name == subject.name}
