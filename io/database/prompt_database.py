"""The prompt database: DIASources, DIAObjects, forced photometry, and the outbox of alerts that are still to be sent.

    PromptDatabase     what is asked, in SQL that both engines understand
      Store            a database held open: DuckDB (a file, the default) or PostgreSQL (postgresql://...)
        Session        one transaction: SQL, NumPy columns in and out

A detector of a visit is written in one transaction, together with all others of its `VisitBatch`: all or nothing, and never
twice. How rows become consistent on writing is in `nightstream.io.database.writing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nightstream.engine.values import Array, Table
from nightstream.errors import DatabaseError, InputError
from nightstream.io.database import writing
from nightstream.io.database.reading import has_tables, read_rows, read_sorted
from nightstream.io.database.sky_cells import (
    cover,
    fill_gaps,
    is_in_any,
    merge_ranges,
)
from nightstream.io.database.store import Store
from nightstream.io.database.tables import (
    ALERT_FAILURES,
    ALERT_FILES,
    ALERTS,
    APDB_VERSION,
    DETECTOR_VISITS,
    DIA_OBJECTS,
    DIA_SOURCES,
    FORCED_SOURCES,
    FORMAT_VERSION,
    LAST_OBJECTS,
    PRECOVERIES,
    TABLES,
    fingerprint,
)

DAYS_OF_HISTORY = 365.25
SECONDS_PER_DAY = 86400.0
MOST_RANGES = 8  # of cells in one query; more cost more than the few objects they would leave out
OBJECT_IDS = ("diaObjectId", "ssObjectId")
BY_OBJECT = ("dia_object_id", "midpoint_mjd_tai")
IN_IDS = "IN (SELECT unnest(%s::BIGINT[]))"
CORNERS = (("llcra", "llcdec"), ("ulcra", "ulcdec"), ("urcra", "urcdec"), ("lrcra", "lrcdec"))


@dataclass(frozen=True, slots=True, kw_only=True)
class VisitBatch:
    """What one visit adds: tables with the columns of `nightstream.io.apdb`, any of them empty (``{}``).

    ``detector_visits`` has a row for each detector that is written, also for those without sources. ``forced_sources``
    either all have a ``dia_forced_source_id``, counted from `PromptDatabase.next_forced_id`, or the database numbers them.
    ``revision`` is `PromptDatabase.revision` from before anything was read that the batch was made from; None: nothing was.
    """

    visit: int
    detector_visits: Table
    dia_sources: Table = field(default_factory=dict)
    dia_objects: Table = field(default_factory=dict)  # new versions, complete
    forced_sources: Table = field(default_factory=dict)
    ss_sources: Table = field(default_factory=dict)
    alerts: Table = field(default_factory=dict)  # in the order of the file
    alert_file: str = ""
    revision: int | None = None


@dataclass(frozen=True, slots=True)
class AlertFile:
    """A spool file with alerts that have not left yet."""

    name: str
    visit: int
    n_alerts: int
    n_unsent: int
    schema_version: str
    progress: str  # what the sink noted


def open_database(
    url: str | Path,
    *,
    read_only: bool = False,
    spool_dir: str | Path | None = None,
    threads: int = 2,
    memory_gib: float = 2.0,
) -> PromptDatabase:
    """Open the prompt database at ``url``, a file or ``postgresql://user@host/name``, and make its tables if it has none.

    ``spool_dir`` is where this process keeps its files of alerts: those that a server's database knows in other folders are
    others' to send. ``threads`` and ``memory_gib`` bound the embedded engine. Raises DatabaseError, naming the database, when
    it cannot be reached, is in use by another process (embedded), or was made by another version.
    """
    if str(url).startswith(("postgresql://", "postgres://")):
        from nightstream.io.database.postgres_store import PostgresStore

        spool = str(Path(spool_dir).resolve()) if spool_dir is not None else ""
        return PromptDatabase(PostgresStore(str(url), read_only=read_only), spool)
    from nightstream.io.database.duckdb_store import DuckdbStore

    return PromptDatabase(DuckdbStore(url, read_only=read_only, threads=threads, memory_gib=memory_gib))


class PromptDatabase:
    """The prompt database of one survey, on one engine. Threads may share it. Times are MJD (TAI), positions degrees."""

    def __init__(self, store: Store, spool_dir: str = "") -> None:
        self._store, self._spool_dir = store, spool_dir
        try:
            self._make_tables()
            self._check_version()
        except BaseException:
            store.close()
            raise

    def close(self) -> None:
        """Let go of the database."""
        self._store.close()

    def __enter__(self) -> PromptDatabase:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def metadata(self) -> dict[str, str]:
        """Return what is noted about the database: ``schema``, ``format``, ``columns``."""
        with self._store.transaction() as session:
            names, values = session.fetch('SELECT "name", "value" FROM "metadata" ORDER BY "name"', ["S", "S"])
        return dict(zip(names.tolist(), values.tolist(), strict=True))

    def row_counts(self) -> dict[str, int]:
        """Return the number of rows of each table."""
        with self._store.transaction() as session:
            return {t.schema.name: int(session.fetch(f"SELECT count(*) FROM {t.name}", ["i8"])[0][0]) for t in TABLES}

    # Before a visit

    def published_detectors(self, visit: int) -> set[int]:
        """Return the detectors of ``visit`` that are stored."""
        with self._store.transaction() as session:
            return writing.published_detectors(session, visit)

    def claimed_objects(self, visit: int) -> Array:
        """Return the ids (int64, sorted) of the DIAObjects and Solar System objects that have a DIASource in ``visit``."""
        ids = (f'SELECT "{name}" FROM {DIA_SOURCES.name} WHERE "visit" = %s AND "{name}" IS NOT NULL' for name in OBJECT_IDS)
        with self._store.transaction() as session:
            return np.unique(session.fetch(" UNION ".join(ids), ["i8"], [visit, visit])[0])

    def revision(self) -> int:
        """Return a number that grows whenever sources or objects are stored, by whomever: `VisitBatch.revision`."""
        with self._store.transaction() as session:
            return writing.revision(session)

    def alone(self) -> AbstractContextManager[None]:
        """Keep everybody else from writing until the block ends, so that what this thread reads in it stays true."""
        return self._store.alone()

    def next_forced_id(self) -> int:
        """Return the number of the next forced source. Whoever writes rows with it first, wins."""
        with self._store.transaction() as session:
            return writing.next_forced_id(session)

    def objects_in(
        self,
        polygons: Sequence[Array],
        padding_arcsec: float,
        mjd_tai: float,
        *,
        since_mjd_tai: float | None = None,
        columns: Sequence[str] | None = None,
    ) -> Table:
        """Return the DIAObjects (columns of DIA_OBJECT_LAST, or ``columns``) in any of the convex footprints, sorted by id.

        ``polygons`` hold corners (k, 2) of ra, dec (deg); objects up to ``padding_arcsec`` outside an edge count. Only
        objects with a DIASource since ``since_mjd_tai`` (a year before ``mjd_tai`` unless told) come.
        """
        since = mjd_tai - DAYS_OF_HISTORY if since_mjd_tai is None else since_mjd_tai
        wanted = LAST_OBJECTS.columns(columns)
        chosen = [LAST_OBJECTS.schema.by_name[name] for name in ("dia_object_id", "ra", "dec", "cell")]
        chosen += [column for column in wanted if column not in chosen]
        covers = [cover(polygon, padding_arcsec) for polygon in polygons]
        ranges = merge_ranges(np.concatenate([part for parts in covers for part in parts] or [np.array([[-1, -1]])]))
        ranges = fill_gaps(ranges, MOST_RANGES)
        where = " OR ".join(['"cell" BETWEEN %s AND %s'] * len(ranges))
        sql = f'WHERE ({where}) AND "lastDiaSourceMjdTai" >= %s'
        with self._store.transaction() as session:
            table = read_rows(session, LAST_OBJECTS, sql, [*ranges.ravel().tolist(), since], chosen)
        places = (table[name] for name in ("cell", "ra", "dec"))
        rows = np.flatnonzero(is_in_any(*places, polygons, covers, padding_arcsec))
        ids = table["dia_object_id"][rows]
        if (ids[1:] < ids[:-1]).any():
            rows = rows[np.argsort(ids)]
        return {column.name: table[column.name][rows] for column in wanted}

    def dia_objects(self, ids: Array) -> Table:
        """Return the current versions (columns of DIA_OBJECT) of the DIAObjects with these ids, sorted by id."""
        where = f'WHERE "validityEndMjdTai" IS NULL AND "diaObjectId" {IN_IDS} ORDER BY "diaObjectId"'
        with self._store.transaction() as session:
            return read_rows(session, DIA_OBJECTS, where, [_ids(ids)])

    def object_versions(self, dia_object_id: int) -> Table:
        """Return all versions of one DIAObject, the oldest first."""
        where = 'WHERE "diaObjectId" = %s ORDER BY "validityStartMjdTai"'
        with self._store.transaction() as session:
            return read_rows(session, DIA_OBJECTS, where, [int(dia_object_id)])

    def history(
        self,
        ids: Array,
        since_mjd_tai: float,
        *,
        source_columns: Sequence[str] | None = None,
        forced_columns: Sequence[str] | None = None,
    ) -> tuple[Table, Table]:
        """Return the DIASources and forced sources of the DIAObjects ``ids``, sorted by object, then time.

        Rows from before ``since_mjd_tai``, or withdrawn, are left out. All columns come unless some are named.
        """
        where = f'WHERE "diaObjectId" {IN_IDS} AND "midpointMjdTai" >= %s AND "timeWithdrawnMjdTai" IS NULL'
        parameters = [_ids(ids), since_mjd_tai]
        with self._store.transaction() as session:
            return (
                read_sorted(session, DIA_SOURCES, where, parameters, source_columns, (*BY_OBJECT, "dia_source_id")),
                read_sorted(session, FORCED_SOURCES, where, parameters, forced_columns, (*BY_OBJECT, "dia_forced_source_id")),
            )

    def solar_system_history(self, ids: Array, since_mjd_tai: float) -> Table:
        """Return the DIASources of the Solar System objects ``ids``, sorted by object, then time; as `history` does."""
        where = f'WHERE "ssObjectId" {IN_IDS} AND "midpointMjdTai" >= %s AND "timeWithdrawnMjdTai" IS NULL'
        key = ("ss_object_id", "midpoint_mjd_tai", "dia_source_id")
        with self._store.transaction() as session:
            return read_sorted(session, DIA_SOURCES, where, [_ids(ids), since_mjd_tai], None, key)

    # Writing

    def write(self, batch: VisitBatch) -> set[int]:
        """Store a visit's detectors in one transaction and return those that were not stored before.

        What belongs to a detector that is stored already is left out: writing a batch again changes nothing. A new version
        of a DIAObject ends the validity of the one before. Raises ConflictError if somebody else wrote since the batch's
        ``revision``, or took the numbers of its forced sources; InputError for tables that do not fit.
        """
        prepared = writing.prepare(batch)
        with self._store.transaction(write=True) as session:
            return writing.write(session, batch.visit, batch.alert_file, self._spool_dir, prepared)

    # The outbox

    def unsent_files(self) -> list[AlertFile]:
        """Return the spool files with alerts still to be sent from here, the oldest first."""
        here, parameters = ('AND f."spoolDir" = %s', [self._spool_dir]) if self._spool_dir else ("", [])
        sql = f"""SELECT f."alertFile", f."visit", count(*), count(*) - count(coalesce(a."sentMjdTai", x."diaSourceId")),
            f."schemaVersion", coalesce(f."progress", '') FROM {ALERT_FILES.name} f
            JOIN {ALERTS.name} a ON a."alertFile" = f."alertFile"
            LEFT JOIN {ALERT_FAILURES.name} x ON x."diaSourceId" = a."diaSourceId"
            WHERE NOT f."isSent" {here} GROUP BY f."alertFile", f."visit", f."schemaVersion", f."progress", f."number"
            ORDER BY f."number" """
        with self._store.transaction() as session:
            columns = session.fetch(sql, ["S", "i8", "i8", "i8", "S", "S"], parameters)
        return [AlertFile(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]

    def unsent_alerts(self, alert_file: str) -> Table:
        """Return the rows (columns of ALERT) of a spool file that were neither sent nor given up, in file order."""
        where = f"""WHERE "alertFile" = %s AND "sentMjdTai" IS NULL AND NOT EXISTS (SELECT 1 FROM {ALERT_FAILURES.name} x
            WHERE x."diaSourceId" = {ALERTS.name}."diaSourceId") ORDER BY "offset", "diaSourceId" """
        with self._store.transaction() as session:
            return read_rows(session, ALERTS, where, [alert_file])

    def save_progress(self, alert_file: str, text: str) -> None:
        """Keep what the sink needs to know about ``alert_file`` if it is started again."""
        with self._store.transaction(write=True) as session:
            session.execute(f'UPDATE {ALERT_FILES.name} SET "progress" = %s WHERE "alertFile" = %s', [text, alert_file])

    def mark_sent(self, ids: Array, sent_mjd_tai: Array | float) -> None:
        """Note when the alerts of the DIASources ``ids`` left; one time, or one each. The first note stands."""
        ids = _ids(ids)
        times = np.array(np.broadcast_to(np.asarray(sent_mjd_tai, np.float64), ids.shape))
        with self._store.transaction(write=True) as session:
            writing.mark_sent(session, ids, times)

    def mark_failed(self, ids: Array, reason: str) -> None:
        """Note that the alerts of the DIASources ``ids`` can never leave, and why."""
        with self._store.transaction(write=True) as session:
            writing.mark_failed(session, _ids(ids), reason)

    # The archive

    def find_alert(self, dia_source_id: int) -> Table:
        """Return the row (columns of ALERT) of one alert; no row if there is none."""
        with self._store.transaction() as session:
            return read_rows(session, ALERTS, 'WHERE "diaSourceId" = %s', [int(dia_source_id)])

    def alerts_of_object(self, number: int) -> Table:
        """Return the alerts (columns of ALERT) of a DIAObject or Solar System object, the oldest first."""
        where = 'WHERE "diaObjectId" = %s OR "ssObjectId" = %s ORDER BY "readoutMjdTai", "diaSourceId"'
        with self._store.transaction() as session:
            return read_rows(session, ALERTS, where, [int(number)] * 2)

    def spool_dirs(self, names: Sequence[str]) -> dict[str, str]:
        """Return the folders of these files of alerts, empty where none was noted."""
        sql = f"""SELECT "alertFile", coalesce("spoolDir", '') FROM {ALERT_FILES.name}
            WHERE "alertFile" IN (SELECT unnest(%s::TEXT[]))"""
        with self._store.transaction() as session:
            found = session.fetch(sql, ["S", "S"], [list(names)])
        return dict(zip(*(column.tolist() for column in found), strict=True))

    def latencies(self, visit: int | None = None) -> Array:
        """Return the seconds from readout to sent of all sent alerts, or those of ``visit``, by DIASource."""
        which, parameters = ("", []) if visit is None else ('AND "visit" = %s', [visit])
        sql = f"""SELECT "readoutMjdTai", "sentMjdTai" FROM {ALERTS.name}
            WHERE "sentMjdTai" IS NOT NULL {which} ORDER BY "diaSourceId" """
        with self._store.transaction() as session:
            readout, sent = session.fetch(sql, ["f8", "f8"], parameters)
        return (sent - readout) * SECONDS_PER_DAY

    # Precovery

    def detector_visits(self, since_mjd_tai: float, until_mjd_tai: float) -> Table:
        """Return the stored detectors (columns of DETECTOR_VISIT_PROCESSING_SUMMARY) of that time, in its order."""
        where = 'WHERE "midpointMjdTai" BETWEEN %s AND %s ORDER BY "midpointMjdTai", "visit", "detector"'
        with self._store.transaction() as session:
            return read_rows(session, DETECTOR_VISITS, where, [since_mjd_tai, until_mjd_tai])

    def objects_without_precovery(self, since_mjd_tai: float) -> Table:
        """Return the DIAObjects (columns of DIA_OBJECT_LAST) first seen since then and not yet looked for, by id."""
        where = f"""WHERE "firstDiaSourceMjdTai" >= %s AND NOT EXISTS (SELECT 1 FROM {PRECOVERIES.name} p
            WHERE p."diaObjectId" = {LAST_OBJECTS.name}."diaObjectId") ORDER BY "diaObjectId" """
        with self._store.transaction() as session:
            return read_rows(session, LAST_OBJECTS, where, [since_mjd_tai])

    def add_forced(self, forced_sources: Table) -> int:
        """Store forced sources, numbered here, of objects that have none on that (visit, detector); return how many."""
        with self._store.transaction(write=True) as session:
            return writing.add_forced(session, forced_sources)

    def mark_precovered(self, ids: Array, mjd_tai: float) -> None:
        """Note that the DIAObjects ``ids`` were looked for on older images."""
        with self._store.transaction(write=True) as session:
            writing.mark_precovered(session, _ids(ids), mjd_tai)

    # Opening

    def _make_tables(self) -> None:
        with self._store.transaction() as session:
            if has_tables(session):
                return
        with self._store.transaction(write=True) as session:
            if not has_tables(session):
                writing.create_tables(session, wanted_metadata(), indexed=self._store.indexed)

    def _check_version(self) -> None:
        found, wanted = self.metadata(), wanted_metadata()
        names = [name for name in wanted if found.get(name) != wanted[name]]
        if names:
            got = ", ".join(f"{name} {found.get(name, 'missing')} (wanted {wanted[name]})" for name in names)
            raise DatabaseError(
                f"the database was made by another version of Nightstream: {got}; use that version, or a new database",
                path=self._store.location,
            )


def wanted_metadata() -> dict[str, str]:
    """Return what `PromptDatabase.metadata` must be for this version."""
    return {"schema": APDB_VERSION, "format": FORMAT_VERSION, "columns": fingerprint()}


def _ids(ids: Array) -> Array:
    ids = np.atleast_1d(np.asarray(ids))
    if ids.size and ids.dtype.kind not in "iu":
        raise InputError(f"ids must be integers, got {ids.dtype}")
    return ids.astype(np.int64)
