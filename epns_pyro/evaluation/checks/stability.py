"""Check: do runs much longer than training trajectories stay plausible?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr
from scipy import stats

from epns_pyro.calibration.power import FALSE_ALARM
from epns_pyro.calibration.wording import sentence
from epns_pyro.data import Store
from epns_pyro.durations import nominal
from epns_pyro.evaluation import ensembles
from epns_pyro.evaluation.archive import Archive
from epns_pyro.evaluation.check import Check, Fault, Inputs, Severity
from epns_pyro.evaluation.evaluated import Evaluated
from epns_pyro.evaluation.figures import model as figures
from epns_pyro.evaluation.forecasters import Forecaster, Truth
from epns_pyro.evaluation.parts import Figure, Key, Section
from epns_pyro.evaluation.record import HeadlineLine, Stability, StepNats
from epns_pyro.systems import System
from epns_pyro.training.run import EvaluationConfig

HORIZON = 10  # length of long runs, in lengths of training trajectories
STEPS_SCORED = 100  # steps of each long run that are scored with the true transition density
LEAST_ALIVE = 0.9  # the model passes if its fraction of plausible runs is this times the true one


class StabilityCheck(Check[Stability]):
    key, title, record = "stability", "long horizon", Stability

    def measure(self, inputs: Inputs) -> Stability:
        found, alive = stability(inputs.model, inputs.store, inputs.settings, archive=inputs.archive)
        inputs.save("stability", alive)
        return found

    def sections(self, record: Stability | None, found: Evaluated) -> Iterator[Section]:
        if record is None:
            return
        section = Section(
            "stability",
            "Stability of long rollouts",
            "Runs much longer than training trajectories, one per initial state: how many are still physically plausible?",
        )
        if (data := found.files.get("stability")) is not None:
            words = sentence(record.sentence or "fraction of runs that are still plausible")
            steps = f" {sentence(record.steps_sentence)}" if record.steps_sentence else ""
            section.items.append(
                Figure(
                    figures.stability(data, found.time_unit),
                    alt=f"Fraction of runs that are still plausible over time, model and truth. {words}",
                    caption=f"{words} The line of a good model falls no faster than that of the truth. {_rule(record)}{steps}",
                    key=(Key("model", "model"), Key("truth", "truth")),
                    size="wide",
                )
            )
        yield section

    def headline(self, record: Stability) -> Iterator[HeadlineLine]:
        yield HeadlineLine(
            label=f"plausible after {record.steps} steps",
            value=f"{record.final_alive_model:.0%}",
            note=f"true process {record.final_alive_truth:.0%}, {record.runs} runs",
            good=not runs_die(record),
        )

    def faults(self, record: Stability) -> Iterator[Fault]:
        if runs_die(record):
            alive, true = record.final_alive_model, record.final_alive_truth
            yield Fault(Severity.UNSTABLE, f"only {alive:.0%} of {record.runs} long runs stay plausible ({true:.0%} of the true process)")


def runs_die(record: Stability) -> bool:
    """Return whether fewer than LEAST_ALIVE times the true fraction of long runs stay plausible: exact binomial test, 5% false alarms."""
    least = LEAST_ALIVE * record.final_alive_truth
    if not (record.runs and np.isfinite(least) and np.isfinite(record.final_alive_model)):
        return False
    return bool(stats.binom.cdf(round(record.final_alive_model * record.runs), record.runs, least) < FALSE_ALARM)


def _rule(record: Stability) -> str:
    return (
        f"It is a fault if a model with {LEAST_ALIVE:.0%} of the true fraction would have so few plausible runs in less than "
        f"{FALSE_ALARM:.0%} of cases (exact binomial test, {record.runs} runs)."
    )


def long_runs(store: Store, settings: EvaluationConfig) -> tuple[str, int, int, bool]:
    """Return the set that long runs start from, how many there are, their steps, and whether true ones are simulated afresh."""
    first, group = store.system.forecast_frame, "long" if "long" in store.splits else "test"
    simulated = group == "test" and store.system.can_simulate and store.system.can_continue
    longest = HORIZON * (store.steps("train") - first) if simulated else store.steps(group) - first
    return group, min(settings.long_trajectories, store.size(group)), min(settings.long_steps or longest, longest), simulated


def stability(
    forecaster: Forecaster, store: Store, settings: EvaluationConfig, *, archive: Archive | None = None
) -> tuple[Stability, xr.Dataset]:
    """Run the model from each initial state for much longer than training trajectories, and count the runs that stay plausible.

    Where the true transition density is known, also measure the density of the steps of these runs.

    The initial states and the true runs are those of the set `long`, otherwise of the set `test`. If the true process can be simulated,
    both run for HORIZON times the length of training trajectories; if not, both have the length of the recorded runs.
    """
    system, seed = store.system, settings.seed + 3
    group, count, steps, simulated = long_runs(store, settings)
    x0 = nominal(system.spec, ensembles.initial(store, group, slice(0, count)))

    def follow(one: Forecaster, steps: int, seed: int) -> xr.Dataset:
        return ensembles.forecast(one, x0, steps, 1, seed, lambda x: {"long": _long(system, x)}, archive=archive)["long"]

    if simulated:
        truth = follow(Truth(system), steps, seed + 1)
    else:
        truth = ensembles.recorded(store, group, np.arange(count), lambda x: {"long": _long(system, x[None])}, steps)["long"]
    runs = {"model": follow(forecaster, steps, seed), "truth": truth}
    data = xr.Dataset(
        {"alive": (("source", "time"), np.stack([one["alive"].values.mean((0, 1)) for one in runs.values()]))},
        coords={"source": list(runs), "time": ("time", system.frame_dt * np.arange(steps + 1), {"units": system.time_unit})},
        attrs={"runs": count},
    )
    model, true = (float(x[-1]) for x in data["alive"].values)
    words = f"{model:.0%} of {count} runs of the model are still plausible after {steps} steps ({true:.0%} of the true process)"
    scored = {source: one["nats"].values[one["nats"].notnull()] for source, one in runs.items() if "nats" in one}
    nats, steps_sentence = {}, ""
    if scored and all(one.size for one in scored.values()):
        nats = {source: StepNats(median=np.median(one), first_percentile=np.quantile(one, 0.01)) for source, one in scored.items()}
        steps_sentence = (
            f"the true transition density of their steps is {nats['model'].median:.1f} nats in the median and "
            f"{nats['model'].first_percentile:.1f} at the 1st percentile "
            f"(steps of the true process: {nats['truth'].median:.1f} and {nats['truth'].first_percentile:.1f})"
        )
    found = Stability(
        final_alive_model=model,
        final_alive_truth=true,
        steps=steps,
        runs=count,
        sentence=words,
        step_nats=nats,
        steps_sentence=steps_sentence,
    )
    return found, data


def _long(system: System, x: np.ndarray) -> xr.Dataset:
    """Return what is kept of long runs (sample, trajectory, time, *site, channel): `alive`, and `nats`, the true log density of about
    STEPS_SCORED steps of each, while it is alive."""
    alive = system.alive(x)
    kept = xr.Dataset({"alive": (ensembles.ENSEMBLE, alive)})
    if system.has_oracle:
        steps = np.arange(0, x.shape[2] - 1, max(1, x.shape[2] // STEPS_SCORED))
        nats, scored = np.full((*x.shape[:2], len(steps)), np.nan), alive[:, :, steps + 1]
        nats[scored] = system.transition_log_prob(x[:, :, steps][scored], x[:, :, steps + 1][scored])
        kept["nats"] = (("sample", "trajectory", "step"), nats)
    return kept
