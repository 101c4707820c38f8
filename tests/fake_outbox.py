"""An outbox and a spool for the tests of distribution: the prompt database's interface over SQLite, which survives a kill."""

from __future__ import annotations

import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nightstream.io.alerts.files import write_alert_file

SCHEMA = {
    "type": "record",
    "name": "alert",
    "namespace": "lsst.v11_1",
    "fields": [{"name": "diaSourceId", "type": "long"}, {"name": "cutoutDifference", "type": "bytes"}],
}
READOUT_MJD_TAI = 61000.0
TABLES = """
create table if not exists files (name text primary key, visit integer, schema_version text, progress text);
create table if not exists alerts (id integer primary key, file text, place integer, size integer, sent real, reason text,
                                   bookings integer default 0);
"""


@dataclass(frozen=True)
class OutboxFile:
    name: str
    visit: int
    n_alerts: int
    n_unsent: int
    schema_version: str
    progress: str


class FakeOutbox:
    """See `nightstream.scheduler.sender.Outbox`."""

    def __init__(self, path: str | Path = ":memory:") -> None:
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=10.0)
        self._connection.executescript(TABLES)
        self.is_away = False

    def _do(self, sql: str, rows: list[tuple] | None = None) -> list[tuple]:
        if self.is_away:
            raise OSError("the database is away")
        with self._lock:
            if rows is None:
                return self._connection.execute(sql).fetchall()
            self._connection.execute("begin immediate")
            self._connection.executemany(sql, rows)
            self._connection.execute("commit")
            return []

    def add(self, name: str, visit: int, ids: np.ndarray, offsets: np.ndarray, lengths: np.ndarray) -> None:
        """What the publisher's transaction does."""
        self._do(
            "insert into alerts (id, file, place, size) values (?, ?, ?, ?)",
            [(int(i), name, int(o), int(n)) for i, o, n in zip(ids, offsets, lengths, strict=True)],
        )
        self._do("insert into files values (?, ?, '11.1', '')", [(name, visit)])

    def unsent_files(self) -> list[OutboxFile]:
        found = self._do(
            "select name, visit, count(*), sum(sent is null and reason is null) as n, schema_version, progress "
            "from files join alerts on file = name group by name having n > 0 order by files.rowid"
        )
        return [OutboxFile(*row) for row in found]

    def unsent_alerts(self, name: str) -> dict[str, np.ndarray]:
        rows = self._do(
            f"select id, place, size from alerts where file = '{name}' and sent is null and reason is null order by place"
        )
        columns = np.array(rows, dtype=np.int64).reshape(-1, 3).T
        table = dict(zip(("dia_source_id", "offset", "length"), columns, strict=True))
        return {**table, "readout_mjd_tai": np.full(len(rows), READOUT_MJD_TAI)}

    def save_progress(self, name: str, text: str) -> None:
        self._do("update files set progress = ? where name = ?", [(text, name)])

    def mark_sent(self, ids: np.ndarray, sent_mjd_tai: np.ndarray) -> None:
        rows = [(float(t), int(i)) for i, t in zip(ids, np.broadcast_to(sent_mjd_tai, np.shape(ids)), strict=True)]
        self._do("update alerts set sent = ?, bookings = bookings + 1 where id = ?", rows)

    def mark_failed(self, ids: np.ndarray, reason: str) -> None:
        self._do("update alerts set reason = ? where id = ?", [(reason, int(i)) for i in ids])

    def sent(self) -> dict[int, float]:
        """diaSourceId: MJD TAI of sending."""
        return dict(self._do("select id, sent from alerts where sent is not null order by id"))

    def failed(self) -> dict[int, str]:
        """diaSourceId: why."""
        return dict(self._do("select id, reason from alerts where reason is not null order by id"))


def body(dia_source_id: int, size: int = 300) -> bytes:
    """A packet of `SCHEMA` as schemaless Avro; its stamp is random, so that it does not compress."""
    import io

    import fastavro

    out = io.BytesIO()
    stamp = np.random.default_rng(dia_source_id).bytes(size)
    fastavro.schemaless_writer(out, SCHEMA, {"diaSourceId": dia_source_id, "cutoutDifference": stamp})
    return out.getvalue()


def spool(outbox: FakeOutbox, folder: Path, visit: int, ids: np.ndarray, *, name: str = "", sizes: dict | None = None) -> Path:
    """Write a spool file of alerts and enter them in the outbox."""
    bodies = [body(int(i), (sizes or {}).get(int(i), 300)) for i in ids]
    path = folder / (name or f"visit={visit}.spool.avro")
    places = write_alert_file(path, bodies, "11.1", ids=ids)
    outbox.add(path.name, visit, ids, places.offset, places.length)
    return path
