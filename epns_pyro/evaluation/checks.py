"""What a trained model must keep: its symmetry, and plausibility far beyond the training horizon."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
import xarray as xr

from epns_pyro.data import Store
from epns_pyro.evaluation.forecasters import Forecaster
from epns_pyro.inference import Simulator, log_density
from epns_pyro.inference.run import EvaluationConfig
from epns_pyro.symmetry import density_invariance_error

STEPS = 5  # of the paths whose density is moved by random group elements


def equivariance(simulator: Simulator, store: Store, settings: EvaluationConfig) -> dict[str, Any]:
    """Measure |log p(g x, g z | g x_0) - log p(x, z | x_0)| / |log p| of the trained weights in float64, from raw states."""
    transition = copy.deepcopy(simulator.transition).double()
    x = torch.as_tensor(store.read("test", slice(0, 4), start=store.system.first_frame))[:, : STEPS + 1]
    x = x.double() if x.dtype.is_floating_point else x.long()
    with torch.no_grad():
        prior = transition.prior(x[:, 0], transition.forward_model(x[:, 0]))
    generator = torch.Generator().manual_seed(settings.seed)
    z = torch.randn(len(x), x.shape[1] - 1, *prior.event_shape, generator=generator, dtype=torch.float64)

    def density(x0: torch.Tensor, path: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return log_density(transition, x0, path, z)

    group = store.system.group
    found = density_invariance_error(density, simulator.spec, x[:, 0], x[:, 1:], z, group, samples=10, seed=settings.seed)
    return {
        "maximum": found.maximum,
        "median": found.median,
        "samples": found.samples,
        "dtype": "float64",
        "group": group.description,
        "sentence": f"the log density of the trained model changes by at most {found.maximum:.1e} of its size under "
        f"{found.samples} random elements of {group.description}",
    }


def stability(forecaster: Forecaster, store: Store, settings: EvaluationConfig) -> tuple[dict[str, Any], xr.Dataset]:
    """Follow one run per initial state of the set `long` (of `test` where there is none) and say how many stay plausible."""
    system = store.system
    group = "long" if "long" in store.groups else "test"
    count = min(settings.long_trajectories, store.size(group))
    truth = store.read(group, slice(0, count), start=system.first_frame)
    steps = truth.shape[1] - 1
    states = forecaster.sample(truth[:, 0], steps, 1, settings.seed + 3)
    alive = np.stack([system.alive(states)[0].mean(0), system.alive(truth).mean(0)])
    data = xr.Dataset(
        {"alive": (("source", "time"), alive)},
        coords={"source": ["model", "truth"], "time": ("time", system.frame_dt * np.arange(steps + 1), {"units": system.time_unit})},
        attrs={"runs": count},
    )
    model, true = (float(x[-1]) for x in alive)
    sentence = f"{model:.0%} of {count} runs of the model are still plausible after {steps} steps ({true:.0%} of the true process)"
    return {"final_alive_model": model, "final_alive_truth": true, "steps": steps, "runs": count, "sentence": sentence}, data
