"""The contract of every registered system that can be simulated, and of recorded ones on trajectories; a new one is one more entry."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from epns_pyro.state import Field, StateSpec
from epns_pyro.systems import (
    SYSTEMS,
    ActiveConfig,
    CellsConfig,
    ChargedConfig,
    GravityConfig,
    GrowingTissueConfig,
    NBodyConfig,
    RecordedCellsConfig,
    RecordedConfig,
    SiliconConfig,
    SpringsConfig,
    SystemConfig,
)
from epns_pyro.systems.nbody import NBody
from epns_pyro.testing import ContractError, check_system

PLANE = StateSpec((Field("charge", dynamic=False), Field("position", "1o", translates=True)), space=2)
CASES: dict[str, tuple[SystemConfig, np.ndarray | None]] = {
    "nbody": (NBodyConfig(dt=0.01), None),
    "nbody, no noise": (NBodyConfig(dt=0.01, sigma=0, bodies=2), None),
    "charged": (ChargedConfig(), None),
    "springs": (SpringsConfig(), None),
    "springs, velocities recorded": (SpringsConfig(velocity="recorded", bodies=3), None),
    "gravity": (GravityConfig(dt=0.01), None),
    "gravity, kicked": (GravityConfig(dt=0.01, noise=0.1, bodies=4), None),
    "active": (ActiveConfig(), None),
    "active, in space": (ActiveConfig(space=3, bodies=40), None),
    "silicon": (SiliconConfig(), None),
    "silicon, no noise": (SiliconConfig(sigma=0, bodies=4), None),
    "cells": (CellsConfig.small(), None),
    "cells, periodic": (CellsConfig.small().override({"boundary": "periodic"}), None),
    "tissue": (GrowingTissueConfig(death_rate=1e-3), None),
    "tissue, periodic": (GrowingTissueConfig(boundary="periodic", lattice=(30, 34), most_cells=30), None),
    "recorded": (RecordedConfig(spec=asdict(PLANE), frame_dt=0.1), None),
    "recorded_cells": (RecordedCellsConfig(lattice=(40, 40), cells=16, types=4), CellsConfig.small().build()),
}


@pytest.mark.parametrize("name", CASES)
def test_the_contract_holds(name):
    config, like = CASES[name]
    if like is not None:
        like = like.simulate(like.initial(2, np.random.default_rng(0)), 3, np.arange(2, dtype=np.uint64))
    check_system(config, x=like)


def test_every_registered_system_is_held_to_it():
    ours = {name for name in SYSTEMS.names if SYSTEMS[name].__module__.startswith("epns_pyro.")}
    assert ours == {config.name for config, _ in CASES.values()}


# -- the tester is tested ----------------------------------------------------------------------------------------------------


class BatchDependent(NBody):
    def simulate(self, x0, steps, seeds, *, workers=None):
        return super().simulate(x0, steps, seeds + np.uint64(len(seeds)), workers=workers)


class WorkerDependent(NBody):
    def simulate(self, x0, steps, seeds, *, workers=None):
        return super().simulate(x0, steps, seeds + np.uint64(workers or 0), workers=workers)


class OtherStart(NBody):
    def simulate(self, x0, steps, seeds, *, workers=None):
        return super().simulate(x0, steps + 1, seeds, workers=workers)[:, 1:]


class ComesBack(NBody):
    def alive(self, x):
        alive = np.array(super().alive(x))
        alive[:, 1] = False
        return alive


class NeverDies(NBody):
    def alive(self, x):
        return np.ones(x.shape[:-2], bool)


class KnowsWhereItIs(NBody):
    def alive(self, x):
        return super().alive(x) & np.logical_and.accumulate(np.abs(self.spec.get(x, "position")).max((-2, -1)) < 7.0, axis=-1)


class UnfairOracle(NBody):
    def transition_log_prob(self, x, x_next):
        return super().transition_log_prob(x, x_next) + 1e-3 * self.spec.get(x, "position").sum((-2, -1))


class InfiniteObservable(NBody):
    def observables(self, x):
        found = super().observables(x)
        next(iter(found.values())).values[..., -1] = np.inf
        return found


@pytest.mark.parametrize(
    ("defective", "said"),
    [
        (BatchDependent, "does not depend on other trajectories simulated with it"),
        (WorkerDependent, "does not depend on the number of workers"),
        (OtherStart, "starts from its initial state"),
        (ComesBack, "does not come back"),
        (NeverDies, "ends where a number is not finite"),
        (KnowsWhereItIs, "alive is the same for every element of the symmetry"),
        (UnfairOracle, "the oracle is invariant"),
        (InfiniteObservable, "is finite"),
    ],
)
def test_a_planted_defect_is_named(monkeypatch: pytest.MonkeyPatch, defective, said):
    monkeypatch.setattr(NBodyConfig, "build", lambda self: defective(self))
    with pytest.raises(ContractError, match=said):
        check_system(NBodyConfig(dt=0.01))
