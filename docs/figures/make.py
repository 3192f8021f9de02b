"""Draw the figures of the pages, one file each beside this one: `python docs/figures/make.py [NAME ...]`.

The page of the report is photographed by Chromium, where it is installed. `condition.png` is made by `examples/condition_nbody.py`.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image

import epns_pyro
from epns_pyro.data import open_store
from epns_pyro.models.tissues.interlacing import dither
from epns_pyro.plots.panels import BODIES

HERE = Path(__file__).parent
INK, MODEL, GREY = "#1d2733", "#0b6cb5", "#98a3b0"
STYLE = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "text.color": INK}


def fan() -> None:
    """An ensemble over truth, as `epns-pyro plot pretrained:nbody` draws it."""
    command("plot", "pretrained:nbody", "--out", HERE / "fan.png")
    compress(HERE / "fan.png", 1300)


def report() -> None:
    """The top of the report of pretrained:nbody."""
    with tempfile.TemporaryDirectory() as folder:
        page, picture = Path(folder) / "page.html", Path(folder) / "page.png"
        command("report", "pretrained:nbody", "--out", page)
        browser = shutil.which("chromium") or shutil.which("chromium-browser") or sys.exit("report: needs chromium")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-background-networking"]
        size = ["--window-size=1180,1330", "--virtual-time-budget=3000", f"--user-data-dir={folder}/profile"]
        subprocess.run([browser, *flags, *size, f"--screenshot={picture}", page.as_uri()], check=True, capture_output=True)
        shutil.copy(picture, HERE / "report.png")
    compress(HERE / "report.png", 1180)


def tracks() -> None:
    """Paths of the made-up fish of the tutorial."""
    page = (HERE.parent / "tutorials" / "tracks.md").read_text()
    make = re.search(r"```\{code-cell\} python\n(.*?)```", page, flags=re.DOTALL)[1]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        exec(make, {})
        columns = ["--columns", "frame,id,x,y", "--frame-dt", "0.1", "--unit", "m", "--time-unit", "s", "--segment", "40"]
        command("data", "import-tracks", "fish.csv", *columns, "--out", "fish.zarr")
        command("plot", "fish.zarr", "--kind", "paths", "--out", HERE / "tracks.png")
    compress(HERE / "tracks.png", 1100)


def step() -> None:
    """One step of the model: what is given, drawn and seen."""
    figure, axes = plt.subplots(figsize=(8, 2.7))
    places = {"state $x_t$": (0.5, 1.1), "features $h_t$": (3.0, 1.1), "latents $z_t$": (4.9, 2.1), "next $x_{t+1}$": (7.2, 1.1)}
    for name, (x, y) in places.items():
        latent = "latents" in name
        colour = MODEL if latent else INK
        axes.add_patch(FancyBboxPatch((x - 0.72, y - 0.26), 1.44, 0.52, boxstyle="round,pad=0.06", fc="white", ec=colour, lw=1.3))
        axes.text(x, y, name, ha="center", va="center", color=colour)
    arrows = [
        ((1.3, 1.1), (2.2, 1.1), INK, "-", "network", (1.75, 1.28)),
        ((3.4, 1.44), (4.1, 2.0), MODEL, "-", "prior", (3.5, 1.88)),
        ((5.7, 1.95), (6.7, 1.44), INK, "-", "", (0, 0)),
        ((3.8, 1.1), (6.4, 1.1), INK, "-", "emission", (5.1, 1.28)),
        ((7.3, 1.44), (5.7, 2.25), GREY, "--", "guide: training and scoring only", (6.75, 2.15)),
    ]
    for start, end, colour, line, name, at in arrows:
        axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=13, color=colour, linestyle=line, lw=1.3))
        axes.text(*at, name, ha="left" if "guide" in name else "center", color=colour, fontsize=9)
    axes.add_patch(
        FancyArrowPatch((7.0, 0.75), (0.7, 0.75), connectionstyle="arc3,rad=-0.16", arrowstyle="-|>", mutation_scale=13, color=GREY, lw=1.0)
    )
    axes.text(3.7, 0.12, "a rollout goes round again", ha="center", color=GREY, fontsize=9)
    axes.set(xlim=(-0.4, 9.4), ylim=(-0.1, 2.7))
    axes.axis("off")
    figure.savefig(HERE / "step.png", dpi=140, bbox_inches="tight")


def symmetry() -> None:
    """Turn the start, and the same random numbers give the turned future: members of a forecast and of a turned one."""
    sim = epns_pyro.load("pretrained:nbody").to(torch.float64)
    x0 = open_store(sim.store).read("test", 0, stop=1)[:, 0]
    angle = np.deg2rad(70)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    parts = {name: sim.spec.get(x0, name) for name in sim.spec.names}
    turned = sim.spec.pack(mass=parts["mass"], position=parts["position"] @ turn.T, velocity=parts["velocity"] @ turn.T)
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.8), layout="constrained", sharex=True, sharey=True)
    for ax, start, title in zip(axes, (x0, turned), ("200 futures of a state", "200 futures of the state turned by 70°"), strict=True):
        position = sim.rollout(start, steps=40, members=200, seed=1).position.values[:, 0]  # (sample, time, body, space)
        for body in range(position.shape[2]):
            ax.plot(*position[:, -1, body, :2].T, ".", color=BODIES[body], markersize=2.5, alpha=0.6)
            ax.plot(*position[0, 0, body, :2], "o", color=BODIES[body], markersize=5)
        ax.set(title=title, aspect="equal", xlim=(-5.5, 5.5), ylim=(-5.5, 5.5))
        ax.title.set_fontsize(10)
    figure.savefig(HERE / "symmetry.png", dpi=110)


def interlacing() -> None:
    """The order in which the pixels of an image are drawn: a few classes of the dither."""
    classes = np.tile(dither(4).numpy(), (4, 4))
    figure, axes = plt.subplots(1, 4, figsize=(8, 2.3), layout="constrained")
    for ax, upto in zip(axes, (1, 4, 8, 16), strict=True):
        image = np.full((*classes.shape, 3), 1.0)
        image[classes < upto - 1] = matplotlib.colors.to_rgb(GREY)
        image[classes == upto - 1] = matplotlib.colors.to_rgb(MODEL)
        ax.imshow(image, interpolation="nearest")
        ax.set_xticks(np.arange(-0.5, 16), [])
        ax.set_yticks(np.arange(-0.5, 16), [])
        ax.grid(color="0.9", linewidth=0.5)
        ax.tick_params(length=0)
        ax.set_title(f"class {upto} of 16", fontsize=10)
    figure.savefig(HERE / "interlacing.png", dpi=120)


def verdicts() -> None:
    """Where the truth falls in its ensemble, for forecasters of known calibration, with the band of an honest one."""
    from epns_pyro.calibration.diagnostics import diagnose
    from epns_pyro.calibration.known import KNOWN
    from epns_pyro.calibration.verdicts import judge_observables

    names = ("perfect", "under-dispersed", "over-dispersed", "biased")
    figure, axes = plt.subplots(1, 4, figsize=(9, 2.5), layout="constrained", sharey=True)
    for ax, name in zip(axes, names, strict=True):
        forecast, truth = KNOWN[name].draw(np.random.default_rng(3), trajectories=100, members=39, steps=4)
        found = diagnose(forecast[["level"]], truth[["level"]], rng=np.random.default_rng(0))
        (verdict,) = judge_observables(found)
        one = found.isel(observable=0, lead_time=-1)
        ax.fill_between(one.point, one.band_lower, one.band_upper, color=GREY, alpha=0.3, linewidth=0)
        ax.step(one.point, one.ecdf_difference, where="mid", color=MODEL)
        ax.set_title(f"{name}:\n{verdict.word}", fontsize=10)
        ax.set_xlabel("rank of the truth")
    axes[0].set_ylabel("share below, minus expected")
    figure.savefig(HERE / "verdicts.png", dpi=120)


def energy() -> None:
    """Mean energy of long runs beside the exact line, and of runs without noise: drawn from the tables of benchmarks/energy.py."""
    import pandas as pd

    results = HERE.parents[1] / "benchmarks" / "results"
    curves = pd.read_csv(results / "energy_curves.csv")
    exact = pd.read_csv(results / "energy.csv").exact_rate.max()
    colours = {"true process": GREY, "symplectic": MODEL, "EPNS (default)": "#7a4fb5", "PNS-GNN": "#c2571a", "NSDE": "#3d8b57"}
    figure, (noisy, quiet) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for (model, noise), curve in curves.groupby(["model", "noise"], sort=False):
        if model not in colours:
            continue
        axes, colour = (noisy, colours[model]) if noise == "on" else (quiet, colours[model])
        axes.plot(curve.time, curve.gain, color=colour, label=model, linewidth=1.4)
        if noise == "on":
            axes.fill_between(curve.time, curve.gain - 2 * curve.error, curve.gain + 2 * curve.error, color=colour, alpha=0.2, linewidth=0)
    end = curves.time.max()
    noisy.plot([0, end], [0, exact * end], color=INK, linestyle="--", linewidth=1, label="exact line")
    noisy.set_ylim(-0.1 * exact * end, 1.6 * exact * end)  # what leaves the picture has exploded
    quiet.set_yscale("symlog", linthresh=0.1)
    quiet.set_ylim(-0.1, 1e4)
    noisy.set(xlabel="time (T)", ylabel="gain of mean energy", title="with noise: 64 runs, ± 2 standard errors")
    quiet.set(xlabel="time (T)", ylabel="relative change of energy", title="without noise: the mean fed back")
    noisy.legend(frameon=False, fontsize=8)
    figure.savefig(HERE / "energy.png", dpi=120)


def command(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "epns_pyro.cli", *map(str, arguments)], check=True)


def compress(path: Path, width: int) -> None:
    """Keep a picture small: at most so many pixels wide, 64 colours."""
    image = Image.open(path).convert("RGB")
    image.thumbnail((width, 10_000))
    image.quantize(64).save(path, optimize=True)


if __name__ == "__main__":
    drawn = {f.__name__: f for f in (fan, report, tracks, step, symmetry, interlacing, verdicts, energy)}
    with matplotlib.rc_context(STYLE):
        for name in sys.argv[1:] or drawn:
            drawn[name]()
