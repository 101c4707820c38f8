"""Time the prompt database: reading a detector's objects and their history, writing a detector-visit, the outbox.

    python perf/database.py [--engine duckdb|postgresql] [--objects 1000000] [--detectors 10] [--work DIR] [--name NAME]

Two fields: "wide", 10 x 10 detectors that share the objects evenly, and "dense", one detector that has as many to itself.
Of the wide field so many detectors have a history: 40 visits with a DIASource, 60 with a forced source, per object. All of
it is written through the interface that is timed. PostgreSQL is started here, as the tests do. Writes perf/records/<name>.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np
import record

from nightstream.io.apdb import DIA_FORCED_SOURCE, DIA_OBJECT, DIA_SOURCE
from nightstream.io.database.prompt_database import PromptDatabase, VisitBatch, open_database

SIDE = 0.23  # degrees, of a detector
ACROSS = 10  # detectors along a side of the wide field
SOURCE_VISITS, FORCED_VISITS = 40, 60
START = 61000.0  # MJD of the first visit
POSITIONS = ("dia_object_id", "ra", "dec", "pm_ra", "pm_dec", "radec_mjd_tai")
Step = tuple[str, Callable[[], object], Callable[[object], int], int]


def footprint(number: int, ra: float = 30.0, dec: float = -15.0) -> np.ndarray:
    """Corners (4, 2) of a detector of the wide field."""
    x, y = ra + SIDE * (number % ACROSS), dec + SIDE * (number // ACROSS)
    return np.array([[x, y], [x + SIDE, y], [x + SIDE, y + SIDE], [x, y + SIDE]])


DENSE = footprint(0, ra=100.0)


def objects_of(corners: np.ndarray, first_id: int, n: int) -> dict[str, np.ndarray]:
    """``n`` objects spread over a detector."""
    rng = np.random.default_rng(first_id)
    (x, y), (x2, y2) = corners[0], corners[2]
    return {
        "dia_object_id": first_id + np.arange(n),
        "ra": rng.uniform(x + 1e-6, x2 - 1e-6, n),
        "dec": rng.uniform(y + 1e-6, y2 - 1e-6, n),
        "validity_start_mjd_tai": np.full(n, START),
        "last_dia_source_mjd_tai": np.full(n, START),
        "first_dia_source_mjd_tai": np.full(n, START),
        "n_dia_sources": np.ones(n, np.int32),
    }


def filled(schema, known: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """All columns of ``schema``: those that are ``known``, the others with noise, a quarter of the columns NULL."""
    rng, n = np.random.default_rng(seed), len(known["ra"])
    table = {}
    for number, column in enumerate(schema.columns):
        kind = np.dtype(column.dtype).kind
        if column.name in known:
            table[column.name] = known[column.name]
        elif "withdrawn" in column.name or "validity_end" in column.name or (number % 4 == 0 and not column.required):
            continue
        elif kind == "S":
            table[column.name] = np.full(n, "r")
        elif kind == "b":
            table[column.name] = rng.random(n) < 0.05
        else:
            table[column.name] = rng.integers(0, 99, n) if kind == "i" else rng.normal(100, 10, n)
            table[column.name] = table[column.name].astype(column.dtype)
    return table


def batch_of(visit: int, detector: int, objects: dict[str, np.ndarray], *, sources: bool, versions: bool) -> VisitBatch:
    """A visit that sees all of ``objects``, as on one detector."""
    n = len(objects["ra"])
    seen = {name: objects[name] for name in ("dia_object_id", "ra", "dec")} | {
        "visit": np.full(n, visit),
        "detector": np.full(n, detector, np.int16),
        "midpoint_mjd_tai": np.full(n, START + visit),
        "band": np.full(n, "ugrizy"[visit % 6]),
    }
    ids = {"dia_source_id": (visit * 1000 + detector) * 2_000_000 + np.arange(n), "ss_object_id": np.zeros(n, np.int64)}
    forced = filled(DIA_FORCED_SOURCE, seen, visit)
    del forced["dia_forced_source_id"]
    new = objects | {"validity_start_mjd_tai": np.full(n, START + visit), "last_dia_source_mjd_tai": np.full(n, START + visit)}
    name = f"visit={visit}.{detector}"
    alerts = {key: value for key, value in (seen | ids).items() if key in ("dia_source_id", "dia_object_id", "visit", "detector")}
    alerts |= {"alert_file": np.full(n, name), "offset": np.arange(n), "length": np.full(n, 70000)}
    alerts |= {"readout_mjd_tai": np.full(n, START + visit), "schema_version": np.full(n, "11.1")}
    return VisitBatch(
        visit=visit,
        detector_visits={"visit": [visit], "detector": [detector], "band": ["r"], "midpoint_mjd_tai": [START + visit]},
        dia_sources=filled(DIA_SOURCE, seen | ids, visit) if sources else {},
        forced_sources=forced,
        dia_objects=filled(DIA_OBJECT, new, visit) if versions else {},
        alerts=alerts if versions else {},
        alert_file=name if versions else "",
    )


def fill(database: PromptDatabase, n_objects: int, n_detectors: int) -> list[dict[str, np.ndarray]]:
    """Write both fields and the histories; return the objects of the wide field's detectors."""
    each = n_objects // ACROSS**2
    wide = [objects_of(footprint(k), 1 + k * each, each) for k in range(ACROSS**2)]
    dense = objects_of(DENSE, 10 * n_objects, n_objects)
    alone = {"detector_visits": {"visit": [1], "detector": [0], "band": ["r"], "midpoint_mjd_tai": [START]}}
    together = {name: np.concatenate([objects[name] for objects in wide]) for name in wide[0]}
    database.write(VisitBatch(visit=1, dia_objects=together, **alone))
    alone["detector_visits"]["visit"] = [2]
    database.write(VisitBatch(visit=2, dia_objects=dense, **alone))
    seen = {name: np.concatenate([objects[name] for objects in wide[:n_detectors]]) for name in wide[0]}
    for visit in range(10, 10 + FORCED_VISITS):
        database.write(batch_of(visit, 0, seen, sources=visit < 10 + SOURCE_VISITS, versions=False))
    return wide


def steps(database: PromptDatabase, wide: list[dict[str, np.ndarray]], runs: int) -> Iterator[Step]:
    """What is timed: a name, the call, how to count the rows of its answer, and the least count that is right."""
    corners, ids, now = footprint(3), wide[3]["dia_object_id"], START + 80
    n, all_dense, of_history = len(ids), ACROSS**2 * len(ids), (SOURCE_VISITS + FORCED_VISITS) * len(ids)

    def rows(table) -> int:
        return len(table["ra"])

    def rows_of_both(tables) -> int:
        return rows(tables[0]) + rows(tables[1])

    light = ("dia_object_id", "band", "midpoint_mjd_tai", "psf_flux", "psf_flux_err", "science_flux", "science_flux_err")
    astrometry = ("ra", "dec", "ra_err", "dec_err", "ra_dec_cov")
    batches = {number: batch_of(200 + number, 3, wide[3], sources=True, versions=True) for number in range(runs + 1)}
    yield "objects of a detector, wide field", lambda: database.objects_in([corners], 20.0, now), rows, n
    yield "objects of a detector, dense", lambda: database.objects_in([DENSE], 20.0, now), rows, all_dense
    yield "positions of a detector, dense", lambda: database.objects_in([DENSE], 20.0, now, columns=POSITIONS), rows, all_dense
    yield "history, all columns", lambda: database.history(ids, START), rows_of_both, of_history
    yield (
        "history, light curves",
        lambda: database.history(ids, START, source_columns=light + astrometry, forced_columns=light[:1] + light[2:]),
        lambda tables: len(tables[0]["dia_object_id"]) + len(tables[1]["dia_object_id"]),
        of_history,
    )
    yield "current versions", lambda: database.dia_objects(ids), rows, n
    yield "write a detector-visit", lambda: database.write(batches.pop(min(batches))), lambda done: n * len(done), n
    yield "write it again", lambda: database.write(batch_of(200, 3, _few(wide[3]), sources=True, versions=True)), len, 0
    yield "find unsent alerts", database.unsent_files, len, runs + 1
    sent = (200 * 1000 + 3) * 2_000_000 + np.arange(len(ids))
    yield "mark alerts sent", lambda: database.mark_sent(sent, now), lambda _: n, n


def _few(objects: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: values[:1] for name, values in objects.items()}


def measure(call: Callable[[], object], size: Callable[[object], int], runs: int) -> dict:
    """Seconds of some runs after one that warms up, the least core-seconds of this process, and the rows of the answer."""
    call()
    seconds, core_seconds = [], []
    for _ in range(runs):
        start, busy = time.perf_counter(), time.process_time()
        answer = call()
        seconds.append(time.perf_counter() - start)
        core_seconds.append(time.process_time() - busy)
    numbers = {"median_s": median(seconds), "min_s": min(seconds), "max_s": max(seconds), "core_s": min(core_seconds)}
    return {"rows": size(answer), **{name: round(value, 4) for name, value in numbers.items()}}


@contextmanager
def empty_database(engine: str, work: Path) -> Iterator[str]:
    """The URL of a new database."""
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        if engine == "duckdb":
            yield str(Path(folder) / "prompt.duckdb")
            return
        sys.path.append(str(Path(__file__).parents[1] / "tests"))
        from postgres_server import running_server

        with running_server() as server:
            yield server.new_database()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--engine", default="duckdb", choices=("duckdb", "postgresql"))
    options.add_argument("--objects", type=int, default=1_000_000)
    options.add_argument("--detectors", type=int, default=10)
    options.add_argument("--runs", type=int, default=5)
    options.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "nightstream-perf")
    options.add_argument("--name", default=None)
    chosen = options.parse_args()
    with empty_database(chosen.engine, chosen.work) as url, open_database(url) as database:
        start = time.perf_counter()
        wide = fill(database, chosen.objects, chosen.detectors)
        content = {"header": record.header("cpu"), "engine": chosen.engine, "filled_s": round(time.perf_counter() - start, 1)}
        content |= {"rows": database.row_counts(), "runs": chosen.runs, "steps": {}}
        print(f"{chosen.engine}, filled in {content['filled_s']} s: {content['rows']}")
        for name, call, size, least in steps(database, wide, chosen.runs):
            row = content["steps"][name] = measure(call, size, chosen.runs)
            if row["rows"] < least:
                raise SystemExit(f"wrong answer: {name} gave {row['rows']} rows, not {least}")
            spread = f"({row['min_s']:.3f} to {row['max_s']:.3f})"
            print(f"{name:34s} {row['rows']:9d} rows | {row['median_s']:7.3f} s  {spread} | {row['core_s']:.3f} core-seconds")
        content["bytes"] = Path(url).stat().st_size if chosen.engine == "duckdb" else None
    name = chosen.name or ("database-cpu" if chosen.engine == "duckdb" else f"database-{chosen.engine}-cpu")
    print(f"peak memory {record.peak_memory_gib()} GiB; record: {record.write(name, content)}")


if __name__ == "__main__":
    main()
