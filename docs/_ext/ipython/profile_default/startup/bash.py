"""Run a cell of %%bash at once: the magic of IPython prints in pieces of 100 characters, which the page would show as lines."""

import os
import subprocess
import sys

from IPython import get_ipython


def bash(line: str, cell: str) -> None:
    """Run a cell in bash without colours; what it prints is the output of the cell."""
    environment = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "CLICOLOR_FORCE", "CLICOLOR")}
    done = subprocess.run(["bash", "-e", "-o", "pipefail", "-c", cell], env=environment, capture_output=True, text=True)
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    done.check_returncode()


get_ipython().register_magic_function(bash, "cell")
