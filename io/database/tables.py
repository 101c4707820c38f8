"""The tables of the prompt database: their columns as `io.apdb` has them, their keys, and how values become NULL and back.

In the database names are the APDB's (``"psfFluxErr"``); in tables of NumPy columns they are snake_case. A value that nobody
measured (NaN, 0 in an integer column that may be NULL, empty text; or what a masked array masks) is NULL in the database.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nightstream.engine.values import Table
from nightstream.errors import InputError
from nightstream.io.apdb import (
    ALERT,
    DETECTOR_VISIT_PROCESSING_SUMMARY,
    DIA_FORCED_SOURCE,
    DIA_OBJECT,
    DIA_OBJECT_LAST,
    DIA_SOURCE,
    SS_SOURCE,
)
from nightstream.io.schema import Column, Schema, parse_columns, to_structured

APDB_VERSION = "ApdbSchema 10.0.0"
FORMAT_VERSION = "2"  # of what is ours: keys, helper tables

SQL_TYPES = {"i8": "BIGINT", "i4": "INTEGER", "i2": "SMALLINT", "f8": "DOUBLE PRECISION", "f4": "REAL", "b1": "BOOLEAN"}
NULL_TEXTS = {"f": "'NaN'", "i": "0", "b": "false", "S": "''"}

_CELL = parse_columns("cell l! - - cell of the sky, see io.database.sky_cells")

_ALERT_FILE = """
alertFile       t64!   - meta.ref.url  spool file of alert packets
number          l!     - meta.id       its place in the order of writing
visit           l!     - meta.id       visit
schemaVersion   t!     - meta.version  version of the packet schema
progress        t4096  - -             what the sink noted while sending
spoolDir        t4096  - meta.ref.url  folder that it lies in, where processes with folders of their own share a database
isSent          b      - -             nothing is left to send
"""

_ALERT_FAILURE = """
diaSourceId     l!     - meta.id       source whose alert can never leave
reason          t256!  - -             why
"""

_REVISION = """
number          l!     - meta.id       its place in the order of all that was stored
visit           l!     - meta.id       visit that was stored; 0: forced photometry on older images
"""

_PRECOVERY = """
diaObjectId        l!  - meta.id       object looked for on older images
precoveredMjdTai   d!  d time.epoch    when it was done, MJD TAI
"""


@dataclass(frozen=True, slots=True)
class StoredTable:
    """A table of the database: its ``schema``, primary ``key`` and ``indexes`` (APDB names).

    Only ``small`` tables have a key in the embedded database, which reads large ones faster without.
    """

    schema: Schema
    key: tuple[str, ...]
    indexes: tuple[tuple[str, ...], ...] = ()
    small: bool = False

    @property
    def name(self) -> str:
        """The quoted name for SQL."""
        return f'"{self.schema.name}"'

    def create(self, *, indexed: bool) -> list[str]:
        """Return the statements that make the table; keys and indexes of large ones if ``indexed``."""
        columns = [f'"{c.apdb}" {sql_type(c)}{" NOT NULL" if c.required else ""}' for c in self.schema.columns]
        if indexed or self.small:
            columns.append(f"PRIMARY KEY ({quoted(self.key)})")
        statements = [f"CREATE TABLE {self.name} ({', '.join(columns)})"]
        if indexed:
            statements += [f"CREATE INDEX ON {self.name} ({quoted(index)})" for index in self.indexes]
        return statements

    def columns(self, names: Sequence[str] | None = None) -> tuple[Column, ...]:
        """Return all columns but the helper ``cell``, or those of ``names`` (snake_case)."""
        unknown = set(names or ()) - set(self.schema.by_name)
        if unknown:
            raise InputError(f"{self.schema.name} has no column {', '.join(sorted(unknown))}")
        if names is not None:
            return tuple(self.schema.by_name[name] for name in names)
        return tuple(column for column in self.schema.columns if column.name != "cell")


DIA_SOURCES = StoredTable(
    DIA_SOURCE, ("diaSourceId",), (("diaObjectId", "midpointMjdTai"), ("ssObjectId",), ("visit", "detector"))
)
FORCED_SOURCES = StoredTable(DIA_FORCED_SOURCE, ("diaForcedSourceId",), (("diaObjectId", "midpointMjdTai"),))
DIA_OBJECTS = StoredTable(DIA_OBJECT, ("diaObjectId", "validityStartMjdTai"))
LAST_OBJECTS = StoredTable(
    Schema("DiaObjectLast", DIA_OBJECT_LAST.columns + _CELL), ("diaObjectId",), (("cell",), ("firstDiaSourceMjdTai",))
)
SS_SOURCES = StoredTable(SS_SOURCE, ("diaSourceId",), (("ssObjectId",),))
DETECTOR_VISITS = StoredTable(DETECTOR_VISIT_PROCESSING_SUMMARY, ("visit", "detector"), (("midpointMjdTai",),), small=True)
ALERTS = StoredTable(ALERT, ("diaSourceId",), (("diaObjectId",), ("ssObjectId",), ("alertFile", "offset"), ("visit",)))
ALERT_FILES = StoredTable(Schema("AlertFile", parse_columns(_ALERT_FILE)), ("alertFile",), small=True)
ALERT_FAILURES = StoredTable(Schema("AlertFailure", parse_columns(_ALERT_FAILURE)), ("diaSourceId",), small=True)
PRECOVERIES = StoredTable(Schema("Precovery", parse_columns(_PRECOVERY)), ("diaObjectId",))
REVISIONS = StoredTable(Schema("Revision", parse_columns(_REVISION)), ("number",))
TABLES = (
    DIA_SOURCES,
    FORCED_SOURCES,
    DIA_OBJECTS,
    LAST_OBJECTS,
    SS_SOURCES,
    DETECTOR_VISITS,
    ALERTS,
    ALERT_FILES,
    ALERT_FAILURES,
    PRECOVERIES,
    REVISIONS,
)


def fingerprint() -> str:
    """Return a short text that changes when any table gains, loses or changes a column."""
    text = repr([(t.name, t.key, [(c.apdb, sql_type(c), c.required) for c in t.schema.columns]) for t in TABLES])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sql_type(column: Column) -> str:
    """Return the type of a column, the same for both engines."""
    return SQL_TYPES.get(np.dtype(column.dtype).str[1:], "TEXT")


def quoted(names: Sequence[str], prefix: str = "") -> str:
    """Return names for SQL: quoted, with commas between."""
    return ", ".join(f'{prefix}"{name}"' for name in names)


def selected(column: Column, prefix: str = "") -> str:
    """Return what to SELECT for a column, so that NULL comes back as the value that stands for it."""
    name = f'{prefix}"{column.apdb}"'
    return name if column.required else f'coalesce({name}, {NULL_TEXTS[np.dtype(column.dtype).kind]}) AS "{column.apdb}"'


def values_to_store(table: Table, schema: Schema) -> dict[str, np.ndarray]:
    """Return every column of ``schema`` from ``table``, by APDB name, with its type; NULLs are masked.

    Columns that ``table`` lacks are NULL, or 0 where NULL is not allowed. Raises InputError for an unknown column, for
    values that the column's type cannot hold, and for a masked value where NULL is not allowed.
    """
    rows = to_structured({name: _unmasked(values) for name, values in table.items()}, schema)
    stored = {}
    for column in schema.columns:
        values = rows[column.apdb] if column.apdb in rows.dtype.names else np.full(len(rows), column.null, column.dtype)
        null = _is_null(values, table.get(column.name), column)
        stored[column.apdb] = np.ma.array(values, mask=null) if null.any() else np.ascontiguousarray(values)
    return stored


def _unmasked(values):
    """Plain values; whatever is under a mask counts for nothing."""
    if not isinstance(values, np.ma.MaskedArray):
        return values
    return values.filled("" if values.dtype.kind in "SU" else 0)


def _is_null(values: np.ndarray, given, column: Column) -> np.ndarray:
    if isinstance(given, np.ma.MaskedArray):
        if column.required and np.ma.getmaskarray(given).any():
            raise InputError(f"column {column.apdb} must have a value in every row, some are masked")
        return np.ma.getmaskarray(given)
    if column.required or values.dtype.kind == "b":
        return np.zeros(len(values), bool)
    return np.isnan(values) if values.dtype.kind == "f" else values == column.null
