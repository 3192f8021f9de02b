"""The section about the training of a model: the only one that is made from the training log."""

from __future__ import annotations

from collections.abc import Sequence

from epns_pyro.evaluation.figures import model as figures
from epns_pyro.evaluation.parts import Figure, Key, Section, Text

TrainingLog = Sequence[tuple[int, str, float]]


def training(log: TrainingLog) -> Section:
    """Show the ELBO over optimiser steps: entries of the log are (step, name, value)."""
    section = Section("training", "Training", "ELBO on training batches and on held-out transitions, without annealing.")
    panels = figures.training(log)
    if panels:
        held = [value for _, name, value in log if name == "val_elbo"]
        section.items.append(
            Figure(
                panels,
                alt="ELBO over optimiser steps" + (f"; the last held-out value is {held[-1]:.2f} nats per transition." if held else "."),
                caption="Held-out and training lines should stay close; a held-out line that falls again shows over-fitting.",
                key=(Key("model", "held-out"), Key("floor", "training batches"), Key("truth", "oracle")),
                size="wide",
            )
        )
        skipped = sum(value for _, name, value in log if name == "skipped" and value == value)
        if skipped:
            section.items.append(Text(f"{skipped:.0f} steps with a non-finite loss or gradient were skipped."))
    return section
