"""Ensembles in blocks, likelihoods at every lead time, and evaluations that go wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from epns_pyro.calibration.idata import inference_data
from epns_pyro.data import Store, generate
from epns_pyro.evaluation import ensembles, initial_state, likelihood
from epns_pyro.evaluation.checks.stability import stability
from epns_pyro.evaluation.checks.symmetry import equivariance
from epns_pyro.evaluation.evaluate import _about, _written_together
from epns_pyro.evaluation.forecasters import Forecaster, Truth
from epns_pyro.evaluation.heldout import measure
from epns_pyro.evaluation.label_forecasters import LabelPersistence
from epns_pyro.evaluation.linear_forecasters import Persistence
from epns_pyro.simulator import Simulator
from epns_pyro.systems import CellsConfig, NBodyConfig
from epns_pyro.training.presets import preset
from epns_pyro.training.run import EvaluationConfig, RunConfig, RunFolder

SIZES = {"train": 12, "val": 4, "test": 8}


def sets(steps: int, **more: dict) -> dict:
    return {name: {"trajectories": n, "steps": steps} for name, n in SIZES.items()} | more


@pytest.fixture(scope="module")
def nbody(tmp_path_factory: pytest.TempPathFactory) -> Store:
    same_init = {"trajectories": 100, "steps": 12, "initial_states": 1}
    config = NBodyConfig.parse({"bodies": 3, "dt": 0.01, "sets": sets(12, same_init=same_init)})
    return generate(config, tmp_path_factory.mktemp("nbody") / "data.zarr")


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Store:
    same_init = {"trajectories": 80, "steps": 6, "initial_states": 1}
    config = CellsConfig.small().override({"lattice": (16, 16), "blocks": (2, 2), "sets": sets(6, same_init=same_init)})
    config = config.override({"sets": config.model_dump()["sets"] | {"test": {"trajectories": 40, "steps": 6}}})
    return generate(config, tmp_path_factory.mktemp("cells") / "data.zarr")


@pytest.fixture(scope="module")
def untrained(nbody: Store) -> Simulator:
    config: RunConfig = preset("nbody", "quick", nbody.system.config).override(
        {"model.width": 8, "model.hidden_vectors": 3, "model.latent": 3, "model.backbone.width": 8, "model.backbone.layers": 1}
    )
    context = nbody.context()
    return Simulator(config.model.build(context).eval(), nbody.system, context, config, store=str(nbody.path))


class Counting(Forecaster):
    """Stands still with noise; remembers the largest block of states that was asked for, in bytes."""

    label = "counting"

    def __init__(self) -> None:
        self.largest, self.seeds = 0, []

    def sample(self, x0: np.ndarray, steps: int, members: int, seed: int) -> np.ndarray:
        noise = np.random.default_rng(seed).standard_normal((members, len(x0), steps + 1, *x0.shape[1:]))
        noise[:, :, 0] = 0
        self.largest = max(self.largest, noise.nbytes)
        self.seeds.append(seed)
        return x0[None, :, None] + 0.01 * noise


@pytest.mark.parametrize("members", [9, 90, 900])
def test_no_block_outgrows_its_bound_however_large_the_ensemble(nbody: Store, monkeypatch: pytest.MonkeyPatch, members: int) -> None:
    monkeypatch.setattr(ensembles, "BLOCK", 100_000)
    counting, x0 = Counting(), nbody.read("test", stop=1)[:, 0]
    kept = ensembles.forecast(counting, x0, 12, members, 3, ensembles.at_frames(nbody.system, ensembles.lead_frames(12)))
    assert counting.largest <= 100_000
    assert kept["observables"].sizes["sample"] == kept["fields"].sizes["sample"] == members
    assert len(set(counting.seeds)) == len(counting.seeds), "blocks must not repeat one another"
    assert counting.seeds[0] == 3


def test_blocks_split_members_and_trajectories_without_mixing_them(nbody: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    class Marked(Forecaster):
        label = "marked"

        def sample(self, x0: np.ndarray, steps: int, members: int, seed: int) -> np.ndarray:
            return np.broadcast_to(x0[None, :, None], (members, len(x0), steps + 1, *x0.shape[1:])).copy()

    x0, system = nbody.read("test", stop=1)[:, 0], nbody.system
    whole = ensembles.forecast(Marked(), x0, 12, 7, 0, ensembles.observables(system))["observables"]
    monkeypatch.setattr(ensembles, "BLOCK", 3 * 13 * x0[0].size * ensembles.NUMBER)
    parts = ensembles.forecast(Marked(), x0, 12, 7, 0, ensembles.observables(system))["observables"]
    xr.testing.assert_identical(whole, parts)


def test_recorded_blocks_equal_the_whole(nbody: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = ensembles.observables(nbody.system)
    whole = ensembles.recorded(nbody, "test", np.arange(8), keep)["observables"]
    monkeypatch.setattr(ensembles, "BLOCK", 1)
    xr.testing.assert_identical(whole, ensembles.recorded(nbody, "test", np.arange(8), keep)["observables"])


def test_every_lead_time_of_every_trajectory_has_a_likelihood(untrained: Simulator, nbody: Store) -> None:
    settings = EvaluationConfig(members=9, trajectories=8, importance_samples=3, likelihood_transitions=16)
    references = {"persistence": Persistence(nbody.context()), "true process": Truth(nbody.system)}
    scored = likelihood.score(untrained, nbody, settings, references)
    judged = measure(Truth(nbody.system), nbody, "test", settings, references={})
    at = scored.log_likelihood.sel(time=judged.lead_times, method="nearest", tolerance=1e-9)
    assert at["elbo"].shape == (8, len(judged.lead_times))
    assert np.isfinite(at.to_array()).all()
    data = inference_data(judged.forecast, judged.truth, log_likelihood=dict(at.data_vars))
    assert data.log_likelihood["iwae"].dims == ("chain", "draw", "trajectory", "time")
    x = nbody.read("test", slice(0, 8))
    frame = ensembles.lead_frames(12)[4]
    expected = nbody.system.transition_log_prob(x[:, frame - 1], x[:, frame])
    np.testing.assert_allclose(at["oracle"].isel(time=4), expected)


def test_errors_of_the_likelihood_come_from_trajectories(untrained: Simulator, nbody: Store) -> None:
    settings = EvaluationConfig(trajectories=8, importance_samples=2, likelihood_transitions=96)
    scored = likelihood.score(untrained, nbody, settings, {})
    oracle = scored.table.row("oracle")
    by_trajectory = scored.log_likelihood["oracle"].mean("time").values
    assert oracle.value == pytest.approx(by_trajectory.mean())
    ahead = (scored.log_likelihood["elbo"] - scored.log_likelihood["oracle"]).mean("time").values
    assert oracle.difference == pytest.approx(ahead.mean())
    assert oracle.difference_error == pytest.approx(ahead.std(ddof=1) / np.sqrt(len(ahead)))
    assert oracle.error == pytest.approx(by_trajectory.std(ddof=1) / np.sqrt(8))


def test_large_translations_are_among_the_group_elements(untrained: Simulator, nbody: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    group = type(nbody.system.symmetry)
    plain = group.random
    monkeypatch.setattr(group, "random", lambda self, x, rng: seen.append(found := plain(self, x, rng)) or found)
    found = equivariance(untrained, nbody, EvaluationConfig())
    assert found.samples == 10
    assert found.maximum <= 1e-9
    assert max(np.abs(g.translation).max() for g in seen) > 500
    assert untrained.dtype.itemsize == 4, "the simulator itself must stay as it was"


class Diverging(Counting):
    """Most runs blow up half way."""

    def sample(self, x0: np.ndarray, steps: int, members: int, seed: int) -> np.ndarray:
        x = super().sample(x0, steps, members, seed)
        x[self.survivors :, :, steps // 2 :] = np.nan
        return x

    def __init__(self, survivors: int) -> None:
        super().__init__()
        self.survivors = survivors


def test_runs_that_diverge_are_counted_and_do_not_end_the_evaluation(nbody: Store) -> None:
    settings = EvaluationConfig(initial_members=50)
    rows, tests, _ = initial_state.compare(Diverging(20), nbody, settings, {})
    assert {row.runs_left for row in rows} == {0.4}
    assert "60% of the runs of the model had diverged" in rows[0].sentence
    assert len(tests) == 1
    rows, tests, fans = initial_state.compare(Diverging(3), nbody, settings, {})
    assert rows == tests == ()
    assert fans["value"].sel(source="truth").notnull().all()


def test_after_a_burn_in_every_forecast_starts_where_its_true_run_is(cells: Store) -> None:
    starts = {}

    class Recording(LabelPersistence):
        def sample(self, x0: np.ndarray, steps: int, members: int, seed: int) -> np.ndarray:
            starts[self.name] = x0
            return super().sample(x0, steps, members, seed)

    fitted = LabelPersistence.fit(cells, by_distance=False)
    both = []
    for name in ("model", "persistence"):
        one = Recording(fitted.spec, fitted.stay, fitted.stray)
        object.__setattr__(one, "name", name)
        both.append(one)
    initial_state.compare(both[0], cells, EvaluationConfig(initial_members=40), {"persistence": both[1]})
    for name in ("model", "persistence"):
        np.testing.assert_array_equal(starts[name], cells.read("same_init", slice(0, 40), start=1, stop=2)[:, 0], err_msg=name)


def test_without_long_runs_model_and_truth_are_simulated_on(nbody: Store, tmp_path: Path) -> None:
    about, data = stability(Counting(), nbody, EvaluationConfig(long_trajectories=3))
    assert about.steps == 10 * 12
    assert data["alive"].dims == ("source", "time")
    assert data.sizes["time"] == 121
    assert data["alive"].sel(source="truth").notnull().all()


def test_the_steps_of_long_runs_are_scored_by_the_true_density(nbody: Store) -> None:
    """The oracle's own density has the same law in every state, so the true process used as a model is seen to be right: 20 runs."""
    settings = EvaluationConfig(long_trajectories=20)
    right, _ = stability(Truth(nbody.system), nbody, settings)
    wrong, _ = stability(Persistence(nbody.context()), nbody, settings)
    model, truth = right.step_nats["model"], right.step_nats["truth"]
    assert model.median == pytest.approx(truth.median, abs=1.0)
    assert model.first_percentile == pytest.approx(truth.first_percentile, abs=3.0)
    assert wrong.step_nats["model"].median < truth.first_percentile - 5
    assert "the true transition density of their steps" in right.steps_sentence


def test_the_true_tissue_used_as_a_model_is_found_calibrated(cells: Store) -> None:
    """A calibrated ensemble is faulted with at most 5% per line; all lines pass for this seed."""
    settings = EvaluationConfig(members=39, trajectories=40, seed=0)
    judged = measure(Truth(cells.system), cells, "test", settings, references={})
    words = {v.subject: str(v.word) for group in judged.verdicts.values() for v in group}
    assert set(words.values()) <= {"calibrated", "too few data to say"}, words
    assert "calibrated" in words.values()


def test_the_command_that_repeats_a_run_names_its_family_and_the_data_that_it_was_trained_on(
    untrained: Simulator, nbody: Store, tmp_path: Path
):
    about = _about(replace(untrained, store="trained on"), nbody, RunFolder(tmp_path / "a run"), EvaluationConfig(), 1.0)
    assert about.command.startswith("epns-pyro train particles --config '")
    assert about.command.endswith("--data 'trained on' --out NEW_FOLDER")


def test_a_failed_evaluation_leaves_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "evaluation"
    with _written_together(folder) as out:
        (out / "metrics.json").write_text("old")

    def interrupted() -> None:
        with _written_together(folder) as out:
            (out / "metrics.json").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (folder / "metrics.json").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["evaluation"]
    with _written_together(folder) as out:
        (out / "metrics.json").write_text("newer")
    assert (folder / "metrics.json").read_text() == "newer"
