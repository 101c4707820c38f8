"""The alerts of a visit: put in order, packed and spooled to a durable file, with a row of the outbox for each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nightstream.engine.tables import n_rows, take
from nightstream.engine.values import Array, Table
from nightstream.io.alerts.files import write_alert_file
from nightstream.io.alerts.packets import AlertInput, pack_alerts
from nightstream.scheduler.visit_products import VisitProducts
from nightstream.scheduler.visit_stamps import VisitStamps

PACKED_AT_ONCE = 1000  # alerts whose stamps are in memory as FITS, twice


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertTables:
    """What the packets of a visit are made of: a row of ``dia_sources`` is an alert."""

    dia_sources: Table
    dia_objects: Table
    prv_dia_sources: Table  # without this visit; by object, then time
    prv_dia_forced_sources: Table  # with this visit; by object, then time
    prv_moving_sources: Table  # of Solar System objects, without this visit; by object, then time
    ss_sources: Table


@dataclass(frozen=True, slots=True)
class AlertBatch:
    """The alerts of a visit as they were stored."""

    visit: int
    path: Path  # the spool file
    rows: Table  # columns of ALERT, in the order of the file
    tables: AlertTables


def spool_alerts(
    products: VisitProducts, stamps: VisitStamps, tables: AlertTables, spool_dir: Path, version: str, readout_mjd_tai: float
) -> AlertBatch:
    """Pack an alert for each of ``tables.dia_sources``, the surest first, into one durable file.

    An older file of the same detectors is replaced: it was never committed. Without alerts there is no file.
    """
    order = alert_order(tables.dia_sources)
    sources = take(tables.dia_sources, order)
    path = spool_dir / spool_name(products.visit, products.detectors)
    n, ids = n_rows(sources), sources["dia_source_id"]
    if n:
        bodies = _bodies(stamps, sources, tables, version)
        offset, length = write_alert_file(path, bodies, version, ids=ids, visit=products.visit)
    else:
        path.unlink(missing_ok=True)
        offset = length = np.empty(0, np.int64)
    names = ("dia_source_id", "dia_object_id", "ss_object_id", "visit", "detector")
    rows = {name: sources[name] for name in names} | {
        "alert_file": np.full(n, path.name),
        "offset": offset,
        "length": length,
        "reliability": sources.get("reliability", np.full(n, np.nan)),
        "readout_mjd_tai": np.full(n, readout_mjd_tai),
        "schema_version": np.full(n, version),
    }
    return AlertBatch(products.visit, path, rows, tables)


def alert_order(sources: Table) -> Array:
    """Return the rows by reliability, the surest first (unknown ones last), then |snr|, then number."""
    n = n_rows(sources)
    reliability = np.nan_to_num(sources.get("reliability", np.full(n, np.nan)), nan=-1.0)
    return np.lexsort((sources["dia_source_id"], -np.abs(sources["snr"]), -reliability))


def spool_name(visit: int, detectors: tuple[int, ...]) -> str:
    """Return the file name of the alerts of some detectors of a visit: another set of detectors, another name."""
    return f"visit={visit}.first={detectors[0]:03d}.n={len(detectors)}.avro"


def _bodies(stamps: VisitStamps, sources: Table, tables: AlertTables, version: str) -> Iterator[bytes]:
    """The packets, in the order of ``sources``, a few at a time."""
    starts = range(0, n_rows(sources), PACKED_AT_ONCE)
    for chosen, cutouts in stamps.files(take(sources, slice(start, start + PACKED_AT_ONCE)) for start in starts):
        yield from pack_alerts(
            AlertInput(
                dia_sources=chosen,
                dia_objects=tables.dia_objects,
                prv_dia_sources=tables.prv_dia_sources,
                prv_dia_forced_sources=tables.prv_dia_forced_sources,
                prv_moving_sources=tables.prv_moving_sources,
                ss_sources=tables.ss_sources,
                mpc_orbits={},
                cutouts=cutouts,
            ),
            version,
        )
