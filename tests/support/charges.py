"""A model of charged particles that knows their law, so that tests of what is about it need no fit."""

from __future__ import annotations

import math

import torch

from epns_pyro.context import DataContext
from epns_pyro.models.bodies.particles import ParticleTransition
from epns_pyro.training.presets import preset

SHORTEST = 1e-5  # softening, in units of positions


def charged(context: DataContext, **integrator: int) -> ParticleTransition:
    """Build the preset's transition, with settings of its integrator, untrained but for its forces:

    a_i = sum_j q_i q_j (r_i - r_j) / |r_i - r_j|^3
    """
    torch.manual_seed(0)
    transition = preset("charged").override({f"model.integrator.{key}": value for key, value in integrator.items()}).model.build(context)
    network, spec = transition.integrator.network, context.spec
    kick = spec["charge"].scale ** 2 / spec["position"].scale ** 2 * context.frame_dt / context.step_scales["velocity"]
    with torch.no_grad():
        for parameter in (*network.linear.parameters(), *network.bend[-1].parameters(), network.product):
            parameter.zero_()
        network.log_lengths[0] = math.log(SHORTEST)
        network.product[network.exponents[:, 0] == -3, 0, 0] = -kick
    return transition
