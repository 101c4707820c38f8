"""What happens inside the write transactions of the prompt database.

Rows are put in the order of the sky before they are stored, so that those of one detector lie together on disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from nightstream.engine.values import Array, Table
from nightstream.errors import ConflictError, InputError
from nightstream.io.database.sky_cells import cells_of
from nightstream.io.database.store import Session
from nightstream.io.database.tables import (
    ALERT_FAILURES,
    ALERT_FILES,
    ALERTS,
    DETECTOR_VISITS,
    DIA_OBJECTS,
    DIA_SOURCES,
    FORCED_SOURCES,
    LAST_OBJECTS,
    PRECOVERIES,
    REVISIONS,
    SS_SOURCES,
    TABLES,
    StoredTable,
    values_to_store,
)

if TYPE_CHECKING:
    from nightstream.io.database.prompt_database import VisitBatch

Columns = dict[str, np.ndarray]  # by APDB name; NULLs masked


@dataclass(frozen=True, slots=True)
class PreparedBatch:
    """The tables of a `VisitBatch` as they will be stored."""

    detector_visits: Columns
    dia_sources: Columns
    dia_objects: Columns
    last_objects: Columns
    forced_sources: Columns
    ss_sources: Columns
    alerts: Columns
    is_numbered: bool  # do the forced sources come with their numbers?
    revision: int | None  # that it was made from


def create_tables(session: Session, metadata: Mapping[str, str], *, indexed: bool) -> None:
    """Make all tables and note ``metadata``."""
    for table in TABLES:
        for statement in table.create(indexed=indexed):
            session.execute(statement)
    session.execute('CREATE TABLE "metadata" ("name" TEXT PRIMARY KEY, "value" TEXT NOT NULL)')
    for item in metadata.items():
        session.execute('INSERT INTO "metadata" VALUES (%s, %s)', item)


def prepare(batch: VisitBatch) -> PreparedBatch:
    """Check the tables of ``batch`` and bring them to their stored form. Raises InputError where they do not fit."""
    objects = values_to_store(batch.dia_objects, DIA_OBJECTS.schema)
    prepared = PreparedBatch(
        detector_visits=values_to_store(batch.detector_visits, DETECTOR_VISITS.schema),
        dia_sources=_by_sky(values_to_store(batch.dia_sources, DIA_SOURCES.schema)),
        dia_objects=_by_sky(objects),
        last_objects=_last_objects(objects),
        forced_sources=values_to_store(batch.forced_sources, FORCED_SOURCES.schema),
        ss_sources=values_to_store(batch.ss_sources, SS_SOURCES.schema),
        alerts=values_to_store(batch.alerts, ALERTS.schema),
        is_numbered="dia_forced_source_id" in batch.forced_sources,
        revision=batch.revision,
    )
    _check(prepared, batch)
    return prepared


def write(session: Session, visit: int, alert_file: str, spool_dir: str, batch: PreparedBatch) -> set[int]:
    """Store what belongs to detectors of ``visit`` that are not stored yet; return them."""
    found = revision(session)
    if batch.revision not in (None, found):
        raise ConflictError(f"made from revision {batch.revision}, but {found} is stored: somebody else wrote", visit=visit)
    stored = published_detectors(session, visit)
    fresh = set(batch.detector_visits["detector"].tolist()) - stored
    if not fresh:
        return set()
    if stored:
        batch = _only(batch, fresh)
    _check_numbers(session, batch)
    forced = batch.forced_sources if batch.is_numbered else _numbered(session, batch.forced_sources)
    session.insert(DETECTOR_VISITS.name, batch.detector_visits)
    session.insert(DIA_SOURCES.name, batch.dia_sources)
    session.insert(FORCED_SOURCES.name, _by_sky(forced))
    session.insert(SS_SOURCES.name, batch.ss_sources)
    _write_objects(session, batch.dia_objects, batch.last_objects)
    _write_alerts(session, visit, alert_file, spool_dir, batch.alerts)
    _note_revision(session, found + 1, visit)
    return fresh


def revision(session: Session) -> int:
    """Return a number that grows with every change of the sources and objects."""
    return int(session.fetch(f'SELECT coalesce(max("number"), 0) FROM {REVISIONS.name}', ["i8"])[0][0])


def published_detectors(session: Session, visit: int) -> set[int]:
    """Return the detectors of ``visit`` that are stored."""
    sql = f'SELECT "detector" FROM {DETECTOR_VISITS.name} WHERE "visit" = %s'
    return set(session.fetch(sql, ["i2"], [int(visit)])[0].tolist())


def next_forced_id(session: Session) -> int:
    """Return one more than the largest number of a forced source."""
    sql = f'SELECT coalesce(max("diaForcedSourceId"), 0) + 1 FROM {FORCED_SOURCES.name}'
    return int(session.fetch(sql, ["i8"])[0][0])


def mark_sent(session: Session, ids: Array, times: Array) -> None:
    """Note the times at which alerts left, where none is noted, and the files that are done with."""
    session.stage("sent", {"id": ids, "time": times})
    session.execute(
        f"""UPDATE {ALERTS.name} SET "sentMjdTai" = sent."time" FROM sent
        WHERE "diaSourceId" = sent."id" AND "sentMjdTai" IS NULL"""
    )
    _close_files(session)


def mark_failed(session: Session, ids: Array, reason: str) -> None:
    """Note alerts that can never leave, and the files that are done with."""
    ids = _absent(session, ALERT_FAILURES, "diaSourceId", np.unique(ids))
    reasons = np.char.encode(np.full(len(ids), reason[:250]), "utf-8")
    session.insert(ALERT_FAILURES.name, {"diaSourceId": ids, "reason": reasons})
    _close_files(session)


def add_forced(session: Session, forced_sources: Table) -> int:
    """Store forced sources whose object has none on their detector of their visit; return how many."""
    rows = values_to_store(forced_sources, FORCED_SOURCES.schema)
    keys = np.stack([rows[name].astype(np.int64) for name in ("diaObjectId", "visit", "detector")], axis=-1)
    keys, first = np.unique(keys, axis=0, return_index=True)
    session.stage("added", {"object": keys[:, 0].copy(), "visit": keys[:, 1].copy(), "detector": keys[:, 2].copy()})
    sql = f"""SELECT a."object", a."visit", a."detector" FROM added a JOIN {FORCED_SOURCES.name} f
        ON f."diaObjectId" = a."object" AND f."visit" = a."visit" AND f."detector" = a."detector" """
    there = {tuple(key) for key in np.stack(session.fetch(sql, ["i8"] * 3), axis=-1).tolist()}
    new = first[[tuple(key) not in there for key in keys.tolist()]] if len(keys) else first
    if len(new):
        session.insert(FORCED_SOURCES.name, _by_sky(_numbered(session, _rows(rows, new))))
        _note_revision(session, revision(session) + 1, 0)
    return len(new)


def mark_precovered(session: Session, ids: Array, mjd_tai: float) -> None:
    """Note objects that were looked for on older images."""
    ids = _absent(session, PRECOVERIES, "diaObjectId", np.unique(ids))
    session.insert(PRECOVERIES.name, {"diaObjectId": ids, "precoveredMjdTai": np.full(len(ids), float(mjd_tai))})


def _write_objects(session: Session, objects: Columns, last: Columns) -> None:
    """Store new versions of DIAObjects. A version older than the current one takes its place in the past."""
    ids, starts = objects["diaObjectId"], objects["validityStartMjdTai"]
    session.stage("versions", {"id": ids, "start": starts})
    sql = f"""SELECT o."diaObjectId", o."validityStartMjdTai" FROM {DIA_OBJECTS.name} o
        JOIN versions v ON o."diaObjectId" = v."id" WHERE o."validityStartMjdTai" >= v."start" """
    later_ids, later_starts = session.fetch(sql, ["i8", "f8"])
    ends = _ends(ids, starts, later_ids, later_starts)
    if len(later_ids):
        session.execute(
            f"""DELETE FROM {DIA_OBJECTS.name} USING versions v
            WHERE "diaObjectId" = v."id" AND "validityStartMjdTai" = v."start" """
        )
    session.execute(
        f"""UPDATE {DIA_OBJECTS.name} SET "validityEndMjdTai" = v."start" FROM versions v WHERE "diaObjectId" = v."id"
        AND "validityStartMjdTai" < v."start" AND ("validityEndMjdTai" IS NULL OR "validityEndMjdTai" > v."start")"""
    )
    session.insert(DIA_OBJECTS.name, objects | {"validityEndMjdTai": ends})
    session.execute(
        f"""DELETE FROM {LAST_OBJECTS.name} USING versions v
        WHERE "diaObjectId" = v."id" AND "validityStartMjdTai" <= v."start" """
    )
    current = ids[np.ma.getmaskarray(ends)]
    session.insert(LAST_OBJECTS.name, _rows(last, np.isin(last["diaObjectId"], current)))


def _ends(ids: Array, starts: Array, later_ids: Array, later_starts: Array) -> np.ma.MaskedArray:
    """When each new version stops being valid: when the next one starts, if there is one, else masked."""
    ends = np.full(len(ids), np.inf)
    order = np.argsort(ids, kind="stable")
    rows = order[np.searchsorted(ids[order], later_ids)] if len(later_ids) else np.empty(0, np.int64)
    after = later_starts > starts[rows]
    np.minimum.at(ends, rows[after], later_starts[after])
    return np.ma.array(ends, mask=np.isinf(ends))


def _note_revision(session: Session, number: int, visit: int) -> None:
    session.insert(REVISIONS.name, values_to_store({"number": [number], "visit": [visit]}, REVISIONS.schema))


def _write_alerts(session: Session, visit: int, alert_file: str, spool_dir: str, alerts: Columns) -> None:
    if len(alerts["diaSourceId"]) == 0:
        return
    session.insert(ALERTS.name, alerts)
    number = session.fetch(f'SELECT coalesce(max("number"), 0) + 1 FROM {ALERT_FILES.name}', ["i8"])[0]
    file = {"alert_file": [alert_file], "number": number, "visit": [visit], "spool_dir": [spool_dir], "is_sent": [False]}
    version = np.char.decode(alerts["schemaVersion"][:1], "utf-8")
    session.insert(ALERT_FILES.name, values_to_store(file | {"schema_version": version}, ALERT_FILES.schema))


def _close_files(session: Session) -> None:
    """Note the files that have nothing left to send, so that nobody looks into them again."""
    session.execute(
        f"""UPDATE {ALERT_FILES.name} SET "isSent" = true WHERE NOT "isSent" AND NOT EXISTS (SELECT 1 FROM {ALERTS.name} a
        WHERE a."alertFile" = {ALERT_FILES.name}."alertFile" AND a."sentMjdTai" IS NULL AND NOT EXISTS
        (SELECT 1 FROM {ALERT_FAILURES.name} x WHERE x."diaSourceId" = a."diaSourceId"))"""
    )


def _numbered(session: Session, forced: Columns) -> Columns:
    """Forced sources in the order of detector, object and source, numbered from the next free number."""
    order = np.lexsort([np.ma.getdata(forced[name]) for name in ("diaSourceId", "diaObjectId", "detector", "visit")])
    first = next_forced_id(session)
    return _rows(forced, order) | {"diaForcedSourceId": first + np.arange(len(order), dtype=np.int64)}


def _check_numbers(session: Session, batch: PreparedBatch) -> None:
    ids = batch.forced_sources["diaForcedSourceId"]
    if not batch.is_numbered or len(ids) == 0:
        return
    expected = next_forced_id(session)
    if ids.min() != expected:
        raise ConflictError(f"forced sources are numbered from {ids.min()}, but {expected} is next: somebody else wrote")


def _check(prepared: PreparedBatch, batch: VisitBatch) -> None:
    """Refuse rows of other visits or detectors, doubled keys, and alerts without a file."""
    detectors = prepared.detector_visits["detector"]
    for name in ("detector_visits", "dia_sources", "forced_sources", "alerts"):
        columns = getattr(prepared, name)
        if (columns["visit"] != batch.visit).any():
            raise InputError(f"{name} holds rows of another visit than {batch.visit}", visit=batch.visit)
        foreign = np.setdiff1d(columns["detector"], detectors)
        if len(foreign):
            raise InputError(f"{name} holds rows of detector {foreign[0]}, which detector_visits lacks", visit=batch.visit)
    keys = {"detector_visits": "detector", "dia_sources": "diaSourceId", "dia_objects": "diaObjectId", "alerts": "diaSourceId"}
    if prepared.is_numbered:
        keys["forced_sources"] = "diaForcedSourceId"
    for name, key in keys.items():
        values = getattr(prepared, name)[key]
        if len(np.unique(values)) < len(values):
            raise InputError(f"{name} holds a {key} twice", visit=batch.visit)
    if len(prepared.alerts["diaSourceId"]) and (prepared.alerts["alertFile"] != batch.alert_file.encode()).any():
        raise InputError(f"alerts must lie in the file {batch.alert_file!r}", visit=batch.visit)


def _only(batch: PreparedBatch, detectors: set[int]) -> PreparedBatch:
    """What belongs to ``detectors``; of the objects, those that no other detector of the batch has to itself."""
    of = {name: _keep_detectors(getattr(batch, name), detectors) for name in ("detector_visits", "dia_sources", "alerts")}
    of["forced_sources"] = _keep_detectors(batch.forced_sources, detectors)
    seen = [np.ma.getdata(getattr(batch, name)["diaObjectId"]) for name in ("dia_sources", "forced_sources")]
    kept = [np.ma.getdata(of[name]["diaObjectId"]) for name in ("dia_sources", "forced_sources")]
    dropped = np.setdiff1d(np.concatenate(seen), np.concatenate(kept))
    for name in ("dia_objects", "last_objects"):
        columns = getattr(batch, name)
        of[name] = _rows(columns, ~np.isin(columns["diaObjectId"], dropped))
    is_kept = np.isin(batch.ss_sources["diaSourceId"], of["dia_sources"]["diaSourceId"])
    return replace(batch, **of, ss_sources=_rows(batch.ss_sources, is_kept))


def _keep_detectors(columns: Columns, detectors: set[int]) -> Columns:
    return _rows(columns, np.isin(columns["detector"], list(detectors)))


def _last_objects(objects: Columns) -> Columns:
    """Rows of DiaObjectLast for rows of DiaObject."""
    n = len(objects["diaObjectId"])
    cells = {"cell": cells_of(objects["ra"], objects["dec"])}
    empty = values_to_store({"dia_object_id": np.zeros(n, np.int64)}, LAST_OBJECTS.schema)
    return _by_sky({name: objects.get(name, values) for name, values in empty.items()} | cells)


def _by_sky(columns: Columns) -> Columns:
    """The rows in the order of the sky."""
    return _rows(columns, np.argsort(cells_of(columns["ra"], columns["dec"]), kind="stable"))


def _rows(columns: Columns, rows: Array) -> Columns:
    return {name: values[rows] for name, values in columns.items()}


def _absent(session: Session, table: StoredTable, key: str, ids: Array) -> Array:
    """Those of ``ids`` that ``table`` does not have."""
    there = session.fetch(f'SELECT "{key}" FROM {table.name} WHERE "{key}" IN (SELECT unnest(%s::BIGINT[]))', ["i8"], [ids])
    return np.setdiff1d(ids, there[0])
