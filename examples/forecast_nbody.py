"""Forecast with a trained simulator, once with stock Pyro and once with the built-in rollout, and draw the energy fan.

epns-pyro train nbody          # once
python examples/forecast_nbody.py runs/nbody
"""

from __future__ import annotations

import click
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from pyro.infer import Predictive

import epns_pyro
from epns_pyro.data import open_store


@click.command()
@click.argument("run", default="runs/nbody")
@click.option("--out", default="forecast.png", show_default=True)
def main(run: str, out: str) -> None:
    sim = epns_pyro.load(run)
    store = open_store(sim.store)
    truth = store.read("same_init", slice(0, 100))  # 100 runs of the true process from one initial state
    steps = truth.shape[1] - 1
    x0 = torch.as_tensor(truth[:1, 0], dtype=sim.dtype)

    # Stock Pyro: sites z_1, x_1, h_1, ... of a PyroModule.
    with torch.no_grad():
        sites = Predictive(sim.model, guide=sim.guide, num_samples=100, parallel=True)(x0, horizon=3)
    print("Predictive:", {name: tuple(value.shape) for name, value in sites.items() if name.endswith("_3")})

    # The built-in rollout: a labelled dataset, bounded memory, and a mask of the members that are still plausible.
    futures = sim.rollout(x0, steps=steps, members=100, seed=0)
    print(futures)

    mass, position, velocity = (torch.as_tensor(futures[name].values) for name in ("mass", "position", "velocity"))
    states = sim.spec.pack(mass=mass[None, :, None].expand(velocity.shape[:-1]), position=position, velocity=velocity)
    model_energy = sim.system.observables(states.numpy().astype(np.float64))["total_energy"].values[:, 0]
    true_energy = sim.system.observables(truth)["total_energy"].values

    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for energy, colour, label in ((true_energy, "0.25", "true process"), (model_energy, "tab:orange", "learned simulator")):
        low, middle, high = np.quantile(energy, (0.1, 0.5, 0.9), axis=0)
        axes.fill_between(futures.time, low, high, color=colour, alpha=0.25, linewidth=0)
        axes.plot(futures.time, middle, color=colour, label=f"{label}: median and 10–90%")
    axes.set(xlabel="time (T)", ylabel="total energy (M L²/T²)", title="100 futures of one initial state")
    axes.legend(frameon=False, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=120)
    print("figure:", out)


if __name__ == "__main__":
    main()
