"""What a page is made of: sections of figures, tables and sentences. Plain records; the templates turn them into HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from markupsafe import Markup


@dataclass(frozen=True)
class Key:
    """One entry of the key of a figure: `role` is a colour role of the style sheet."""

    role: str
    text: str


@dataclass(frozen=True)
class Figure:
    """Small multiples: panels that share one caption and one key.

    Parameters
    ----------
    panels : sequence of Markup
        SVG, from `svg.panel`; the page lays them out, as many to a row as fit.
    alt : str
        What the figure shows, for those who cannot see it.
    caption : str
        What one should see if the model is honest.
    title : str
    key : sequence of Key
    size : {"tiny", "small", "wide"}
        How many panels fit a row.
    """

    kind: ClassVar[str] = "figure"
    panels: Sequence[Markup]
    alt: str
    caption: str
    title: str = ""
    key: Sequence[Key] = ()
    size: str = "small"


@dataclass(frozen=True)
class Table:
    """Rows of text under a head; columns named in `numeric` are set flush right."""

    kind: ClassVar[str] = "table"
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: frozenset[str] = frozenset()
    note: str = ""


@dataclass(frozen=True)
class Text:
    """A sentence."""

    kind: ClassVar[str] = "text"
    words: str


@dataclass(frozen=True)
class Details:
    """Sentences that are folded away until they are asked for."""

    kind: ClassVar[str] = "details"
    summary: str
    words: Sequence[str]


@dataclass(frozen=True)
class Judged:
    """A verdict: a word for the badge, and the sentence behind it."""

    kind: ClassVar[str] = "judged"
    subject: str
    word: str
    sentence: str


Item = Figure | Table | Text | Details | Judged


@dataclass(frozen=True)
class Section:
    """A part of the page: `key` is its anchor, `reading` says how to read it."""

    key: str
    title: str
    reading: str
    items: list[Item] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.items)


def sentence(words: str) -> str:
    """Give words the look of a sentence: a capital letter, where the first word has one, and a full stop."""
    words = words.strip()
    return words[:1].upper() + words[1:] + ("" if words.endswith((".", "!", "?")) else ".")


def number(value: float | None, form: str = ".2f") -> str:
    """Write a number, with a true minus sign; a dash where there is none."""
    if value is None or value != value:
        return "–"
    return format(value, form).replace("-", "−") if "e" not in form else format(value, form)


def p_value(p: float | None) -> str:
    """Write a p-value, with digits enough to be multiplied by a number of tests."""
    return "–" if p is None else "< 0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.01 else f"{p:.2f}"


def listing(words: Iterable[str], most: int = 4) -> str:
    """Join words with commas and "and"; those beyond `most` are only counted."""
    words = list(words)
    if len(words) > most:
        words = [*words[: most - 1], f"{len(words) - most + 1} more"]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


def brief(text: str, most: int = 44) -> str:
    """Shorten a label from outside, so that it fits a panel."""
    text = " ".join(str(text).split())
    return text if len(text) <= most else text[: most - 1] + "…"
