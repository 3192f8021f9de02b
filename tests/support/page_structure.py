"""The structure of an HTML page, for tests."""

from __future__ import annotations

from html.parser import HTMLParser


class Structure(HTMLParser):
    """Tags with the names of their attributes in order, sections, links, and the text of scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple] = []
        self.found: dict[str, list] = {"section": [], "href": [], "src": [], "figure": [], "svg": []}
        self.scripts: list[str] = []
        self._script = False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append((tag, *sorted(given)))
        self._script = tag == "script" and "type" not in given
        for key in ("href", "src", "xlink:href"):
            if key in given:
                self.found[key.removeprefix("xlink:")].append(given[key])
        if tag in self.found:
            self.found[tag].append(given.get("id"))

    def handle_endtag(self, tag):
        self._script = self._script and tag != "script"

    def handle_data(self, data):
        if self._script:
            self.scripts.append(data)
