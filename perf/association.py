"""Time the association of a visit: 10,000 DIASources with 10^6 DIAObjects, in one detector's field and in a camera's.

    python perf/association.py [--objects 1000000] [--sources 10000] [--runs 7] [--name association-cpu]

Nine sources in ten are known objects, a tenth of which move; the rest are new. Checks against the truth first, then times
`associate` (with 3,000 predictions of asteroids) and, beside it, SciPy's tree finding the same pairs. Writes
perf/records/<name>.json.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import numpy as np
import record
from scipy.spatial import cKDTree

from nightstream.engine.associate import associate
from nightstream.engine.config import AssociateConfig
from nightstream.engine.matching import object_positions, predicted_positions
from nightstream.engine.values import Table
from nightstream.kernels.sky_frames import unit_vectors
from nightstream.kernels.sky_match import sky_pairs

MJD = 61000.0
FIELDS_DEG = {"detector": 0.23, "camera": 3.1}
CONFIG = AssociateConfig(max_new_objects_per_detector=1_000_000)
N_PREDICTIONS = 3000
ERROR_ARCSEC = 0.1


def make_objects(rng: np.random.Generator, n: int, width: float) -> Table:
    """DIAObjects strewn over a square field, a tenth with a proper motion."""
    motion = np.where(rng.random(n) < 0.1, rng.normal(0, 300, (2, n)), np.nan)
    errors = {name: np.full(n, 0.03 / 3600) for name in ("ra_err", "dec_err")}
    motions = {"pm_ra": motion[0], "pm_dec": motion[1], "pm_ra_err": np.full(n, 20.0), "pm_dec_err": np.full(n, 20.0)}
    place = {"ra": rng.uniform(10, 10 + width, n), "dec": rng.uniform(-width, 0, n)}
    return {"dia_object_id": np.arange(1, n + 1), "radec_mjd_tai": np.full(n, MJD - 200)} | place | errors | motions


def make_sources(rng: np.random.Generator, objects: Table, n: int, width: float) -> tuple[Table, np.ndarray]:
    """DIASources, and the number of the object that each is, 0 for what is new."""
    n_known = n * 9 // 10
    at, who = predicted_positions(objects, MJD, CONFIG), rng.choice(len(objects["ra"]), n_known, replace=False)
    noise = rng.normal(0, ERROR_ARCSEC / 3600, (2, n_known))
    ra = np.concatenate([at["ra"][who] + noise[0], rng.uniform(10, 10 + width, n - n_known)])
    dec = np.concatenate([at["dec"][who] + noise[1], rng.uniform(-width, 0, n - n_known)])
    errors = {name: np.full(n, ERROR_ARCSEC / 3600) for name in ("ra_err", "dec_err")}
    table = {"dia_source_id": np.arange(n) + 10**9, "visit": np.full(n, 1), "detector": rng.integers(0, 189, n)}
    table |= {"ra": ra, "dec": dec, "midpoint_mjd_tai": np.full(n, MJD), "snr": np.full(n, 10.0)} | errors
    return table, np.concatenate([objects["dia_object_id"][who], np.zeros(n - n_known, np.int64)])


def make_predictions(rng: np.random.Generator, width: float) -> Table:
    """Asteroids of the field."""
    n = N_PREDICTIONS
    place = {"ra": rng.uniform(10, 10 + width, n), "dec": rng.uniform(-width, 0, n)}
    return {"ss_object_id": np.arange(1, n + 1), "mjd": np.full(n, MJD)} | place


def check(sources: Table, truth: np.ndarray, objects: Table, width: float) -> float:
    """Return the fraction of known sources that got their object; stop if it is less than crowding explains."""
    found = associate(sources, objects, CONFIG)
    known = (truth != 0) & ~found.is_duplicate
    right = float((found.dia_object_id[known] == truth[known]).mean())
    per_arcsec2 = len(objects["ra"]) / (width * 3600) ** 2
    mistaken = 5 * np.pi * ERROR_ARCSEC**2 * per_arcsec2  # others within sqrt(5) sigma
    if right < 0.998 - mistaken:
        raise SystemExit(f"wrong answer: {right:.4f} of the known sources are with their objects, wanted {0.998 - mistaken:.4f}")
    return right


def timed(function, runs: int) -> dict:
    """Seconds on the clock and of the core, over ``runs`` calls after one that warms up."""
    function()
    clock, core = [], []
    for _ in range(runs):
        start, busy = time.perf_counter(), time.process_time()
        function()
        clock.append(time.perf_counter() - start)
        core.append(time.process_time() - busy)
    return {"median_s": round(median(clock), 4), "least_s": round(min(clock), 4), "core_s": round(median(core), 4)}


def measure(name: str, width: float, n_objects: int, n_sources: int, runs: int) -> dict:
    """Check and time one field; print a line a step."""
    rng = np.random.default_rng(1)
    objects = make_objects(rng, n_objects, width)
    sources, truth = make_sources(rng, objects, n_sources, width)
    predictions = make_predictions(rng, width)
    result = {"right": round(check(sources, truth, objects, width), 5)}
    known, seen = object_positions(objects, MJD, CONFIG).vectors, unit_vectors(sources["ra"], sources["dec"])
    chord = 2 * np.sin(np.radians(0.5 / 3600))
    n_pairs = len(sky_pairs(seen, known, 1.0).first)
    if n_pairs != cKDTree(known).query_ball_point(seen, chord, return_length=True).sum():
        raise SystemExit(f"wrong answer: {n_pairs} pairs are not those of SciPy's tree")
    steps = {
        "associate": lambda: associate(sources, objects, CONFIG, ephemerides=predictions),
        "object positions": lambda: object_positions(objects, MJD, CONFIG),
        "pairs": lambda: sky_pairs(seen, known, 1.0),
        "pairs by SciPy's tree": lambda: cKDTree(known).query_ball_point(seen, chord),
    }
    for step, function in steps.items():
        result[step] = timed(function, runs)
        numbers = " ".join(f"{key} {value:.4f}" for key, value in result[step].items())
        print(f"{name:<9} {n_sources} x {n_objects} | {step:<22} | {numbers}")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", type=int, default=1_000_000)
    parser.add_argument("--sources", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--name", default="association-cpu")
    args = parser.parse_args()
    fields = {name: measure(name, width, args.objects, args.sources, args.runs) for name, width in FIELDS_DEG.items()}
    head = {"objects": args.objects, "sources": args.sources, "predictions": N_PREDICTIONS, "runs": args.runs}
    print(record.write(args.name, {"header": record.header("cpu")} | head | {"fields": fields}))


if __name__ == "__main__":
    main()
