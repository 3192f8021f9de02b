"""Trajectories of molecular dynamics: positions, classes, masses and the box arrive; what cannot be modelled is refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from epns_pyro.cli import main
from epns_pyro.data import check
from epns_pyro.data.importers.md import import_md, open_atoms
from epns_pyro.data.importers.track_report import ImportReport
from epns_pyro.data.importers.tracks import Options
from epns_pyro.errors import ConfigError, DataError

SIDES = (8.0, 9.0, 10.0)
SYMBOLS = ("O", "H", "H", "O", "H")


def liquid(frames: int = 80, seed: int = 0) -> np.ndarray:
    """Positions of five atoms that wander across the seams of the box, unwrapped: (frame, atom, axis)."""
    rng = np.random.default_rng(seed)
    return rng.uniform(0, 8, (1, 5, 3)) + 0.4 * rng.standard_normal((frames, 5, 3)).cumsum(0)


def extxyz(path: Path, place: np.ndarray, *, cell: str = "8 0 0 0 9 0 0 0 10", pbc: str = "T T T", change: float = 0.0) -> Path:
    """Write an extxyz file by hand; `change` is added to the first side in every frame."""
    lines = []
    for number, atoms in enumerate(place):
        first, *rest = cell.split()
        lattice = " ".join([f"{float(first) + number * change:g}", *rest])
        lines += [str(len(atoms)), f'Lattice="{lattice}" Properties=species:S:1:pos:R:3 pbc="{pbc}" energy={-number}']
        lines += [f"{symbol} {x:.6f} {y:.6f} {z:.6f}" for symbol, (x, y, z) in zip(SYMBOLS, atoms, strict=False)]
    path.write_text("\n".join(lines) + "\n")
    return path


def moving(path: Path, place: np.ndarray, speed: np.ndarray, called: str) -> Path:
    """Write an extxyz file with velocities, a frame every 0.25 units of time."""
    lines = []
    for number, (atoms, kicks) in enumerate(zip(place, speed, strict=True)):
        lines += [str(len(atoms)), f'Properties=species:S:1:pos:R:3:{called}:R:3 pbc="F F F" Time={0.25 * number:g}']
        for symbol, *values in zip(SYMBOLS, *atoms.T, *kicks.T, strict=True):
            lines.append(" ".join([symbol, *(f"{value:.6f}" for value in values)]))
    path.write_text("\n".join(lines) + "\n")
    return path


class TestExtXYZ:
    @pytest.fixture(autouse=True)
    def _needs_ase(self):
        pytest.importorskip("ase")

    def test_positions_classes_masses_and_the_box_arrive(self, tmp_path):
        place = liquid()
        store = import_md([extxyz(tmp_path / "water.extxyz", place)], tmp_path / "a.zarr", Options(segment=10, history=0, frame_dt=0.5))
        spec, x = store.spec, store.read("train")
        assert spec.box == SIDES
        assert (spec["position"].unit, spec["mass"].unit, spec["species"].size) == ("Å", "u", 2)
        first = store.dataset("train")["first_frame"].values
        expected = np.stack([place[start : start + 10] for start in first])
        np.testing.assert_allclose(spec.get(x, "position"), spec.geometry.wrap(expected), atol=2e-6)
        np.testing.assert_allclose(spec.get(x, "mass")[0, 0], [15.999, 1.008, 1.008, 15.999, 1.008])
        np.testing.assert_array_equal(spec.get(x, "species")[0, 0], [1, 0, 0, 1, 0])
        assert "category species: 0 is H, 1 is O" in list(ImportReport.of(store.path).lines())
        assert not [found for found in check(store) if found.level == "error"]

    def test_velocities_of_the_history_go_to_the_nearest_image(self, tmp_path):
        place = liquid()
        store = import_md([extxyz(tmp_path / "water.extxyz", place)], tmp_path / "a.zarr", Options(segment=10, history=1, frame_dt=0.5))
        moved = np.diff(place, axis=0) / 0.5
        first = store.dataset("train")["first_frame"].values
        expected = np.stack([moved[start : start + 9] for start in first])
        np.testing.assert_allclose(store.spec.get(store.read("train"), "velocity"), expected, atol=1e-5)

    def test_atoms_in_open_space_have_no_box(self, tmp_path):
        store = import_md([extxyz(tmp_path / "a.xyz", liquid(), pbc="F F F")], tmp_path / "a.zarr", Options(segment=10))
        assert store.spec.box == ()

    @pytest.mark.parametrize("called", ["velo", "vel", "Velocities"])
    def test_recorded_velocities_and_the_time_between_frames_arrive(self, called, tmp_path):
        place, speed = liquid(), np.random.default_rng(1).standard_normal((80, 5, 3))
        store = import_md([moving(tmp_path / "a.extxyz", place, speed, called)], tmp_path / "a.zarr", Options(segment=10))
        first = store.dataset("train")["first_frame"].values
        assert (store.spec.names, store.frame_dt) == (("position", "velocity", "mass", "species"), 0.25)
        expected = np.stack([speed[start : start + 10] for start in first])
        np.testing.assert_allclose(store.spec.get(store.read("train"), "velocity"), expected, atol=2e-6)

    def test_momenta_of_ase_become_velocities_in_a_known_unit(self, tmp_path):
        import ase
        from ase import units

        speed, images = np.random.default_rng(1).standard_normal((80, 5, 3)), []
        for place, v in zip(liquid(), speed, strict=True):
            images.append(ase.Atoms(SYMBOLS, place, cell=SIDES, pbc=True, velocities=v))
        images[0].write(tmp_path / "a.extxyz")
        for image in images[1:]:
            image.write(tmp_path / "a.extxyz", append=True)
        with pytest.raises(ConfigError, match=r"a.extxyz: holds velocities, but not the time between two frames: give --frame-dt"):
            import_md([tmp_path / "a.extxyz"], tmp_path / "a.zarr", Options(segment=10))
        store = import_md([tmp_path / "a.extxyz"], tmp_path / "a.zarr", Options(segment=10, frame_dt=2.0))
        first = store.dataset("train")["first_frame"].values
        expected = units.fs * np.stack([speed[start : start + 10] for start in first])
        np.testing.assert_allclose(store.spec.get(store.read("train"), "velocity"), expected, rtol=1e-5, atol=1e-6)
        assert (store.time_unit, store.spec["velocity"].unit) == ("fs", "Å/fs")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"cell": "8 0 0 2 9 0 0 0 10"}, r"the cell of frame 0 is not rectangular \(triclinic\): only boxes with right angles"),
            (
                {"change": 0.01},
                "the box changes, from 8 x 9 x 10 in frame 0 to 8.01 x 9 x 10 in frame 1: only a constant one .*; --box mean",
            ),
            ({"pbc": "T T F"}, "frame 0 is periodic along x, y alone: expected all axes or none"),
        ],
    )
    def test_boxes_that_are_not_modelled_are_refused(self, changes, message, tmp_path):
        file = extxyz(tmp_path / "a.extxyz", liquid(), **changes)
        with pytest.raises(DataError, match=f"a.extxyz: {message}"):
            import_md([file], tmp_path / "a.zarr", Options(segment=10))
        assert not (tmp_path / "a.zarr").exists()

    def test_the_mean_box_takes_the_places_of_a_box_that_changes(self, tmp_path):
        place = liquid()
        file = extxyz(tmp_path / "a.extxyz", place, change=0.01)
        store = import_md([file], tmp_path / "a.zarr", Options(segment=10, history=1, frame_dt=0.5), box="mean")
        sides = np.stack([8 + 0.01 * np.arange(80), np.full(80, 9.0), np.full(80, 10.0)], -1)
        scaled, first = place * (sides.mean(0) / sides)[:, None], store.dataset("train")["first_frame"].values
        assert store.spec.box == pytest.approx((8.395, 9, 10))
        expected = np.stack([scaled[start + 1 : start + 10] for start in first])
        np.testing.assert_allclose(store.spec.get(store.read("train"), "position"), store.spec.geometry.wrap(expected), atol=2e-6)
        moved = np.stack([np.diff(scaled, axis=0)[start : start + 9] / 0.5 for start in first])
        np.testing.assert_allclose(store.spec.get(store.read("train"), "velocity"), moved, atol=1e-5)
        assert "a.extxyz: places are scaled to the mean box, of which a box differs by up to 0.047" in ImportReport.of(store.path).lines()

    def test_a_molecule_is_followed_out_of_a_box_that_leans_and_changes(self, tmp_path):
        rng = np.random.default_rng(0)
        whole = rng.uniform(-1.5, 1.5, (1, 5, 3)) + 0.3 * rng.standard_normal((80, 1, 3)).cumsum(0) + 0.1 * rng.standard_normal((80, 5, 3))
        cell = np.array([[8.0, 0, 0], [2, 9, 0], [1, -2, 10]])
        cells = cell + np.diag([1.0, 0, 0]) * 0.01 * np.arange(80)[:, None, None]
        fractions = np.linalg.solve(np.swapaxes(cells, -1, -2)[:, None], whole[..., None])[..., 0]
        wrapped = np.einsum("tai,tij->taj", fractions - np.floor(fractions), cells)
        assert np.abs(np.diff(wrapped, axis=0)).max() > 5
        assert np.ptp(wrapped[0], axis=0).max() > 5  # cut by the box in the first frame
        file = extxyz(tmp_path / "a.extxyz", wrapped, cell="8 0 0 2 9 0 1 -2 10", change=0.01)
        store = import_md([file], tmp_path / "a.zarr", Options(segment=10, history=0, frame_dt=0.5), box="none")
        first = store.dataset("train")["first_frame"].values
        found = store.spec.get(store.read("train"), "position")
        expected = np.stack([whole[start : start + 10] for start in first])
        assert store.spec.box == ()
        np.testing.assert_allclose(found - found[:1, :1, :1], expected - expected[:1, :1, :1], atol=5e-6)

    def test_a_flat_cell_is_refused(self, tmp_path):
        file = extxyz(tmp_path / "a.extxyz", liquid(), cell="8 0 0 0 9 0 8 9 0")
        with pytest.raises(DataError, match="the cell of frame 0 is flat"):
            import_md([file], tmp_path / "a.zarr", Options(segment=10), box="none")

    def test_what_ase_writes_itself_is_read(self, tmp_path):
        from ase import Atoms
        from ase.io import write

        images = [Atoms(SYMBOLS, place % SIDES, cell=SIDES, pbc=True) for place in liquid()]
        order = np.argsort(SYMBOLS, kind="stable")
        stores = []
        for name in ("run.traj", "XDATCAR", "run.exyz"):
            form = {"XDATCAR": "vasp-xdatcar", "run.exyz": "extxyz"}.get(name)
            write(tmp_path / name, [image[order] for image in images], format=form)
            stores.append(import_md([tmp_path / name], tmp_path / f"{name}.zarr", Options(segment=10, history=0, frame_dt=1.0)))
        for store in stores:
            np.testing.assert_allclose(store.read("train"), stores[0].read("train"), atol=2e-6)
            assert store.spec.box == pytest.approx(SIDES)

    def test_every_file_may_have_a_box_of_its_own(self, tmp_path):
        place = liquid()
        files = [extxyz(tmp_path / "a.extxyz", place), extxyz(tmp_path / "b.extxyz", place, cell="7 0 0 0 9 0 0 0 10")]
        store = import_md(files, tmp_path / "a.zarr", Options(segment=10, history=1, frame_dt=0.5, scale=0.1, unit="nm"))
        spec, x, found = store.spec, store.read("train"), store.dataset("train")
        recording, first = found["recording"].values, found["first_frame"].values
        sides = np.array([(0.8, 0.9, 1.0), (0.7, 0.9, 1.0)])[recording]
        assert (spec.box, spec["box"].unit, set(recording)) == ((), "nm", {0, 1})
        np.testing.assert_allclose(found["box"], sides)
        np.testing.assert_allclose(spec.get(x, "box"), np.broadcast_to(sides[:, None, None], (*x.shape[:3], 3)))
        expected = np.stack([0.1 * place[start + 1 : start + 10] for start in first])
        np.testing.assert_allclose(spec.get(x, "position"), expected % sides[:, None, None], atol=1e-6)
        moved = np.stack([0.1 * np.diff(place, axis=0)[start : start + 9] / 0.5 for start in first])
        np.testing.assert_allclose(spec.get(x, "velocity"), moved, atol=1e-5)
        assert not [finding for finding in check(store) if finding.level == "error"]
        assert store.context().spec["position"].scale == pytest.approx(np.sqrt(np.mean(sides**2) / 12))

    def test_files_with_and_without_a_box_are_imported_apart(self, tmp_path):
        files = [extxyz(tmp_path / "a.extxyz", liquid()), extxyz(tmp_path / "b.extxyz", liquid(), pbc="F F F")]
        with pytest.raises(ConfigError, match="a is in a periodic box, b is in none: import them apart"):
            import_md(files, tmp_path / "a.zarr", Options(segment=10))

    def test_individuals_are_classes_of_their_own_and_the_same_in_all_files(self, tmp_path):
        files = [extxyz(tmp_path / f"{name}.xyz", liquid(seed=seed)) for seed, name in enumerate("ab")]
        store = import_md(files, tmp_path / "a.zarr", Options(segment=10), individuals=True)
        spec, x = store.spec, store.read("train")
        assert ("species" in spec.names, spec["atom"].size) == (False, 5)
        np.testing.assert_array_equal(spec.get(x, "atom"), np.broadcast_to(np.arange(5), spec.get(x, "atom").shape))
        for other in (extxyz(tmp_path / "few.xyz", liquid()[:, :4]), extxyz(tmp_path / "turned.xyz", liquid())):
            if other.stem == "turned":
                other.write_text(other.read_text().replace("\nO ", "\nN "))
            with pytest.raises(DataError, match=f"{other.name}: its atoms are not those of .*a.xyz"):
                import_md([files[0], other], tmp_path / "b.zarr", Options(segment=10), individuals=True)

    def test_atoms_that_come_and_go_and_damaged_files_are_refused(self, tmp_path):
        file = extxyz(tmp_path / "a.extxyz", liquid())
        with file.open("a") as out:
            out.write('1\nLattice="8 0 0 0 9 0 0 0 10" Properties=species:S:1:pos:R:3 pbc="T T T"\nO 0 0 0\n')
        with pytest.raises(DataError, match="frame 80 has 1 atoms, the first 5: atoms cannot be followed"):
            import_md([file], tmp_path / "a.zarr", Options(segment=10))
        file.write_text("5\nnothing\n1 2\n")
        with pytest.raises(DataError, match=r"a.extxyz: frame 0 cannot be read as extxyz"):
            open_atoms(file)
        with pytest.raises(DataError, match="no such file"):
            open_atoms(tmp_path / "b.xyz")

    def test_the_command(self, tmp_path):
        file, out = extxyz(tmp_path / "water.extxyz", liquid()), tmp_path / "a.zarr"
        run = CliRunner().invoke(main, ["data", "import-md", str(file), "--segment", "10", "--out", str(out)])
        assert run.exit_code == 0, run.output
        assert "400 rows, 5 tracks, 80 frames" in run.output


@pytest.mark.filterwarnings("ignore")  # it warns of every attribute that a made-up topology lacks
class TestMDAnalysis:
    @pytest.fixture(autouse=True)
    def _needs_mdanalysis(self):
        pytest.importorskip("MDAnalysis")

    @pytest.fixture
    def protein(self, tmp_path):
        """A trajectory of ten carbon atoms and ten others, as a PDB topology and a DCD trajectory."""
        import MDAnalysis

        universe = MDAnalysis.Universe.empty(20, n_residues=10, atom_resindex=np.repeat(np.arange(10), 2), trajectory=True)
        universe.add_TopologyAttr("names", ["CA", "N"] * 10)
        universe.add_TopologyAttr("masses", [12.011, 14.007] * 10)
        rng = np.random.default_rng(0)
        place = rng.normal(0, 5, (1, 20, 3)) + 0.2 * rng.standard_normal((60, 20, 3)).cumsum(0)
        universe.atoms.positions = place[0]
        universe.dimensions = [50, 60, 70, 90, 90, 90]
        universe.atoms.write(tmp_path / "protein.pdb")
        with MDAnalysis.Writer(str(tmp_path / "protein.dcd"), 20, dt=2.0) as writer:
            for frame in place:
                universe.atoms.positions = frame
                writer.write(universe.atoms)
        return tmp_path / "protein.pdb", tmp_path / "protein.dcd", place

    def test_a_selection_arrives_in_its_box_with_the_time_of_the_file(self, protein, tmp_path):
        topology, trajectory, place = protein
        options = Options(segment=10, history=0)
        store = import_md([trajectory], tmp_path / "a.zarr", options, topology=topology, select="name CA")
        assert store.sites("train") == (10,)
        assert store.spec.box == pytest.approx((50, 60, 70))
        assert (store.frame_dt, store.time_unit) == (pytest.approx(2.0, rel=1e-4), "ps")
        first = store.dataset("train")["first_frame"].values
        expected = np.stack([place[start : start + 10, ::2] for start in first])
        np.testing.assert_allclose(store.spec.get(store.read("train"), "position"), store.spec.geometry.wrap(expected), atol=1e-4)
        assert store.spec.names == ("position",)

    def test_bonds_between_the_chosen_atoms_become_pairs(self, protein, tmp_path):
        import MDAnalysis

        topology, trajectory, _ = protein
        chain = MDAnalysis.Universe(str(topology))
        chain.add_TopologyAttr("bonds", [(0, 2), (2, 4), (4, 5), (16, 18)])
        chain.atoms.write(tmp_path / "bonded.pdb")
        options = Options(segment=10, history=0)
        store = import_md([trajectory], tmp_path / "a.zarr", options, topology=tmp_path / "bonded.pdb", select="name CA", bonds=True)
        bond = store.spec.get(store.read("train"), "bond")[0, 0]
        expected = np.zeros((10, 10))
        for i, j in [(0, 1), (1, 2), (8, 9)]:  # the other bond goes to an atom that is not chosen
            expected[i, j] = expected[j, i] = 1
        np.testing.assert_array_equal(bond, expected)
        with pytest.raises(DataError, match="its topology has no bonds between the atoms: give --topology, or a table of them"):
            import_md([trajectory], tmp_path / "b.zarr", options, topology=topology, select="name CA", bonds=True)

    def test_what_cannot_be_read_is_said(self, protein, tmp_path):
        topology, trajectory, _ = protein
        with pytest.raises(DataError, match=r"protein.dcd: MDAnalysis cannot read it: .*: does it need --topology FILE\?"):
            open_atoms(trajectory, select="name CA")
        with pytest.raises(DataError, match="no atom is selected by 'name XX'"):
            open_atoms(trajectory, topology=topology, select="name XX")


def test_without_the_extra_the_message_says_how_to_get_it(monkeypatch, tmp_path):
    import builtins

    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.split(".")[0] in ("ase", "MDAnalysis"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    extxyz(tmp_path / "a.xyz", liquid(2))
    (tmp_path / "a.dcd").write_bytes(b"")
    for name, needs in (("a.xyz", "ASE"), ("a.dcd", "MDAnalysis")):
        with pytest.raises(DataError, match=rf"{name}: .* needs {needs}: pip install 'epns-pyro\[md\]'"):
            open_atoms(tmp_path / name)
