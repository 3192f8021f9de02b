"""The command line: thin commands over the library."""

from __future__ import annotations

import os

import click

from epns_pyro import __version__
from epns_pyro.cli._common import Group

# Read when torch is loaded, which is later. Threads that wait by spinning slow training tenfold as soon as another process wants a core.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

COMMANDS = {
    "compare": "epns_pyro.cli.report:compare",
    "condition": "epns_pyro.cli.condition:condition",
    "data": "epns_pyro.cli.data:data",
    "evaluate": "epns_pyro.cli.evaluate:evaluate",
    "report": "epns_pyro.cli.report:report",
    "simulate": "epns_pyro.cli.simulate:simulate",
    "train": "epns_pyro.cli.train:train",
}


@click.group(cls=Group, lazy=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="epns-pyro")
def main() -> None:
    """Learn the distribution over futures of a stochastic system."""
