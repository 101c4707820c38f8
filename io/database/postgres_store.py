"""The facility's engine of the prompt database: PostgreSQL 15 or newer, through psycopg 3. Many processes may use it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from nightstream.errors import DatabaseError
from nightstream.io.database.store import PerThread

WRITERS = 0x4E53_5044_4201  # the advisory lock that whoever writes holds


class PostgresSession:
    """A transaction on the connection of one thread; see `nightstream.io.database.store.Session`."""

    _types = {"i": "BIGINT", "f": "DOUBLE PRECISION", "S": "TEXT", "U": "TEXT"}

    def __init__(self, cursor) -> None:
        self._cursor = cursor

    def execute(self, sql: str, parameters: Sequence = ()) -> None:
        self._cursor.execute(sql, _plain(parameters))

    def fetch(self, sql: str, dtypes: Sequence[str], parameters: Sequence = ()) -> list[np.ndarray]:
        from nightstream.io.database.postgres_copy import decode_rows

        buffer = bytearray()
        with self._cursor.copy(f"COPY ({sql}) TO STDOUT (FORMAT BINARY)", _plain(parameters)) as copy:
            for block in copy:
                buffer += block
        return decode_rows(buffer, dtypes)

    def insert(self, table: str, columns: Mapping[str, np.ndarray]) -> None:
        from nightstream.io.database.postgres_copy import encode_rows

        names = ", ".join(f'"{name}"' for name in columns)
        with self._cursor.copy(f"COPY {table} ({names}) FROM STDIN (FORMAT BINARY)") as copy:
            for block in encode_rows(columns):
                copy.write(block)

    def stage(self, name: str, columns: Mapping[str, np.ndarray]) -> None:
        types = ", ".join(f'"{key}" {self._types[np.ma.getdata(values).dtype.kind]}' for key, values in columns.items())
        self._cursor.execute(f"DROP TABLE IF EXISTS pg_temp.{name}")
        self._cursor.execute(f"CREATE TEMPORARY TABLE {name} ({types}) ON COMMIT DROP")
        self.insert(name, columns)
        self._cursor.execute(f"ANALYZE {name}")


class PostgresStore:
    """One PostgreSQL database, by its ``postgresql://`` URL; see `.store.Store`. A connection per thread."""

    indexed = True

    def __init__(self, url: str, *, read_only: bool = False) -> None:
        self.location = _without_password(url)
        self._url, self._read_only = url, read_only
        self._connections = PerThread(self._connect, lambda connection: not connection.closed)
        with _told(self.location):
            self._connections.get()

    @contextmanager
    def transaction(self, *, write: bool = False) -> Iterator[PostgresSession]:
        with _told(self.location):
            connection = self._connections.get()
            with connection.transaction(), connection.cursor() as cursor:
                if write:
                    cursor.execute("SELECT pg_advisory_xact_lock(%s)", [WRITERS])
                else:
                    cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                yield PostgresSession(cursor)

    def close(self) -> None:
        self._connections.close()

    def _connect(self):
        import psycopg

        made = psycopg.connect(self._url, autocommit=True)
        made.read_only = self._read_only or None
        return made


@contextmanager
def _told(location: str) -> Iterator[None]:
    """Turn psycopg's errors into one of ours, with the database's name."""
    try:
        import psycopg
    except ImportError as error:
        raise DatabaseError("PostgreSQL needs psycopg: pip install 'nightstream[postgres]'", path=location) from error
    try:
        yield
    except psycopg.Error as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise DatabaseError(f"the database failed: {lines[0]}", path=location) from error


def _without_password(url: str) -> str:
    """The URL as it may be shown."""
    scheme, _, rest = url.partition("://")
    user, at, place = rest.rpartition("@")
    return f"{scheme}://{user.partition(':')[0]}{at}{place}".partition("?")[0]


def _plain(parameters: Sequence) -> list:
    return [value.tolist() if isinstance(value, np.ndarray) else value for value in parameters]
