"""Training and sampling."""

from epns_pyro.inference.elbo import Objective, log_density, path_bounds
from epns_pyro.inference.presets import preset
from epns_pyro.inference.run import EvaluationConfig, RunConfig, RunFolder, TrainingConfig
from epns_pyro.inference.simulator import Simulator, load
from epns_pyro.inference.validation import Validation

__all__ = [
    "EvaluationConfig",
    "Objective",
    "RunConfig",
    "RunFolder",
    "Simulator",
    "TrainingConfig",
    "Validation",
    "load",
    "log_density",
    "path_bounds",
    "preset",
]
