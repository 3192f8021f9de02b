"""The forecasters that a model is compared with."""

from __future__ import annotations

from dataclasses import replace

from epns_pyro.data import Store
from epns_pyro.derived import as_differences
from epns_pyro.evaluation.forecasters import Forecaster, Truth
from epns_pyro.evaluation.label_forecasters import LabelPersistence
from epns_pyro.evaluation.linear_forecasters import Autoregression, Persistence
from epns_pyro.simulator import Simulator

TRUE_PROCESS = "true process"


def references(simulator: Simulator, store: Store) -> dict[str, Forecaster]:
    """Return the references that need no learning, and the true process where it can be simulated."""
    found: dict[str, Forecaster] = {}
    kinds = {f.kind for f in simulator.spec.dynamic_fields}
    if kinds == {"real"}:
        context = replace(simulator.context, spec=as_differences(simulator.spec))  # for them the recording is the state
        found["persistence"] = Persistence(context)
        if not _has_truth(store):
            found["autoregression"] = Autoregression.fit(store, context)
    elif "label" in kinds:
        found["persistence"] = LabelPersistence.fit(store, by_distance=False)
        found["distance to border"] = LabelPersistence.fit(store, by_distance=True)
    if _has_truth(store):
        found[TRUE_PROCESS] = Truth(store.system)
    return found


def _has_truth(store: Store) -> bool:
    """Whether there is a true process to compare with that goes on from recorded states."""
    return store.system.can_simulate and store.system.can_continue
