"""How often every verdict and test is right: size (false alarms of a calibrated forecaster) and power (faults found and named).

Forecasters of known calibration (`epns_pyro.calibration.known`) are drawn again and again and judged; listed is the share of repetitions
with each verdict, with its 95% interval (Wilson). Everything comes from one seed.

    OMP_NUM_THREADS=1 python benchmarks/calibration_size.py --repetitions 1000 --out benchmarks/results/calibration_size.csv
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import click
import numpy as np
from common import write_table

from epns_pyro.calibration.bands import proportion_interval, rank_law, spread_that_covers
from epns_pyro.calibration.diagnostics import diagnose, diagnose_fields
from epns_pyro.calibration.known import KNOWN, KnownForecaster
from epns_pyro.calibration.recalibration import compare, fit
from epns_pyro.calibration.sbc import judge_guide, sbc_diagnostics
from epns_pyro.calibration.two_sample import classifier_test, energy_test, ks_test
from epns_pyro.calibration.verdicts import Word, judge_fields, judge_observables

Row = dict[str, str]
SCALARS = ["level", "count"]


def row(part: str, sizes: str, case: str, subject: str, outcome: str, value: str, unit: str = "%", repetitions: int | str = "") -> Row:
    return {
        "part": part,
        "sizes": sizes,
        "case": case,
        "subject": subject,
        "outcome": outcome,
        "value": value,
        "lower": "",
        "upper": "",
        "unit": unit,
        "repetitions": str(repetitions),
    }


def share(part: str, sizes: str, case: str, subject: str, outcome: str, hits: int, n: int) -> Row:
    low, high = proportion_interval(hits, n)
    value, *ends = (f"{100 * float(x):.1f}" for x in (hits / n, low, high))
    return row(part, sizes, case, subject, outcome, value, repetitions=n) | dict(zip(("lower", "upper"), ends, strict=True))


def verdict_words(forecaster: KnownForecaster, rng: np.random.Generator, trajectories: int, members: int, steps: int) -> dict[str, Word]:
    forecast, truth = forecaster.draw(rng, trajectories=trajectories, members=members, steps=steps)
    verdicts = judge_observables(diagnose(forecast[SCALARS], truth[SCALARS], rng=rng))
    verdicts += judge_fields(diagnose_fields(forecast[["vector"]], truth[["vector"]], rng=rng))
    return {v.subject: v.word for v in verdicts}


def verdicts(rng: np.random.Generator, repetitions: int, trajectories: int, members: int, steps: int) -> Iterator[Row]:
    sizes = f"{trajectories} trajectories, {members} members, {steps} lead times"
    for name, forecaster in KNOWN.items():
        counts: dict[str, Counter[Word]] = {}
        for _ in range(repetitions):
            for subject, word in verdict_words(forecaster, rng, trajectories, members, steps).items():
                counts.setdefault(subject, Counter())[word] += 1
        for subject, counter in counts.items():
            for word, hits in counter.most_common():
                yield share("verdicts", sizes, name, subject, word, hits, repetitions)


def bands(rng: np.random.Generator, repetitions: int) -> Iterator[Row]:
    """False alarms at 5%, and the exact power."""
    for n, members in ((10, 9), (20, 99), (50, 20), (100, 100), (400, 100)):
        law, sizes = rank_law(n, members), f"{n} trajectories, {members} members"
        alarms = int((law.p_value(rng.random((repetitions, n))) <= 0.05).sum())
        yield share("rank ECDF at one lead time", sizes, "perfect", "ranks", "fails", alarms, repetitions)
        power = law.power(0.95, spread=spread_that_covers(0.7))
        found = f"{100 * power:.1f}"
        yield row("rank ECDF at one lead time", sizes, "90% intervals that cover 70%", "ranks", "fails", found, repetitions="exact")


def two_sample(rng: np.random.Generator, repetitions: int, runs: int) -> Iterator[Row]:
    """Tests at 5%; D_KS looks at the first component only."""
    sizes = f"{runs} and {runs} runs, 3 components"

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
        for label, hits in zip(("D_KS", "energy distance", "classifier"), found, strict=True):
            yield share("two-sample test", sizes, name, label, "differ", int(hits), repetitions)


def guides(rng: np.random.Generator, repetitions: int) -> Iterator[Row]:
    defects = {"honest": (1.0, 0.0), "too narrow (0.7)": (0.7, 0.0), "too wide (1.4)": (1.4, 0.0), "off centre (0.5)": (1.0, 0.5)}
    for name, (spread, shift) in defects.items():
        counter: Counter[Word] = Counter()
        for _ in range(repetitions):
            draws = spread * rng.normal(size=(99, 100, 5, 4)) + shift
            counter[judge_guide(sbc_diagnostics(draws, rng.normal(size=(100, 5, 4)), rng=rng)).word] += 1
        for word, hits in counter.most_common():
            yield share(
                "simulation-based calibration", "100 transitions, 5 bodies, 4 latents, 99 draws", name, "guide", word, hits, repetitions
            )


def recalibration(rng: np.random.Generator, repetitions: int, members: int) -> Iterator[Row]:
    """90% intervals of the level: means over repetitions."""
    sizes = f"fitted on 100 trajectories, judged on 200 others, {members} members"
    for name, forecaster in KNOWN.items():
        stages = []
        for _ in range(repetitions):
            learnt = fit(*(x[["level"]] for x in forecaster.draw(rng, trajectories=100, members=members)))
            judged = compare(learnt, *(x[["level"]] for x in forecaster.draw(rng, trajectories=200, members=members))).sel(level=0.9)
            stages.append([judged[key].mean(("observable", "lead_time")).values for key in ("coverage", "interval_score")])
        for what, unit, factor, digits, values in zip(
            ("coverage of 90% intervals", "interval score"), "%J", (100, 1), (1, 2), np.mean(stages, axis=0), strict=True
        ):
            for stage, value in zip(("before", "after"), values, strict=True):
                yield row("recalibration", sizes, name, "level", f"{what}, {stage}", f"{factor * value:.{digits}f}", unit, repetitions)


def line(found: Row) -> str:
    """Write a row for the eye."""
    between = f" ({found['lower']}-{found['upper']})" if found["lower"] else ""
    return f"    {found['case']}, {found['subject']}: {found['outcome']} {found['value']} {found['unit']}{between}"


@click.command(help=__doc__)
@click.option("--repetitions", default=200, show_default=True)
@click.option("--trajectories", default=100, show_default=True)
@click.option("--members", default=50, show_default=True)
@click.option("--steps", default=10, show_default=True, help="Lead times.")
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Where to write the table as CSV.  [default: nowhere]")
def main(repetitions: int, trajectories: int, members: int, steps: int, seed: int, out: Path | None) -> None:
    start = time.perf_counter()
    streams = np.random.default_rng(seed).spawn(5)
    rows: list[Row] = []
    for found in chain(
        verdicts(streams[0], repetitions, trajectories, members, steps),
        bands(streams[1], 20 * repetitions),
        two_sample(streams[2], repetitions, 200),
        guides(streams[3], max(repetitions // 4, 1)),
        recalibration(streams[4], max(repetitions // 10, 1), members),
    ):
        if not rows or (found["part"], found["sizes"]) != (rows[-1]["part"], rows[-1]["sizes"]):
            repeated = f"{found['repetitions']} repetitions"
            click.echo(f"\n{found['part']}: {found['sizes']}; {repeated}")
        rows.append(found)
        click.echo(line(found))
    if out:
        write_table(rows, out)
    click.echo(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
