"""What a trained model must keep: its symmetry, and plausibility far beyond the training horizon."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import torch
import xarray as xr

from epns_pyro.data import Store
from epns_pyro.evaluation import ensembles
from epns_pyro.evaluation.forecasters import Forecaster, Truth
from epns_pyro.inference import Simulator, log_density
from epns_pyro.inference.run import EvaluationConfig
from epns_pyro.symmetry import density_invariance_error
from epns_pyro.systems import System

STEPS = 5  # of the paths whose density is moved by random group elements
ELEMENTS, FAR = 5, 100  # random elements of either kind; factor by which translations of the second kind are larger
HORIZON = 10  # lengths of training


def equivariance(simulator: Simulator, store: Store, settings: EvaluationConfig) -> dict[str, Any]:
    """Measure |log p(g x, g z | g x_0) - log p(x, z | x_0)| / |log p| of the trained weights in float64, from raw states."""
    transition = copy.deepcopy(simulator.transition).cpu().double()
    x = torch.as_tensor(store.read("test", slice(0, 4), start=store.system.first_frame))[:, : STEPS + 1]
    x = x.double() if x.dtype.is_floating_point else x.long()
    with torch.no_grad():
        prior = transition.prior(x[:, 0], transition.forward_model(x[:, 0]))
    generator = torch.Generator().manual_seed(settings.seed)
    z = torch.randn(len(x), x.shape[1] - 1, *prior.event_shape, generator=generator, dtype=torch.float64)

    def density(x0: torch.Tensor, path: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return log_density(transition, x0, path, z)

    group = store.system.group
    groups = [group]
    if getattr(group, "translation_scale", 0):  # half of the elements move far
        groups.append(dataclasses.replace(group, translation_scale=FAR * group.translation_scale))
    found = [
        density_invariance_error(
            density,
            simulator.spec,
            x[:, 0],
            x[:, 1:],
            z,
            g,
            latent_fields=transition.latent_fields,
            samples=ELEMENTS,
            seed=settings.seed,
        )
        for g in groups
    ]
    maximum, samples = max(one.maximum for one in found), sum(one.samples for one in found)
    return {
        "maximum": maximum,
        "median": float(np.mean([one.median for one in found])),
        "samples": samples,
        "dtype": "float64",
        "group": group.description,
        "sentence": f"the log density of the trained model changes by at most {maximum:.1e} of its size under "
        f"{samples} random elements of {group.description}",
    }


def stability(forecaster: Forecaster, store: Store, settings: EvaluationConfig) -> tuple[dict[str, Any], xr.Dataset]:
    """Follow one run per initial state far beyond the length of training, and say how many stay plausible.

    The initial states and the true runs are those of the set `long`. Without one they are those of the set `test`: where the true process
    can be simulated both go on for HORIZON times the length of training, otherwise they stop where the recorded runs do.
    """
    system, first = store.system, store.system.first_frame
    group = "long" if "long" in store.groups else "test"
    count, seed = min(settings.long_trajectories, store.size(group)), settings.seed + 3
    x0 = store.read(group, slice(0, count), start=first, stop=first + 1)[:, 0]

    def alive_of(one: Forecaster, steps: int, seed: int) -> np.ndarray:
        kept = ensembles.forecast(one, x0, steps, 1, seed, lambda x: {"": _alive(system, x)})
        return kept[""]["alive"].values.mean((0, 1))

    if group == "test" and system.can_simulate:
        steps = HORIZON * (store.steps("train") - first)
        true_alive = alive_of(Truth(system), steps, seed + 1)
    else:
        steps = store.steps(group) - first
        kept = ensembles.recorded(store, group, np.arange(count), lambda x: {"": _alive(system, x[None])})
        true_alive = kept[""]["alive"].values.mean((0, 1))
    alive = np.stack([alive_of(forecaster, steps, seed), true_alive])
    data = xr.Dataset(
        {"alive": (("source", "time"), alive)},
        coords={"source": ["model", "truth"], "time": ("time", system.frame_dt * np.arange(steps + 1), {"units": system.time_unit})},
        attrs={"runs": count},
    )
    model, true = (float(x[-1]) for x in alive)
    sentence = f"{model:.0%} of {count} runs of the model are still plausible after {steps} steps ({true:.0%} of the true process)"
    return {"final_alive_model": model, "final_alive_truth": true, "steps": steps, "runs": count, "sentence": sentence}, data


def _alive(system: System, x: np.ndarray) -> xr.Dataset:
    return xr.Dataset({"alive": (ensembles.ENSEMBLE, system.alive(x))})
