"""The directive `settings`: a table of every setting of a preset, as `epns-pyro settings` lists them.

```{settings} nbody
:set: model.backbone=frames
:under: model.backbone
```
"""

from __future__ import annotations

import json
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import Directive, directives

from epns_pyro.config import Setting, list_settings, parse_value
from epns_pyro.training.presets import preset


class Settings(Directive):
    """Argument: a family of models. Options: changes `key=value`, separated by spaces; the section to show."""

    required_arguments = 1
    option_spec: ClassVar = {"set": directives.unchanged, "under": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        changes = dict(pair.split("=", 1) for pair in self.options.get("set", "").split())
        config = preset(self.arguments[0]).override({key: parse_value(value) for key, value in changes.items()})
        under = self.options.get("under", "")
        rows = [
            setting for setting in list_settings(config) if setting.key == under or setting.key.startswith(f"{under}." if under else "")
        ]
        if not rows:
            raise self.error(f"no setting under {under!r}")
        table = nodes.table(classes=["settings"])
        group = nodes.tgroup(cols=3)
        group += [nodes.colspec(colwidth=width) for width in (34, 16, 50)]
        head, body = nodes.thead(), nodes.tbody()
        head += _row([_text("key"), _text("default"), _text("meaning")])
        body += [_row([_breakable(setting.key), _text(_short(setting.value)), _text(_meaning(setting))]) for setting in rows]
        group += [head, body]
        table += group
        return [table]


def _row(cells: list[nodes.paragraph]) -> nodes.row:
    row = nodes.row()
    for cell in cells:
        entry = nodes.entry()
        entry += cell
        row += entry
    return row


def _text(text: str) -> nodes.paragraph:
    """A paragraph; what stands between backticks is code."""
    paragraph = nodes.paragraph()
    for i, part in enumerate(text.split("`")):
        paragraph += nodes.literal(text=part) if i % 2 else nodes.Text(part)
    return paragraph


def _breakable(key: str) -> nodes.paragraph:
    """A key that a narrow page may break after its dots, and nowhere else."""
    paragraph = nodes.paragraph()
    for part in key.split("."):
        if paragraph.children:
            paragraph += [nodes.Text("."), nodes.raw("", "<wbr>", format="html")]
        paragraph += nodes.Text(part)
    return paragraph


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:56]} ..."


def _meaning(setting: Setting) -> str:
    choices = f"One of {', '.join(setting.choices)}." if setting.choices else ""
    return " ".join(filter(None, [" ".join(setting.description.split()), choices]))


def setup(app: Any) -> dict[str, bool]:
    app.add_directive("settings", Settings)
    return {"parallel_read_safe": True}
