"""The facility's engine of the prompt database: PostgreSQL 15 or newer, through psycopg 3. Many processes may use it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import numpy as np

from nightstream.errors import DatabaseError, DisconnectedError
from nightstream.io.database.store import PerThread

WRITERS = 0x4E53_5044_4201  # the advisory lock that whoever writes holds
PATIENCE_S = 20.0  # for a server that was there and restarts, once an outage
RETRY_S = 0.5
SETTINGS = {  # of libpq, where the URL has no other: who it is, and that a host that vanished is noticed within a minute
    "application_name": "nightstream", "connect_timeout": "10", "keepalives_idle": "30", "keepalives_interval": "10",
    "keepalives_count": "3", "tcp_user_timeout": "60000",
}  # fmt: skip


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
        self._give_up_at = 0.0  # at first: who mistyped the host should hear it now
        self._connections = PerThread(self._connect, _answers)
        with _told(self.location):
            self._connections.get()

    @contextmanager
    def transaction(self, *, write: bool = False) -> Iterator[PostgresSession]:
        with _told(self.location):
            connection = self._connections.get()
        with _told(self.location, connection), connection.transaction(), connection.cursor() as cursor:
            if write:  # READ COMMITTED: what is read after the lock is what the last writer left
                cursor.execute("SELECT pg_advisory_xact_lock(%s)", [WRITERS])
            else:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            yield PostgresSession(cursor)

    @contextmanager
    def alone(self) -> Iterator[None]:
        import psycopg

        with _told(self.location):
            connection = self._connections.get()
            connection.execute("SELECT pg_advisory_lock(%s)", [WRITERS])
        try:
            yield
        finally:
            with suppress(psycopg.Error):  # a connection that broke has let go of its locks
                connection.execute("SELECT pg_advisory_unlock(%s)", [WRITERS])

    def close(self) -> None:
        self._connections.close()

    def _connect(self):
        import psycopg
        from psycopg.conninfo import conninfo_to_dict

        settings = SETTINGS | conninfo_to_dict(self._url)
        while True:
            try:
                made = psycopg.connect(**settings, autocommit=True)
                break
            except psycopg.OperationalError:
                now = time.monotonic()
                self._give_up_at = now + PATIENCE_S if self._give_up_at is None else self._give_up_at
                if now >= self._give_up_at:
                    raise
                time.sleep(RETRY_S)
        self._give_up_at = None
        made.isolation_level = psycopg.IsolationLevel.READ_COMMITTED  # whatever the server's default is
        made.read_only = self._read_only or None
        return made


def _answers(connection) -> bool:
    """Is the server still at the other end? A connection learns only when it is used that a restart has cut it."""
    import psycopg

    with suppress(psycopg.Error):
        connection.execute("SELECT 1")
        return True
    connection.close()
    return False


@contextmanager
def _told(location: str, connection=None) -> Iterator[None]:
    """Turn psycopg's errors into ours, with the database's name; DisconnectedError if ``connection`` broke."""
    try:
        import psycopg
    except ImportError as error:
        raise DatabaseError("PostgreSQL needs psycopg: pip install 'nightstream[postgres]'", path=location) from error
    try:
        yield
    except psycopg.Error as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        kind = DisconnectedError if connection is not None and connection.closed else DatabaseError
        raise kind(f"the database failed: {lines[0]}", path=location) from error


def _without_password(url: str) -> str:
    """The URL as it may be shown."""
    scheme, _, rest = url.partition("://")
    user, at, place = rest.rpartition("@")
    return f"{scheme}://{user.partition(':')[0]}{at}{place}".partition("?")[0]


def _plain(parameters: Sequence) -> list:
    return [value.tolist() if isinstance(value, np.ndarray) else value for value in parameters]
