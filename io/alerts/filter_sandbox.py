"""The locked-down database in which users' filters run: the tables of one visit in memory, and nothing else in reach.

DuckDB without files, extensions, settings or spill to disk, with a limit on its memory, on one thread. A query that
takes too long is interrupted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from nightstream.engine.memory import to_host
from nightstream.engine.tables import n_rows
from nightstream.engine.values import Array, Table
from nightstream.errors import InputError, UnprocessableError
from nightstream.io.apdb import DIA_OBJECT, DIA_SOURCE, SS_SOURCE
from nightstream.io.schema import Column

if TYPE_CHECKING:
    import duckdb
    import pyarrow

    from nightstream.io.alerts.filter_guard import GuardedSql

SCHEMAS = {"diaSource": DIA_SOURCE, "diaObject": DIA_OBJECT, "ssSource": SS_SOURCE}
HOUSE_NAMES = {"diaSource": "dia_sources", "diaObject": "dia_objects", "ssSource": "ss_sources"}
KEYS = {"diaSource": {"diaSourceId", "diaObjectId"}, "diaObject": {"diaObjectId"}, "ssSource": {"diaSourceId"}}
PREFIXES = {"diaObject": "object_", "ssSource": "ss_"}  # in `alert`, of columns that diaSource has, too

_SETTINGS = {
    "threads": 1,
    "enable_external_access": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
    "python_enable_replacements": False,  # no Python variable is a table
    "temp_directory": "",
}


class TimeOut(UnprocessableError):
    """A query took longer than it may."""


class Watch:
    """A thread that interrupts the query it is told of when its time is up. One for many queries: threads start slowly."""

    _STEP_S = 0.005

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cursor: duckdb.DuckDBPyConnection | None = None
        self._deadline = 0.0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="filter-watch", daemon=True)
        self._thread.start()

    @contextmanager
    def over(self, cursor: duckdb.DuckDBPyConnection, seconds: float) -> Iterator[None]:
        """Interrupt ``cursor`` if the block takes longer than ``seconds``."""
        with self._lock:
            self._cursor, self._deadline = cursor, time.monotonic() + seconds
        try:
            yield
        finally:
            with self._lock:
                self._cursor = None

    def close(self) -> None:
        """End the thread."""
        self._is_over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._is_over.wait(self._STEP_S):
            with self._lock:
                if self._cursor is not None and time.monotonic() > self._deadline:
                    self._cursor.interrupt()


class Sandbox:
    """The alerts of one visit as tables diaSource, diaObject, ssSource and their join, `alert`.

    ``tables`` holds dia_sources, dia_objects and ss_sources as tables of NumPy columns; what is missing is empty or
    NULL. Where ``names`` is given, only columns with these names, lower case, are there. Close it after use.
    """

    def __init__(self, tables: Mapping[str, Table], memory_mib: int, names: frozenset[str] | None = None) -> None:
        self._arrow = {name: arrow_table(tables.get(HOUSE_NAMES[name], {}), name, names) for name in SCHEMAS}
        self._columns = _alert_columns(names)
        self._memory_mib = memory_mib
        self._database = self._opened()
        self._watch = Watch()
        self.n_rows = self._arrow["diaSource"].num_rows

    def close(self) -> None:
        """Forget everything."""
        self._watch.close()
        self._database.close()

    def choose(self, guarded: GuardedSql, seconds: float) -> np.ndarray:
        """Return the diaSourceId of every row the query gives, in its order, int64; at most one for each source here.

        Raises TimeOut after ``seconds``, UnprocessableError for a query out of memory, InputError for one that is wrong.
        """
        import duckdb

        cursor = self._database.cursor()
        try:
            with self._watch.over(cursor, seconds):
                chosen = cursor.execute(f'SELECT "diaSourceId" FROM ({guarded.sql}) AS chosen LIMIT {self.n_rows}').fetchnumpy()
            return np.ma.compressed(chosen["diaSourceId"]).astype(np.int64)
        except duckdb.InterruptException:
            raise TimeOut(f"took longer than {seconds:g} s and was stopped") from None
        except duckdb.OutOfMemoryException:
            raise UnprocessableError(f"needs more memory than {self._memory_mib} MiB and was stopped") from None
        except (duckdb.FatalException, duckdb.InternalException) as error:
            self._reopen()  # such an error takes the whole database with it
            raise UnprocessableError(f"broke the database: {_first_line(error)}") from None
        except (duckdb.Error, ValueError) as error:
            raise InputError(_first_line(error)) from None
        finally:
            cursor.close()

    def _reopen(self) -> None:
        self._database.close()
        self._database = self._opened()

    def _opened(self) -> duckdb.DuckDBPyConnection:
        import duckdb

        database = duckdb.connect(":memory:", config={**_SETTINGS, "memory_limit": f"{self._memory_mib}MiB"})
        for name, rows in self._arrow.items():
            database.register("incoming", rows)
            database.execute(f'CREATE TABLE "{name}" AS SELECT * FROM incoming')
            database.unregister("incoming")
        joined = 'LEFT JOIN "diaObject" AS o USING ("diaObjectId") LEFT JOIN "ssSource" AS p USING ("diaSourceId")'
        database.execute(f'CREATE TABLE alert AS SELECT {self._columns} FROM "diaSource" AS s {joined}')
        database.execute("SET lock_configuration = true")
        return database


def arrow_table(table: Table, name: str, names: frozenset[str] | None = None) -> pyarrow.Table:
    """Return ``table`` with the APDB columns of ``name`` and their types; unmeasured values and columns are NULL."""
    import pyarrow

    length = n_rows(table)
    columns = [column for column in SCHEMAS[name].columns if _is_wanted(column.apdb, name, names)]
    return pyarrow.table({column.apdb: _arrow_column(table.get(column.name), column, length) for column in columns})


def alert_name(column: str, table: str) -> str:
    """Return what the view `alert` calls a ``column`` of ``table``: its own name, or one with a prefix if that is taken."""
    earlier = list(SCHEMAS)[: list(SCHEMAS).index(table)]
    taken = {apdb.lower() for other in earlier for apdb in SCHEMAS[other].by_apdb}
    return PREFIXES[table] + column if column.lower() in taken else column


def _is_wanted(column: str, table: str, names: frozenset[str] | None) -> bool:
    return names is None or column in KEYS[table] or bool({column.lower(), alert_name(column, table).lower()} & names)


def _alert_columns(names: frozenset[str] | None) -> str:
    """The select list of `alert`."""
    parts = []
    for letter, (table, schema) in zip("sop", SCHEMAS.items(), strict=True):
        wanted = (column for column in schema.by_apdb if _is_wanted(column, table, names))
        parts += [f'{letter}."{column}" AS "{alert_name(column, table)}"' for column in wanted]
    return ", ".join(parts)


def _arrow_column(values: Array | None, column: Column, length: int) -> pyarrow.Array:
    """The values with NULL where nothing was measured, by the rules of the house's tables."""
    import pyarrow

    kind = np.dtype(column.dtype).kind
    arrow_type = pyarrow.string() if kind == "S" else pyarrow.from_numpy_dtype(column.dtype)
    if values is None:
        return pyarrow.nulls(length, arrow_type)
    values = values if isinstance(values, np.ma.MaskedArray) else to_host(values)
    is_null = _is_null(values, column)
    plain = np.ma.getdata(values)
    plain = plain.astype(str) if kind == "S" else plain.astype(column.dtype)
    return pyarrow.array(plain, mask=is_null).cast(arrow_type)


def _is_null(values: np.ndarray, column: Column) -> np.ndarray:
    """Masked where there is a mask; else NaN, and in columns that may be NULL 0 among integers and the empty text."""
    if isinstance(values, np.ma.MaskedArray):
        return np.ma.getmaskarray(values)
    if values.dtype.kind == "f":
        return np.isnan(values)
    if column.required or values.dtype.kind == "b":
        return np.zeros(len(values), bool)
    return values == (0 if values.dtype.kind in "iu" else np.array("").astype(values.dtype))


def _first_line(error: Exception) -> str:
    """DuckDB's message without the excerpt of the query it was wrapped in."""
    return str(error).split("\n\nLINE")[0].replace("\n", " ")[:300]
