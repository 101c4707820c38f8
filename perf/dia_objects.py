"""Time the columns of 10,000 DIAObjects with 40 detections and 60 forced fluxes each.

    python perf/dia_objects.py [--objects 10000] [--runs 5] [--name dia-objects-cpu]

Checks means, motions and periods against what was simulated, then times. Writes perf/records/<name>.json.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import numpy as np
import record

from nightstream.engine.config import DiaObjectConfig
from nightstream.engine.dia_objects import summarize_objects
from nightstream.engine.values import Table

NOW, DAYS, VISITS = 60400.0, 360.0, 800
DETECTIONS, FORCED = 40, 60


def history(rng: np.random.Generator, n_objects: int, rows: int, period: np.ndarray) -> Table:
    """Return fluxes of periodic variables at the times of the survey's visits, by object and time."""
    visits = NOW - np.sort(rng.uniform(0, DAYS, VISITS))[::-1]
    time_mjd = visits[np.sort(rng.integers(0, VISITS, (n_objects, rows)), axis=1)].ravel()
    n = n_objects * rows
    flux = 1000 * np.sin(2 * np.pi * time_mjd / np.repeat(period, rows)) + rng.normal(0, 100, n)
    table = {"dia_object_id": np.repeat(np.arange(1, n_objects + 1), rows), "midpoint_mjd_tai": time_mjd}
    return table | {"band": rng.choice(list("ugrizy"), n), "psf_flux": flux, "psf_flux_err": np.full(n, 100.0)}


def sources(rng: np.random.Generator, n_objects: int, period: np.ndarray) -> Table:
    """Return detections with positions good to 20 mas."""
    table = history(rng, n_objects, DETECTIONS, period)
    n = len(table["band"])
    for name, low, high in (("ra", 10.0, 13.0), ("dec", -31.0, -28.0)):
        table[name] = np.repeat(rng.uniform(low, high, n_objects), DETECTIONS)
    error = 20 / 3.6e6
    table["ra"] += rng.normal(0, error, n) / np.cos(np.radians(table["dec"]))
    table["dec"] += rng.normal(0, error, n)
    return table | {"ra_err": np.full(n, error), "dec_err": np.full(n, error), "ra_dec_cov": np.zeros(n)}


def check(table: Table, period: np.ndarray) -> None:
    """Raise AssertionError unless the answer is what was simulated."""
    assert np.mean(np.abs(table["period"] / period - 1) < 0.01) > 0.9
    pull = table["pm_dec"] / table["pm_dec_err"]
    assert abs(np.mean(pull)) < 0.1 and 0.8 < np.std(pull) < 1.1
    # the floor makes the stated errors larger than the scatter


def main() -> None:
    """Simulate, check, time, print one line per configuration, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--name", default="dia-objects-cpu")
    options = parser.parse_args()
    rng = np.random.default_rng(1)
    period = rng.uniform(0.4, 30, options.objects)
    tables = sources(rng, options.objects, period), {}
    forced = history(rng, options.objects, FORCED, period)
    forced |= {"science_flux": forced["psf_flux"] + 1e4, "science_flux_err": forced["psf_flux_err"]}
    tables = tables[0], forced
    shuffled = [{name: column[order] for name, column in table.items()} for table in tables
                for order in [rng.permutation(len(table["band"]))]]  # fmt: skip
    ids, config = np.arange(1, options.objects + 1), DiaObjectConfig()
    still = config.model_copy(update={"period_min_significance": np.inf})
    check(summarize_objects(ids, *tables, NOW, config), period)
    results = {}
    for name, given, chosen in (("all", tables, config), ("without_periods", tables, still), ("shuffled", shuffled, config)):
        clock, cores = [], []
        for _ in range(options.runs):
            start, busy = time.perf_counter(), time.process_time()
            summarize_objects(ids, *given, NOW, chosen)
            clock.append(time.perf_counter() - start)
            cores.append(time.process_time() - busy)
        results[name] = {"median_s": round(median(clock), 3), "min_s": round(min(clock), 3), "core_s": round(min(cores), 3)}
        print(f"summarize_objects {options.objects} x ({DETECTIONS} + {FORCED}) {name:16s} | {results[name]}")
    print(record.write(options.name, {"header": record.header("cpu"), "objects": options.objects, "results": results}))


if __name__ == "__main__":
    main()
