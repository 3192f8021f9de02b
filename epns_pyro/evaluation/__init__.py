"""Judging a trained simulator on held-out data, beside references that every user needs."""

from epns_pyro.evaluation.evaluate import Evaluation, evaluate
from epns_pyro.evaluation.settings import EvaluationConfig

__all__ = ["Evaluation", "EvaluationConfig", "evaluate"]
