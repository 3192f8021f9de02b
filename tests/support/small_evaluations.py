"""Small evaluation folders, made by the real calibration functions from synthetic forecasts: what the report is tested on."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from epns_pyro.calibration import recalibration, sbc, two_sample, verdicts
from epns_pyro.calibration.categorical import label_diagnostics, label_values
from epns_pyro.calibration.diagnostics import diagnose, diagnose_fields
from epns_pyro.calibration.known import KNOWN

SCALARS = ["level", "count"]
QUANTILES = [0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95]
SOURCES = ["truth", "member 1", "member 2", "member 3"]
TRAINING = [
    (20 * i, name, start + 0.1 * i)
    for i in range(1, 30)
    for name, start in (("train_log_likelihood", 9.0), ("train_kl", 0.5), ("val_elbo", 8.0))
]


@dataclass(frozen=True)
class Texts:
    """Texts that come from outside."""

    name: str = "run-1"
    system: str = "nbody"
    label: str = "level"
    unit: str = "J"
    config: str = "seed: 0\nmodel:\n  width: 64\n"
    source: str = "member 1"
    reference: str = "persistence"

    @classmethod
    def all(cls, text: str) -> Texts:
        return cls(*[text] * 7)


def write_evaluation(
    folder: Path, kind: str = "particles", *, forecaster: str = "perfect", texts: Texts | None = None, seed: int = 0, members: int = 19
) -> Path:
    """Write a folder `evaluation` inside `folder` and return it; `kind` is "particles" or "labels"."""
    texts, rng, out = texts or Texts(), np.random.default_rng(seed), folder / "evaluation"
    out.mkdir(parents=True)
    draw = KNOWN[forecaster].draw
    forecast, truth = draw(rng, trajectories=60, members=members, steps=4)
    for data in (forecast, truth):
        data["level"].attrs |= {"label": texts.label, "unit": texts.unit}
    naive = forecast.copy(data={name: data.values[:, rng.permutation(60)] for name, data in forecast.data_vars.items()})
    found = {
        "observables": diagnose(
            forecast[SCALARS], truth[SCALARS], rng=rng, references={texts.reference: naive[SCALARS], "true process": forecast[SCALARS]}
        )
    }
    judged = {"observables": verdicts.judge_observables(found["observables"])}
    if kind == "particles":
        found["fields"] = diagnose_fields(forecast[["vector"]], truth[["vector"]], rng=rng, references={texts.reference: naive[["vector"]]})
        judged["fields"] = verdicts.judge_fields(found["fields"])
        orbits(rng, texts).to_netcdf(out / "examples.nc", engine="h5netcdf")
    else:
        images = films(rng, 30, 10)
        values = label_values(images[:-1], images[-1], rng=rng, references={texts.reference: images[:4].roll(trajectory=1)})
        found["labels"] = label_diagnostics(values)
        judged["labels"] = [verdicts.judge_labels(found["labels"], "cell image")]
        film_examples(images, texts).to_netcdf(out / "examples.nc", engine="h5netcdf")
    for name, data in found.items():
        data.to_netcdf(out / "diagnostics.nc", group=name, mode="a", engine="h5netcdf")
    learnt = recalibration.fit(forecast[SCALARS], truth[SCALARS], levels=(0.5, 0.9))
    learnt.to_netcdf(out / "recalibration.nc", engine="h5netcdf")
    said = recalibration.sentences(recalibration.compare(learnt, forecast[SCALARS], truth[SCALARS]))
    fans(rng, texts).to_netcdf(out / "fans.nc", engine="h5netcdf")
    stability(rng).to_netcdf(out / "stability.nc", engine="h5netcdf")
    found = metrics(rng, texts, verdicts.as_json(judged), said)
    (out / "metrics.json").write_text(json.dumps(found))
    return out


def metrics(rng: np.random.Generator, texts: Texts, judged: dict[str, Any], said: dict[str, str]) -> dict[str, Any]:
    """Return the content of metrics.json."""
    model, truth = rng.normal(size=(60, 2)), rng.normal(size=(60, 2))
    distance = two_sample.ks_test(model, truth, rng=rng, relabellings=99)
    energy, classifier = (f(model, truth, rng=rng, relabellings=99) for f in (two_sample.energy_test, two_sample.classifier_test))
    usage = sbc.latent_usage(np.array([[0.4, 0.001]] * 9), rng.normal(size=(9, 2)), np.zeros((9, 2)), np.ones((9, 2)))
    guide = sbc.judge_guide(sbc.sbc_diagnostics(rng.normal(size=(19, 60, 2)), rng.normal(size=(60, 2)), rng=rng))
    likelihoods = (
        ("elbo", "model, ELBO", 12.0),
        ("iwae", "model, IWAE bound", 12.1),
        ("persistence", texts.reference, -30.0),
        ("oracle", "oracle", 12.6),
    )
    return {
        "format": "epns-pyro evaluation",
        "version": 1,
        "run": {
            "name": texts.name, "system": texts.system, "group": texts.system, "frame_dt": 0.5, "time_unit": texts.unit, "seed": 0,
            "step": 100, "parameters": 12345, "config_yaml": texts.config, "evaluation": {"members": 19},
            "versions": {texts.name: texts.name}, "command": f"epns-pyro train nbody --out {texts.name}", "store": texts.name,
            "sets": {texts.name: {"trajectories": 60, "steps": 4}}, "sampling_rule": texts.system, "created": "2026-01-02T03:04:05+00:00",
            "evaluate_seconds": 12.3,
        },
        "headline": [{"label": texts.label, "value": texts.name, "note": texts.unit, "good": good} for good in (True, False, None)],
        "likelihood": {
            "unit": "nats per transition", "kl": 0.4, "reconstruction": 12.4, "gap_sentence": texts.label,
            "rows": [{"key": key, "name": name, "value": value, "error": 0.1, "note": texts.label} for key, name, value in likelihoods],
        },
        "latents": {
            "kl_total": 0.4, "active": 1, "latent": 2, "entities": 1, "kl_by_dimension": usage.kl.tolist(), "sentence": usage.sentence(),
            "guide": guide.as_dict(),
        },
        "equivariance": {
            "maximum": 2e-15, "median": 3e-16, "samples": 10, "dtype": "float64", "group": texts.system, "sentence": texts.label,
        },
        "verdicts": judged,
        "same_init": [
            {
                "observable": SCALARS[i], "label": (texts.label, "count")[i], "unit": texts.unit, "frame": frame, "time": frame / 2,
                "ks": float(distance.statistic[i]), "typical": float(distance.typical[i]), "floor": float(distance.floor[i]),
                "p_value": float(distance.p_value[i]), "model_mean": 0.1, "truth_mean": 0.0, "difference": 0.1, "error": 0.2,
                "sentence": texts.label, "persistence_ks": 0.9,
            }
            for i in range(2) for frame in (2, 4)
        ],
        "two_sample": [
            {
                "initial_state": i, "time": 3.0, "energy_p": float(energy.p_value), "classifier_p": float(classifier.p_value),
                "classifier_accuracy": float(classifier.statistic),
                "lower": classifier.lower, "upper": classifier.upper, "floor": float(classifier.floor), "sentence": texts.label,
            }
            for i in range(2)
        ],
        "stability": {"sentence": texts.label, "final_alive_model": 0.6, "final_alive_truth": 1.0, "steps": 50, "runs": 20},
        "recalibration": said,
    }  # fmt: skip


def fans(rng: np.random.Generator, texts: Texts) -> xr.Dataset:
    """Quantiles of two observables over time from two initial states."""
    runs = rng.normal(size=(3, 2, 2, 100, 25)).cumsum(-1)  # source, initial_state, observable, run, time
    value = np.moveaxis(np.quantile(runs, QUANTILES, axis=3), 0, -1)
    coords = {
        "source": ["model", "truth", "truth (second ensemble)"], "observable": SCALARS, "label": ("observable", [texts.label, "count"]),
        "unit": ("observable", [texts.unit, ""]), "time": ("time", np.arange(25) * 0.5, {"units": texts.unit}), "quantile": QUANTILES,
    }  # fmt: skip
    return xr.Dataset({"value": (("source", "initial_state", "observable", "time", "quantile"), value)}, coords=coords)


def stability(rng: np.random.Generator) -> xr.Dataset:
    """Share of plausible runs of model and truth."""
    alive = np.stack([np.linspace(1, 0.8, 51), np.ones(51)])
    return xr.Dataset({"alive": (("source", "time"), alive)}, coords={"source": ["model", "truth"], "time": np.arange(51) * 0.5})


def orbits(rng: np.random.Generator, texts: Texts) -> xr.Dataset:
    """Three bodies on circles, members a little apart."""
    angle = 0.2 * np.arange(40)[:, None] / np.sqrt([1.0, 2.0, 3.0]) + 0.1 * rng.normal(size=(4, 2, 1, 3))
    radius = np.array([0.0, 2.0, 3.0])
    position = np.stack([radius * np.cos(angle), radius * np.sin(angle), 0.2 * np.sin(angle)], -1)
    dims = ("source", "trajectory", "time", "body", "space")
    mass = (("trajectory", "body"), np.tile([10.0, 1.0, 0.5], (2, 1)))
    return xr.Dataset({"position": (dims, position), "mass": mass}, coords={"source": _sources(texts), "time": np.arange(40) * 0.5})


def films(rng: np.random.Generator, trajectories: int, samples: int, side: int = 20) -> xr.DataArray:
    """Label images of nine round cells that wander: (sample, trajectory, time, y, x), 0 is the medium."""
    shape = (samples, trajectories, 7)
    start = np.stack(np.meshgrid([0.25, 0.5, 0.75], [0.25, 0.5, 0.75]), -1).reshape(9, 2) * side
    centre = start + rng.normal(0, 0.5, (*shape, 9, 2)).cumsum(2)
    pixel = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1)
    distance = np.linalg.norm(pixel[..., None, :] - centre[..., None, None, :, :], axis=-1)
    label = np.where(distance.min(-1) < 0.16 * side, distance.argmin(-1) + 1, 0).astype(np.int64)
    return xr.DataArray(
        label, dims=("sample", "trajectory", "time", "y", "x"), coords={"time": ("time", np.arange(7) * 1.0, {"units": "MCS"})}
    )


def film_examples(images: xr.DataArray, texts: Texts) -> xr.Dataset:
    """The first films, as examples.nc holds them."""
    cell = images[:4, :2].rename(sample="source").astype(np.uint16).assign_coords(source=_sources(texts))
    return cell.to_dataset(name="cell").assign(cell_type=(("trajectory", "cell_"), np.tile(np.arange(9) % 4 + 1, (2, 1))))


def _sources(texts: Texts) -> list[str]:
    return ["truth", texts.source, "member 2", "member 3"]


def copied(folder: Path, run: Path) -> Path:
    """Copy a folder RUN/evaluation/ into another run."""
    return Path(shutil.copytree(folder, run / "evaluation"))


def change(folder: Path, **values: object) -> None:
    """Change entries of metrics.json; None removes one."""
    path = folder / "metrics.json"
    found = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))
