"""Small catalogues that a run is given: reference stars, and positions to force photometry at. CSV or HDF5."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from nightstream.engine.values import Table
from nightstream.errors import FileError, InputError

PRELOADED = ("dia_object_id", "ra", "dec")
HDF5_SUFFIXES = (".h5", ".hdf5")


def read_reference(path: str | Path) -> Table:
    """Return reference stars as ``ra``, ``dec`` (deg) and ``flux`` (nJy), float64.

    The file has the columns ra, dec and flux_njy, or mag (AB) in its place.
    """
    table = read_columns(Path(path), ("ra", "dec"))
    if "flux_njy" in table:
        flux = _numbers(table, "flux_njy", path)
    elif "mag" in table:
        flux = 10.0 ** (0.4 * (31.4 - _numbers(table, "mag", path)))  # AB: 1 nJy is magnitude 31.4
    else:
        raise InputError(f"got columns {', '.join(table)}, wanted flux_njy or mag too", path=str(path))
    return {"ra": _numbers(table, "ra", path), "dec": _numbers(table, "dec", path), "flux": flux}


def read_positions(path: str | Path) -> Table:
    """Return positions as ``ra``, ``dec`` (deg) and ``dia_object_id``; without that column rows count from 1."""
    table = read_columns(Path(path), ("ra", "dec"))
    ra, dec = _numbers(table, "ra", path), _numbers(table, "dec", path)
    ids = np.asarray(table["dia_object_id"]) if "dia_object_id" in table else np.arange(1, len(ra) + 1)
    try:
        return {"dia_object_id": ids.astype(np.int64), "ra": ra, "dec": dec}
    except ValueError:
        raise InputError("dia_object_id must be whole numbers", path=str(path)) from None


def read_preload(path: str | Path) -> Table:
    """Return ``dia_object_id``, ``ra`` and ``dec`` (deg) of a preload: a structured array in a ``.npy`` file; may be empty.

    Raises FileError when the file is missing or no such array, InputError when a column lacks or is not finite.
    """
    try:
        rows = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise FileError("no such file", path=str(path)) from None
    except (OSError, ValueError, EOFError) as error:
        raise FileError(f"not a readable NumPy file: {error}", path=str(path)) from None
    missing = [name for name in PRELOADED if name not in (rows.dtype.names or ())]
    if missing:
        raise InputError(f"got columns {', '.join(rows.dtype.names or ())}, wanted {', '.join(missing)} too", path=str(path))
    ids = rows["dia_object_id"].astype(np.int64)
    return {"dia_object_id": ids, "ra": _numbers(rows, "ra", path), "dec": _numbers(rows, "dec", path)}


def read_columns(path: Path, wanted: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return the columns of a CSV file (text) or of the first table of an HDF5 file. Raises InputError without ``wanted``."""
    if not path.is_file():
        raise FileError("no such file", path=str(path))
    table = _read_hdf5(path) if path.suffix in HDF5_SUFFIXES else _read_csv(path)
    missing = [name for name in wanted if name not in table]
    if missing:
        raise InputError(f"got columns {', '.join(table)}, wanted {', '.join(missing)} too", path=str(path))
    return table


def _read_csv(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FileError(f"not a readable CSV file: {error}", path=str(path)) from None
    if not rows:
        raise InputError("got no rows, wanted a header line and one row a source", path=str(path))
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():  # what the reader puts for cells too many or too few
            raise InputError(f"row {number} has not as many cells as the header", path=str(path))
    return {str(name).strip(): np.array([row[name] for row in rows]) for name in rows[0]}


def _read_hdf5(path: Path) -> dict[str, np.ndarray]:
    """The first compound dataset of the file."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            tables = [item for item in file.values() if isinstance(item, h5py.Dataset) and item.dtype.names]
            rows = tables[0][()] if tables else None
    except OSError as error:
        raise FileError(f"not a readable HDF5 file: {error}", path=str(path)) from None
    if rows is None:
        raise InputError("holds no table, wanted one with columns", path=str(path))
    return {name: rows[name] for name in rows.dtype.names}


def _numbers(table: dict[str, np.ndarray] | np.ndarray, name: str, path: str | Path) -> np.ndarray:
    try:
        values = table[name].astype(np.float64)
    except ValueError as error:
        raise InputError(f"column {name}: {error}", path=str(path)) from None
    if not np.isfinite(values).all():
        raise InputError(f"column {name} holds values that are not finite", path=str(path))
    return values
