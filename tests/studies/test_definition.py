"""The studies that come with the package: what their files say is possible, and mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_study

from epns_pyro.errors import ConfigError
from epns_pyro.models import Feedback
from epns_pyro.studies import NAMES, Study, make_plan
from epns_pyro.studies.contenders import FEEDBACK
from epns_pyro.studies.measures import MEASURES
from epns_pyro.training.presets import preset

STUDIES = pytest.mark.parametrize("name", NAMES)


@STUDIES
@pytest.mark.parametrize("size", ["quick", "paper"])
def test_every_model_of_a_study_has_valid_settings(name: str, size: str, tmp_path: Path) -> None:
    study = Study.named(name)
    plan = make_plan(study, size, out=tmp_path, seeds=2)
    assert {job.name for job in plan.jobs} == set(study.models)
    assert len({job.folder.path for job in plan.jobs}) == len(plan.jobs)
    for job in plan.jobs:
        assert type(job.config).parse(job.config.model_dump(mode="json")) == job.config
        assert job.config.seed == (0 if job.model.reference else job.seed)
    assert next(iter(plan.stores)).name == "all.zarr"


@STUDIES
def test_claims_name_measures_and_models(name: str) -> None:
    study = Study.named(name)
    for claim in study.claims:
        assert claim.measure in MEASURES
        assert MEASURES[claim.measure].better or claim.at_most is not None
        assert {claim.model, claim.than or claim.model} <= study.models.keys()
        if claim.fewest:
            assert study.models[claim.model].curve
            assert study.models[claim.than].curve


def test_epns_as_published_has_nothing_of_this_project() -> None:
    """Frame averaging, diagonal emission, no integrator, no linear path, windows that grow; and PNS differs in the network alone."""
    plan = make_plan(Study.named("celestial"), out=Path("nowhere"), seeds=1)
    epns, pns = (next(job.config for job in plan.jobs if job.name == name and job.whole) for name in ("epns", "pns-gnn"))
    assert (epns.model.backbone.name, epns.model.integrator, epns.model.emission.name) == ("frames", None, "diagonal")
    assert not epns.model.linear_path
    assert (epns.training.horizon.start, epns.training.horizon.end) == (1, 3)
    assert pns.override({"model.backbone": epns.model.backbone.model_dump()}) == epns


def test_cells_as_published_feed_back_the_likeliest_label() -> None:
    models = Study.named("cellular").models
    assert FEEDBACK[models["epns"].rollout] is Feedback.PUSHFORWARD
    assert FEEDBACK[models["independent"].rollout] is Feedback.ANCESTRAL


def test_what_the_user_changes_reaches_every_run(tmp_path: Path) -> None:
    plan = small_study.plan(tmp_path, training__steps=7)
    assert {job.config.training.steps for job in plan.jobs} == {7}
    (few,) = {job.trajectories for job in plan.jobs if not job.whole}
    assert few == 10
    horizon = next(job.config.training.horizon for job in plan.jobs if job.name == "gp-ode")
    assert (horizon.start, horizon.end) == (5, 10)  # no longer than the trajectories


def test_a_preset_of_a_study_starts_from_that_of_the_family(tmp_path: Path) -> None:
    jobs = make_plan(Study.named("celestial"), "paper", out=tmp_path, seeds=1, models=("epns",)).jobs
    job = next(job for job in jobs if job.name == "epns")
    assert job.config.training.steps == preset("nbody", "paper").training.steps == 250_000
    assert job.config.training.horizon.end == 33


@pytest.mark.parametrize(
    ("study", "models", "said"),
    [
        ("celestial", ("epsn",), "no such model: did you mean 'epns'"),
        ("cellular", ("gp-ode",), "an image of cells has none"),
        ("celstial", (), "unknown study 'celstial': did you mean 'celestial'"),
    ],
)
def test_a_wrong_name_is_one_line_with_a_way_out(study: str, models: tuple[str, ...], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        make_plan(Study.named(study), out=tmp_path, models=models)


def test_an_unknown_preset_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown preset 'fast' of study 'celestial'"):
        make_plan(Study.named("celestial"), "fast", out=tmp_path)


def test_other_settings_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    plan = small_study.plan(tmp_path)
    for job in plan.jobs:
        job.folder.path.mkdir(parents=True)
        job.folder.config.write_text(job.config.to_yaml())
    plan.check()
    small_study.plan(tmp_path, seeds=1).check()
    small_study.plan(tmp_path, seeds=3, models=("epns", "gp-ode", "default")).check()
    with pytest.raises(ConfigError, match=r"other settings \(training.steps is 4 there, 5 here\): give the same .* --out, or remove"):
        small_study.plan(tmp_path, training__steps=5).check()
