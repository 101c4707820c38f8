"""Predicted positions of known Solar System objects, from a CSV or HDF5 file that some ephemeris service made.

One row an object and visit (column visit), or an object and time (column mjd, TAI); a file may cover many visits. Which rows
serve a visit: `nightstream.engine.solar_system.predictions_for`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nightstream.engine.values import Table
from nightstream.errors import InputError
from nightstream.io.catalogues import read_columns

REQUIRED = ("ra", "dec")  # deg, ICRS, astrometric, seen from the observer
# deg/day: ra_rate not times cos(dec); deg: ra_err times cos(dec); mag: V; AU and km/s: the vectors and ranges, ICRS axes.
OPTIONAL = (
    "mjd", "ra_rate", "dec_rate", "ra_err", "dec_err", "mag", "topo_range", "topo_range_rate", "helio_range_rate",
    *(f"{origin}_{axis}" for origin in ("helio", "topo") for axis in ("x", "y", "z", "vx", "vy", "vz")),
)  # fmt: skip


def read_ephemerides(path: str | Path) -> Table:
    """Return the predictions of a file: ss_object_id (int64), designation (text), ra, dec, and what else it has of `OPTIONAL`.

    Columns with other names are left out, so that a service's own remarks do no harm. A blank cell of an optional column is
    NaN. Rows without a position are kept, and match nothing. Raises FileError on an unreadable file; InputError on a missing
    column, on text where a number is wanted, on an ss_object_id that is not a positive whole number, and on an object with two
    rows for one visit or time.
    """
    columns = read_columns(Path(path), ("ss_object_id", *REQUIRED))
    table = {"ss_object_id": _whole_numbers(columns, "ss_object_id", path)}
    if (table["ss_object_id"] <= 0).any():
        raise InputError("ss_object_id must be positive", path=str(path))
    if "visit" in columns:
        table["visit"] = _whole_numbers(columns, "visit", path)
    n = len(table["ss_object_id"])
    table["designation"] = _text(columns["designation"]) if "designation" in columns else np.full(n, "")
    for name in (*REQUIRED, *(name for name in OPTIONAL if name in columns)):
        table[name] = _numbers(columns, name, path)
    _check_doubles(table, path)
    return table


def _check_doubles(table: Table, path) -> None:
    """Every object has one place at a time."""
    when = next((name for name in ("visit", "mjd") if name in table), None)
    ids, times = table["ss_object_id"], table[when] if when else np.zeros(len(table["ss_object_id"]))
    order = np.lexsort((times, ids))
    is_double = (np.diff(ids[order]) == 0) & (np.diff(times[order]) == 0)
    if is_double.any():
        row = order[np.flatnonzero(is_double)[0]]
        place = f" for {when} {times[row]}" if when else ""
        raise InputError(f"Solar System object {ids[row]} has several rows{place}, wanted one", path=str(path))


def _whole_numbers(columns: Table, name: str, path) -> np.ndarray:
    try:
        return np.asarray(columns[name]).astype(np.int64)
    except ValueError:
        raise InputError(f"column {name} must hold whole numbers", path=str(path)) from None


def _numbers(columns: Table, name: str, path) -> np.ndarray:
    values = np.asarray(columns[name])
    if values.dtype.kind in "US":
        values = np.where(np.char.strip(_text(values)) == "", "nan", _text(values))
    try:
        return values.astype(np.float64)
    except ValueError as error:
        raise InputError(f"column {name}: {error}", path=str(path)) from None


def _text(values: np.ndarray) -> np.ndarray:
    """Return str, from str or the bytes (or objects) of HDF5."""
    if values.dtype.kind == "O":
        values = np.array([item.decode() if isinstance(item, bytes) else str(item) for item in values])
    return np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values.astype(str)
