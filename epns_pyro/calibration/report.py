"""The report of a run: one self-contained HTML page made from the folder RUN/evaluation/.

Text from data and configs is escaped by Jinja2; numbers for the viewers travel as JSON in which no tag can end the script.
"""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import numpy as np
import xarray as xr

from epns_pyro.calibration import figures
from epns_pyro.errors import DataError

MAX_FRAMES = 120  # of a viewer


@dataclass(frozen=True)
class Picture:
    """A figure with what it shows in words."""

    svg: markupsafe.Markup
    alt: str
    caption: str


@dataclass
class Section:
    """A part of the page: what it is, how to read it, and pictures."""

    key: str
    title: str
    reading: str
    pictures: list[Picture] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)

    def add(self, svg: str, alt: str, caption: str) -> None:
        self.pictures.append(Picture(markupsafe.Markup(svg), alt, caption))


@dataclass(frozen=True)
class Evaluated:
    """The files of an evaluation, as far as they are there."""

    metrics: dict[str, Any]
    groups: dict[str, xr.Dataset]
    files: dict[str, xr.Dataset]

    @classmethod
    def read(cls, folder: Path) -> Evaluated:
        """Read RUN/evaluation/.

        Raises
        ------
        DataError
            If there is no evaluation, or not one that this version reads.
        """
        path = folder / "metrics.json"
        if not path.is_file():
            raise DataError(f"{folder}: no evaluation there: epns-pyro evaluate {folder.parent} makes it")
        try:
            metrics = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise DataError(f"{path}: not valid JSON ({error}): run epns-pyro evaluate again") from None
        if metrics.get("format") != "epns-pyro evaluation" or metrics.get("version") != 1:
            raise DataError(f"{path}: not an evaluation that this version reads: run epns-pyro evaluate again")
        groups = {}
        for name in ("observables", "fields", "labels"):
            try:
                groups[name] = xr.load_dataset(folder / "diagnostics.nc", group=name, engine="h5netcdf")
            except (OSError, KeyError):
                continue
        paths = {name: folder / f"{name}.nc" for name in ("fans", "stability", "examples")}
        files = {name: xr.load_dataset(path, engine="h5netcdf") for name, path in paths.items() if path.is_file()}
        return cls(metrics, groups, files)


def write_report(folder: Path, out: Path, training: list[tuple[int, str, float]] | None = None) -> Path:
    """Write the report.

    Parameters
    ----------
    folder : Path
        RUN/evaluation/.
    out : Path
        The page; replaced once it is complete.
    training : list of (step, name, value), optional
        The log of the training.
    """
    found = Evaluated.read(folder)
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            metrics=found.metrics,
            run=found.metrics["run"],
            verdict=verdict(found.metrics),
            sections=_sections(found, training or []),
            viewer=_viewer(found),
            unit=found.metrics["likelihood"]["unit"],
        )
    )
    return _write(out, page)


def write_comparison(folders: dict[str, Path], out: Path) -> list[dict[str, Any]]:
    """Write one page for several runs, by name; return the rows of its table."""
    runs = {name: Evaluated.read(folder) for name, folder in folders.items()}
    rows = [comparison_row(name, found.metrics) for name, found in runs.items()]
    ladder = [
        {
            "key": "elbo" if row["key"] == "elbo" else "",
            "name": f"{name}: {row['name']}" if row["key"] == "elbo" else row["name"],
            **_number(row),
        }
        for name, found in runs.items()
        for row in found.metrics["likelihood"]["rows"]
        if row["key"] == "elbo" or (name == next(iter(runs)) and row["key"] != "iwae")
    ]
    same_data = len({row["store"] for row in rows}) == 1
    picture = Picture(markupsafe.Markup(figures.likelihood_ladder(ladder)), "Scores of the runs and references", "")
    _write(out, _environment().get_template("compare.html.j2").render(rows=rows, same_data=same_data, ladder=picture))
    return rows


def verdict(metrics: dict[str, Any]) -> str:
    """The first sentence of the page."""
    judged = [v for group in metrics["verdicts"].values() for v in group]
    faults = [v for v in judged if v["word"] not in ("calibrated", "too few data to say")]
    silent = [v for v in judged if v["word"] == "too few data to say"]
    if faults:
        return "Use with care: " + "; ".join(f"{v['subject']} is {v['word']}" for v in faults) + "."
    if len(silent) == len(judged):
        return "There are too few held-out data to say whether the ensemble can be trusted."
    differing = distributions_that_differ(metrics["same_init"])
    if differing:
        what = ", ".join(sorted({row["label"] for row in differing}))
        count = f"{len(differing)} of {len(metrics['same_init'])}"
        return (
            f"On held-out data no test of {len(judged) - len(silent)} quantities finds fault with the ensemble; from one initial state, "
            f"where tests are sharper, {count} distributions differ from the true ones ({what})."
        )
    doubt = f" For {len(silent)} more there are too few data to say." if silent else ""
    return f"No test of {len(judged) - len(silent)} quantities on held-out data found fault with the ensemble.{doubt}"


def distributions_that_differ(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the comparisons from one initial state that differ, with at most 5% false alarms over all of them (Bonferroni)."""
    return [row for row in rows if row["p_value"] is not None and row["p_value"] < 0.05 / len(rows)]


def comparison_row(name: str, metrics: dict[str, Any]) -> dict[str, Any]:
    """The numbers of one run that runs are compared by."""
    rows = {row["key"]: row["value"] for row in metrics["likelihood"]["rows"]}
    judged = [v["word"] for group in metrics["verdicts"].values() for v in group]
    distances = [row["ks"] for row in metrics["same_init"]]
    return {
        "name": name,
        "elbo": rows["elbo"],
        "iwae": rows["iwae"],
        "gap": rows["oracle"] - rows["elbo"] if "oracle" in rows else None,
        "kl": metrics["likelihood"]["kl"],
        "active": f"{metrics['latents']['active']}/{metrics['latents']['latent']}",
        "calibrated": f"{judged.count('calibrated')}/{len(judged)}",
        "ks": float(np.mean(distances)) if distances else None,
        "alive": metrics["stability"]["final_alive_model"],
        "symmetry": metrics["equivariance"]["maximum"],
        "parameters": metrics["run"]["parameters"],
        "steps": metrics["run"]["step"],
        "store": metrics["run"]["store"],
    }


def _number(row: dict[str, Any]) -> dict[str, Any]:
    return {"value": row["value"], "error": row["error"]}


# -- sections ----------------------------------------------------------------------------------------------------------------


def _sections(found: Evaluated, training: list[tuple[int, str, float]]) -> list[Section]:
    makers = (_likelihood, _fans, _pit, _coverage, _spread, _skill, _labels, _latents, _stability)
    sections = [section for make in makers if (section := make(found)) is not None]
    if training:
        sections.append(_training(found, training))
    return sections


def _likelihood(found: Evaluated) -> Section:
    table = found.metrics["likelihood"]
    section = Section(
        "likelihood", "Likelihood", "Nats per transition of the whole system on held-out transitions; further right is better."
    )
    section.add(
        figures.likelihood_ladder(table["rows"]),
        "Scores: " + ", ".join(f"{row['name']} {row['value']:.2f}" for row in table["rows"]),
        "From what needs no learning to what nothing can beat. Bars: one standard error over trajectories.",
    )
    section.sentences.append(f"Reconstruction {table['reconstruction']:.2f}, KL {table['kl']:.2f} nats; {table['gap_sentence']}.")
    return section


def _fans(found: Evaluated) -> Section | None:
    if "fans" not in found.files or not found.metrics["same_init"]:
        return None
    data = found.files["fans"]
    section = Section(
        "fans",
        "Futures of one initial state",
        "Many futures of the same initial state, median and 10-90% band. If the model is honest, its band lies over that of the truth.",
    )
    for name in data["observable"].values:
        label = str(data["label"].sel(observable=name).item())
        svg = figures.fans(data, name)
        section.add(svg, f"Median and 10-90% band of {label} over time, model and truth, for each initial state", label)
    return section


def _pit(found: Evaluated) -> Section:
    section = Section(
        "pit",
        "PIT-ECDF by lead time",
        "Where the truth falls in its ensemble, as a distribution function minus what it should be. The grey band holds the whole line of "
        "a calibrated ensemble 95 times in 100, at each lead time by itself: among many panels a few leave it by chance, which the "
        "verdicts allow for. An S means a spread that is wrong, a bow a bias.",
    )
    for dim, name, label in _subjects(found):
        data = found.groups[dim + "s"]
        if dim == "observable":
            svg = figures.ecdf_differences(data, {dim: name})
            section.add(svg, f"PIT-ECDF difference of {label} with simultaneous bands, by lead time", label)
        else:
            for rank in data["pre_rank"].values[:1]:
                svg = figures.ecdf_differences(data, {dim: name, "pre_rank": rank}, prefix="joint_")
                section.add(svg, f"Multivariate rank ECDF of {label} by lead time", f"{label}, multivariate ranks by {rank}")
    return section


def _subjects(found: Evaluated) -> list[tuple[str, str, str]]:
    subjects = []
    for dim in ("observable", "field"):
        data = found.groups.get(dim + "s")
        if data is not None:
            labels = data["label"].values if "label" in data.coords else data[dim].values
            subjects += [(dim, str(name), str(label)) for name, label in zip(data[dim].values, labels, strict=True)]
    return subjects


def _coverage(found: Evaluated) -> Section:
    section = Section(
        "coverage",
        "Coverage of intervals",
        "How often the truth falls into central intervals, with 95% intervals; grey lines: what was promised.",
    )
    for dim in ("observable", "field"):
        if dim + "s" in found.groups:
            svg = figures.coverage(found.groups[dim + "s"], dim)
            section.add(svg, f"Coverage of central intervals over lead time for every {dim}", f"every {dim}")
    labels = {name: label for dim, name, label in _subjects(found) if dim == "observable"}
    section.sentences += [f"{labels.get(name, name)}: {said}." for name, said in found.metrics["recalibration"].items()]
    return section


def _spread(found: Evaluated) -> Section:
    section = Section(
        "spread",
        "Spread and skill",
        "Ensemble spread over the error of the ensemble mean. 1 is honest, below 1 over-confident, above 1 under-confident.",
    )
    svg = figures.spread_skill(found.groups["observables"])
    section.add(svg, "Spread-skill ratio over lead time for every observable", "with 95% intervals, unbiased for finite ensembles")
    return section


def _skill(found: Evaluated) -> Section | None:
    section = Section(
        "skill",
        "Scores against references",
        "Share of the score of a reference that the model saves. Against persistence it should be high; against a second ensemble of the "
        "true process, which nothing can beat, it should be 0.",
    )
    for group, score in (("observables", "CRPS"), ("fields", "energy score"), ("labels", "Brier score")):
        data = found.groups.get(group)
        if data is not None and "skill" in data:
            section.add(figures.skill(data, ("observable", "field"), score), f"Skill of the {score} over lead time", f"{score}, {group}")
    return section if section.pictures else None


def _labels(found: Evaluated) -> Section | None:
    if "labels" not in found.groups:
        return None
    data = found.groups["labels"]
    section = Section(
        "reliability", "Reliability of pixels", "When the ensemble gives a label the probability p, is it there in a share p of cases?"
    )
    section.add(figures.reliability(data), "Reliability diagrams at three lead times", "grey: what a perfect ensemble of this size shows")
    return section


def _latents(found: Evaluated) -> Section:
    latents = found.metrics["latents"]
    section = Section(
        "latents",
        "Latents",
        "How much every latent dimension says. A dimension under 0.01 nats is idle; a model with idle latents is not hidden.",
    )
    section.add(figures.latent_bars(latents["kl_by_dimension"]), f"KL per latent dimension: {latents['sentence']}", latents["sentence"])
    section.sentences.append(f"Guide, by simulation-based calibration: {latents['guide']['sentence']}.")
    return section


def _stability(found: Evaluated) -> Section | None:
    if "stability" not in found.files:
        return None
    stable = found.metrics["stability"]
    section = Section("stability", "Stability of long rollouts", "Runs far beyond the training horizon: how many are still plausible?")
    section.add(figures.stability(found.files["stability"]), stable["sentence"], stable["sentence"])
    return section


def _training(found: Evaluated, rows: list[tuple[int, str, float]]) -> Section:
    oracle = next((value for _, name, value in rows if name == "val_oracle"), None)
    section = Section("training", "Training", "ELBO on training batches and on held-out transitions, never annealed.")
    section.add(figures.training_curve(rows, oracle), "ELBO over optimiser steps, training and held-out", "")
    return section


# -- viewers -----------------------------------------------------------------------------------------------------------------


def _viewer(found: Evaluated) -> dict[str, Any] | None:
    """What the viewers draw: positions of bodies, or label images, of truth and members."""
    data = found.files.get("examples")
    if data is None:
        return None
    data = data.isel(time=np.unique(np.linspace(0, data.sizes["time"] - 1, min(MAX_FRAMES, data.sizes["time"])).round().astype(int)))
    common = {"sources": [str(s) for s in data["source"].values], "time": np.round(data["time"].values, 6).tolist()}
    common["unit"] = found.metrics["run"]["time_unit"]
    if "position" in data and data.sizes.get("space", 0) in (2, 3):
        position = data["position"].values  # (source, trajectory, time, body, space)
        if position.shape[-1] == 2:
            position = np.concatenate([position, np.zeros_like(position[..., :1])], -1)
        size = data["mass"].values if "mass" in data else np.ones(position.shape[1:2] + position.shape[3:4])
        return common | {
            "kind": "orbits",
            "shape": position.shape,
            "values": _pack(position, np.float32),
            "size": np.round(size, 4).tolist(),
        }
    if "cell" in data:
        cells = data["cell"].values  # (source, trajectory, time, y, x)
        types = data["cell_type"].values if "cell_type" in data else np.ones((cells.shape[1], int(cells.max()) or 1))
        return common | {"kind": "film", "shape": cells.shape, "values": _pack(cells, np.uint16), "types": types.astype(int).tolist()}
    return None


def _pack(values: np.ndarray, dtype: type) -> str:
    return base64.b64encode(np.ascontiguousarray(np.nan_to_num(values), dtype).tobytes()).decode()


# -- output ------------------------------------------------------------------------------------------------------------------


def _environment() -> jinja2.Environment:
    loader = jinja2.PackageLoader("epns_pyro.calibration")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["safe_json"] = _safe_json
    environment.globals["asset"] = lambda name: markupsafe.Markup(loader.get_source(environment, name)[0])
    return environment


def _safe_json(value: Any) -> markupsafe.Markup:
    """JSON for a script element: no character in it can end the element."""
    text = json.dumps(value, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return markupsafe.Markup(text)


def _write(out: Path, page: str) -> Path:
    partial = out.with_name(out.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, out)
    return out
