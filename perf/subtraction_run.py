"""Subtract one prepared pair of images in a process of its own; for `subtraction.py`.

    python perf/subtraction_run.py PAIR.pickle CORES RUNS

Prints, as JSON, the core-seconds of every stage and of the whole (least of all runs after one that warms up), seconds on
the clock, the peak memory of the process, pair included, and a digest of the result. CORES are numbers within those that
the process may use, separated by commas; as many threads work.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numba
import record

from nightstream.engine import difference
from nightstream.engine.blas import use_one_blas_thread
from nightstream.engine.config import DifferenceConfig

STAGES = {
    "fit_matching_kernel": "fit",
    "convolve_image": "convolve",
    "fit_difference_background": "background",
    "decorrelation_kernels": "decorrelate",
    "decorrelate": "decorrelate",
}


def clocked(function: Callable, costs: dict[str, float], stage: str) -> Callable:
    """Return ``function`` that adds the core-seconds of its calls to ``costs[stage]``."""

    def call(*args, **options):
        busy = time.process_time()
        result = function(*args, **options)
        costs[stage] = costs.get(stage, 0.0) + time.process_time() - busy
        return result

    return call


def main() -> None:
    path, cores, runs = Path(sys.argv[1]), [int(n) for n in sys.argv[2].split(",")], int(sys.argv[3])
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[n] for n in cores})
    use_one_blas_thread()
    numba.set_num_threads(len(cores))
    with path.open("rb") as file:
        pair = pickle.load(file)
    costs: dict[str, float] = {}
    for name, stage in STAGES.items():
        setattr(difference, name, clocked(getattr(difference, name), costs, stage))
    rows = []
    for _ in range(runs + 1):
        costs.clear()
        result = None  # not two at a time
        start, busy = time.perf_counter(), time.process_time()
        result = difference.subtract_aligned(*pair, DifferenceConfig()).difference.pixels
        rows.append(costs | {"total": time.process_time() - busy, "clock": time.perf_counter() - start})
    least = {key: round(min(row[key] for row in rows[1:]), 3) for key in rows[0]}
    planes = (result.image, result.mask, result.variance)
    bits = hashlib.sha256(b"".join(plane.tobytes() for plane in planes)).hexdigest()
    print(json.dumps(least | {"peak_gib": record.peak_memory_gib(), "bits": bits}))


if __name__ == "__main__":
    main()
