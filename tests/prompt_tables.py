"""Small tables for tests of the prompt database, each complete enough to be stored."""

from __future__ import annotations

import numpy as np

from nightstream.engine.values import Table
from nightstream.io.database.prompt_database import VisitBatch

MJD = 61000.0


def objects(ids, ra=None, dec=None, mjd: float = MJD, **columns) -> Table:
    """New versions of DIAObjects that start at ``mjd``; near ra 10, dec -20 unless told."""
    ids = np.asarray(ids, np.int64)
    n = len(ids)
    return {
        "dia_object_id": ids,
        "ra": 10 + 0.001 * np.arange(n) if ra is None else np.asarray(ra, float),
        "dec": np.full(n, -20.0) if dec is None else np.asarray(dec, float),
        "validity_start_mjd_tai": np.full(n, mjd),
        "first_dia_source_mjd_tai": np.full(n, mjd),
        "last_dia_source_mjd_tai": np.full(n, mjd),
        "n_dia_sources": np.ones(n, np.int32),
        **columns,
    }


def sources(ids, object_ids, visit: int, detector: int = 1, mjd: float = MJD, **columns) -> Table:
    """DIASources of one detector of a visit."""
    ids = np.asarray(ids, np.int64)
    flux = {"psf_flux": 100 + np.arange(len(ids), dtype=float)}
    return {"dia_source_id": ids} | forced(object_ids, visit, detector, mjd, **(flux | columns))


def forced(object_ids, visit: int, detector: int = 1, mjd: float = MJD, **columns) -> Table:
    """Forced sources of one detector of a visit, not numbered."""
    object_ids = np.asarray(object_ids, np.int64)
    n = len(object_ids)
    return {
        "dia_object_id": object_ids,
        "visit": np.full(n, visit),
        "detector": np.full(n, detector),
        "midpoint_mjd_tai": np.full(n, mjd),
        "ra": 10 + 0.001 * np.arange(n),
        "dec": np.full(n, -20.0),
        "band": np.full(n, "r"),
        **columns,
    }


def alerts(source_ids, object_ids, visit: int, detector: int = 1, file: str = "a.avro", mjd: float = MJD) -> Table:
    """Rows of the outbox, in the order of the file."""
    n = len(source_ids)
    return {
        "dia_source_id": np.asarray(source_ids, np.int64),
        "dia_object_id": np.asarray(object_ids, np.int64),
        "visit": np.full(n, visit),
        "detector": np.full(n, detector),
        "alert_file": np.full(n, file),
        "offset": 100 * np.arange(n),
        "length": np.full(n, 100),
        "readout_mjd_tai": np.full(n, mjd),
        "schema_version": np.full(n, "11.1"),
    }


def detector_visits(visit: int, detectors=(1,), mjd: float = MJD, **columns) -> Table:
    """A row for each detector of a visit; footprints 0.2 deg wide, side by side along ra from (10, -20)."""
    n = len(detectors)
    low = 10 + 0.2 * np.arange(n)
    corners = {"llcra": low, "ulcra": low, "urcra": low + 0.2, "lrcra": low + 0.2}
    corners |= {name: np.full(n, value) for name, value in zip(("llcdec", "lrcdec"), (-20.1, -20.1), strict=True)}
    corners |= {name: np.full(n, -19.9) for name in ("ulcdec", "urcdec")}
    times = {"visit": np.full(n, visit), "band": np.full(n, "r"), "midpoint_mjd_tai": np.full(n, mjd)}
    return {"detector": np.asarray(detectors), **times, **corners, **columns}


def whole_visit(visit: int, detectors=(1, 2), each: int = 3, mjd: float | None = None, file: str | None = None) -> VisitBatch:
    """A visit with ``each`` sources on every detector, of objects that are the same in every visit, and their alerts."""
    mjd = MJD + visit if mjd is None else mjd
    file = f"visit={visit}.avro" if file is None else file
    ids = {d: 1000 * d + np.arange(1, each + 1) for d in detectors}
    parts = {d: visit * 1_000_000 + ids[d] for d in detectors}
    together = np.concatenate(list(ids.values()))
    packets = _stacked(alerts(parts[d], ids[d], visit, d, file, mjd) for d in detectors)
    packets["offset"] = 100 * np.arange(len(together))
    return VisitBatch(
        visit=visit,
        detector_visits=detector_visits(visit, detectors, mjd),
        dia_sources=_stacked(sources(parts[d], ids[d], visit, d, mjd) for d in detectors),
        dia_objects=objects(together, mjd=mjd),
        forced_sources=_stacked(forced(ids[d], visit, d, mjd) for d in detectors),
        alerts=packets,
        alert_file=file,
    )


def _stacked(tables) -> Table:
    tables = list(tables)
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
