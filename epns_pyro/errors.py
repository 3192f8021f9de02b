"""Errors that a user can cause. Each message names the thing, what was expected, what was found, and the way out."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from numbers import Integral
from typing import Any


class EpnsError(ValueError):
    """Base of all errors caused by the input, not by the program."""


class ConfigError(EpnsError):
    """A setting is unknown, has the wrong type, or contradicts another one."""


class DataError(EpnsError):
    """A store or file does not have the declared content."""


class ShapeError(EpnsError):
    """A tensor has the wrong shape or dtype."""


class CheckpointError(EpnsError):
    """A checkpoint is truncated, foreign, or from another run."""


class TrainingError(EpnsError):
    """Training cannot continue: too many non-finite losses, no data left, no place to write."""


class ClusterError(EpnsError):
    """The workers of a cluster cannot be reached, or die of the work."""


def require_positive(**counts: int) -> None:
    """Raise ConfigError unless all these are whole numbers of at least 1."""
    for name, count in counts.items():
        if not isinstance(count, Integral):
            raise ConfigError(f"{name}: expected a whole number, found {shown(count)}")
        if count < 1:
            raise ConfigError(f"{name}: expected at least 1, found {count}")


def require_seed(seed: int) -> None:
    """Raise ConfigError unless this can be the seed of random numbers."""
    if not isinstance(seed, Integral) or not 0 <= seed < 2**63:
        raise ConfigError(f"seed: expected a whole number from 0 to 2^63 - 1, found {shown(seed)}")


MOST_NAMES = 40  # in a message
_SHOWN = reprlib.Repr()
_SHOWN.maxstring, _SHOWN.maxother, _SHOWN.maxlong, _SHOWN.maxlevel = 80, 80, 30, 3


def shown(value: Any) -> str:
    """Return a value as a message shows it: its repr, shortened in the middle."""
    text = _SHOWN.repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a sentence that offers the known name closest to `name`, or all of them.

    >>> nearest("widht", ["width", "layers"])
    "did you mean 'width'? (known: layers, width)"
    """
    known = sorted(map(str, known))
    close = difflib.get_close_matches(str(name)[:100], known, n=1, cutoff=0.5)
    listing = f"known: {', '.join(known)}" if len(known) <= MOST_NAMES else f"known: {', '.join(known[:MOST_NAMES])}, ..."
    return f"did you mean {close[0]!r}? ({listing})" if close else listing
