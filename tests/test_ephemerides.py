"""Files of predicted positions: CSV and HDF5 alike, with or without what is optional."""

import h5py
import numpy as np
import pytest

from nightstream.errors import FileError, InputError
from nightstream.io.ephemerides import read_ephemerides

CSV = """# made by a service
ss_object_id,designation,visit,mjd,ra,dec,ra_rate,dec_rate,mag,remark
9007199254740993,2026 AB1,77,61000.5,10.5,-5.25,0.25,-0.125,20.5,first
12,2026 AC2,77,61000.5,11.5,-6.25,,,,
"""


def write(path, text):
    path.write_text(text)
    return path


def test_csv_gives_typed_columns(tmp_path):
    """64-bit numbers survive, blank cells are NaN, foreign columns are left out."""
    table = read_ephemerides(write(tmp_path / "e.csv", CSV))
    assert table["ss_object_id"].tolist() == [2**53 + 1, 12]
    assert table["designation"].tolist() == ["2026 AB1", "2026 AC2"] and "remark" not in table
    assert table["ra_rate"][0] == 0.25 and np.isnan(table["ra_rate"][1]) and np.isnan(table["mag"][1])
    assert table["visit"].dtype == np.int64 and table["mjd"].tolist() == [61000.5, 61000.5]


def test_hdf5_gives_the_same(tmp_path):
    """A compound dataset with the same columns is read as the same table, its text as str."""
    table = read_ephemerides(write(tmp_path / "e.csv", CSV))
    rows = np.empty(2, dtype=[(n, c.dtype if c.dtype.kind != "U" else "S16") for n, c in table.items()])
    for name, column in table.items():
        rows[name] = column
    with h5py.File(tmp_path / "e.h5", "w") as file:
        file["ephemerides"] = rows
    again = read_ephemerides(tmp_path / "e.h5")
    assert set(again) == set(table)
    for name in table:
        np.testing.assert_array_equal(again[name], table[name])


def test_the_simulators_file_is_read(tmp_path):
    """What the sky simulator predicts comes through, one row a visit and asteroid."""

    from nightstream.simulate.truth import write_tables

    write_tables(tmp_path / "s.h5", {"ephemerides": {
        "ss_object_id": np.array([1, 2]), "designation": np.array(["SIM 1", "SIM 2"], "U16"), "visit": np.array([5, 5]),
        "mjd": np.full(2, 61000.0), "ra": np.array([1.0, 2.0]), "dec": np.zeros(2), "ra_rate": np.ones(2),
        "dec_rate": np.ones(2), "mag": np.full(2, 20.0),
    }})  # fmt: skip
    assert read_ephemerides(tmp_path / "s.h5")["designation"].tolist() == ["SIM 1", "SIM 2"]


@pytest.mark.parametrize(
    "text, words",
    [
        ("ra,dec\n1,2\n", "wanted ss_object_id too"),
        ("ss_object_id,ra,dec\nx,1,2\n", "ss_object_id must hold whole numbers"),
        ("ss_object_id,ra,dec\n0,1,2\n", "must be positive"),
        ("ss_object_id,ra,dec,mag\n1,1,2,bright\n", "column mag"),
    ],
)
def test_wrong_files_are_refused(tmp_path, text, words):
    """The message names the column and the file."""
    with pytest.raises(InputError, match=words) as error:
        read_ephemerides(write(tmp_path / "e.csv", text))
    assert "e.csv" in str(error.value)


def test_a_missing_file_is_said(tmp_path):
    """No such file is a FileError."""
    with pytest.raises(FileError, match="no such file"):
        read_ephemerides(tmp_path / "none.csv")
