"""The simulator and its observables against reference_cells.json: other people's simulators of the same model.

All means and standard deviations of one comparison together are wrongly refused with the probability FALSE_FAILURE (Bonferroni over the
comparisons, Normal approximation of the means); the seeds are fixed.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from epns_pyro.systems.base import trajectory_seeds
from epns_pyro.systems.potts import CellsConfig, ContactEnergies

FALSE_FAILURE = 1e-3
REFERENCE = json.loads((Path(__file__).parent / "reference_cells.json").read_text())
FRAMES = np.array(REFERENCE["frames"])
CELLS64 = CellsConfig(lattice=(64, 64))


def observables_of(config, runs, steps):
    system = config.build()
    x = system.simulate(system.initial(runs, np.random.default_rng(0)), steps, trajectory_seeds(0, "reference", runs))
    return system.observables(x)


def disagreements(config, runs, frames=FRAMES):
    """Observables, frames and moments in which fresh runs differ from the reference: a list of readable lines, empty if all is well."""
    found = observables_of(config, runs, int(frames.max()))
    tests = 2 * len(REFERENCE["cells64"]) * len(frames)
    limit = stats.norm.isf(FALSE_FAILURE / tests / 2)
    lines = []
    for name, moments in REFERENCE["cells64"].items():
        for frame in frames:
            values = found[name].values[:, frame]
            mean, sd = (moments[m][list(FRAMES).index(frame)] for m in ("mean", "sd"))
            if sd == 0:  # the same in all runs; the reference is rounded
                z = {"mean": np.abs(values - mean).max() / 5e-5, "sd": 0.0}
            else:
                per_mean, per_log_sd = (np.sqrt(k * (1 / runs + 1 / REFERENCE["runs"])) for k in (1.0, 0.5))
                z = {"mean": (values.mean() - mean) / (sd * per_mean), "sd": np.log(values.std(ddof=1) / sd) / per_log_sd}
            lines += [f"{name}, frame {frame}, {m}: z = {z[m]:.1f}" for m in z if abs(z[m]) > (1.01 if sd == 0 else limit)]
    return lines


def test_sixty_runs_agree_with_the_reference():
    assert disagreements(CELLS64, runs=60, frames=FRAMES[FRAMES <= 30]) == []


@pytest.mark.slow
def test_four_hundred_runs_agree_with_the_reference():
    assert disagreements(CELLS64, runs=400) == []


@pytest.mark.parametrize(
    ("defect", "seen_in"),
    [
        ({"contact_energies": ContactEnergies(same=11.0, different=6.0)}, {"clusters", "contact_same", "contact_different", "hamiltonian"}),
        ({"contact_energies": ContactEnergies(same=6.0, different=10.5)}, {"hamiltonian"}),
        ({"target_area": 24.5}, {"area_mean", "gyration_radius"}),
        ({"stiffness": 1.8}, {"area_mean", "gyration_radius"}),
        ({"temperature": 11.0}, {"changed_pixels", "perimeter"}),
        ({"neighbours": 4}, {"fragments", "area_mean", "perimeter"}),
    ],
    ids=["same and different swapped", "different", "target_area", "stiffness", "temperature", "neighbours"],
)
def test_the_comparison_sees_a_defect(defect, seen_in):
    lines = disagreements(CELLS64.override(defect), runs=30, frames=np.array([5]))
    assert seen_in <= {line.split(",")[0] for line in lines}


def test_small_system_agrees_with_its_reference():
    reference, runs = REFERENCE["small"], 100
    found = observables_of(CellsConfig.small(), runs, 60)
    compared = {name: entry for name, entry in reference.items() if name != "runs"}
    limit = stats.norm.isf(FALSE_FAILURE / sum(len(entry["frames"]) for entry in compared.values()) / 2)
    for name, entry in compared.items():
        values = found[name].values[:, entry["frames"]]
        error = values.std(0, ddof=1) * np.sqrt(1 / runs + 1 / reference["runs"])
        z = (values.mean(0) - entry["mean"]) / error
        assert np.abs(z).max() < limit, f"{name}: z = {z.round(1)}"
