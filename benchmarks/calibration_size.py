"""How often every verdict and test is right: size (false alarms of a calibrated forecaster) and power (faults found and named).

Forecasters of known calibration (`epns_pyro.calibration.known`) are drawn again and again and judged; listed is the share of repetitions
with each verdict, with its 95% interval (Wilson). Everything comes from one seed.

    OMP_NUM_THREADS=1 python benchmarks/calibration_size.py --repetitions 1000 --trajectories 100 --members 50
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import click
import numpy as np

from epns_pyro.calibration.bands import proportion_interval, rank_law, spread_that_covers
from epns_pyro.calibration.diagnostics import diagnose, diagnose_fields
from epns_pyro.calibration.known import KNOWN, KnownForecaster
from epns_pyro.calibration.recalibration import compare, fit
from epns_pyro.calibration.sbc import judge_guide, sbc_diagnostics
from epns_pyro.calibration.two_sample import classifier_test, energy_test, ks_test
from epns_pyro.calibration.verdicts import Word, judge_fields, judge_observables

SCALARS = ["level", "count"]


def share(hits: int, n: int) -> str:
    low, high = proportion_interval(hits, n)
    return f"{hits / n:6.1%} ({float(low):.1%}-{float(high):.1%})"


def verdict_words(forecaster: KnownForecaster, rng: np.random.Generator, trajectories: int, members: int, steps: int) -> dict[str, Word]:
    forecast, truth = forecaster.draw(rng, trajectories=trajectories, members=members, steps=steps)
    verdicts = judge_observables(diagnose(forecast[SCALARS], truth[SCALARS], rng=rng))
    verdicts += judge_fields(diagnose_fields(forecast[["vector"]], truth[["vector"]], rng=rng))
    return {v.subject: v.word for v in verdicts}


def verdicts(rng: np.random.Generator, repetitions: int, trajectories: int, members: int, steps: int) -> None:
    click.echo(f"\nVerdicts: {trajectories} trajectories, {members} members, {steps} lead times, {repetitions} repetitions")
    for name, forecaster in KNOWN.items():
        counts: dict[str, Counter[Word]] = {}
        for _ in range(repetitions):
            for subject, word in verdict_words(forecaster, rng, trajectories, members, steps).items():
                counts.setdefault(subject, Counter())[word] += 1
        click.echo(f"  {name}")
        for subject, counter in counts.items():
            said = ", ".join(f"{word} {share(hits, repetitions).strip()}" for word, hits in counter.most_common())
            click.echo(f"    {subject:<8}{said}")


def bands(rng: np.random.Generator, repetitions: int) -> None:
    click.echo(f"\nRank-ECDF test at 5%: false alarms in {repetitions} repetitions; exact power against 90% intervals that cover 70%")
    for n, members in ((10, 9), (20, 99), (50, 20), (100, 100), (400, 100)):
        law = rank_law(n, members)
        alarms = int((law.p_value(rng.random((repetitions, n))) <= 0.05).sum())
        power = law.power(0.95, spread=spread_that_covers(0.7))
        click.echo(f"  {n:>4} trajectories, {members:>3} members: {share(alarms, repetitions)}   power {power:.1%}")


def two_sample(rng: np.random.Generator, repetitions: int, runs: int) -> None:
    click.echo(f"\nTwo-sample tests at 5%: {runs} runs against {runs}, 3 components, {repetitions} repetitions (D_KS: first component)")

    def normal(scale: float = 1.0, shift: float = 0.0, correlation: float = 0.0) -> np.ndarray:
        common = rng.normal(size=(runs, 1))
        return scale * (np.sqrt(correlation) * common + np.sqrt(1 - correlation) * rng.normal(size=(runs, 3))) + shift

    models: dict[str, Callable[[], np.ndarray]] = {
        "the same law": normal,
        "shift 0.3": lambda: normal(shift=0.3),
        "spread 1.3": lambda: normal(scale=1.3),
        "correlation 0.5": lambda: normal(correlation=0.5),
    }
    for name, model in models.items():
        found = np.zeros(3, int)
        for _ in range(repetitions):
            a, b = model(), normal()
            tests = (ks_test(a[:, 0], b[:, 0], rng=rng, relabellings=199), energy_test(a, b, rng=rng, relabellings=199))
            found += [test.p_value <= 0.05 for test in (*tests, classifier_test(a, b, rng=rng, relabellings=199))]
        labels = ("D_KS", "energy distance", "classifier")
        click.echo(f"  {name:<16}" + "   ".join(f"{label} {share(int(k), repetitions)}" for label, k in zip(labels, found, strict=True)))


def guides(rng: np.random.Generator, repetitions: int) -> None:
    click.echo(f"\nSimulation-based calibration: 100 transitions, 5 bodies, 4 latents, 99 draws, {repetitions} repetitions")
    defects = {"honest": (1.0, 0.0), "too narrow (0.7)": (0.7, 0.0), "too wide (1.4)": (1.4, 0.0), "off centre (0.5)": (1.0, 0.5)}
    for name, (spread, shift) in defects.items():
        counter: Counter[Word] = Counter()
        for _ in range(repetitions):
            draws = spread * rng.normal(size=(99, 100, 5, 4)) + shift
            counter[judge_guide(sbc_diagnostics(draws, rng.normal(size=(100, 5, 4)), rng=rng)).word] += 1
        said = ", ".join(f"{word} {share(hits, repetitions).strip()}" for word, hits in counter.most_common())
        click.echo(f"  {name:<18}{said}")


def recalibration(rng: np.random.Generator, repetitions: int, members: int) -> None:
    click.echo(
        f"\nRecalibration: 90% intervals of the level, fitted on 100 trajectories, judged on 200 others, mean of {repetitions} repetitions"
    )
    for name, forecaster in KNOWN.items():
        stages = []
        for _ in range(repetitions):
            learnt = fit(*(x[["level"]] for x in forecaster.draw(rng, trajectories=100, members=members)))
            judged = compare(learnt, *(x[["level"]] for x in forecaster.draw(rng, trajectories=200, members=members))).sel(level=0.9)
            stages.append([judged[key].mean(("observable", "lead_time")).values for key in ("coverage", "interval_score")])
        (before, after), (raw, mended) = np.mean(stages, axis=0)
        click.echo(f"  {name:<43}coverage {before:.1%} -> {after:.1%}   interval score {raw:.2f} -> {mended:.2f}")


@click.command(help=__doc__)
@click.option("--repetitions", default=200, show_default=True)
@click.option("--trajectories", default=100, show_default=True)
@click.option("--members", default=50, show_default=True)
@click.option("--steps", default=10, show_default=True, help="Lead times.")
@click.option("--seed", default=0, show_default=True)
def main(repetitions: int, trajectories: int, members: int, steps: int, seed: int) -> None:
    start = time.perf_counter()
    streams = np.random.default_rng(seed).spawn(5)
    verdicts(streams[0], repetitions, trajectories, members, steps)
    bands(streams[1], 20 * repetitions)
    two_sample(streams[2], repetitions, 200)
    guides(streams[3], max(repetitions // 4, 1))
    recalibration(streams[4], max(repetitions // 10, 1), members)
    click.echo(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
