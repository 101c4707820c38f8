"""Catalogues given to a run: units, defaults, and errors that name file and column."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from nightstream.errors import FileError, InputError
from nightstream.io.catalogues import read_positions, read_preload, read_reference


def write(path, text):
    path.write_text(text)
    return path


def test_reference_flux_is_njy(tmp_path):
    """AB magnitude 31.4 is 1 nJy; a column in nJy is taken as it is; comments are skipped."""
    by_mag = read_reference(write(tmp_path / "m.csv", "# Gaia\nra,dec,mag\n10,-5,31.4\n11,-6,28.9\n"))
    by_flux = read_reference(write(tmp_path / "f.csv", "ra,dec,flux_njy\n10,-5,1\n11,-6,10\n"))
    assert set(by_mag) == {"ra", "dec", "flux"}
    for name in by_mag:
        np.testing.assert_allclose(by_mag[name], by_flux[name], rtol=1e-12)  # 10**x to a few eps


def test_hdf5_tables_are_read_like_csv(tmp_path):
    """The first table of an HDF5 file serves as well."""
    rows = np.array([(10.0, -5.0, 3.0)], dtype=[("ra", "f8"), ("dec", "f8"), ("flux_njy", "f8")])
    with h5py.File(tmp_path / "r.h5", "w") as file:
        file["stars"] = rows
    assert read_reference(tmp_path / "r.h5")["flux"].tolist() == [3.0]


def test_positions_keep_their_ids_or_are_counted(tmp_path):
    """64-bit ids survive; without ids rows count from 1."""
    given = read_positions(write(tmp_path / "p.csv", "dia_object_id,ra,dec\n9007199254740993,1,2\n"))
    counted = read_positions(write(tmp_path / "q.csv", "ra,dec\n1,2\n3,4\n"))
    assert given["dia_object_id"].tolist() == [2**53 + 1]
    assert counted["dia_object_id"].tolist() == [1, 2] and counted["dec"].tolist() == [2.0, 4.0]


@pytest.mark.parametrize(
    ("name", "text", "kind", "message"),
    [
        ("a.csv", "ra,flux_njy\n1,2\n", InputError, "wanted dec too"),
        ("b.csv", "ra,dec\n1,2\n", InputError, "wanted flux_njy or mag too"),
        ("c.csv", "ra,dec,mag\n1,x,3\n", InputError, "column dec"),
        ("d.csv", "ra,dec,mag\n1,nan,3\n", InputError, "column dec holds values that are not finite"),
        ("e.csv", "", InputError, "got no rows"),
        ("f.h5", "no HDF5", FileError, "not a readable HDF5 file"),
    ],
)
def test_wrong_catalogue_is_one_clear_error(name, text, kind, message, tmp_path):
    """File and column are named."""
    path = write(tmp_path / name, text)
    with pytest.raises(kind, match=message) as caught:
        read_reference(path)
    assert str(path) in str(caught.value)


def test_missing_catalogue_is_a_file_error(tmp_path):
    """So is one that is not there."""
    with pytest.raises(FileError, match="no such file"):
        read_positions(tmp_path / "lost.csv")


PRELOAD = [("dia_object_id", "<i8"), ("ra", "<f8"), ("dec", "<f8")]


def test_preloaded_positions_keep_their_ids(tmp_path):
    """Ids and positions come back exactly; no objects in the field are no trouble."""
    np.save(tmp_path / "p.npy", np.array([(2**53 + 1, 10.0, -5.0), (3, 359.9, 0.1)], dtype=PRELOAD))
    found = read_preload(tmp_path / "p.npy")
    assert found["dia_object_id"].tolist() == [2**53 + 1, 3] and found["ra"].tolist() == [10.0, 359.9]
    np.save(tmp_path / "none.npy", np.zeros(0, dtype=PRELOAD))
    assert len(read_preload(tmp_path / "none.npy")["dec"]) == 0


def test_broken_preloads_are_named(tmp_path):
    """A missing, foreign or incomplete file is told with its path, and nothing is unpickled."""
    with pytest.raises(FileError, match="no such file .*gone.npy"):
        read_preload(tmp_path / "gone.npy")
    with pytest.raises(FileError, match="not a readable NumPy file.*text.npy"):
        read_preload(write(tmp_path / "text.npy", "ra,dec"))
    with pytest.raises(FileError, match="not a readable NumPy file.*empty.npy"):
        read_preload(write(tmp_path / "empty.npy", ""))
    np.save(tmp_path / "ra.npy", np.zeros(1, dtype=PRELOAD[1:]))
    with pytest.raises(InputError, match="got columns ra, dec, wanted dia_object_id too"):
        read_preload(tmp_path / "ra.npy")
    np.save(tmp_path / "nan.npy", np.array([(1, np.nan, 0.0)], dtype=PRELOAD))
    with pytest.raises(InputError, match="column ra holds values that are not finite"):
        read_preload(tmp_path / "nan.npy")
