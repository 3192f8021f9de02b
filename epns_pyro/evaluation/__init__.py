"""Judging a trained simulator on held-out data, beside references that every user needs."""

from epns_pyro.evaluation.evaluate import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]
