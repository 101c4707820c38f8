"""Tables, dicts of equal-length columns: how many rows, some of them, several one below the other."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from nightstream.engine.values import Array, Table


def n_rows(table: Table) -> int:
    """Return the number of rows; 0 for a table without columns."""
    return len(next(iter(table.values()))) if table else 0


def take(table: Table, rows: Array) -> Table:
    """Return the chosen ``rows`` (indices, or a mask of all rows), in that order."""
    return {name: column[rows] for name, column in table.items()}


def stack(tables: Iterable[Table]) -> Table:
    """Return all rows of the tables, one table below the other, with the columns that every one of them has.

    Tables without rows count for nothing, whatever columns they have; of such tables alone the first is returned.
    """
    tables = list(tables)
    filled = [table for table in tables if n_rows(table)] or tables[:1]
    if not filled:
        return {}
    shared = [name for name in filled[0] if all(name in table for table in filled)]
    return {name: np.concatenate([table[name] for table in filled]) for name in shared}
