"""Look at an evaluation with ArviZ: the ensembles of held-out trajectories beside what came true, as InferenceData.

epns-pyro train nbody          # once; it evaluates the run at its end
python examples/explore_with_arviz.py runs/nbody

Every group has the dims chain, draw (members of the ensemble), trajectory and time, or a part of them, so that any function of ArviZ
(0.23 here, as pinned) works on it. Trajectories are independent, times are not: fix the time before a test or a band over trajectories.
"""

from __future__ import annotations

from pathlib import Path

import arviz as az
import click
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


@click.command()
@click.argument("run", default="runs/nbody", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--observable", default="total_energy", show_default=True)
@click.option("--out", default="arviz.png", show_default=True)
def main(run: Path, observable: str, out: str) -> None:
    idata = az.from_netcdf(run / "evaluation" / "inference_data.nc")
    print(idata)

    last = idata.isel(time=-1)
    print(f"\n{observable} of the first five trajectories at the last lead time:")
    print(az.summary(last.posterior_predictive[[observable]].isel(trajectory=slice(5)), kind="stats", hdi_prob=0.9))

    gap = (idata.log_likelihood["iwae"] - idata.log_likelihood["elbo"]).mean(("chain", "draw", "trajectory"))
    print("\nIWAE minus ELBO by lead time, nats per transition:", gap.values.round(3))

    figure, (predictive, pit) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    shown = min(30, last.posterior_predictive.sizes["draw"])
    az.plot_ppc(last, var_names=[observable], num_pp_samples=shown, random_seed=0, ax=predictive)
    az.plot_bpv(last, kind="u_value", var_names=[observable], ax=pit)
    predictive.set(title="all trajectories, last lead time", xlabel=observable.replace("_", " "))
    pit.set(title="where the truth falls in its ensemble: flat if calibrated", xlabel="probability integral transform")
    figure.savefig(out, dpi=120)
    print("figure:", out)


if __name__ == "__main__":
    main()
