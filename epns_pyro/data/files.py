"""Opening zarr directories and netCDF files from unknown sources, and reading variables from them.

The metadata of a file are checked before they are used: the codecs that decode it, and its sizes against the bytes on disk. Errors of
the libraries become a DataError of one line, which names the variable and, in zarr, the damaged chunk.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from epns_pyro.data.zarr_metadata import NAMES, Claim, claims, damaged_blosc, entries
from epns_pyro.errors import DataError, EpnsError
from epns_pyro.later import later

if TYPE_CHECKING:
    import h5netcdf
    import h5py
    import xarray as xr
    import zarr
else:
    h5netcdf, h5py, xr, zarr = map(later, ("h5netcdf", "h5py", "xarray", "zarr"))

BELIEVED = 2**27  # bytes that an array may have in memory in any case
COMPRESSION = 1000  # larger arrays: largest ratio of bytes in memory to bytes on disk
LARGEST_SIZE = 10**8  # of a dimension
HUGE = 10**300  # damaged files declare integers that no float holds
ANEW = ": copy the file again from its source, or make it again"
CHUNKS_TRIED = 10_000  # in the search for the damaged one


@contextmanager
def reading(what: str, hint: str = "") -> Iterator[None]:
    """Turn any error of a library that reads a file into one DataError; put only the reading inside.

    With damaged files zarr, numcodecs, HDF5 and xarray raise almost every type of error, so all are caught, but only here.
    """
    try:
        yield
    except EpnsError:
        raise
    except MemoryError:
        raise DataError(f"{what} (it does not fit into memory, or declares a size that it does not have){hint}") from None
    except Exception as error:
        why = " ".join(str(error).split())
        raise DataError(f"{what} ({why[:200] or type(error).__name__}){hint}") from None


# Endings of files that are imported.
ARRAYS, IMAGES = (".npy", ".npz"), (".tif", ".tiff")
TABLES = (".csv", ".tsv", ".txt", ".dat", ".tab", ".parquet", *ARRAYS)
MOLECULES = (".extxyz", ".exyz", ".xyz", ".traj", ".dcd", ".xtc", ".trr", ".pdb", ".lammpstrj")
_NEITHER = "is neither a zarr directory nor a netCDF-4 file that can be read"


def contents(path: Path) -> tuple[list[str], dict[str, Any]]:
    """Return the names of the groups of a file, sorted, and its attributes.

    Raises
    ------
    DataError
        If it is not a zarr directory or netCDF file, or if its metadata are impossible.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or store: check the path")
    if path.is_dir():
        if not any(path.iterdir()):
            raise DataError(f"{path}: is empty: it holds neither data nor a run")
        check_zarr(path)
        with reading(f"{path}: {_NEITHER}"):
            root = zarr.open_group(path, mode="r", use_consolidated=False)
        _open_one_by_one(path, root)
        with reading(f"{path}: {_NEITHER}"):
            return sorted(root.group_keys()), dict(root.attrs)
    with reading(f"{path}: {_NEITHER}", _import_of(path)):
        with h5py.File(path, "r") as raw:
            dict(raw.attrs)  # h5netcdf reads them while it opens a file, and cannot close one where they are damaged
            _believe(path, list(_hdf5_claims(raw)))
        with h5netcdf.File(path, "r") as file:
            return sorted(file.groups), dict(file.attrs)


def _import_of(path: Path) -> str:
    """Return which command makes a store of a file that is none, by its ending; "" if none does."""
    kinds = ((TABLES, "import-tracks"), (IMAGES, "import-labels"), (MOLECULES, "import-md"))
    name = next((name for endings, name in kinds if path.suffix.lower() in endings), "")
    return f": import it first: epns-pyro data {name} {path.name} --out {path.stem}.zarr" if name else ""


def _open_one_by_one(path: Path, root: zarr.Group) -> None:
    """Open every group and array of a zarr directory: where zarr opens all at once, what fails after the first prints to the screen."""
    groups = [folder.name for folder in sorted(path.iterdir()) if any((folder / name).is_file() for name in NAMES)]
    for name in [*groups, *(claim.name for claim in claims(path) if claim.name)]:
        with reading(f"{path}: {name!r} cannot be read", ANEW):
            root[name]


def check_zarr(path: Path) -> None:
    """Raise DataError if the metadata of a zarr directory are damaged, name an unknown codec, or declare more than is on disk."""
    _believe(path, claims(path))


def refuse_damaged_blosc(path: Path, group: str | None = None) -> None:
    """Raise DataError if a chunk compressed by Blosc is damaged, in the arrays of one group, or in all for None.

    Blosc trusts the sizes in a chunk and reads past its end, so its chunks are checked before it decodes them.
    """
    for claim in claims(path):
        parent, _, name = claim.name.rpartition("/")
        if group in (None, parent) and (chunk := damaged_blosc(claim)) is not None:
            where = f"{path}: set {parent!r}: " if parent else f"{path}: "
            what = f"variable {name!r}: " if name else ""
            raise DataError(f"{where}{what}chunk {chunk} is damaged (its header says another size than it has){ANEW}")


def open_dataset(path: Path, group: str | None = None) -> xr.Dataset:
    """Open a zarr directory or netCDF file, or one group of it; variables are read by `load`, and times stay numbers."""
    contents(path)
    if path.is_dir():
        refuse_damaged_blosc(path, group or "")
    engine, options = ("zarr", {"consolidated": False}) if path.is_dir() else ("h5netcdf", None)
    where = f"{path}: group {group!r}" if group else f"{path}:"
    with reading(f"{where} cannot be read as a dataset"):
        dataset = xr.open_dataset(
            path,
            group=group,
            engine=engine,
            chunks=None,
            cache=False,
            decode_times=False,
            create_default_indexes=False,
            backend_kwargs=options,
        )
        for variable in dataset.variables.values():
            variable.encoding |= {"source": str(path), "group": group}
    return dataset


def load(dataset: xr.Dataset, name: str) -> xr.Variable:
    """Read a variable into memory.

    Raises
    ------
    DataError
        If it is damaged; the message names it and, in zarr, the first damaged chunk, and leaves the file to the caller.
    """
    variable = dataset.variables[name]
    try:
        with reading(f"variable {name!r} cannot be read", ANEW):
            return variable.load()
    except DataError:
        if (chunk := _damaged_chunk(name, variable.encoding)) is not None:
            with reading(f"variable {name!r}: chunk {chunk[0]} is damaged", ANEW):
                chunk[1]()
        raise


def lost_chunks(dataset: xr.Dataset, name: str) -> str:
    """Describe how many chunks of a zarr array are missing on disk, which zarr reads as its fill value; "" if none is."""
    if (array := _zarr_array(name, dataset.variables[name].encoding)) is None:
        return ""
    with reading(f"variable {name!r} cannot be read", ANEW):
        lost, fill = array.nchunks - array.nchunks_initialized, array.fill_value
    return f"{lost} of {array.nchunks} chunks of {name!r} are missing on disk and are read as {fill}: is a file lost?" if lost > 0 else ""


def _zarr_array(name: str, encoding: dict[str, Any]) -> zarr.Array | None:
    source, group = Path(encoding.get("source") or ""), encoding.get("group")
    if not source.name or not source.is_dir():
        return None
    with reading(f"variable {name!r} cannot be read", ANEW):
        return zarr.open_array(source, path=f"{group}/{name}" if group else name, mode="r")


def _damaged_chunk(name: str, encoding: dict[str, Any]) -> tuple[str, Callable[[], Any]] | None:
    """Find the first chunk of a zarr array that cannot be decoded; return its name and a function that reads it."""
    with suppress(Exception):  # the search only adds to a message: the array can be too damaged to have chunks
        if (array := _zarr_array(name, encoding)) is None:
            return None
        sizes = array.shards or array.chunks
        grid = [range(-(-n // size)) for n, size in zip(array.shape, sizes, strict=True)]
        for place in itertools.islice(itertools.product(*grid), CHUNKS_TRIED):
            corner = tuple(slice(i * size, (i + 1) * size) for i, size in zip(place, sizes, strict=True))
            try:
                array[corner]
            except Exception:
                return array.metadata.encode_chunk_key(place), lambda corner=corner: array[corner]
    return None


# -- sizes -----------------------------------------------------------------------------------------------------------------


def _believe(path: Path, found: list[Claim]) -> None:
    """Raise DataError unless every array can have its declared size, given the bytes on disk."""
    for claim in found:
        where = f"{path}: variable {claim.name!r}"
        if largest := max((n for n in (*claim.shape, *claim.chunk) if n > LARGEST_SIZE), default=0):
            raise DataError(
                f"{where} declares a dimension of {min(largest, HUGE):g} entries: expected at most {LARGEST_SIZE:g}: it is damaged"
            )
        size = claim.itemsize * max(claim.written, entries(claim.chunk))
        stored = 0
        while size > BELIEVED + COMPRESSION * stored and (more := next(claim.stored, None)) is not None:
            stored += more
        if size > BELIEVED + COMPRESSION * stored:
            raise DataError(
                f"{where} declares {' x '.join(map(str, claim.shape))} entries in chunks of {' x '.join(map(str, claim.chunk))}, which "
                "take "
                f"{min(size, HUGE) / 2**30:.3g} GiB, but {stored} bytes are on disk: it is damaged, or was never written"
            )


def _hdf5_claims(node: h5py.Group, prefix: str = "", depth: int = 3) -> Iterator[Claim]:
    for name in node:
        item = node.get(name)
        if isinstance(item, h5py.Dataset) and item.shape is not None:
            stored = iter([int(item.id.get_storage_size())])
            yield Claim(f"{prefix}{name}", item.shape, item.chunks or (), item.dtype.itemsize, entries(item.shape), stored)
        elif isinstance(item, h5py.Group) and depth:
            yield from _hdf5_claims(item, f"{prefix}{name}/", depth - 1)


def as_numbers(variable: xr.Variable, what: str) -> np.ndarray:
    """Return the values of a variable as float64; raise DataError where they are text, dates or objects."""
    if variable.dtype.kind not in "biuf":
        raise DataError(f"{what}: expected numbers, found {variable.dtype}: convert it")
    return np.asarray(variable.values, np.float64)
