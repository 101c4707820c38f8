"""What the prompt database asks of an engine: transactions, SQL, tables of NumPy columns in and out. Two engines offer it.

SQL is written once for both. Parameters are ``%s``; an array of numbers as a parameter is a list: ``IN (SELECT
unnest(%s::BIGINT[]))``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np


class Session(Protocol):
    """One transaction under way, in one thread."""

    def execute(self, sql: str, parameters: Sequence = ()) -> None:
        """Run one statement."""

    def fetch(self, sql: str, dtypes: Sequence[str], parameters: Sequence = ()) -> list[np.ndarray]:
        """Return the columns of a query. ``dtypes`` are the columns' NumPy types, ``S...`` (any width) for text, which
        comes as ``str``. The query must not return NULL.
        """

    def insert(self, table: str, columns: Mapping[str, np.ndarray]) -> None:
        """Append rows to the table of that quoted name; masked values are NULL, text is UTF-8 in ``S`` arrays."""

    def stage(self, name: str, columns: Mapping[str, np.ndarray]) -> None:
        """Make ``columns`` a table that lives as long as the transaction; int64, float64 and text only."""


class Store(Protocol):
    """An engine with one database open. Threads may share it."""

    indexed: bool  # do large tables need keys and indexes?
    location: str  # for messages

    def transaction(self, *, write: bool = False) -> AbstractContextManager[Session]:
        """Commit what happens inside, or nothing of it when an error leaves the block.

        Reads see one state of the database. Writers wait for each other, across processes too.
        """

    def close(self) -> None:
        """Let go of the database; what was committed is durable."""
