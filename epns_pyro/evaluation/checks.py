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
from epns_pyro.inference.elbo import log_density
from epns_pyro.simulator import Simulator
from epns_pyro.symmetry import density_invariance_error
from epns_pyro.systems import System
from epns_pyro.training.run import EvaluationConfig

STEPS = 5  # of the paths whose density is moved by random group elements
ELEMENTS, FAR = 5, 100  # random elements of either kind; factor by which translations of the second kind are larger
HORIZON = 10  # lengths of training
STEPS_SCORED = 100  # per long run, by the true transition density


def equivariance(simulator: Simulator, store: Store, settings: EvaluationConfig) -> dict[str, Any]:
    """Measure |log p(g x, g z | g x_0) - log p(x, z | x_0)| / |log p| of the trained weights in float64, from raw states."""
    transition = copy.deepcopy(simulator.transition).cpu().double()
    x = torch.as_tensor(simulator.context.to_local(store.read("test", slice(0, 4), start=store.system.first_frame)))[:, : STEPS + 1]
    x = x.double() if x.dtype.is_floating_point else x.long()
    with torch.no_grad():
        prior = transition.at(x[:, 0]).prior
    generator = torch.Generator().manual_seed(settings.seed)
    z = torch.randn(len(x), x.shape[1] - 1, *prior.event_shape, generator=generator, dtype=torch.float64)

    def density(x0: torch.Tensor, path: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return log_density(transition, x0, path, z)

    group = store.system.symmetry
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

    Where the true transition density is known, say also how likely their steps are under it.

    The initial states and the true runs are those of the set `long`. Without one they are those of the set `test`: where the true process
    can be simulated both go on for HORIZON times the length of training, otherwise they stop where the recorded runs do.
    """
    system, first = store.system, store.system.first_frame
    group = "long" if "long" in store.splits else "test"
    count, seed = min(settings.long_trajectories, store.size(group)), settings.seed + 3
    x0 = store.read(group, slice(0, count), start=first, stop=first + 1)[:, 0]

    def follow(one: Forecaster, steps: int, seed: int) -> xr.Dataset:
        return ensembles.forecast(one, x0, steps, 1, seed, lambda x: {"": _long(system, x)})[""]

    if group == "test" and system.can_simulate:
        steps = HORIZON * (store.steps("train") - first)
        truth = follow(Truth(system), steps, seed + 1)
    else:
        steps = store.steps(group) - first
        truth = ensembles.recorded(store, group, np.arange(count), lambda x: {"": _long(system, x[None])})[""]
    runs = {"model": follow(forecaster, steps, seed), "truth": truth}
    data = xr.Dataset(
        {"alive": (("source", "time"), np.stack([one["alive"].values.mean((0, 1)) for one in runs.values()]))},
        coords={"source": list(runs), "time": ("time", system.frame_dt * np.arange(steps + 1), {"units": system.time_unit})},
        attrs={"runs": count},
    )
    model, true = (float(x[-1]) for x in data["alive"].values)
    sentence = f"{model:.0%} of {count} runs of the model are still plausible after {steps} steps ({true:.0%} of the true process)"
    found = {"final_alive_model": model, "final_alive_truth": true, "steps": steps, "runs": count, "sentence": sentence}
    scored = {source: one["nats"].values[one["nats"].notnull()] for source, one in runs.items() if "nats" in one}
    if scored and all(nats.size for nats in scored.values()):
        (low, median), (true_low, true_median) = (np.quantile(nats, (0.01, 0.5)) for nats in scored.values())
        found["step_nats"] = {
            "model": {"median": float(median), "first_percentile": float(low)},
            "truth": {"median": float(true_median), "first_percentile": float(true_low)},
        }
        found["steps_sentence"] = (
            f"under the true transition density their steps have {median:.1f} nats in the median and {low:.1f} at the 1st percentile "
            f"({true_median:.1f} and {true_low:.1f} those of the true process)"
        )
    return found, data


def _long(system: System, x: np.ndarray) -> xr.Dataset:
    """What is kept of long runs (sample, trajectory, time, *site, channel): `alive`, and `nats`, the true log density of about STEPS_SCORED
    steps of each, as far as it is alive."""
    alive = system.alive(x)
    kept = xr.Dataset({"alive": (ensembles.ENSEMBLE, alive)})
    if system.has_oracle:
        steps = np.arange(0, x.shape[2] - 1, max(1, x.shape[2] // STEPS_SCORED))
        nats, scored = np.full((*x.shape[:2], len(steps)), np.nan), alive[:, :, steps + 1]
        nats[scored] = system.transition_log_prob(x[:, :, steps][scored], x[:, :, steps + 1][scored])
        kept["nats"] = (("sample", "trajectory", "step"), nats)
    return kept
