"""The probabilistic model: transitions, emissions, and the Pyro model and guide that unroll them."""

import pyro

from epns_pyro.models.baselines import neural_sde  # noqa: F401  (register themselves)
from epns_pyro.models.bodies import mixture, particles  # noqa: F401
from epns_pyro.models.epns import EPNSGuide, EPNSModel, Feedback
from epns_pyro.models.symplectic import transition as symplectic  # noqa: F401
from epns_pyro.models.tissues import cells  # noqa: F401
from epns_pyro.models.transition import TRANSITIONS, Transition, TransitionConfig

pyro.settings.set(module_local_params=True)  # parameters live in modules, never in the global store

__all__ = ["TRANSITIONS", "EPNSGuide", "EPNSModel", "Feedback", "Transition", "TransitionConfig"]
