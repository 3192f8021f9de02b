"""Build the transition of a config for the data at hand."""

from __future__ import annotations

from epns_pyro.context import DataContext
from epns_pyro.derived import has_hidden_states
from epns_pyro.models.hidden.recording import Recording
from epns_pyro.models.transition import Transition, TransitionConfig


def build(config: TransitionConfig, context: DataContext) -> Transition:
    """Return the transition of a config, with the law of its recording where the recording is not the state."""
    transition = config.build(context)
    if has_hidden_states(context.spec):
        transition.add_module("recorded_by", Recording(context))
    return transition
