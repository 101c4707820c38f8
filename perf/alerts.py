"""Time the making of alert packets on one core: rows to Avro, packets spliced, and the visit's file written.

    python perf/alerts.py [--alerts 2000] [--runs 5] [--work DIR] [--name alerts-cpu]

Every alert has 40 previous sources, 60 forced ones and three cutouts of 33 kB. First the bytes of some packets are held
against fastavro's, which is timed on them too. Seconds are those of the core, waiting not counted, except where it says
"clock". Writes perf/records/<name>.json.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import fastavro
import numba
import numpy as np
import record

from nightstream.engine.values import Table
from nightstream.io.alerts.avro_rows import encode_rows
from nightstream.io.alerts.avro_schema import NEWEST, alert_schema, record_fields
from nightstream.io.alerts.files import decode_body, read_body, write_alert_file
from nightstream.io.alerts.packets import AlertInput, pack_alerts

N_PREVIOUS, N_FORCED, CUTOUT_BYTES = 40, 60, 33_000
UNMEASURED = ("trail", "dipole", "timeWithdrawn", "parent", "ssObject")  # null in nearly every real source
N_CHECKED = 20


def measured_table(name: str, n_rows: int, rng: np.random.Generator) -> Table:
    """Return a table as a visit leaves it: what is usually measured is there, flags are rare."""
    columns = [field.column for field in record_fields(name)]
    return {c.name: values(c.dtype, n_rows, rng) for c in columns if c.required or not c.apdb.startswith(UNMEASURED)}


def values(dtype: str, n_rows: int, rng: np.random.Generator) -> np.ndarray:
    """Return plausible values of one column."""
    kind = np.dtype(dtype).kind
    if kind == "S":
        return rng.choice(np.array(list("ugrizy")), n_rows)
    if kind == "b":
        return rng.random(n_rows) < 0.03
    return (rng.normal(1000, 30, n_rows) if kind == "f" else rng.integers(1, 2000, n_rows)).astype(dtype)


def visit(n_alerts: int, seed: int = 1) -> AlertInput:
    """Return the alerts of one visit."""
    rng = np.random.default_rng(seed)
    objects = np.arange(10**15, 10**15 + n_alerts)
    picture = [rng.bytes(CUTOUT_BYTES) for _ in range(100)]
    return AlertInput(
        dia_sources=measured_table("diaSource", n_alerts, rng)
        | {"dia_object_id": rng.permutation(objects), "dia_source_id": np.arange(10**17, 10**17 + n_alerts)},
        dia_objects=measured_table("diaObject", n_alerts, rng) | {"dia_object_id": objects},
        prv_dia_sources=history("diaSource", objects, N_PREVIOUS, rng),
        prv_dia_forced_sources=history("diaForcedSource", objects, N_FORCED, rng),
        prv_moving_sources={},
        ss_sources={},
        mpc_orbits={},
        cutouts=tuple([picture[(7 * index + kind) % 100] for index in range(n_alerts)] for kind in range(3)),
    )


def history(name: str, objects: np.ndarray, n_each: int, rng: np.random.Generator) -> Table:
    """Return ``n_each`` rows for every object."""
    return measured_table(name, n_each * len(objects), rng) | {"dia_object_id": np.repeat(objects, n_each)}


class Stopwatch:
    """Seconds of every step, run by run: of this core, and on the clock."""

    def __init__(self) -> None:
        self.core: dict[str, list[float]] = {}
        self.clock: dict[str, list[float]] = {}

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        core, clock = time.thread_time(), time.perf_counter()
        yield
        self.core.setdefault(step, []).append(time.thread_time() - core)
        self.clock.setdefault(step, []).append(time.perf_counter() - clock)


def check(alerts: AlertInput) -> list[dict[str, Any]]:
    """Return some alerts as dicts, once our bytes for them proved to be fastavro's."""
    bodies = [body for body, _ in zip(pack_alerts(alerts), range(N_CHECKED), strict=False)]
    packets = [decode_body(body, NEWEST) for body in bodies]
    if [with_fastavro(packet) for packet in packets] != bodies:
        raise SystemExit("wrong answer: the bytes are not fastavro's")
    if {len(packet["prvDiaSources"]) for packet in packets} != {N_PREVIOUS}:
        raise SystemExit("wrong answer: an alert has another's history")
    return packets


def with_fastavro(packet: dict[str, Any], schema: Any = fastavro.parse_schema(alert_schema())) -> bytes:  # noqa: B008
    """Return the body that fastavro writes."""
    buffer = io.BytesIO()
    fastavro.schemaless_writer(buffer, schema, packet)
    return buffer.getvalue()


def run_once(alerts: AlertInput, path: Path, stopwatch: Stopwatch) -> int:
    """Encode, pack and write the visit; return the bytes of all packets."""
    ids = alerts.dia_sources["dia_source_id"]
    with stopwatch("encode_rows"):
        encode_rows(alerts.prv_dia_sources, "diaSource")
        encode_rows(alerts.prv_dia_forced_sources, "diaForcedSource")
    with stopwatch("pack_alerts"):
        n_bytes = sum(len(body) for body in pack_alerts(alerts))
    with stopwatch("pack_and_write"):
        places = write_alert_file(path, pack_alerts(alerts), NEWEST, ids=ids)
    if decode_body(read_body(path, places.offset[-1], places.length[-1]), NEWEST)["diaSourceId"] != ids[-1]:
        raise SystemExit("wrong answer: a packet is not where it is said to be")
    path.unlink()
    return n_bytes


def rates(alerts: AlertInput, runs: int, work: Path) -> dict[str, Any]:
    """Return packets per second of every step, with fastavro's for comparison."""
    packets, stopwatch, n_alerts = check(alerts), Stopwatch(), len(alerts.dia_sources["dia_source_id"])
    run_once(alerts, work / "alerts.avro", Stopwatch())  # warm up
    for _ in range(runs):
        n_bytes = run_once(alerts, work / "alerts.avro", stopwatch)
        with stopwatch("fastavro"):
            for packet in packets:
                with_fastavro(packet)
    number = {"fastavro": len(packets)}
    rows = {
        step: {
            "packets_per_core_second": per_second(number.get(step, n_alerts), seconds, min),
            "median_per_core_second": per_second(number.get(step, n_alerts), seconds, median),
            "packets_per_clock_second": per_second(number.get(step, n_alerts), stopwatch.clock[step], min),
        }
        for step, seconds in stopwatch.core.items()
    }
    return {"packet_bytes": n_bytes // n_alerts, "steps": rows}


def per_second(number: int, seconds: list[float], which: Callable[[list[float]], float]) -> int:
    """Return how many a second in the best or the middle run."""
    return round(number / which(seconds))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--alerts", type=int, default=2000)
    options.add_argument("--runs", type=int, default=5)
    options.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "nightstream-perf")
    options.add_argument("--name", default="alerts-cpu")
    chosen = options.parse_args()
    numba.set_num_threads(1)
    chosen.work.mkdir(parents=True, exist_ok=True)
    measured = rates(visit(chosen.alerts), chosen.runs, chosen.work)
    shape = {"alerts": chosen.alerts, "previous": N_PREVIOUS, "forced": N_FORCED, "cutout_bytes": CUTOUT_BYTES}
    content = {"header": record.header("cpu"), "shape": shape, "runs": chosen.runs, "schema": NEWEST, **measured}
    for step, row in measured["steps"].items():
        print(
            f"{step:16s} {chosen.alerts} x ({N_PREVIOUS} + {N_FORCED} rows, 3 x {CUTOUT_BYTES} B) | "
            f"{row['packets_per_core_second']:7d} packets/s per core (median {row['median_per_core_second']}) | "
            f"{row['packets_per_clock_second']:7d} packets/s on the clock"
        )
    print(f"{measured['packet_bytes']} bytes a packet; record: {record.write(chosen.name, content)}")


if __name__ == "__main__":
    main()
