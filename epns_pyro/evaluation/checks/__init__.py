"""The checks of an evaluation: ONE list, in the order of the page.

A check is one file with one class; see `epns_pyro.evaluation.check`. User code adds its own with `add_check`.
"""

from __future__ import annotations

from typing import Any

from epns_pyro.errors import ConfigError
from epns_pyro.evaluation.check import Check
from epns_pyro.evaluation.checks.calibration import CalibrationCheck
from epns_pyro.evaluation.checks.displacement import DisplacementCheck
from epns_pyro.evaluation.checks.initial_states import DistanceCheck, JointCheck
from epns_pyro.evaluation.checks.innovations import InnovationCheck
from epns_pyro.evaluation.checks.latents import LatentsCheck
from epns_pyro.evaluation.checks.likelihood import LikelihoodCheck
from epns_pyro.evaluation.checks.one_step import OneStepCheck
from epns_pyro.evaluation.checks.pair_law import PairLawCheck
from epns_pyro.evaluation.checks.recalibration import RecalibrationCheck
from epns_pyro.evaluation.checks.stability import StabilityCheck
from epns_pyro.evaluation.checks.symmetry import SymmetryCheck

CHECKS: list[Check[Any]] = [
    LikelihoodCheck(),
    DistanceCheck(),
    JointCheck(),
    CalibrationCheck(),
    DisplacementCheck(),
    OneStepCheck(),
    InnovationCheck(),
    PairLawCheck(),
    LatentsCheck(),
    SymmetryCheck(),
    StabilityCheck(),
    RecalibrationCheck(),
]


def add_check(check: Check[Any]) -> None:
    """Add a check at the end of the page.

    Raises
    ------
    ConfigError
        If the key of the check is already taken.
    """
    if check.key in {known.key for known in CHECKS} | {"format", "version", "run", "headline"}:
        raise ConfigError(f"check {check.key!r}: its key is taken: choose another (taken: {', '.join(known.key for known in CHECKS)})")
    CHECKS.append(check)
