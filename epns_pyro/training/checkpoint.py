"""Checkpoints: one file with everything that training needs to continue, written to a temporary file and then renamed.

Loading never runs code from the file: `torch.load(weights_only=True)` admits tensors and plain data only.
"""

from __future__ import annotations

import math
import os
import platform
import reprlib
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import pydantic
import pyro
import torch

from epns_pyro._version import __version__
from epns_pyro.context import DataContext
from epns_pyro.errors import CheckpointError, ConfigError, EpnsError
from epns_pyro.machine import limit_weights
from epns_pyro.models import Transition
from epns_pyro.models.bodies.fields import embedding_shapes
from epns_pyro.models.building import build
from epns_pyro.state import StateSpec
from epns_pyro.training.run import RunConfig, migrate_config
from epns_pyro.training.validation import Validation
from epns_pyro.whole import whole

FORMAT = "epns-pyro checkpoint"
OLDEST, VERSION = 1, 2
EMBEDDED = 2  # embeddings of a category in a model; older checkpoints lack their weights
LATER_WEIGHTS = 1000  # that older checkpoints may lack: those of laws, which are few
LATER = frozenset({"average", "best_elbos"})  # parts that a checkpoint of this version may lack
CONTENT = frozenset({"config", "system", "context", "store", "weights", "optimizer", "noise", "windows", "counters", "versions"})


def versions() -> dict[str, str]:
    """Return the versions of the code and of the libraries that its numbers depend on."""
    return {
        "epns-pyro": __version__,
        "torch": str(torch.__version__),
        "pyro-ppl": pyro.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def write_checkpoint(path: Path, **content: Any) -> None:
    """Write tensors and plain data by name, completely or not at all."""
    with whole(path) as temporary, open(temporary, "wb") as file:
        torch.save({"format": FORMAT, "version": VERSION, "versions": versions(), **content}, file)
        file.flush()
        os.fsync(file.fileno())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, and migrate it if an older version wrote it.

    Returns
    -------
    dict
        By the names of `CONTENT` and `LATER`: `context` a DataContext, `counters` Counters, the rest plain data and tensors.

    Raises
    ------
    CheckpointError
        If there is none, if it is truncated, damaged or foreign, of another version, or if a part of it is invalid.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint: epns-pyro train makes one")
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip():  # torch writes checksums, but never checks them
                raise zipfile.BadZipFile
        with warnings.catch_warnings(action="ignore"):  # about foreign files: the error below says enough
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a damaged or foreign file
        raise CheckpointError(f"{path}: not a readable checkpoint (truncated, damaged or foreign: {type(error).__name__})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: a file of PyTorch, but not a checkpoint of epns-pyro")
    version = content.get("version")
    if not isinstance(version, int) or not OLDEST <= version <= VERSION:
        raise CheckpointError(
            f"{path}: a checkpoint of version {version}, while this epns-pyro {__version__} reads versions {OLDEST} to {VERSION}: "
            "use the epns-pyro that wrote it, or train again"
        )
    if missing := sorted(CONTENT - content.keys()):
        raise CheckpointError(f"{path}: an incomplete checkpoint, without {', '.join(missing)}: train again")
    for old in range(version, VERSION):
        content = MIGRATIONS[old](content)
    return _validated(path, content)


def _validated(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Check the plain parts of a checkpoint and the type of its tensors; return them as typed values."""
    try:
        parts = _Content.model_validate({name: content[name] for name in CONTENT | LATER & content.keys()})
        context = context_from_plain(content["context"])
    except pydantic.ValidationError as error:
        item = error.errors()[0]
        place = ".".join(str(part) for part in item["loc"])
        found = reprlib.repr(item.get("input"))
        raise CheckpointError(_changed(path, f"{place}: {item['msg'][:1].lower()}{item['msg'][1:]}, found {found}")) from None
    except ConfigError as error:
        raise CheckpointError(_changed(path, f"context: {error}")) from None
    for name, weight in parts.weights.items():
        if weight.layout is not torch.strided or weight.is_quantized or weight.is_complex() or not weight.isfinite().all():
            raise CheckpointError(_changed(path, f"weights.{name}: not finite real numbers"))
    return {name: getattr(parts, name) for name in CONTENT | LATER} | {"context": context}


def _changed(path: Path, what: str) -> str:
    return f"{path}: damaged or changed by hand: {what}: take another checkpoint of the run, or train again"


def build_transition(path: Path, config: RunConfig, context: DataContext, weights: dict[str, torch.Tensor]) -> Transition:
    """Build the transition of a checkpoint; it must not have many more weights than the checkpoint holds."""
    many = CheckpointError(f"{path}: the weights do not fit the model of its config, which has more of them")
    try:
        unnamed = EMBEDDED * sum(classes * channels for classes, channels in embedding_shapes(context.spec))
        with limit_weights(LATER_WEIGHTS + unnamed + sum(weight.numel() for weight in weights.values()), many):
            transition = build(config.model, context)
        transition.load_state_dict(weights)
    except EpnsError as error:
        raise CheckpointError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    except RuntimeError as error:
        raise CheckpointError(f"{path}: the weights do not fit the model of its config ({str(error).splitlines()[0]})") from error
    return transition


# -- what the parts are ------------------------------------------------------------------------------------------------------


@dataclass
class Counters:
    """Numbers of a run that its checkpoint stores."""

    __pydantic_config__: ClassVar = pydantic.ConfigDict(extra="forbid")

    step: Annotated[int, pydantic.Field(ge=0, le=10**15)] = 0
    skipped: pydantic.NonNegativeInt = 0
    skipped_in_a_row: pydantic.NonNegativeInt = 0
    best: float = -math.inf
    best_step: pydantic.NonNegativeInt = 0
    worse: pydantic.NonNegativeInt = 0  # validations in a row, the last ones, of states that were not kept
    seconds: pydantic.NonNegativeFloat = 0.0
    validation: Validation | None = None
    run: dict[str, float] = field(default_factory=dict)  # sums since the last log entry

    def count(self, **values: float) -> None:
        """Add the numbers of a step that was not skipped."""
        self.skipped_in_a_row = 0
        for name, value in (values | {"count": 1.0}).items():
            self.run[name] = self.run.get(name, 0.0) + value

    def take_means(self) -> dict[str, float]:
        """Return the means over the steps since the last call, NaN if all were skipped, and reset the sums."""
        sums, self.run = defaultdict(lambda: math.nan, self.run), {}
        return {name: sums[name] / sums["count"] for name in ("log_likelihood", "kl", "gradient_norm")}


class _Windows(pydantic.BaseModel):
    """State of `data.windows.Windows`; the trainer passes it on as a mapping."""

    model_config = pydantic.ConfigDict(extra="forbid")

    set: tuple[str, int, int, int, int]
    rng: dict[str, Any]
    length: pydantic.PositiveInt
    queue: list[pydantic.NonNegativeInt]
    resident: list[pydantic.NonNegativeInt]
    oldest: pydantic.NonNegativeInt
    drawn: pydantic.NonNegativeInt


def _require_plain(value: Any) -> None:
    """Raise ValueError unless a value is text, a number, true, false, null, or lists and mappings of these."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, (list, tuple)):
        for item in value:
            _require_plain(item)
    elif not isinstance(value, (str, int, float, bool, type(None))):
        raise ValueError(f"expected plain data, found a {type(value).__name__} inside")


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    _require_plain(value)
    return value


Plain = Annotated[dict[str, Any], pydantic.AfterValidator(_plain)]


class _Content(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=True, strict=False)

    config: Plain
    system: Plain
    context: Plain
    store: str
    weights: dict[str, torch.Tensor]
    average: dict[str, Any] | None = None
    optimizer: dict[str, Any]
    noise: torch.Tensor
    windows: Annotated[dict[str, Any], pydantic.BeforeValidator(lambda raw: _Windows.model_validate(raw).model_dump())]
    counters: Counters
    best_elbos: torch.Tensor | None = None
    versions: dict[str, str]


def context_to_plain(context: DataContext) -> dict[str, Any]:
    """Return a data context as plain data that a checkpoint may hold."""
    return asdict(context) | {"spec": context.spec.to_json()}


def context_from_plain(raw: dict[str, Any]) -> DataContext:
    unknown = raw.keys() - {field.name for field in fields(DataContext)}
    if unknown or not isinstance(raw.get("spec"), str):
        raise ConfigError(f"expected the entries of a DataContext with spec as JSON, found {', '.join(map(str, raw)) or 'none'}")
    try:
        spec = StateSpec.from_json(raw["spec"])
    except (AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"spec: {error}") from None
    context = pydantic.TypeAdapter(DataContext).validate_python(raw | {"spec": spec})
    if not (0 < context.frame_dt < math.inf and all(size > 0 for size in context.sites) and len(context.sites) == len(spec.sites)):
        raise ConfigError(f"expected a positive frame_dt and a positive size of every site axis, found {context.frame_dt}, {context.sites}")
    real = [f.name for f in spec.dynamic_fields if f.kind == "real"]
    if sorted(context.step_scales) != sorted(real) or not all(0 < scale < math.inf for scale in context.step_scales.values()):
        raise ConfigError(f"step_scales: expected positive numbers for {', '.join(real) or 'no field'}, found {context.step_scales}")
    return context


# -- older versions ----------------------------------------------------------------------------------------------------------


def _from_version_1(content: dict[str, Any]) -> dict[str, Any]:
    """Migrate a checkpoint of version 0.1: rename two weights and one setting."""
    names = {"load": "latents_to_mean", "unload": "innovation_to_latents"}
    weights = content["weights"]
    if isinstance(weights, dict):
        weights = {names.get(name, name): weight for name, weight in weights.items()}
    return content | {"weights": weights, "config": migrate_config(content["config"])}


MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_version_1}
