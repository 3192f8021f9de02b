"""Testing a trained simulator on held-out data, beside references that need no learning.

evaluate         runs every check and writes RUN/evaluation/
check, checks    the class Check and the list of checks: each measures one thing and says what it found
record           typed records of what the checks found, stored in metrics.json
evaluated        reads the folder RUN/evaluation/
summary, lines   first sentence, headline and row of a comparison; one line per verdict
parts, figures   the parts of a page as plain records; `epns_pyro.report` makes HTML of them
"""

from epns_pyro.evaluation.check import Check, Fault, Inputs, Severity
from epns_pyro.evaluation.checks import CHECKS, add_check
from epns_pyro.evaluation.evaluate import Evaluation, evaluate

__all__ = ["CHECKS", "Check", "Evaluation", "Fault", "Inputs", "Severity", "add_check", "evaluate"]
