"""`python -m epns_pyro.cli` is `epns-pyro`."""

from epns_pyro.cli import main

main(prog_name="epns-pyro")
