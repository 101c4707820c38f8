"""Time the filters of 100 users on the 10,000 alerts of a visit: loading them, and running them.

    python perf/filters.py [--users 100] [--alerts 10000] [--runs 5] [--name filters-cpu]

A third of the users ask for simple cuts, a third join the object's history, a third give an order and subqueries. Checks
the answer of every user against NumPy's first, then times; then again with two users whose queries never end. Writes
perf/records/<name>.json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import record

from nightstream.io.alerts.filters import Filter, FilterConfig, load_filters, run_filters
from nightstream.io.apdb import DIA_OBJECT, DIA_SOURCE
from nightstream.io.schema import Schema

KINDS = (
    "SELECT diaSourceId FROM alert WHERE snr > {cut} AND reliability > 0.5 AND NOT isDipole",
    "SELECT * FROM alert WHERE nDiaSources > {count} AND abs(psfFlux - r_psfFluxMean) > 3 * r_psfFluxSigma AND snr > {cut}",
    "SELECT diaSourceId, -2.5 * log10(scienceFlux) + 31.4 AS mag FROM diaSource WHERE scienceFlux > 0 AND snr > {cut} "
    "AND diaObjectId IN (SELECT diaObjectId FROM diaObject WHERE nDiaSources < {count}) ORDER BY mag",
)
ENDLESS = "SELECT a.* FROM alert a, alert b, alert c WHERE sin(a.ra * b.ra * c.ra) > 2"


def random_table(schema: Schema, n_rows: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Every column of the schema, filled: floats uniform in -100 .. 100, integers 1 .. 100, half of the flags rare."""
    table = {}
    for column in schema.columns:
        kind = np.dtype(column.dtype).kind
        values = {"f": rng.uniform(-100, 100, n_rows), "i": rng.integers(1, 100, n_rows), "b": rng.uniform(size=n_rows) < 0.05}
        table[column.name] = values[kind].astype(column.dtype) if kind in values else np.full(n_rows, "r")
    return table


def visit_tables(n_alerts: int) -> dict[str, dict[str, np.ndarray]]:
    """The alerts of a visit: each source has its object, which stand in another order."""
    rng = np.random.default_rng(1)
    sources, objects = random_table(DIA_SOURCE, n_alerts, rng), random_table(DIA_OBJECT, n_alerts, rng)
    sources["dia_source_id"] = np.arange(1, n_alerts + 1) + (1 << 40)
    sources["dia_object_id"] = sources["dia_source_id"] - (1 << 39)
    sources["reliability"] = rng.uniform(size=n_alerts).astype(np.float32)
    objects["dia_object_id"] = rng.permutation(sources["dia_object_id"])
    objects["r_psf_flux_sigma"] = rng.uniform(0, 30, n_alerts).astype(np.float32)
    return {"dia_sources": sources, "dia_objects": objects, "ss_sources": {}}


def write_filters(folder: Path, users: int) -> None:
    """One file a user, each with numbers of its own."""
    folder.mkdir(parents=True)
    for user in range(users):
        text = KINDS[user % 3].format(cut=30 + user % 50, count=10 + user % 70)
        (folder / f"user{user:03d}.sql").write_text(text + "\n")


def expected(tables: dict, user: int) -> list[int]:
    """The ids that NumPy finds for ``user``."""
    rows, objects = tables["dia_sources"], tables["dia_objects"]
    cut, count = 30 + user % 50, 10 + user % 70
    place = np.argsort(objects["dia_object_id"])
    mine = {name: values[place][np.searchsorted(objects["dia_object_id"][place], rows["dia_object_id"])]
            for name, values in objects.items() if name in ("n_dia_sources", "r_psf_flux_mean", "r_psf_flux_sigma")}  # fmt: skip
    good = rows["snr"] > cut
    if user % 3 == 0:
        good &= (rows["reliability"] > 0.5) & ~rows["is_dipole"]
    elif user % 3 == 1:
        good &= mine["n_dia_sources"] > count
        good &= np.abs(rows["psf_flux"] - mine["r_psf_flux_mean"]) > 3 * mine["r_psf_flux_sigma"]
    else:
        good &= (rows["science_flux"] > 0) & (mine["n_dia_sources"] < count)
    key = rows["science_flux"] if user % 3 == 2 else rows["reliability"]
    best = np.flatnonzero(good)
    return rows["dia_source_id"][best[np.argsort(-key[best], kind="stable")][:20]].tolist()


def check(results: dict, tables: dict, users: int) -> None:
    """Every user has no error and gets NumPy's answer."""
    for user in range(users):
        result = results[f"user{user:03d}"]
        if result.error or result.ids.tolist() != expected(tables, user):
            raise SystemExit(f"wrong answer for user {user}: {result.error or result.ids}")


def timed(runs: int, function, *arguments) -> tuple[list[float], object]:
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        answer = function(*arguments)
        seconds.append(time.perf_counter() - start)
    return seconds, answer


def summary(seconds: list[float]) -> dict[str, float]:
    return {"median_s": round(median(seconds), 4), "min_s": round(min(seconds), 4), "max_s": round(max(seconds), 4)}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--users", type=int, default=100)
    options.add_argument("--alerts", type=int, default=10_000)
    options.add_argument("--runs", type=int, default=5)
    options.add_argument("--name", default="filters-cpu")
    chosen = options.parse_args()
    tables = visit_tables(chosen.alerts)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "filters"
        write_filters(folder, chosen.users)
        first_load, filters = timed(1, load_filters, folder)
        load, filters = timed(chosen.runs, load_filters, folder)
    check(run_filters(filters, tables), tables, chosen.users)  # also warms up
    run, results = timed(chosen.runs, run_filters, filters, tables)
    check(results, tables, chosen.users)
    endless = [Filter(user, f"{user}.sql", guarded(ENDLESS)) for user in ("endless1", "endless2")]
    with_bad, results = timed(chosen.runs, run_filters, [*endless, *filters], tables)
    check(results, tables, chosen.users)
    rows = {"load, first": first_load, "load, again": load, "run": run, "run, with two endless": with_bad}
    content = {"header": record.header("cpu"), "users": chosen.users, "alerts": chosen.alerts, "runs": chosen.runs}
    content |= {"limits": FilterConfig().model_dump(), "seconds": {name: summary(seconds) for name, seconds in rows.items()}}
    for name, row in content["seconds"].items():
        spread = f"{row['median_s']:.3f} s ({row['min_s']} to {row['max_s']})"
        print(f"{name:22s} {chosen.users} users x {chosen.alerts} alerts | {spread}")
    print(f"record: {record.write(chosen.name, content)}")


def guarded(text: str):
    from nightstream.io.alerts.filter_guard import guard

    return guard(text)


if __name__ == "__main__":
    main()
