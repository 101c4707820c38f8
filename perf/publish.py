"""Time one visit from the workers' products to alerts sent: read, associate, force, summarize, pack, store, send.

    python perf/publish.py [--alerts 10000] [--detectors 189] [--work DIR] [--name publish-cpu]

Every alert's object has 40 previous sources and 60 forced ones in the database. The clock starts when the products lie on the
disk and stops when the last alert is marked sent; the alerts are checked afterwards. Writes perf/records/<name>.json.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import record
from database import FORCED_VISITS, SOURCE_VISITS, START, filled

from nightstream.engine.config import EngineConfig
from nightstream.engine.values import Table
from nightstream.io.alerts.distribution import FileSink
from nightstream.io.alerts.files import decode_body, read_body
from nightstream.io.apdb import DIA_FORCED_SOURCE, DIA_OBJECT, DIA_SOURCE
from nightstream.io.database.prompt_database import PromptDatabase, VisitBatch, open_database
from nightstream.scheduler.publish import Publisher
from nightstream.scheduler.publish_queue import EndedVisit
from nightstream.scheduler.sender import Sender
from nightstream.simulate.catalogue import CatalogueVisit, write_visit

SIDE_PIX = 256
VERSION = "11.1"


def true_sources(visit: CatalogueVisit, n_each: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ra and dec of ``n_each`` sources on a grid on every detector."""
    side = int(np.ceil(np.sqrt(n_each)))
    place = 20.0 + np.arange(side) * (SIDE_PIX - 40.0) / side
    x, y = (v.ravel()[:n_each] for v in np.meshgrid(place, place))
    sky = [visit.wcs(detector).sky_from_pixel(x, y) for detector in range(visit.n_detectors)]
    return np.concatenate([ra for ra, _ in sky]), np.concatenate([dec for _, dec in sky])


def fill(database: PromptDatabase, ra: np.ndarray, dec: np.ndarray) -> None:
    """Give every object its history."""
    n = len(ra)
    objects = {
        "dia_object_id": 1 + np.arange(n),
        "ra": ra,
        "dec": dec,
        "ra_err": np.full(n, 1e-5),
        "dec_err": np.full(n, 1e-5),
        "pm_ra": np.full(n, np.nan),
        "validity_start_mjd_tai": np.full(n, START),
        "first_dia_source_mjd_tai": np.full(n, START),
        "last_dia_source_mjd_tai": np.full(n, START + SOURCE_VISITS),
        "n_dia_sources": np.full(n, SOURCE_VISITS, np.int32),
    }
    for visit in range(FORCED_VISITS):
        database.write(past_visit(visit, objects))


def past_visit(visit: int, objects: Table) -> VisitBatch:
    """A visit that saw all objects."""
    n = len(objects["ra"])
    seen = {name: objects[name] for name in ("dia_object_id", "ra", "dec", "ra_err", "dec_err")} | {
        "visit": np.full(n, visit),
        "detector": np.zeros(n, np.int16),
        "midpoint_mjd_tai": np.full(n, START + visit),
        "band": np.full(n, "ugrizy"[visit % 6]),
        "ss_object_id": np.zeros(n, np.int64),
    }
    forced = filled(DIA_FORCED_SOURCE, {k: v for k, v in seen.items() if k not in ("ra_err", "dec_err", "ss_object_id")}, visit)
    del forced["dia_forced_source_id"]
    sources = filled(DIA_SOURCE, seen | {"dia_source_id": visit * 10**6 + np.arange(n)}, visit)
    return VisitBatch(
        visit=visit,
        detector_visits={"visit": [visit], "detector": [0], "band": ["r"], "midpoint_mjd_tai": [START + visit]},
        dia_sources=sources if visit < SOURCE_VISITS else {},
        forced_sources=forced,
        dia_objects=filled(DIA_OBJECT, objects, visit) if visit == 0 else {},
    )


def publish(database: PromptDatabase, products: list[Path], visit: CatalogueVisit, folder: Path) -> dict:
    """Time the visit; return seconds and counts."""
    publisher = Publisher(database=database, engine=EngineConfig(), spool_dir=folder / "spool", schema_version=VERSION)
    with_sender = Sender(database, FileSink(folder / "alerts"), folder / "spool").start()
    start = time.perf_counter()
    done = publisher.publish(EndedVisit(visit.visit, tuple(products), visit.midpoint_mjd_tai))
    stored = time.perf_counter()
    with_sender.wake()
    with_sender.drain(600.0)
    sent = time.perf_counter()
    with_sender.close()
    return {"alerts": done.n_alerts, "new_objects": done.n_new_objects, "stored_s": stored - start, "sent_s": sent - start}


def check(database: PromptDatabase, visit: CatalogueVisit, folder: Path, ids: np.ndarray) -> int:
    """Look at the last packet, whose detector the visit before did not see, and that all were sent; return the file's bytes."""
    path = next((folder / "alerts").glob(f"visit={visit.visit}*.avro"))
    row = database.find_alert(int(ids[-1]))
    packet = decode_body(read_body(path, int(row["offset"][0]), int(row["length"][0])), VERSION)
    got = len(packet["prvDiaSources"]), len(packet["prvDiaForcedSources"]), len(database.latencies(visit.visit))
    if got != (SOURCE_VISITS, FORCED_VISITS + 1, len(ids)):
        raise SystemExit(f"wrong answer: previous, forced, sent are {got}")
    return path.stat().st_size


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--alerts", type=int, default=10_000)
    options.add_argument("--detectors", type=int, default=189)
    options.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "nightstream-perf")
    options.add_argument("--name", default="publish-cpu")
    options.add_argument("--profile", action="store_true", help="print where the time goes; the record is then not written")
    chosen = options.parse_args()
    folder = chosen.work / "publish"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    visits = [
        CatalogueVisit(visit=10**6 + k, midpoint_mjd_tai=START + 80 + k, n_detectors=n, side_pix=SIDE_PIX)
        for k, n in enumerate((1, chosen.detectors))
    ]
    n_each = -(-chosen.alerts // chosen.detectors)
    ra, dec = true_sources(visits[1], n_each)
    with open_database(folder / "prompt.duckdb") as database:
        fill(database, ra, dec)
        flux = np.full(len(ra), 5000.0)
        known = {"dia_object_id": 1 + np.arange(len(ra)), "ra": ra, "dec": dec}
        products = [write_visit(folder, visit, ra, dec, flux, known=known) for visit in visits]
        publish(database, products[0], visits[0], folder)  # compiles what there is to compile
        record.reset_peak_memory()
        if chosen.profile:
            profile = cProfile.Profile()
            measured = profile.runcall(publish, database, products[1], visits[1], folder)
            pstats.Stats(profile).sort_stats("cumulative").print_stats(45)
        else:
            measured = publish(database, products[1], visits[1], folder)
        ids = database.claimed_objects(visits[1].visit)
        sources, _ = database.history(ids, START + 80.5, source_columns=("dia_source_id",), forced_columns=("visit",))
        measured["bytes"] = check(database, visits[1], folder, np.sort(sources["dia_source_id"]))
    shutil.rmtree(folder)
    content = {
        "header": record.header("cpu"),
        "detectors": chosen.detectors,
        "peak_memory_gib": record.peak_memory_gib(),
        **measured,
    }
    print(", ".join(f"{name} {value:.2f}" if isinstance(value, float) else f"{name} {value}" for name, value in measured.items()))
    if not chosen.profile:
        print(f"peak memory {content['peak_memory_gib']} GiB; record: {record.write(chosen.name, content)}")


if __name__ == "__main__":
    main()
