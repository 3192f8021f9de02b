"""Pack a trained run into the package, so that `pretrained:NAME` loads it: weights without the state of training, config, evaluation, and a
few held-out trajectories to start from.

epns-pyro train nbody --steps 2000
python benchmarks/pack_pretrained.py runs/nbody
epns-pyro train cells
python benchmarks/pack_pretrained.py runs/cells --name cells16 --command "epns-pyro train cells"
"""

from __future__ import annotations

import shutil
from pathlib import Path

import click
import numpy as np
import xarray as xr

from epns_pyro.data import Store, open_store
from epns_pyro.pretrained import HOME, PREFIX
from epns_pyro.report import write_markdown
from epns_pyro.training.checkpoint import context_to_plain, read_checkpoint, write_checkpoint
from epns_pyro.training.run import RunFolder

LARGEST = 10e6  # bytes of a folder in the package
ALONE = {"test": 20, "same_init": 100}  # trajectories that travel with the weights


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--name", help="[default: name of the folder]")
@click.option("--command", default="epns-pyro train nbody --steps 2000", show_default=True, help="What made the run.")
def main(run: Path, name: str | None, command: str) -> None:
    source, out = RunFolder(run), RunFolder(HOME / (name or run.name))
    shutil.rmtree(out.path, ignore_errors=True)
    out.path.mkdir()
    content = read_checkpoint(source.best)
    store = open_store(content["store"])
    plain = {key: content[key] for key in ("config", "system", "weights", "noise", "windows", "versions")}
    counters = {key: value for key, value in vars(content["counters"]).items() if key not in ("validation", "run")}
    del plain["versions"]  # the checkpoint says which versions wrote it
    write_checkpoint(
        out.best, **plain, context=context_to_plain(content["context"]), counters=counters, optimizer={}, store=store.config["name"]
    )
    for file in (source.config, source.metrics):
        shutil.copy(file, out.path)
    shutil.copytree(source.evaluation, out.evaluation)
    pack_data(store, out.data)
    write_markdown(out.evaluation, out.path / "README.md")
    with open(out.path / "README.md", "a") as file:
        file.write(recipe(command, store))
    size = sum(file.stat().st_size for file in out.path.rglob("*") if file.is_file())
    if size > LARGEST:
        raise click.ClickException(f"{out.path}: {size / 1e6:.1f} MB, at most {LARGEST / 1e6:.0f} may go into the package")
    print(f"{PREFIX}{out.path.name}: {size / 1e6:.1f} MB in {out.path}")


def pack_data(store: Store, out: Path) -> None:
    """Write the first trajectories of some sets in single precision, a group of netCDF per set."""
    attributes = {key: value for key, value in store.dataset("test").attrs.items() if key not in ("set", "complete")}
    xr.Dataset(attrs=attributes).to_netcdf(out, engine="h5netcdf")
    for name, most in ALONE.items():
        part = store.dataset(name).isel(trajectory=slice(most)).load()
        small = {key: value.astype(np.float32) for key, value in part.data_vars.items() if value.dtype == np.float64}
        part = part.assign(small).drop_encoding()
        part.attrs = attributes | {"set": name}
        packing = {key: {"zlib": True, "complevel": 9, "shuffle": True} for key in part.variables}  # label images are coordinates
        part.to_netcdf(out, group=name, mode="a", engine="h5netcdf", encoding=packing)


def recipe(command: str, store: Store) -> str:
    """Say in Markdown how the data and the weights can be made again."""
    sets = ", ".join(f"{name} {size['trajectories']} trajectories of {size['steps']} steps" for name, size in store.config["sets"].items())
    return f"\nData and weights: `{command}`, which simulates with seed 0: {sets}.\n"


if __name__ == "__main__":
    main()
