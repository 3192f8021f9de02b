"""`epns-pyro settings`: every setting of a run with its value and what it means."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from epns_pyro.cli._common import console, overrides, with_imports

if TYPE_CHECKING:
    from epns_pyro.config import Setting

LONGEST = 56  # characters of a setting and its value


@click.command()
@click.argument("family", metavar="[nbody|particles|cells]", default="nbody")
@click.option("--preset", default="quick", show_default=True, metavar="quick|pairs|paper", help="Preset that gives the values.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a setting first; other choices have other settings.")
@with_imports
def settings(family: str, preset: str, changes: tuple[str, ...]) -> None:
    """Show every setting of a run, by the KEY that `epns-pyro train --set KEY=VALUE` takes.

    Where a setting is a choice, such as model.backbone, the settings of the current choice follow.
    """
    from epns_pyro.config import list_settings
    from epns_pyro.training.presets import preset as get

    config = get(family, preset).override(overrides(changes))
    rows = [
        (setting.key if setting.value == {} else f"{setting.key} = {_short(setting.value)}", setting) for setting in list_settings(config)
    ]
    width = max(len(text) for text, _ in rows if len(text) <= LONGEST)
    for text, setting in rows:
        console().print(f"{text:<{width}}  {_meaning(setting)}".rstrip(), soft_wrap=True)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 24 else f"{text[:20]} ..."


def _meaning(setting: Setting) -> str:
    return "; ".join(filter(None, [setting.description.rstrip("."), f"one of {', '.join(setting.choices)}" if setting.choices else ""]))
