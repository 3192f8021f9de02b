"""Trajectories of molecular dynamics: by ASE (extxyz, its .traj, XDATCAR) or MDAnalysis (DCD, XTC, TRR, LAMMPS, PDB, ...).

Both are extras, `pip install 'epns-pyro[md]'`. Atoms become tracks, so that all that can be done with a table of tracks can be done with
them.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any, final

import numpy as np
import pandas as pd

from epns_pyro.data.importers import md_boxes, track_tables
from epns_pyro.data.importers.md_boxes import VELOCITIES, Frame
from epns_pyro.data.importers.track_fields import VELOCITY, Column
from epns_pyro.data.importers.track_pairs import Pairs
from epns_pyro.data.importers.track_recording import AXES, FRAME, TRACK, Tracks
from epns_pyro.data.importers.tracks import Options, import_recordings
from epns_pyro.data.stores import Store
from epns_pyro.data.writing import Progress
from epns_pyro.errors import ConfigError, DataError

INSTALL = "pip install 'epns-pyro[md]'"
ASE_READS = {".extxyz": "extxyz", ".exyz": "extxyz", ".xyz": "extxyz", ".traj": "traj"}  # endings, and what ASE calls the format
COMPRESSED = (".gz", ".bz2", ".xz")
RECORDED_AS = ("velo", "vel", "velocities", "velocity")  # names of velocities in extxyz, by OVITO, LAMMPS and others
TIME = "time"
SPECIES, MASS, BOND, ATOM = "species", "mass", "bond", "atom"


class Atoms(Tracks):
    """Frames of atoms in a rectangular periodic box, or in none.

    Parameters
    ----------
    path : Path
    how : {"recorded", "mean", "none"}
        What becomes of the box of the file (`md_boxes`).

    Attributes
    ----------
    box : tuple of float
        Sides; empty where there are no periodic boundaries.
    bonds : numpy.ndarray, (bond, 2)
        Pairs of atoms, numbered from 1, where the topology has them.
    """

    unit = "Å"
    declared = True
    simulated = True
    bonds: np.ndarray = np.zeros((0, 2), dtype=np.int64)

    def __init__(self, path: Path, how: str) -> None:
        first = next(self.frames(path), None)
        if first is None:
            raise DataError(f"{path}: holds no frames")
        self._boundary = md_boxes.box(how)(path, lambda: self.frames(path))
        self.box, self.note, self._atoms = self._boundary.sides, self._boundary.note, len(first[AXES[0]])
        super().__init__(path, tuple(name for name in (SPECIES, MASS, *VELOCITIES) if name in first), AXES)

    @abstractmethod
    def frames(self, path: Path) -> Iterator[Frame]:
        """Read frame by frame: x, y, z, perhaps species, mass and velocities, each (atom,); `cell` (3, 3), or None without a box."""

    def chunks(self) -> Iterator[pd.DataFrame]:
        waiting: list[pd.DataFrame] = []
        for number, frame in enumerate(self._boundary.place(self._sound())):
            columns = {name: frame[name] for name in (*AXES, *self.columns)}
            index = pd.Index(np.full(self._atoms, number), name=FRAME)
            waiting.append(pd.DataFrame({FRAME: number, TRACK: np.arange(1, self._atoms + 1)} | columns, index=index))
            if len(waiting) * self._atoms >= track_tables.CHUNK_ROWS:
                yield pd.concat(waiting)
                waiting.clear()
        if waiting:
            yield pd.concat(waiting)

    def _sound(self) -> Iterator[Frame]:
        for number, frame in enumerate(self.frames(self.path)):
            if (found := len(frame[AXES[0]])) != self._atoms:
                raise DataError(f"{self.path}: frame {number} has {found} atoms, the first {self._atoms}: atoms cannot be followed")
            if not all(np.isfinite(frame[axis]).all() for axis in AXES):
                raise DataError(f"{self.path}: frame {number} holds positions that are not finite")
            yield frame


@final
class ASE(Atoms):
    """A file that ASE reads: species are classes, velocities are called velo, vel or velocities, or are ASE's momenta.

    The first two frames say how much time lies between frames, where each has a `time`.
    """

    layout = "ASE"

    def __init__(self, path: Path, how: str) -> None:
        self._format = format_of(path)
        super().__init__(path, how)
        times = [frame[TIME] for frame in itertools.islice(self.frames(path), 2)]
        if len(times) == 2 and np.isfinite(times).all() and times[1] > times[0]:
            self.frame_dt = round(float(times[1] - times[0]), 9)

    def frames(self, path: Path) -> Iterator[Frame]:
        try:
            from ase.io import iread
        except ImportError:
            raise DataError(f"{path}: reading {self._format} needs ASE: {INSTALL}") from None
        images = iread(path, index=":", format=self._format)
        number = 0
        while True:
            try:
                atoms = next(images)
            except StopIteration:
                return
            except Exception as error:  # ASE raises what its parsers raise
                raise DataError(f"{path}: frame {number} cannot be read as {self._format}: {' '.join(str(error).split())[:200]}") from None
            periodic = np.asarray(atoms.get_pbc())
            if periodic.any() and not periodic.all():
                axes = ", ".join(np.array(AXES)[periodic])
                raise DataError(f"{path}: frame {number} is periodic along {axes} alone: expected all axes or none")
            found: Frame = dict(zip(AXES, atoms.get_positions().T, strict=True))
            found |= {SPECIES: np.asarray(atoms.get_chemical_symbols()), MASS: np.asarray(atoms.get_masses(), np.float64)}
            if (speed := self._velocities(atoms)) is not None:
                found |= dict(zip(VELOCITIES, speed.T, strict=True))
            found[TIME] = next((value for key, value in atoms.info.items() if key.lower() == TIME and isinstance(value, Real)), np.nan)
            yield found | {"cell": np.asarray(atoms.get_cell()) if periodic.all() else None}
            number += 1

    def _velocities(self, atoms: Any) -> np.ndarray | None:
        """Return the velocities of atoms (atom, 3), None where the file has none; those that ASE writes are in Å/fs."""
        for name, values in atoms.arrays.items():
            if name.lower() in RECORDED_AS and values.shape == (len(atoms), 3):
                return np.asarray(values, np.float64)
        if not atoms.has("momenta"):
            return None
        from ase import units

        self.time_unit = "fs"
        return np.asarray(atoms.get_velocities() * units.fs, np.float64)


@final
class Universe(Atoms):
    """A trajectory that MDAnalysis reads, with its topology where the trajectory says nothing of the atoms.

    Parameters
    ----------
    path : Path
    topology : Path, optional
    select : str
        Atoms, in the language of MDAnalysis: "name CA", "protein and not name H*".
    """

    layout = "MDAnalysis"

    def __init__(self, path: Path, how: str, topology: Path | None = None, select: str = "all") -> None:
        try:
            import MDAnalysis
        except ImportError:
            raise DataError(f"{path}: reading it needs MDAnalysis: {INSTALL}") from None
        files = [str(file) for file in (topology, path) if file is not None]
        try:
            self._universe = MDAnalysis.Universe(*files)
            self._chosen = self._universe.select_atoms(select)
            dt = float(self._universe.trajectory.dt)
        except Exception as error:  # each of its many readers raises its own
            hint = "" if topology else ": does it need --topology FILE?"
            raise DataError(f"{path}: MDAnalysis cannot read it: {' '.join(str(error).split())[:200]}{hint}") from None
        if not len(self._chosen):
            raise DataError(f"{path}: no atom is selected by {select!r}")
        super().__init__(path, how)
        self.time_unit, self.frame_dt = "ps", dt
        if hasattr(self._chosen, "bonds"):
            place = np.full(len(self._universe.atoms), 0)
            place[self._chosen.indices] = np.arange(1, len(self._chosen) + 1)
            numbered = place[np.asarray(self._chosen.bonds.indices, dtype=np.int64).reshape(-1, 2)]
            self.bonds = numbered[(numbered > 0).all(1)]

    def frames(self, path: Path) -> Iterator[Frame]:
        for number in range(len(self._universe.trajectory)):
            try:
                step = self._universe.trajectory[number]
                place = self._chosen.positions.astype(np.float64)
                speed = self._chosen.velocities.astype(np.float64) if step.has_velocities else None
                cell = step.triclinic_dimensions
            except Exception as error:
                raise DataError(f"{path}: frame {number} cannot be read: {' '.join(str(error).split())[:200]}") from None
            found: Frame = dict(zip(AXES, place.T, strict=True))
            for name, attribute in ((SPECIES, "names"), (MASS, "masses")):
                if hasattr(self._chosen, attribute):
                    found[name] = np.asarray(getattr(self._chosen, attribute))
            if speed is not None:
                found |= dict(zip(VELOCITIES, speed.T, strict=True))
            yield found | {"cell": None if cell is None else np.asarray(cell, np.float64)}


def format_of(path: Path) -> str | None:
    """Return what ASE calls the format of a file, by its name; None if it is not for ASE to read."""
    name = path.name.lower()
    if path.suffix.lower() in COMPRESSED:
        name = name.removesuffix(path.suffix.lower())
    return "vasp-xdatcar" if "xdatcar" in name else ASE_READS.get(Path(name).suffix)


def open_atoms(path: Path, *, topology: Path | None = None, select: str = "all", how: str = "recorded") -> Atoms:
    """Open a trajectory of atoms: what `format_of` knows by ASE, everything else by MDAnalysis.

    Raises
    ------
    DataError
        If it cannot be read, or its box is not rectangular.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if format_of(path) and topology is None and select == "all":
        return ASE(path, how)
    return Universe(path, how, topology, select)


def import_md(
    paths: Sequence[str | Path],
    out: str | Path,
    options: Options | None = None,
    *,
    topology: str | Path | None = None,
    select: str = "all",
    bonds: bool = False,
    individuals: bool = False,
    box: str = "recorded",
    tests: Sequence[str | Path] = (),
    progress: Progress | None = None,
) -> Store:
    """Import trajectories of atoms into a store of particles, in their periodic box.

    Classes of atoms become the category `species` where there are several, masses the static field `mass` where they differ, and recorded
    velocities the field `velocity`.

    Parameters
    ----------
    paths : sequence of str or Path
        Files; every file is one recording.
    out : str or Path
        Must not exist; it appears when everything has been imported, or not at all.
    options : Options
        As for tables of tracks; time between frames and units are those of the files where these say them.
    topology : str or Path, optional
        Of trajectories that say nothing of their atoms.
    select : str
        Atoms to import, in the language of MDAnalysis.
    bonds : bool
        Whether the bonds of the topology become an attribute `bond` of pairs of atoms.
    individuals : bool
        Whether every atom is a class of its own, the category `atom`, in place of species: for one molecule, whose atoms have places in it.
    box : {"recorded", "mean", "none"}
        Boxes of the files as they are, constant and rectangular; the mean box of each file, to which places are scaled; or no box: atoms
        are followed across the sides of theirs.
    tests : sequence of str or Path
        Recordings that are the test set.
    progress : callable, optional

    Raises
    ------
    DataError
        If a file cannot be read, its box cannot be modelled, or files of individuals have different atoms.
    """
    options, files = options or Options(), [Path(path) for path in dict.fromkeys([*paths, *tests])]
    about = Path(topology) if topology else None
    atoms = [open_atoms(file, topology=about, select=select, how=box) for file in files]
    first = next(atoms[0].chunks())
    several = {name: name in first and first[name].nunique() > 1 for name in (SPECIES, MASS)}
    classes = (Column(SPECIES, (SPECIES,)),) * several[SPECIES]
    if individuals:
        _require_same_atoms(atoms)
        classes = (Column(ATOM, (TRACK,)),)
    quantities = replace(
        options.quantities,
        categories=options.quantities.categories or classes,
        statics=options.quantities.statics or (Column(MASS, (MASS,), "u"),) * several[MASS],
        vectors=options.quantities.vectors or (Column(VELOCITY, VELOCITIES),) * (VELOCITIES[0] in first),
    )
    if quantities.vectors and not (options.frame_dt or atoms[0].frame_dt):
        raise ConfigError(
            f"{files[0]}: holds velocities, but not the time between two frames: give --frame-dt, in the time of the velocities"
        )
    if bonds and not len(atoms[0].bonds):
        raise DataError(f"{files[0]}: its topology has no bonds between the atoms: give --topology, or a table of them, --pairs bond=FILE")
    options = replace(
        options,
        quantities=quantities,
        pairs=(*options.pairs, *((Pairs.of(BOND, atoms[0].bonds),) if bonds else ())),
        frame_dt=options.frame_dt or atoms[0].frame_dt,
        time_unit=options.time_unit or ("" if options.frame_dt and atoms[0].frame_dt else atoms[0].time_unit),
    )
    numbers = [files.index(Path(path)) for path in tests]
    return import_recordings(atoms, out, options, tests=numbers, progress=progress)


def _require_same_atoms(recordings: Sequence[Atoms]) -> None:
    frames = [next(one.frames(one.path)) for one in recordings]
    first, *others = ((len(frame[AXES[0]]), list(frame.get(SPECIES, ()))) for frame in frames)
    for recording, atoms in zip(recordings[1:], others, strict=True):
        if atoms != first:
            raise DataError(
                f"{recording.path}: its atoms are not those of {recordings[0].path}: individuals need the same atoms in the same order"
            )
