"""Evaluations of states of many bodies: sizes within a budget, one step for all members, and interruptions that cost nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import xarray as xr

from epns_pyro.data import Split, Store, generate, import_labels, open_store
from epns_pyro.evaluation import evaluate, work
from epns_pyro.evaluation.archive import Archive
from epns_pyro.evaluation.checks.calibration import CalibrationCheck
from epns_pyro.evaluation.checks.one_step import OneStepCheck
from epns_pyro.evaluation.checks.recalibration import RecalibrationCheck
from epns_pyro.evaluation.checks.stability import StabilityCheck
from epns_pyro.evaluation.forecasters import Model
from epns_pyro.evaluation.work import forecasts_within, numbers_per_step, plan, runs_within, scored_within
from epns_pyro.simulator import Simulator
from epns_pyro.systems import ActiveConfig, CellsConfig
from epns_pyro.systems.base import SetConfig
from epns_pyro.training.presets import preset
from epns_pyro.training.run import EvaluationConfig, RunFolder

BODIES, STORED = 40, ("train", "val", "test")


def sets(**more: SetConfig) -> dict[str, SetConfig]:
    return {name: SetConfig(trajectories=n, steps=6) for name, n in (("train", 4), ("val", 3), ("test", 12))} | more


@pytest.fixture(scope="module")
def many(made_once: Callable) -> Store:
    """Tracks of forty bodies that align."""
    more = {"same_init": SetConfig(trajectories=80, steps=6, initial_states=1), "long": SetConfig(trajectories=5, steps=12)}
    config = ActiveConfig(bodies=BODIES, settled=5, sets=sets(**more))
    return open_store(made_once("active.zarr", lambda path: generate(config, path)))


@pytest.fixture(scope="module")
def untrained(many: Store) -> Simulator:
    small = {"model.width": 8, "model.hidden_vectors": 3, "model.backbone.width": 8, "model.backbone.vectors": 4}
    config = preset("active", "quick", many.system.config).override(small)
    torch.manual_seed(0)
    return Simulator(config.model.build(many.context()).eval(), many.system, many.context(), config, store=str(many.path))


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (117_000, (100, 39, 30)),  # all fits
        (100_000, (100, 19, 30)),  # members first
        (40_000, (70, 19, 30)),  # then trajectories, to 50
        (20_000, (74, 9, 30)),  # then members again
        (5_400, (20, 9, 30)),
        (1_800, (20, 9, 10)),  # the steps last
        (10, (20, 9, 1)),
    ],
)
def test_members_shrink_before_trajectories_and_these_before_steps(budget: float, expected: tuple[int, int, int]) -> None:
    found = forecasts_within(budget, 100, 39, 30)
    assert found == expected
    assert np.prod(found) <= max(budget, 20 * 9)


def test_sizes_below_the_fewest_stay() -> None:
    assert forecasts_within(1, 12, 5, 4) == (12, 5, 1)
    assert runs_within(1, 2, 50, 3) == (2, 1)
    assert runs_within(400, 100, 30, 40) == (40, 10)
    assert scored_within(100, 20, 64) == (20, 8)
    assert scored_within(1e6, 2000, 64) == (2000, 64)
    assert scored_within(8_000, 2000, 64) == (1000, 8)


def test_an_evaluation_of_recorded_images_keeps_to_the_budget_and_one_of_simulated_cells_is_as_set(tmp_path: Path) -> None:
    films, y, x = np.zeros((2, 6, 24, 24), np.uint8), *np.mgrid[:24, :24]
    for film, t, cell in np.ndindex(2, 6, 4):
        films[film, t][(y - 6 - 11 * (cell // 2)) ** 2 + (x - 5 - 11 * (cell % 2) - t % 2) ** 2 < 16] = cell + 1
    for number in range(8):
        tifffile.imwrite(tmp_path / f"{number}.tif", films[number % 2], photometric="minisblack")
    store = import_labels(tmp_path, tmp_path / "out.zarr", split=Split(train=0.3, val=0.1, test=0.6))
    config = preset("cells", "quick", store.system.config).override({"model.network.width": 4})
    sim = Simulator(config.model.build(store.context()).eval(), store.system, store.context(), config, store=str(store.path))
    step = numbers_per_step(sim.transition, torch.as_tensor(store.read("test", [0])[:, 0]))
    assert plan(sim, store, config.evaluation).words == ""
    found = plan(sim, store, config.evaluation.override({"work": 10.0 * step}))
    settings = found.settings
    assert (settings.members, settings.trajectories, settings.stretch, settings.frames) == (9, 5, 1, 8)
    assert (settings.likelihood_transitions, settings.guide_transitions) == (8, 8)
    assert found.words.startswith("images of 24 x 24 pixels within evaluation.work = ")
    assert found.words.endswith("more fits in smaller images: data import-labels --downscale")
    simulated = generate(
        CellsConfig.small().override({"sets": {name: {"trajectories": 1, "steps": 2} for name in STORED}}), tmp_path / "s.zarr"
    )
    assert plan(sim, simulated, config.evaluation.override({"work": 1.0})).words == ""


def test_the_work_of_a_step_grows_as_the_bodies_do_and_draws_nothing(many: Store, untrained: Simulator) -> None:
    x = untrained.local(many.read("test", slice(0, 1), stop=1)[:, 0])
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    whole, half = (numbers_per_step(untrained.transition, part) for part in (x, x[:, : BODIES // 2]))
    assert torch.rand(1) == expected
    assert whole == numbers_per_step(untrained.transition, x)
    assert 1.5 < whole / half < 5  # a half at the same places has a quarter of the pairs


def test_few_bodies_keep_their_sizes(sim: Simulator, store: Store) -> None:
    settings = EvaluationConfig(work=1.0)
    assert plan(sim, store, settings).settings == settings
    assert not plan(sim, store, settings).words


def test_a_plan_fits_the_budget_and_says_what_it_changed(many: Store, untrained: Simulator) -> None:
    x = untrained.local(many.read("test", slice(0, 1), stop=1)[:, 0])
    budget = 250.0 * numbers_per_step(untrained.transition, x)
    found = plan(untrained, many, EvaluationConfig(work=budget))
    sizes = found.settings
    assert (sizes.trajectories, sizes.members, sizes.stretch) == (12, 9, 2)
    assert sizes.recalibrate is False  # 9 members have no 90% interval
    assert (sizes.initial_members, sizes.initial_steps) == (40, 2)
    assert (sizes.long_trajectories, sizes.long_steps) == (4, 12)
    assert "12 forecasts of 9 members over 2 steps (12, 39 and 6 as set)" in found.words
    assert "40 runs of 2 steps from one initial state (80, 6)" in found.words
    assert plan(untrained, many, EvaluationConfig(likelihood_transitions=100)).words == ""  # these are small networks
    assert plan(untrained, many, EvaluationConfig(work=None)).settings == EvaluationConfig(work=None)


def test_one_step_of_all_members_has_the_law_of_each_by_its_own(many: Store, untrained: Simulator) -> None:
    x0 = many.read("test", slice(0, 2), stop=1)[:, 0].astype(np.float32)
    model, members = Model(untrained), 400
    together = model.sample(x0, 1, members, 0)
    by_itself = model.sample(x0, 2, members, 1)[:, :, :2]
    assert together.shape == by_itself.shape
    assert together.dtype == by_itself.dtype
    np.testing.assert_array_equal(together[:, :, 0], by_itself[:, :, 0])
    velocity = many.spec.slice("velocity")
    one, other = (x[:, :, 1, :, velocity].astype(np.float64) for x in (together, by_itself))
    spread = other.std(0)
    z = (one.mean(0) - other.mean(0)) / (spread * np.sqrt(2 / members))
    assert np.abs(z).max() < 5  # 160 comparisons of means: false alarms in 1 of 10,000
    np.testing.assert_allclose(one.std(0) / spread, 1, atol=0.25)
    assert np.corrcoef(one[:, 0, 0, 0], one[:, 1, 0, 0])[0, 1] < 0.3  # states have noise of their own


def test_too_few_trajectories_to_learn_intervals_from_are_not_forecast(many: Store, untrained: Simulator, tmp_path: Path) -> None:
    class Untouched:
        simulator, store, settings = untrained, many, EvaluationConfig()

        def forecasts(self, split: str) -> None:
            raise AssertionError(f"{split} was forecast")

    assert RecalibrationCheck().measure(Untouched()) is None


def test_an_archive_keeps_what_was_made_and_only_for_its_identity(tmp_path: Path) -> None:
    made = {"": xr.Dataset({"a": ("time", np.arange(3.0))}, attrs={"x": 1}), "b": xr.Dataset({"alive": ("time", [True, False])})}
    made[""]["time"] = ("time", np.arange(3.0), {"units": "days"})
    calls = []

    def make() -> dict[str, xr.Dataset]:
        calls.append(1)
        return made

    key = ("model", 3, np.arange(4))
    assert Archive(tmp_path / "kept", "one", worth=0).recall(key, make) is made
    again = Archive(tmp_path / "kept", "one", worth=0)
    found = again.recall(key, make)
    assert len(calls) == 1
    for name, data in made.items():
        xr.testing.assert_identical(found[name], data)
    again.recall(("model", 3, np.arange(4)[::-1]), make)
    assert len(calls) == 2
    (first, *_) = (tmp_path / "kept").glob("*.nc")
    first.write_bytes(first.read_bytes()[:100])  # a damaged file is made again
    for last in (np.arange(4), np.arange(4)[::-1]):
        again.recall(("model", 3, last), make)
    assert len(calls) == 3
    Archive(tmp_path / "kept", "another", worth=0).recall(key, make)
    assert len(calls) == 4
    again.close()
    assert not (tmp_path / "kept").exists()
    Archive(tmp_path / "kept", "one").recall(key, make)
    Archive(tmp_path / "kept", "one").recall(key, make)
    assert len(calls) == 6  # what is made at once is not worth a file


def test_an_interrupted_evaluation_goes_on_and_finds_the_same(
    many: Store, untrained: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Archive.__init__, "__kwdefaults__", {"worth": 0.0})
    module = sys.modules[evaluate.__module__]
    monkeypatch.setattr(module, "CHECKS", [CalibrationCheck(), OneStepCheck(), StabilityCheck()])
    x = untrained.local(many.read("test", slice(0, 1), stop=1)[:, 0])
    budget = 250.0 * numbers_per_step(untrained.transition, x)
    settings = EvaluationConfig(work=budget, likelihood_transitions=30, importance_samples=2, frames=12)
    sampled: list[int] = []
    sample, stops_at = Model.sample, [10**9]

    def counted(model: Model, x0: np.ndarray, *args: object, **more: object) -> np.ndarray:
        if len(sampled) == stops_at[0]:
            raise KeyboardInterrupt
        sampled.append(len(x0))
        return sample(model, x0, *args, **more)

    monkeypatch.setattr(Model, "sample", counted)

    def judged(name: str) -> dict[str, str]:
        (tmp_path / name).mkdir(exist_ok=True)
        record = evaluate(untrained, many, RunFolder(tmp_path / name), settings).record
        assert record.run.sizes.startswith("40 bodies within")
        return {check: repr(getattr(record, check)) for check in ("verdicts", "one_step", "stability", "headline")}

    whole = judged("whole")
    needed = len(sampled)
    sampled.clear()
    stops_at[0] = needed // 2
    with pytest.raises(KeyboardInterrupt):
        judged("interrupted")
    assert (tmp_path / "interrupted" / "evaluation.kept").is_dir()
    assert not (tmp_path / "interrupted" / "evaluation").exists()
    sampled.clear()
    stops_at[0] = 10**9
    assert judged("interrupted") == whole
    assert len(sampled) == needed - needed // 2  # what was there was not sampled again
    assert not (tmp_path / "interrupted" / "evaluation.kept").exists()


def test_the_shares_leave_room_for_every_part() -> None:
    assert sum(work.SHARES.values()) < 2  # an evaluation is at most three times its forecasts
