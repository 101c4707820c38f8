"""Rows of the prompt database as tables of NumPy columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nightstream.engine.values import Table
from nightstream.io.database.store import Session
from nightstream.io.database.tables import StoredTable, selected
from nightstream.io.schema import Column


def has_tables(session: Session) -> bool:
    """Has anybody made the tables?"""
    sql = """SELECT count(*) FROM information_schema.tables
        WHERE table_name = 'metadata' AND table_schema = current_schema()"""
    return bool(session.fetch(sql, ["i8"])[0][0])


def read_rows(
    session: Session, table: StoredTable, where: str, parameters: Sequence, columns: Sequence[Column] | None = None
) -> Table:
    """Return the chosen rows of a table, NULLs as the values that stand for them; all columns unless some are given."""
    columns = table.columns() if columns is None else columns
    names = ", ".join(selected(column) for column in columns)
    arrays = session.fetch(f"SELECT {names} FROM {table.name} {where}", [column.dtype for column in columns], parameters)
    return {column.name: values for column, values in zip(columns, arrays, strict=True)}


def read_sorted(
    session: Session, table: StoredTable, where: str, parameters: Sequence, names: Sequence[str] | None, key: Sequence[str]
) -> Table:
    """Return `read_rows` of ``names``, sorted by the columns ``key``. Sorting here is faster than in either engine."""
    wanted = table.columns(names)
    order_columns = tuple(table.schema.by_name[name] for name in key)
    rows = read_rows(session, table, where, parameters, wanted + tuple(c for c in order_columns if c not in wanted))
    order = np.lexsort([rows[column.name] for column in reversed(order_columns)])
    return {column.name: rows[column.name][order] for column in wanted}
