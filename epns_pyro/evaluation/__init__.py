"""Judging a trained simulator on held-out data, beside references that every user needs.

evaluate         runs every check and writes RUN/evaluation/
check, checks    what a check is, and the one list of them: each measures one thing and says what was found
record           what the checks find, typed: metrics.json
evaluated        reads the folder again
summary, lines   the first sentence, the headline, the row of a comparison; the lines of the verdicts
parts, figures   what a page is made of, as plain records; `epns_pyro.report` makes HTML of them
"""

from epns_pyro.evaluation.check import Check, Fault, Inputs, Severity
from epns_pyro.evaluation.checks import CHECKS, add_check
from epns_pyro.evaluation.evaluate import Evaluation, evaluate

__all__ = ["CHECKS", "Check", "Evaluation", "Fault", "Inputs", "Severity", "add_check", "evaluate"]
