"""Typed records of an evaluation, stored in metrics.json: checks write them, pages read them.

An unknown number is NaN in memory and null in the file. Unknown entries are ignored, and missing records are None or empty, so
evaluations of older versions can be read.
"""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar

import pydantic

from epns_pyro.errors import DataError
from epns_pyro.plain import read_json

FORMAT: Final = "epns-pyro evaluation"
VERSION: Final = 1
NAN = math.nan
T = TypeVar("T")


def _known(value: Any) -> Any:
    """Read null, NaN and infinities as NaN; refuse text."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return NAN
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < 1e300 else NAN
    if not isinstance(value, float):
        raise ValueError("expected a number")
    return value


Real = Annotated[float, pydantic.BeforeValidator(_known), pydantic.PlainSerializer(lambda v: v if math.isfinite(v) else None)]
Error = Annotated[Real, pydantic.AfterValidator(lambda v: _raise("expected an error of 0 or more") if v < 0 else v)]
Known = Annotated[Real, pydantic.AfterValidator(lambda v: v if math.isfinite(v) else _raise("expected a number"))]
Share = Annotated[Real, pydantic.AfterValidator(lambda v: v if not (v < 0 or v > 1) else _raise("expected a share between 0 and 1"))]
Count = Annotated[int, pydantic.Field(ge=0, le=2**63, strict=True)]


def _raise(words: str) -> None:
    raise ValueError(words)


class Record(pydantic.BaseModel):
    """Base of all records: frozen; unknown entries are ignored."""

    model_config = pydantic.ConfigDict(frozen=True, extra="ignore", from_attributes=True)


class SetSize(Record):
    """Size of one set of a store."""

    trajectories: Count
    steps: Count


class Run(Record):
    """What was evaluated, on which data, and how to repeat it."""

    name: str | None = None
    system: str | None = None
    system_label: str | None = None
    group: str | None = None
    frame_dt: float | None = None
    time_unit: str = ""
    seed: int | None = None
    step: Count | None = None
    parameters: Count | None = None
    train_seconds: float | None = None
    model: dict[str, Any] = {}
    training: dict[str, Any] = {}
    config_yaml: str | None = None
    evaluation: dict[str, Any] = {}
    sizes: str = ""  # what was made smaller, because states hold many bodies
    versions: dict[str, str] = {}
    command: str | None = None
    store: str | None = None
    sets: dict[str, SetSize] = {}
    held_out: str | None = None  # fingerprint of the test set
    sampling_rule: str | None = None
    created: str | None = None
    evaluate_seconds: float | None = None


class HeadlineLine(Record):
    """One line of the summary; `good` is None where the value is neither good nor bad."""

    label: str
    value: str
    note: str = ""
    good: bool | None = None


class LikelihoodRow(Record):
    """Score of one distribution: mean and standard error over trajectories, nats per transition.

    `difference` is the score of the model minus this one, paired by trajectory; NaN where it was not measured.
    """

    key: str
    name: str = ""
    value: Real = NAN
    error: Error = NAN
    note: str = ""
    difference: Real = NAN
    difference_error: Error = NAN


class Likelihood(Record):
    """Scores of held-out transitions under the model and under the distributions that it is compared with."""

    unit: str = "nats per transition"
    transitions: Count | None = None
    trajectories: Count | None = None
    rows: tuple[LikelihoodRow, ...] = ()
    fields: tuple[LikelihoodRow, ...] = ()
    reconstruction: Real = NAN
    kl: Real = NAN
    gap_sentence: str = ""
    left_out_sentence: str = ""
    recording_sentence: str = ""

    @property
    def known(self) -> tuple[LikelihoodRow, ...]:
        """Return the rows that have a value."""
        return tuple(row for row in self.rows if math.isfinite(row.value))

    def row(self, key: str) -> LikelihoodRow | None:
        """Return the row with this key, if it has a value."""
        return next((row for row in self.known if row.key == key), None)


class VerdictRecord(Record):
    """A verdict: see `epns_pyro.calibration.verdicts.Verdict`."""

    subject: str
    word: str
    sentence: str
    rule: str = ""
    lead_times: tuple[float, ...] = ()
    p_value: Real = NAN
    trajectories: Count | None = None
    power: Real = NAN
    more: Real = NAN


class Latents(Record):
    """Use of the latents: KL in nats per entity and dimension, and the verdict on the guide."""

    active: Count
    latent: Count
    entities: Count | None = None
    kl_total: Real = NAN
    kl_by_dimension: tuple[Real, ...] = ()
    sentence: str = ""
    guide: VerdictRecord | None = None


class Symmetry(Record):
    """Relative change of the log density under random elements of the symmetry group; `rounding` is that by the last digit of states."""

    maximum: Real
    rounding: Real = 0.0
    median: Real = NAN
    samples: Count | None = None
    dtype: str = ""
    group: str = ""
    sentence: str = ""


class StepNats(Record):
    """Log density of steps of long runs under the true process."""

    median: Real
    first_percentile: Real


class Stability(Record):
    """Fractions of long runs of model and truth that are plausible at their end."""

    final_alive_model: Share
    final_alive_truth: Share
    steps: Count
    runs: Count
    sentence: str = ""
    step_nats: dict[str, StepNats] = {}
    steps_sentence: str = ""


class Distance(Record):
    """Distance of the distributions of one observable at one time, averaged over initial states."""

    observable: str
    label: str
    unit: str = ""
    frame: Count = 0
    time: Known
    ks: Known
    typical: Real = NAN
    floor: Real = NAN
    p_value: Real = NAN
    model_mean: Real = NAN
    truth_mean: Real = NAN
    difference: Real = NAN
    error: Error = NAN
    runs_left: Real = NAN
    persistence_ks: Real = NAN
    sentence: str = ""


class JointTest(Record):
    """Tests of all observables together from one initial state; each p-value is that of a single test, not corrected."""

    initial_state: Count
    time: Known
    energy_p: Real = NAN
    classifier_p: Real = NAN
    classifier_accuracy: Real = NAN
    lower: Real = NAN
    upper: Real = NAN
    floor: Real = NAN
    sentence: str = ""

    @property
    def p_values(self) -> list[float]:
        """Return the p-values that are known."""
        return [p for p in (self.energy_p, self.classifier_p) if math.isfinite(p)]


class DisplacementRow(Record):
    """Displacement errors of one forecaster, in the unit of the positions: mean over members, and best of 5 and 20."""

    name: str
    ade: Error = NAN
    fde: Error = NAN
    ade_best_of_5: Error = NAN
    fde_best_of_5: Error = NAN
    ade_best_of_20: Error = NAN
    fde_best_of_20: Error = NAN

    @property
    def values(self) -> tuple[float, ...]:
        """All errors, in the order of the columns."""
        best = (self.ade_best_of_5, self.fde_best_of_5, self.ade_best_of_20, self.fde_best_of_20)
        return (self.ade, self.fde, *best)


class Displacement(Record):
    """Displacement errors (ADE, FDE) of the model and of the references."""

    unit: str = ""
    steps: Count | None = None
    trajectories: Count | None = None
    rows: tuple[DisplacementRow, ...] = ()


class EvaluationRecord(Record):
    """All results of an evaluation, in numbers and words. Entries that are not fields here belong to other checks: see `Check.read`."""

    model_config = pydantic.ConfigDict(frozen=True, extra="allow", from_attributes=True)

    format: Literal["epns-pyro evaluation"] = FORMAT
    version: Literal[1] = VERSION
    run: Run = Run()
    headline: tuple[HeadlineLine, ...] = ()
    likelihood: Likelihood | None = None
    latents: Latents | None = None
    equivariance: Symmetry | None = None
    verdicts: dict[str, tuple[VerdictRecord, ...]] = {}
    same_init: tuple[Distance, ...] = ()
    two_sample: tuple[JointTest, ...] = ()
    stability: Stability | None = None
    displacement: Displacement | None = None
    recalibration: dict[str, str] = {}
    _where: str = pydantic.PrivateAttr("metrics.json")

    @property
    def where(self) -> str:
        """Return the name of the file that was read."""
        return self._where

    @pydantic.model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, raw: Any) -> Any:
        return {key: value for key, value in raw.items() if value is not None} if isinstance(raw, dict) else raw

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read metrics.json in a folder RUN/evaluation/.

        Raises
        ------
        DataError
            If there is no evaluation, or not one that this version can read.
        """
        path, run = folder / "metrics.json", shlex.quote(str(folder.parent))
        if not folder.parent.is_dir():
            raise DataError(f"{folder.parent}: no such run: make one with epns-pyro train --out {run}")
        if not path.is_file():
            raise DataError(f"{folder}: no evaluation found: make it with epns-pyro evaluate {run}")
        again = f"run epns-pyro evaluate {run} again"
        try:
            raw = read_json(path)
        except DataError as error:
            raise DataError(f"{error}: {again}") from None
        if not isinstance(raw, dict) or raw.get("format") != FORMAT or raw.get("version") != VERSION:
            raise DataError(f"{path}: expected {FORMAT!r} of version {VERSION}, which this version reads: {again}")
        record = parse(cls, raw, where=str(path), advice=again)
        record._where = str(path)
        return record

    def write(self, folder: Path) -> None:
        """Write metrics.json into a folder."""
        text = json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False)
        (folder / "metrics.json").write_text(text, encoding="utf-8")


def parse(kind: type[T], raw: Any, *, where: str, advice: str = "run epns-pyro evaluate again") -> T:
    """Read plain data as a record, or as tuples or mappings of records.

    Raises
    ------
    DataError
        In one line: the first entry that does not fit, what was expected and what was found.
    """
    try:
        return pydantic.TypeAdapter(kind).validate_python(raw)
    except pydantic.ValidationError as error:
        first, *more = error.errors()
    at = ".".join(map(str, first["loc"])) or "the whole"
    found = " ".join(repr(first["input"]).split())
    found = found if len(found) <= 60 else f"{found[:60]} ..."
    words = str(first.get("ctx", {}).get("error") or first["msg"])
    others = f" (and {len(more)} more entries like it)" if more else ""
    raise DataError(f"{where}: {at}: {words[:1].lower()}{words[1:]}, found {found}{others}: {advice}")
