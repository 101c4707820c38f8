"""What the prompt database asks of an engine: transactions, SQL, tables of NumPy columns in and out. Two engines offer it.

SQL is written once for both. Parameters are ``%s``; an array of numbers as a parameter is a list: ``IN (SELECT
unnest(%s::BIGINT[]))``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
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

    def alone(self) -> AbstractContextManager[None]:
        """Keep everybody else from writing until the block ends; this thread reads and writes inside as ever."""

    def close(self) -> None:
        """Let go of the database; what was committed is durable."""


class PerThread:
    """A connection for each thread, made when it first asks or when its own broke; those of ended threads are closed.

    ``is_open`` closes what it finds broken.
    """

    def __init__(self, connect: Callable[[], object], is_open: Callable[[object], bool] = lambda connection: True) -> None:
        self._connect, self._is_open = connect, is_open
        self._held: dict[threading.Thread, object] = {}
        self._lock = threading.Lock()

    def get(self):
        """Return this thread's connection."""
        thread = threading.current_thread()
        held = self._held.get(thread)
        if held is not None and self._is_open(held):
            return held
        made = self._connect()
        with self._lock:
            for ended in [other for other in self._held if not other.is_alive()]:
                self._held.pop(ended).close()
            self._held[thread] = made
        return made

    def close(self) -> None:
        """Close the connections of all threads."""
        with self._lock:
            while self._held:
                self._held.popitem()[1].close()
