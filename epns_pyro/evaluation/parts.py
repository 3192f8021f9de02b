"""The parts of a page: sections of figures, tables and sentences, as plain records that the report turns into HTML."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class PanelSize:
    """Width and height of a panel and the margins around its axes, in pixels of the page."""

    width: int
    height: int
    left: int = 40
    right: int = 12
    top: int = 22
    bottom: int = 34


@dataclass(frozen=True)
class Panel:
    """One pair of axes, not drawn yet.

    Parameters
    ----------
    size : PanelSize
    draw : callable
        Draws into the matplotlib axes that it is given, with the colours of `figures.style`.
    title : str
        Printed above, flush left: the name of the y axis, or what is different in this panel.
    x : str
        Name of the x axis.
    colour : str
        Colour of the title; by default that of the text of the page.
    """

    size: PanelSize
    draw: Callable[[Axes], None]
    title: str = ""
    x: str = ""
    colour: str = "#010101"


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
    panels : sequence of Panel
        The page puts as many into a row as fit.
    alt : str
        Text alternative: what the figure shows.
    caption : str
        What the figure shows if the model is right.
    title : str
    key : sequence of Key
    size : {"tiny", "small", "wide"}
        How many panels fit a row.
    """

    kind: ClassVar[str] = "figure"
    panels: Sequence[Panel]
    alt: str
    caption: str
    title: str = ""
    key: Sequence[Key] = ()
    size: str = "small"


@dataclass(frozen=True)
class Table:
    """Rows of text under a header; columns named in `numeric` are right-aligned."""

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
    """Sentences that are hidden until the reader opens them."""

    kind: ClassVar[str] = "details"
    summary: str
    words: Sequence[str]


@dataclass(frozen=True)
class Judged:
    """A verdict: a word for the badge, and the sentence that explains it.

    `state` is "good", "fault" or "silent"; by default it is that of the word.
    """

    kind: ClassVar[str] = "judged"
    subject: str
    word: str
    sentence: str
    state: str = ""


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


@dataclass(frozen=True)
class Page:
    """A page of sections: above the title what made it, below it a line and the sentence that sums up."""

    kicker: str
    title: str
    lead: str
    verdict: str
    sections: Sequence[Section]
