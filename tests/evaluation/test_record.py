"""The record of an evaluation: what is written can be read, older files too, and damaged ones are refused in one line."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from epns_pyro.cli import main
from epns_pyro.errors import DataError
from epns_pyro.evaluation import CHECKS
from epns_pyro.evaluation.evaluated import Evaluated
from epns_pyro.evaluation.lines import lines
from epns_pyro.evaluation.record import EvaluationRecord, LikelihoodRow
from epns_pyro.evaluation.summary import comparison_row, headline, verdict

VERDICT = {
    "subject": "energy",
    "word": "biased",
    "sentence": "biased: seen",
    "rule": "r",
    "lead_times": [1.0],
    "p_value": 0.01,
    "power": 0.9,
}
FULL: dict[str, Any] = {
    "format": "epns-pyro evaluation",
    "version": 1,
    "run": {"name": "a", "frame_dt": 0.1, "step": 3, "parameters": 4, "sets": {"test": {"trajectories": 5, "steps": 6}}},
    "headline": [{"label": "l", "value": "v", "note": "n", "good": None}],
    "likelihood": {
        "kl": 0.4,
        "reconstruction": 1.0,
        "rows": [{"key": key, "name": key, "value": 1.644, "error": 0.024} for key in ("elbo", "iwae", "persistence", "oracle")],
    },
    "latents": {"active": 1, "latent": 2, "entities": 3, "kl_total": 0.4, "kl_by_dimension": [0.4, None], "guide": VERDICT},
    "equivariance": {"maximum": 1e-15, "median": 1e-16, "samples": 10, "group": "g"},
    "verdicts": {"observables": [VERDICT]},
    "same_init": [{"observable": "E", "label": "E", "frame": 1, "time": 0.1, "ks": 0.2, "typical": 0.1, "floor": 0.3, "p_value": 0.5}],
    "two_sample": [{"initial_state": 0, "time": 0.1, "energy_p": 0.5, "classifier_accuracy": 0.5, "lower": 0.4, "upper": 0.6}],
    "stability": {
        "final_alive_model": 0.8, "final_alive_truth": 1.0, "steps": 9, "runs": 20,
        "step_nats": {"model": {"median": 1, "first_percentile": 0}},
    },
    "innovations": {"trajectories": 5, "steps": 4, "fields": [{"field": "v", "correlation": 0.5, "error": 0.1, "p_value": 0.001}]},
    "recalibration": {"E": "before and after"},
}  # fmt: skip
NESTED: Any = 1
for _ in range(100):
    NESTED = [NESTED]
WRONG = (5, -1, "x", True, [], {}, [[]], {"a": 1}, math.nan, math.inf, 10**400, NESTED, "\u2028{{ 7*7 }}")


def written(folder: Path, content: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def use(folder: Path) -> EvaluationRecord:
    """Read a folder and say all that can be said of it; figures are made, but not drawn."""
    found = Evaluated.read(folder)
    record = found.record
    for check in CHECKS:
        list(check.sections(check.read(record), found))
    verdict(record), headline(record), comparison_row("a", record), lines(record.verdicts)
    return record


def refusal(folder: Path) -> str:
    """What is said against a folder; empty if it is understood."""
    try:
        use(folder)
    except DataError as error:
        return str(error)
    return ""


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


@pytest.mark.parametrize("path", list(places(FULL))[1:], ids=lambda path: ".".join(map(str, path)))
def test_whatever_stands_anywhere_is_understood_or_refused_in_one_line(path: tuple, tmp_path: Path) -> None:
    for wrong in WRONG:
        changed = copy.deepcopy(FULL)
        node = changed
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = wrong
        words = refusal(written(tmp_path / "evaluation", changed))
        if words:
            assert str(tmp_path / "evaluation" / "metrics.json") in words
            assert "epns-pyro evaluate" in words
            assert len(words.splitlines()) == 1
            assert len(words) < 600


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"likelihood": 5}, "metrics.json: likelihood: input should be"),
        ({"likelihood": {"rows": [{"key": "elbo", "value": "high"}]}}, "likelihood.rows.0.value: expected a number, found 'high'"),
        ({"latents": {"active": 1}}, "latents.latent: field required"),
        ({"stability": {"final_alive_model": 7, "final_alive_truth": 1, "steps": 1, "runs": 1}}, "final_alive_model: expected a share"),
        ({"stability": {"final_alive_model": 1, "final_alive_truth": 1, "steps": 1, "runs": "many"}}, "stability.runs: "),
        ({"two_sample": {}}, "two_sample: input should be a valid tuple"),
        ({"same_init": [FULL["same_init"][0] | {"time": None}]}, "same_init.0.time: expected a number"),
        ({"likelihood": {"rows": [{"key": "elbo", "value": 1, "error": -1}]}}, "rows.0.error: expected an error of 0 or more"),
        ({"version": 2}, "expected 'epns-pyro evaluation' of version 1"),
        ({"recalibration": {"E": NESTED}}, "nested more than"),
    ],
)
def test_what_is_wrong_is_named(change: dict, words: str, tmp_path: Path) -> None:
    written(tmp_path / "run" / "evaluation", FULL | change)
    result = CliRunner().invoke(main, ["report", str(tmp_path / "run")])
    assert result.exit_code == 2, result.output
    assert words in result.output
    assert len(result.output.strip().splitlines()) == 1


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "1", '{"format": ', "\ufeff{}", "NaN", json.dumps(FULL)[:-40]])
def test_what_is_no_record_is_refused(content: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="epns-pyro evaluate"):
        EvaluationRecord.read(written(tmp_path / "evaluation", content))


def test_sections_that_are_missing_are_empty(tmp_path: Path) -> None:
    for key in FULL.keys() - {"format", "version"}:
        record = use(written(tmp_path / "evaluation", {name: value for name, value in FULL.items() if name != key}))
        assert record == use(written(tmp_path / "evaluation", FULL | {key: None}))
    assert not use(written(tmp_path / "evaluation", {key: FULL[key] for key in ("format", "version")})).likelihood


def test_a_number_that_is_not_known_is_null_in_the_file_and_nan_in_memory(tmp_path: Path) -> None:
    row = LikelihoodRow(key="elbo", value=math.nan, error=math.inf)
    assert math.isnan(row.value)
    assert math.isnan(row.error)
    assert json.loads(json.dumps(row.model_dump(mode="json"), allow_nan=False))["value"] is None
    assert math.isnan(LikelihoodRow(key="elbo", value=None).value)


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    before = EvaluationRecord.model_validate(FULL)
    before.write(tmp_path)
    after = EvaluationRecord.read(tmp_path)
    assert after.model_dump(mode="json") == before.model_dump(mode="json")


def test_entries_of_later_versions_are_no_obstacle(tmp_path: Path) -> None:
    later = FULL | {"new": {"x": 1}, "latents": FULL["latents"] | {"new": [1]}}
    assert use(written(tmp_path / "evaluation", later)).latents.active == 1
