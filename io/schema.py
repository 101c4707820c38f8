"""What a catalogue column is, and how tables become structured arrays and come back. The tables themselves: `io.apdb`.

The one place that maps snake_case names to those of Rubin's APDB. A Python name is the APDB name with an underscore
before each word: psfFluxErr is psf_flux_err, pixelFlags_crCenter is pixel_flags_cr_center.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nightstream.engine.memory import to_host
from nightstream.engine.values import Table
from nightstream.errors import InputError

# A value nobody measured: what SQL calls NULL.
NULLS = {"f": np.nan, "i": 0, "b": False, "S": b"", "M": np.datetime64("NaT", "us")}
DTYPES = {"l": "<i8", "s": "<i2", "i": "<i4", "f": "<f4", "d": "<f8", "b": "?", "m": "<M8[us]", "t": "S16"}
BANDS = "ugrizy"


@dataclass(frozen=True, slots=True)
class Column:
    """One column: ``name`` in Python, ``apdb`` in files and databases, NumPy ``dtype``."""

    name: str
    apdb: str
    dtype: str
    unit: str  # empty for a number without unit
    ucd: str
    description: str
    optional: bool  # left out of a file when not measured, instead of filled with nulls
    required: bool = False  # NOT NULL in a database, no null in an alert

    @property
    def null(self):
        """What stands for "not measured": NaN, 0, False or empty text."""
        return NULLS[np.dtype(self.dtype).kind]


@dataclass(frozen=True)
class Schema:
    """A table's name and columns, in order."""

    name: str
    columns: tuple[Column, ...]

    @cached_property
    def by_name(self) -> dict[str, Column]:
        """Columns by their Python name."""
        return {column.name: column for column in self.columns}

    @cached_property
    def by_apdb(self) -> dict[str, Column]:
        """Columns by their APDB name."""
        return {column.apdb: column for column in self.columns}


def snake_case(apdb: str) -> str:
    """Return the Python name of an APDB column."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", apdb).lower()


def to_structured(table: Table, schema: Schema) -> np.ndarray:
    """Return ``table`` as a structured array with APDB names and types, on the host.

    Official columns that ``table`` lacks are filled with nulls (NaN, 0, False, empty); ours are left out. An
    empty dict is a table of no rows. Raises InputError for an unknown column, unequal lengths, or values the
    column's type cannot hold; floats may be rounded to float32.
    """
    lengths = _check(table, schema)
    columns = [column for column in schema.columns if column.name in table or not column.optional]
    rows = np.empty(lengths.pop() if lengths else 0, dtype=[(column.apdb, column.dtype) for column in columns])
    for column in columns:
        rows[column.apdb] = cast_column(table[column.name], column) if column.name in table else column.null
    return rows


def from_structured(rows: np.ndarray, schema: Schema, names: tuple[str, ...] | None = None) -> Table:
    """Return ``rows`` as a table of contiguous columns: all, or those of ``names`` in that order."""
    present = rows.dtype.names or ()
    unknown = set(present) - set(schema.by_apdb)
    if unknown:
        raise InputError(f"{schema.name} has no column {', '.join(sorted(unknown))}")
    names = tuple(schema.by_apdb[apdb].name for apdb in present) if names is None else names
    return {name: _decoded(rows[schema.by_name[name].apdb]) for name in names}


def _check(table: Table, schema: Schema) -> set[int]:
    unknown = [name for name in table if name not in schema.by_name]
    if unknown:
        raise InputError(f"{schema.name} has no column {', '.join(unknown)}")
    lengths = {len(values) for values in table.values()}
    if len(lengths) > 1:
        raise InputError(f"columns of {schema.name} must have one length, got {sorted(lengths)}")
    return lengths


def cast_column(values, column: Column) -> np.ndarray:
    """Return ``values`` with the column's dtype, themselves if they have it; refuse a cast that changes what they mean.

    Masked values become nulls.
    """
    values = to_host(values) if hasattr(values, "dtype") else np.asarray(values)
    dtype = np.dtype(column.dtype)
    if isinstance(values, np.ma.MaskedArray):
        values = values.filled("" if dtype.kind == "S" else column.null)
    if dtype.kind == "S":
        return _encoded(values, column)
    if values.dtype == dtype:
        return values
    if not np.can_cast(values.dtype, dtype, "same_kind") and not (dtype.kind == "b" and values.dtype.kind in "iu"):
        raise InputError(f"column {column.apdb} wants {dtype}, got {values.dtype}")
    with np.errstate(over="ignore"):
        cast = values.astype(dtype)
    if dtype.kind in "ib" and not np.array_equal(cast, values):
        raise InputError(f"column {column.apdb} holds values that {dtype} cannot")
    return cast


def _encoded(values: np.ndarray, column: Column) -> np.ndarray:
    encoded = np.char.encode(values.astype(np.str_), "utf-8")
    if encoded.dtype.itemsize > np.dtype(column.dtype).itemsize:
        raise InputError(f"column {column.apdb} holds text of more than {np.dtype(column.dtype).itemsize} bytes")
    return encoded


def _decoded(values: np.ndarray) -> np.ndarray:
    return np.char.decode(values, "utf-8") if values.dtype.kind == "S" else np.ascontiguousarray(values)


def parse_columns(text: str, *, optional: bool = False) -> tuple[Column, ...]:
    """Return the columns that ``text`` describes, one per line: APDB name, type, unit, UCD, meaning; - for nothing.

    Types: l i s integers of 8, 4, 2 bytes; d f floats of 8, 4 bytes; b boolean; m time to the microsecond, UTC; t text of
    up to 16 bytes, t64 of up to 64. A type with ``!`` is never NULL. A block between empty lines whose names begin with
    ``*_`` is there once per band, ``*`` standing for the band.
    """
    columns: list[Column] = []
    for block in re.split(r"\n\s*\n", text.strip()) if text.strip() else ():
        for band in BANDS if block.startswith("*_") else "*":
            columns += [_parse_line(line, band, optional) for line in block.splitlines()]
    return tuple(columns)


def _parse_line(line: str, band: str, optional: bool) -> Column:
    apdb, code, unit, ucd, description = line.split(maxsplit=4)
    apdb, description = apdb.replace("*", band), description.replace("*", band)
    unit, ucd = ("" if word == "-" else word for word in (unit, ucd))
    kind = code.rstrip("!")
    dtype = DTYPES.get(kind) or f"S{int(kind[1:])}"
    return Column(snake_case(apdb), apdb, dtype, unit, ucd, description, optional, code.endswith("!"))
