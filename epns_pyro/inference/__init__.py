"""Training, sampling and conditioning."""

from epns_pyro.inference.conditioning import unweighted
from epns_pyro.inference.elbo import Objective, log_density, path_bounds
from epns_pyro.inference.events import Exceeds, Probability
from epns_pyro.inference.observations import InitialNormal, Observations, read_observations
from epns_pyro.inference.presets import preset
from epns_pyro.inference.problem import Proposal
from epns_pyro.inference.run import EvaluationConfig, RunConfig, RunFolder, TrainingConfig
from epns_pyro.inference.simulator import Simulator, load
from epns_pyro.inference.validation import Validation

__all__ = [
    "EvaluationConfig",
    "Exceeds",
    "InitialNormal",
    "Objective",
    "Observations",
    "Probability",
    "Proposal",
    "RunConfig",
    "RunFolder",
    "Simulator",
    "TrainingConfig",
    "Validation",
    "load",
    "log_density",
    "path_bounds",
    "preset",
    "read_observations",
    "unweighted",
]
