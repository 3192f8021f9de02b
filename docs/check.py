"""Check a built site: `python docs/check.py build/docs`. Prints what is wrong, a line each, and exits with 1 if anything is.

Every link inside leads somewhere, nothing is fetched from elsewhere, every picture says what it shows, headings do not skip a level.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

FETCHED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src"}
NOT_FETCHED = {"canonical", "index", "search", "next", "prev", "author", "copyright"}  # kinds of <link> that only point


@dataclass
class Page(HTMLParser):
    """What a page links to, fetches and is made of."""

    links: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)
    headings: list[int] = field(default_factory=list)
    pictures_without_words: int = 0

    def __post_init__(self) -> None:
        HTMLParser.__init__(self)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in FETCHED and FETCHED[tag] in given and given.get("rel") not in NOT_FETCHED:
            self.fetched.append(given[FETCHED[tag]])
        if tag == "img" and not given.get("alt"):
            self.pictures_without_words += 1
        if len(tag) == 2 and tag[0] == "h" and tag[1].isdigit():
            self.headings.append(int(tag[1]))


def problems(site: Path) -> Iterator[str]:
    """Say what is wrong with a site, a line each."""
    pages = {path: parse(path) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        name = path.relative_to(site)
        for address in page.fetched:
            if urlsplit(address).scheme in ("http", "https") or address.startswith("//"):
                yield f"{name}: fetches {address}"
            elif not urlsplit(address).scheme and not target(path, address).is_file():
                yield f"{name}: {address} is not there"
        for link in dict.fromkeys(page.links):
            parts = urlsplit(link)
            if parts.scheme or link.startswith("//"):
                continue
            to = target(path, link)
            if not to.exists():
                yield f"{name}: the link {link} leads nowhere"
            elif parts.fragment and to in pages and unquote(parts.fragment) not in pages[to].anchors:
                yield f"{name}: the link {link} has no such place"
        if page.pictures_without_words:
            yield f"{name}: {page.pictures_without_words} pictures do not say what they show"
        steps = zip(page.headings, page.headings[1:], strict=False)
        if page.headings and (page.headings[0] != 1 or any(b > a + 1 for a, b in steps)):
            yield f"{name}: headings skip a level: {page.headings}"


def parse(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def target(page: Path, address: str) -> Path:
    """Return the file that a relative address on a page means."""
    path = unquote(urlsplit(address).path)
    return (page.parent / path).resolve() if path else page


if __name__ == "__main__":
    found = list(problems(Path(sys.argv[1]).resolve()))
    sys.stdout.write("\n".join(found or ["every link leads somewhere, nothing is fetched from elsewhere"]) + "\n")
    sys.exit(bool(found))
