"""Say which bodies are there: a body is absent from a frame in which all of its dynamic fields are NaN.

People enter and leave a street, cells are born, a detector misses an animal. The number of bodies of a trajectory is the number of those
that it ever holds, and NaN says when one of them is not there. Static fields are finite everywhere, also for bodies that never come.
This module alone knows the rule; everybody else asks it.
"""

from __future__ import annotations

import numpy as np
import torch

from epns_pyro.state import Array, StateSpec


def allows_absence(spec: StateSpec) -> bool:
    """Say whether bodies of a spec can be absent: particles on one site axis whose dynamic fields are all real."""
    return len(spec.sites) == 1 and all(f.kind == "real" for f in spec.dynamic_fields)


def presence(spec: StateSpec, x: Array) -> Array:
    """Return which bodies of full states x (*batch, body, channel) are there: booleans (*batch, body); time is a batch dimension."""
    return presence_dynamic(spec.dynamic(x))


def presence_dynamic(y: Array) -> Array:
    """Return which bodies are there, given the dynamic channels y (*batch, body, dynamic channel): booleans (*batch, body)."""
    return ~(torch if isinstance(y, torch.Tensor) else np).isnan(y).all(-1)
