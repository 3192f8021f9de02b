"""Trained simulators that come with the package: `pretrained:NAME` stands for a run wherever a run is named.

Each is the folder of a run beside this file, made by `benchmarks/pack_pretrained.py`: weights, config and evaluation as `epns-pyro train`
left them, a few held-out trajectories to start from (`data.nc`), and README.md, which says how the data and the weights were made.
"""

from __future__ import annotations

from pathlib import Path

from epns_pyro.errors import ConfigError, nearest

PREFIX = "pretrained:"
HOME = Path(__file__).parent


def pretrained_names() -> list[str]:
    """Return the names of the simulators that come with the package, sorted."""
    return sorted(folder.name for folder in HOME.iterdir() if (folder / "best.ckpt").is_file())


def find_run(run: str | Path) -> Path:
    """Return the folder of a run: that of a trained simulator of the package for "pretrained:NAME", else the path itself.

    Raises
    ------
    ConfigError
        If there is no such pretrained simulator; the message names those that there are.
    """
    name = str(run)
    if not name.startswith(PREFIX):
        return Path(run)
    name, known = name.removeprefix(PREFIX), pretrained_names()
    if name not in known:
        raise ConfigError(f"{run}: no such pretrained simulator: {nearest(name, known)}")
    return HOME / name


def is_pretrained(run: Path) -> bool:
    """Whether a folder is that of a simulator of the package, to which nothing is written."""
    return run.resolve().parent == HOME.resolve()
