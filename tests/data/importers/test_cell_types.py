"""Tables of types as spreadsheets write them, and files that are no such tables."""

from __future__ import annotations

import numpy as np
import pytest

from epns_pyro.data.importers.cell_types import read_types
from epns_pyro.data.importers.movies import Movie
from epns_pyro.data.importers.npy import load_npy
from epns_pyro.errors import DataError

MOVIE = Movie("film.tif", 0, list)
TABLE = "label,type\n1,2\n7,1\n"


@pytest.mark.parametrize(
    "content",
    [
        TABLE.encode(),
        TABLE.encode("utf-8-sig"),
        TABLE.replace("\n", "\r\n").encode("utf-16"),
        TABLE.replace(",", ";").replace("\n", "\r\n").encode("utf-8-sig"),
        ("sep=;\n" + TABLE.replace(",", ";")).encode(),
        TABLE.replace(",", "\t").encode(),
        "label,type,näme\n1,2,ä\n7,1,ö\n".encode("latin-1"),
        b"Label , Type\n 1, 2\n\n7.0,1.\n,\n",
        b"movie;label;type\nfilm;1;2\n0;7;1\nother;7;9\n",
        b"label,type\r1,2\r7,1\r",
        b'"label","type"\n"1","2"\n"7","1"\n',
        TABLE.encode() + b"7,1\n",
    ],
)
def test_tables_that_are_read(content, tmp_path):
    (tmp_path / "t.csv").write_bytes(content)
    np.testing.assert_array_equal(read_types(tmp_path / "t.csv")(MOVIE, np.array([1, 7])), [2, 1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as a table"),
        (b"\xff\xfe\x00", "is not text in utf-16"),
        (b"cell,type\n1,1\n", "has no column 'label'"),
        (b"label,type\n1,big\n", r"line 2: label and type must be whole numbers below 1e18, found type 'big'"),
        (b"label,type\n1,1\n\n2,1.5\n", "line 4: label and type must be whole numbers"),
        (b"sep=,\nlabel,type\n\xb2,1\n", "line 3: label and type must be whole numbers"),
        (f"label,type\n{10**30},1\n".encode(), "line 2: label and type must be whole numbers below 1e18"),
        (b"label,type\n1,255\n", "line 2: type 255 is larger than 254"),
        (b"label,type\n1,-1\n", "line 2: label and type must be whole numbers"),
        (b"label,type\n1,1,5,7\n1,1,6\n", "t.csv"),
        (b"label,type\n1,1\n1,2\n", "label 1 has several types"),
        (b"label,type,type\n1,1,2\n", "t.csv"),
        (b"label,type\n1,2\n", "no type of 1 or more for label 7 of film.tif"),
        (b'label,type\n"1,1\n', "t.csv"),
    ],
)
def test_tables_that_are_refused(content, message, tmp_path):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_types(tmp_path / "t.csv")(MOVIE, np.array([1, 7]))
    assert "\n" not in str(caught.value)


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        npy("{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000,)}", bytes(80)),
        npy("{'descr': '<i8', 'fortran_order': False, 'shape': (4294967296, 4294967296)}", bytes(80)),
        npy("{'descr': '<i8', 'fortran_order': False, 'shape': (-1,)}", bytes(80)),
        npy("{'descr': '<i8', 'fortran_order': False, 'shape': (" + "(" * 9000, bytes(80)),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (2,)}", b"cos\nsystem\n(S'true'\ntR."),
        npy("{'descr': [('a', '<i8')], 'fortran_order': False, 'shape': (2,)}", bytes(16)),
        npy("{'descr': '<U4', 'fortran_order': False, 'shape': (2,)}", bytes(32)),
        npy("{'descr': '<i8', 'fortran_order': False, 'shape': (2,)", bytes(16)),
        b"PK\x03\x04" + bytes(40),
        b"\x80\x04K\x01.",
    ],
)
def test_npy_files_that_are_refused(content, tmp_path):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npy: ") as caught:
        load_npy(tmp_path / "a.npy")
    assert "\n" not in str(caught.value)
