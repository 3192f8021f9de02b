"""Figures of the report, as SVG that takes its colours from the page, so that they are readable on light and on dark paper.

Every function takes labelled data and returns SVG text. Roles have one colour throughout: truth is the ink of the page, the model the
accent, references a quiet grey.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import matplotlib
import numpy as np
import xarray as xr

matplotlib.use("Agg")
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MODEL, QUIET, GOOD, BAD = "#010101", "#020202", "#030303", "#040404", "#050505"  # stand-ins, replaced by variables of the page
_ROLES = {INK: "var(--ink)", MODEL: "var(--model)", QUIET: "var(--quiet)", GOOD: "var(--good)", BAD: "var(--bad)"}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "epns-pyro",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.linewidth": 0.6,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "lines.linewidth": 1.4,
}


def _grid(n: int, columns: int, size: tuple[float, float], draw: Callable[[int, Axes], None]) -> str:
    """Draw n panels, `columns` to a row."""
    with matplotlib.rc_context(_STYLE):
        columns = min(columns, n)
        rows = -(-n // columns)
        figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for i, panel in enumerate(axes):
            if i < n:
                draw(i, panel)
            else:
                panel.set_axis_off()
        return _svg(figure)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for stand_in, role in _ROLES.items():
        text = text.replace(stand_in, role)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)  # the page's own font
    width = figure.get_figwidth() * 104  # pixels: the page may shrink a figure, and enlarge it only a little
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return re.sub(r'(<svg[^>]*?) width="[^"]*"', rf'\1 role="presentation" style="max-width: {width:.0f}px"', text, count=1)


def _unit(text: str, unit: str) -> str:
    return f"{text} ({unit})" if unit else text


def _time(data: xr.Dataset | xr.DataArray, name: str = "lead_time") -> str:
    return _unit("lead time" if name == "lead_time" else "time", str(data[name].attrs.get("units", "")))


def likelihood_ladder(rows: Sequence[dict[str, Any]]) -> str:
    """Dots on one scale of nats, from what needs no learning to what cannot be beaten."""
    rows = sorted(rows, key=lambda row: row["value"])

    def draw(_: int, axes: Axes) -> None:
        for y, row in enumerate(rows):
            colour = MODEL if row["key"] in ("elbo", "iwae") else INK
            axes.plot([rows[0]["value"], row["value"]], [y, y], color=QUIET, linewidth=0.6)
            axes.errorbar(row["value"], y, xerr=row.get("error") or 0, fmt="o", color=colour, markersize=5, linewidth=1)
            axes.annotate(f"{row['value']:.2f}", (row["value"], y), (0, 6), textcoords="offset points", ha="right", color=colour)
        axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
        axes.set_xlabel("nats per transition")
        axes.margins(x=0.08, y=0.15)

    return _grid(1, 1, (7.2, 0.45 * len(rows) + 0.8), draw)


def fans(data: xr.Dataset, observable: str) -> str:
    """Median and 10-90% band of one observable for every initial state, model over truth."""
    one = data["value"].sel(observable=observable)
    label, unit = str(data["label"].sel(observable=observable).item()), str(data["unit"].sel(observable=observable).item())

    def draw(i: int, axes: Axes) -> None:
        for source, colour in (("truth", INK), ("model", MODEL)):
            values = one.sel(source=source).isel(initial_state=i)
            time = values["time"].values
            axes.fill_between(time, values.sel(quantile=0.1), values.sel(quantile=0.9), color=colour, alpha=0.18, linewidth=0)
            axes.plot(time, values.sel(quantile=0.5), color=colour, label=source)
        axes.set_title(f"initial state {i + 1}")
        if i == 0:
            axes.legend(loc="upper left", handlelength=1.2)
        axes.set_xlabel(_time(one, "time"))
        axes.set_ylabel(_unit(label, unit))

    return _grid(one.sizes["initial_state"], 3, (3.1, 2.3), draw)


def ecdf_differences(data: xr.Dataset, subject: dict[str, str], prefix: str = "") -> str:
    """PIT-ECDF minus its expectation with the simultaneous band, one panel per lead time."""
    one = data.sel(subject)
    times = np.unique(np.linspace(0, one.sizes["lead_time"] - 1, min(6, one.sizes["lead_time"])).round().astype(int))

    def draw(k: int, axes: Axes) -> None:
        at = one.isel(lead_time=int(times[k]))
        point = at["point"].values
        difference, low, high = (at[f"{prefix}{name}"].values for name in ("ecdf_difference", "band_lower", "band_upper"))
        outside = bool(((difference < low) | (difference > high)).any())
        axes.fill_between(point, low, high, color=QUIET, alpha=0.25, linewidth=0, step="mid")
        axes.axhline(0, color=QUIET, linewidth=0.6)
        axes.step(point, difference, where="mid", color=BAD if outside else MODEL)
        unit = str(one["lead_time"].attrs.get("units", ""))
        axes.set_title(f"{float(at['lead_time']):.4g} {unit}{': outside' if outside else ''}")
        axes.set_xlim(0, 1)

    return _grid(len(times), 3, (2.6, 1.7), draw)


def coverage(data: xr.Dataset, dim: str) -> str:
    """Coverage of central intervals against lead time, with 95% intervals, one panel per subject."""
    names = list(data[dim].values)

    def draw(i: int, axes: Axes) -> None:
        one = data.sel({dim: names[i]})
        time = one["lead_time"].values
        for level in one["level"].values:
            at = one.sel(level=level)
            axes.axhline(float(at["nominal"]), color=QUIET, linewidth=0.6)
            error = np.stack([at["coverage"] - at["coverage_lower"], at["coverage_upper"] - at["coverage"]])
            axes.errorbar(time, at["coverage"], yerr=np.clip(error, 0, None), color=MODEL, fmt="o-", markersize=2.5, linewidth=0.9)
            axes.annotate(
                f"{float(at['nominal']):.0%}", (time[-1], float(at["nominal"])), (4, -3), textcoords="offset points", fontsize=7.5
            )
        axes.set(ylim=(0.2, 1.02), xlabel=_time(one), title=_label(one, names[i]))
        axes.set_yticks([0.5, 0.8, 0.95], ["50%", "80%", "95%"])

    return _grid(len(names), 3, (3.1, 2.2), draw)


def spread_skill(data: xr.Dataset) -> str:
    """Ratio of ensemble spread to error of the ensemble mean against lead time: 1 if honest."""
    names = list(data["observable"].values)

    def draw(i: int, axes: Axes) -> None:
        one = data.sel(observable=names[i])
        time = one["lead_time"].values
        axes.axhline(1, color=QUIET, linewidth=0.6)
        axes.fill_between(time, one["spread_skill_lower"], one["spread_skill_upper"], color=MODEL, alpha=0.2, linewidth=0)
        axes.plot(time, one["spread_skill"], color=MODEL, marker="o", markersize=2.5)
        axes.set(xlabel=_time(one), title=_label(one, names[i]))
        axes.set_ylim(0, max(2.0, float(np.nanmax(one["spread_skill_upper"])) * 1.05))

    return _grid(len(names), 3, (3.1, 2.0), draw)


def skill(data: xr.Dataset, dims: Iterable[str], score: str) -> str:
    """Skill against each reference over lead time: 1 is perfect, 0 no better than the reference."""
    dims = [d for d in dims if d in data.dims]
    names = list(data[dims[0]].values) if dims else ["all sites"]

    def draw(i: int, axes: Axes) -> None:
        one = data.sel({dims[0]: names[i]}) if dims else data
        axes.axhline(0, color=QUIET, linewidth=0.6)
        for k, reference in enumerate(one["reference"].values):
            at = one.sel(reference=reference)
            axes.errorbar(
                at["lead_time"], at["skill"], yerr=at["skill_error"], color=MODEL if k == 0 else INK, marker="o" if k == 0 else "s",
                markersize=2.5, linewidth=0.9, label=f"against {reference}",
            )  # fmt: skip
        axes.set(xlabel=_time(one), title=_label(one, names[i]), ylabel=f"skill of {score}" if i % 3 == 0 else "")
        low = float(np.nanmin(one["skill"])) if np.isfinite(one["skill"]).any() else 0.0
        axes.set_ylim(min(-0.15, max(low * 1.2, -1.0)), 1.05)
        if i == 0:
            axes.legend(loc="best", fontsize=7.5)

    return _grid(len(names), 3, (3.1, 2.1), draw)


def reliability(data: xr.Dataset) -> str:
    """How often a label was there against how often the ensemble said so, beside what a perfect ensemble of this size shows."""
    times = np.unique(np.linspace(0, data.sizes["lead_time"] - 1, min(3, data.sizes["lead_time"])).round().astype(int))

    def draw(i: int, axes: Axes) -> None:
        at = data.isel(lead_time=int(times[i]))
        axes.plot(at["forecast_probability"], at["expected_frequency"], color=QUIET, label="perfect ensemble of this size")
        axes.errorbar(
            at["forecast_probability"], at["frequency"], yerr=at["frequency_error"], color=MODEL, fmt="o", markersize=3, label="model"
        )
        axes.set(xlabel="forecast probability", ylabel="frequency" if i == 0 else "", title=f"{float(at['lead_time']):.4g}")
        if i == 0:
            axes.legend(loc="upper left", fontsize=7.5)

    return _grid(len(times), 3, (2.8, 2.5), draw)


def latent_bars(kl: Sequence[float]) -> str:
    """KL of every latent dimension, largest first."""
    ordered = np.sort(np.asarray(kl, float))[::-1]

    def draw(_: int, axes: Axes) -> None:
        axes.bar(np.arange(1, len(ordered) + 1), ordered, color=[MODEL if v >= 0.01 else QUIET for v in ordered])
        axes.axhline(0.01, color=QUIET, linewidth=0.6)
        axes.set(xlabel="latent dimension, by use", ylabel="KL (nats per entity)")

    return _grid(1, 1, (6.4, 1.9), draw)


def stability(data: xr.Dataset) -> str:
    """Share of runs that are still plausible."""

    def draw(_: int, axes: Axes) -> None:
        for source, colour in (("truth", INK), ("model", MODEL)):
            axes.plot(data["time"], data["alive"].sel(source=source), color=colour, label=source, drawstyle="steps-post")
        axes.set(xlabel=_time(data, "time"), ylabel="plausible runs", ylim=(0, 1.05))
        axes.legend(loc="lower left")

    return _grid(1, 1, (6.4, 1.9), draw)


def training_curve(rows: Sequence[tuple[int, str, float]], oracle: float | None) -> str:
    """ELBO on training batches and on held-out transitions."""

    def series(name: str) -> tuple[np.ndarray, np.ndarray]:
        points = [(step, value) for step, key, value in rows if key == name and np.isfinite(value)]
        return np.array([p[0] for p in points]), np.array([p[1] for p in points])

    def draw(_: int, axes: Axes) -> None:
        step, likelihood = series("train_log_likelihood")
        kl = series("train_kl")[1]
        if len(step) == len(kl):
            keep = np.unique(np.linspace(0, len(step) - 1, min(len(step), 300)).astype(int))
            axes.plot(step[keep], (likelihood - kl)[keep], color=QUIET, linewidth=0.8, label="training batches")
        step, elbo = series("val_elbo")
        axes.plot(step, elbo, color=MODEL, marker="o", markersize=3, label="held-out")
        if oracle is not None:
            axes.axhline(oracle, color=INK, linewidth=0.8, label="oracle")
        if len(elbo):
            top = max(elbo.max(), oracle if oracle is not None else -np.inf)
            axes.set_ylim(np.quantile(elbo, 0.1) - 0.35 * abs(top - np.quantile(elbo, 0.1)) - 1, top + 0.05 * abs(top - elbo.min()) + 1)
        axes.set(xlabel="optimiser step", ylabel="nats per transition")
        axes.legend(loc="lower right")

    return _grid(1, 1, (6.8, 2.4), draw)


def _label(one: xr.Dataset, name: str) -> str:
    return str(one["label"].item()) if "label" in one.coords else str(name)
