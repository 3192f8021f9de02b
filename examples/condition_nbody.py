"""See the positions of the planets now and then, and infer what the star did, with a trained simulator.

epns-pyro train nbody          # once
python examples/condition_nbody.py runs/nbody
"""

from __future__ import annotations

import click
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import epns_pyro
from epns_pyro.conditioning.filtering import unweighted
from epns_pyro.conditioning.observations import Observations
from epns_pyro.data import open_store

STEPS, EVERY, NOISE = 40, 5, 0.05
STAR = 0
SEEN = np.array([False, True, True, True, True])


@click.command()
@click.argument("run", default="runs/nbody")
@click.option("--trajectory", default=1, show_default=True, help="Of the test set.")
@click.option("--particles", default=500, show_default=True)
@click.option("--out", default="condition.png", show_default=True)
def main(run: str, trajectory: int, particles: int, out: str) -> None:
    sim = epns_pyro.load(run)
    truth = open_store(sim.store).read("test", trajectory, stop=STEPS + 1)[0]  # (time, body, channel)
    observations = Observations.from_states(sim.spec, truth, {"position": NOISE}, every=EVERY, sites=SEEN, rng=np.random.default_rng(0))

    forecast = sim.rollout(truth[:1], steps=STEPS, members=particles, seed=0).isel(trajectory=0)
    filtered = sim.filter(truth[0], observations, particles=particles, seed=0)
    smoothed = sim.smooth(truth[0], observations, particles=particles, seed=0)
    print(f"log evidence: {float(filtered.log_evidence[-1]):.1f} (filter), {float(smoothed.log_evidence):.1f} (smoother) nats")
    print(f"smallest effective sample size: {float(filtered.ess.min()):.0f} (filter), {float(smoothed.ess.min()):.0f} (smoother)")

    figure, axes = plt.subplots(3, 1, figsize=(7, 6.4), layout="constrained", sharex=True)
    rows = [("position", "position of the star (L)"), ("velocity", "its velocity (L/T)")]
    for ax, (field, label) in zip(axes, rows, strict=False):
        fan(ax, forecast, field, "0.6", "forecast")
        fan(ax, unweighted(filtered), field, "tab:orange", "filtered")
        fan(ax, unweighted(smoothed), field, "tab:blue", "smoothed")
        ax.plot(forecast.time, sim.spec.get(truth, field)[:, STAR, 0], color="black", linewidth=1.2, label="truth")
        ax.set(ylabel=label)
    for posterior, colour in ((forecast, "0.6"), (unweighted(filtered), "tab:orange"), (unweighted(smoothed), "tab:blue")):
        axes[2].plot(posterior.time, spread(posterior.position[..., STAR, :]), color=colour)
    for ax in axes:
        for frame in observations.frames:
            ax.axvline(forecast.time[frame], color="0.9", linewidth=0.8, zorder=0)
        ax.spines[["top", "right"]].set_visible(False)
    axes[2].set(ylabel="spread of its position (L)", xlabel="time (T); grey lines: the planets are seen", yscale="log")
    axes[0].legend(frameon=False, loc="lower left", fontsize=9)
    axes[0].set_title("x components: medians and central 90% intervals", fontsize=10)
    figure.savefig(out, dpi=110)
    print("figure:", out)


def fan(ax: plt.Axes, ensemble: xr.Dataset, field: str, colour: str, label: str) -> None:
    low, middle, high = np.quantile(ensemble[field].values[:, :, STAR, 0], (0.05, 0.5, 0.95), axis=0)
    ax.fill_between(ensemble.time, low, high, color=colour, alpha=0.3, linewidth=0)
    ax.plot(ensemble.time, middle, color=colour, label=label)


def spread(position: xr.DataArray) -> xr.DataArray:
    """Root mean square distance from the mean; time 0 is known and has none."""
    return np.sqrt(position.var("sample").sum("space")).where(position.time > 0)


if __name__ == "__main__":
    main()
