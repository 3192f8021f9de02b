"""Evidence bounds, ancestral sampling and probabilities of events, computed with any transition."""

from epns_pyro._moved import moved
from epns_pyro.inference.elbo import Objective, log_density, path_bounds
from epns_pyro.inference.events import Exceeds, Probability

__all__ = ["Exceeds", "Objective", "Probability", "log_density", "path_bounds"]

__getattr__ = moved(
    __name__,
    {
        "EvaluationConfig": "epns_pyro.training.run",
        "InitialNormal": "epns_pyro.conditioning.observations",
        "Observations": "epns_pyro.conditioning.observations",
        "Proposal": "epns_pyro.conditioning.problem",
        "RunConfig": "epns_pyro.training.run",
        "RunFolder": "epns_pyro.training.run",
        "Simulator": "epns_pyro.simulator",
        "TrainingConfig": "epns_pyro.training.run",
        "Validation": "epns_pyro.training.validation",
        "load": "epns_pyro.runs",
        "preset": "epns_pyro.training.presets",
        "read_observations": "epns_pyro.conditioning.observations",
        "unweighted": "epns_pyro.conditioning.filtering",
    },
)
