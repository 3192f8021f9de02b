"""Simulators that come with the package: they load, say how they were made, and are what their evaluation says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import epns_pyro
from epns_pyro.cli import main
from epns_pyro.data import open_store
from epns_pyro.errors import ConfigError
from epns_pyro.evaluation.record import EvaluationRecord
from epns_pyro.evaluation.summary import comparison_row, verdict
from epns_pyro.pretrained import HOME, find_run, is_pretrained, pretrained_names
from epns_pyro.training.run import RunFolder

LARGEST = 10e6  # bytes


@pytest.mark.parametrize("name", pretrained_names())
def test_a_pretrained_simulator_is_complete_and_small_and_says_whether_it_is_calibrated(name: str) -> None:
    folder = RunFolder(HOME / name)
    assert sum(file.stat().st_size for file in folder.path.rglob("*") if file.is_file()) < LARGEST
    record = EvaluationRecord.read(folder.evaluation)
    said = (folder.path / "README.md").read_text()
    assert verdict(record) in said
    assert name != "nbody" or verdict(record).startswith("No test of")
    assert "epns-pyro train" in said
    assert folder.config.is_file()


@pytest.mark.parametrize("name", pretrained_names())
def test_its_weights_are_those_that_were_evaluated(name: str) -> None:
    sim = epns_pyro.load(f"pretrained:{name}")
    x = torch.as_tensor(open_store(sim.store).read("test", stop=21))
    with torch.no_grad():
        nats = sim.elbo(x[:, 0], x[:, 1:], num_samples=1) / (x.shape[1] - 1)
    said = comparison_row(name, EvaluationRecord.read(HOME / name / "evaluation")).elbo
    assert abs(float(nats.mean()) - said) < 4 * float(nats.std()) / len(nats) ** 0.5


def test_the_command_line_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: str):
        return CliRunner().invoke(main, list(arguments))

    assert invoke("simulate", "pretrained:nbody", "--members", "2", "--steps", "3", "--out", "f.zarr").exit_code == 0
    assert invoke("report", "pretrained:nbody").exit_code == 0
    assert "No test of" in re.sub(r"\s+", " ", Path("nbody-report.html").read_text())
    refused = invoke("evaluate", "pretrained:nbody")
    assert refused.exit_code == 2
    assert "is not written to" in refused.output
    assert not (HOME / "nbody" / "report.html").exists()


def test_other_names_are_refused_and_paths_are_paths(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pretrained:nbdy: no such pretrained simulator: did you mean 'nbody'"):
        epns_pyro.load("pretrained:nbdy")
    assert find_run(tmp_path) == tmp_path
    assert find_run("runs/nbody") == Path("runs/nbody")
    assert is_pretrained(find_run("pretrained:nbody"))
    assert not is_pretrained(tmp_path)


def test_its_data_are_those_of_the_system_it_was_trained_on() -> None:
    sim = epns_pyro.load("pretrained:nbody")
    store = open_store(sim.store)
    assert store.system.config == sim.system.config
    x = store.read("same_init")
    assert (x[:, 0] == x[:1, 0]).all()
    assert np.isfinite(sim.system.transition_log_prob(x[:, 0], x[:, 1])).all()
