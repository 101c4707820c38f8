"""The embedded engine of the prompt database: DuckDB, one file, nothing to start. One process may have it open."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np

from nightstream.errors import DatabaseError
from nightstream.io.database.store import PerThread

CHECKPOINT = "256MB"  # of log before it is worked in: doing so rewrites the last rows of every table, too much for each visit


class DuckdbSession:
    """A transaction on the cursor of one thread; see `nightstream.io.database.store.Session`."""

    def __init__(self, cursor) -> None:
        self._cursor = cursor
        self._staged: list[str] = []

    def execute(self, sql: str, parameters: Sequence = ()) -> None:
        self._cursor.execute(sql.replace("%s", "?"), _plain(parameters))

    def fetch(self, sql: str, dtypes: Sequence[str], parameters: Sequence = ()) -> list[np.ndarray]:
        rows = self._cursor.sql(sql.replace("%s", "?"), params=_plain(parameters)).to_arrow_table()
        return [_from_arrow(column, dtype) for column, dtype in zip(rows.columns, dtypes, strict=True)]

    def insert(self, table: str, columns: Mapping[str, np.ndarray]) -> None:
        names = ", ".join(f'"{name}"' for name in columns)
        self.stage("rows_to_insert", columns)
        self._cursor.execute(f"INSERT INTO {table} ({names}) SELECT {names} FROM rows_to_insert")

    def stage(self, name: str, columns: Mapping[str, np.ndarray]) -> None:
        import pyarrow

        self._cursor.register(name, pyarrow.table({key: _to_arrow(values) for key, values in columns.items()}))
        self._staged.append(name)

    def forget(self) -> None:
        """Drop what was staged."""
        for name in self._staged:
            self._cursor.unregister(name)


class DuckdbStore:
    """One DuckDB file; see `nightstream.io.database.store.Store`. ``threads`` and ``memory_gib`` are at most what it uses."""

    indexed = False

    def __init__(self, path: str | Path, *, read_only: bool = False, threads: int = 2, memory_gib: float = 2.0) -> None:
        import duckdb

        self.location = str(path)
        self._lock = threading.RLock()
        settings = {
            "checkpoint_threshold": CHECKPOINT,
            "threads": threads,
            "memory_limit": f"{memory_gib}GiB",
            "autoinstall_known_extensions": False,
        }
        if read_only and not Path(path).exists():
            raise DatabaseError("there is no such database", path=self.location)
        with _told(self.location):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._connection = duckdb.connect(self.location, read_only=read_only, config=settings)
        self._cursors = PerThread(self._connection.cursor)

    @contextmanager
    def transaction(self, *, write: bool = False) -> Iterator[DuckdbSession]:
        with self._lock if write else nullcontext(), _told(self.location):
            cursor = self._cursors.get()
            session = DuckdbSession(cursor)
            cursor.begin()
            try:
                yield session
                cursor.commit()
            except BaseException:
                _roll_back(cursor)
                raise
            finally:
                session.forget()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._lock:
            yield

    def close(self) -> None:
        with self._lock, _told(self.location):
            self._cursors.close()
            self._connection.close()


def _roll_back(cursor) -> None:
    import duckdb

    try:
        cursor.rollback()
    except duckdb.Error:
        pass  # the engine rolled back itself; what failed first is what is told


@contextmanager
def _told(location: str) -> Iterator[None]:
    """Turn the engine's errors into one of ours, with the file's name."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        held = re.search(r"Conflicting lock is held in (.+?)(?: by user|\. See|$)", str(error))
        if held:
            message = f"the database is in use by another process: {held[1]}; one process at a time can open it"
        else:
            message = f"the database failed: {str(error).splitlines()[0]}"
        raise DatabaseError(message, path=location) from error


def _plain(parameters: Sequence) -> list:
    return [value.tolist() if isinstance(value, np.ndarray) else value for value in parameters]


def _to_arrow(values: np.ndarray):
    import pyarrow

    data = np.ma.getdata(values)
    mask = values.mask if isinstance(values, np.ma.MaskedArray) else None
    if data.dtype.kind in "SU":
        encoded = np.char.encode(data, "utf-8") if data.dtype.kind == "U" else np.ascontiguousarray(data)
        return pyarrow.array(encoded, mask=mask).cast(pyarrow.string())
    return pyarrow.array(np.ascontiguousarray(data), mask=mask)


def _from_arrow(column, dtype: str) -> np.ndarray:
    """A column as one plain array."""
    if np.dtype(dtype).kind in "SU":
        return _texts(column)
    chunks = [chunk.to_numpy(zero_copy_only=False) for chunk in column.chunks]
    values = chunks[0] if len(chunks) == 1 else np.concatenate(chunks) if chunks else np.empty(0)
    return values.astype(dtype, copy=not values.flags.writeable)


def _texts(column) -> np.ndarray:
    """A column of texts; few different ones are the rule."""
    encoded = column.combine_chunks().dictionary_encode()
    words = np.array(encoded.dictionary.to_pylist() or [""], dtype=np.str_)
    return words[encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)]
