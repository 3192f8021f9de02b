"""The command line: thin commands over the library."""

from __future__ import annotations

import click

from epns_pyro._version import __version__
from epns_pyro.cli._common import Group
from epns_pyro.heap import keep_freed_memory

COMMANDS = {
    "compare": "epns_pyro.cli.report:compare",
    "condition": "epns_pyro.cli.condition:condition",
    "data": "epns_pyro.cli.data:data",
    "evaluate": "epns_pyro.cli.evaluate:evaluate",
    "list": "epns_pyro.cli.list:list_runs",
    "plot": "epns_pyro.cli.plot:plot",
    "report": "epns_pyro.cli.report:report",
    "reproduce": "epns_pyro.cli.reproduce:reproduce",
    "settings": "epns_pyro.cli.settings:settings",
    "simulate": "epns_pyro.cli.simulate:simulate",
    "train": "epns_pyro.cli.train:train",
}


@click.group(cls=Group, lazy=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="epns-pyro")
def main() -> None:
    """Learn the distribution over futures of a stochastic system."""
    keep_freed_memory()
